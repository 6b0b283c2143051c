"""Index a corpus in Chroma through one framework, with a cache file; run by test_resume.py.

python index_corpus.py FRAMEWORK BASE_URL API_KEY CACHE FOLDER COUNT
"""

from __future__ import annotations

import sys
from typing import Any

import chromadb


def main() -> None:
    framework, url, key, cache, folder, count = sys.argv[1:]
    texts = [f"document number {number}" for number in range(int(count))]
    ids = [str(number) for number in range(len(texts))]
    options: dict[str, Any] = {"api_key": key, "dimensions": 64, "cache": cache}
    client = chromadb.PersistentClient(folder)
    if framework == "langchain":
        from langchain_chroma import Chroma

        from nexusflow_integrations.langchain import NexusFlowEmbeddings

        embeddings = NexusFlowEmbeddings(base_url=url, **options)
        store = Chroma(client=client, collection_name="corpus", embedding_function=embeddings)
        store.add_texts(texts, ids=ids)
        usage = embeddings.usage
    elif framework == "llama_index":
        from llama_index.core import StorageContext, VectorStoreIndex
        from llama_index.core.schema import TextNode
        from llama_index.vector_stores.chroma import ChromaVectorStore

        from nexusflow_integrations.llama_index import NexusFlowEmbedding

        model = NexusFlowEmbedding(api_base=url, **options)
        vectors = ChromaVectorStore(chroma_collection=client.get_or_create_collection("corpus"))
        VectorStoreIndex(
            [TextNode(text=text, id_=place) for text, place in zip(texts, ids, strict=True)],
            storage_context=StorageContext.from_defaults(vector_store=vectors),
            embed_model=model,
        )
        usage = model.usage
    else:
        from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

        function = NexusFlowEmbeddingFunction(api_base=url, **options)
        collection = client.get_or_create_collection("corpus", embedding_function=function)
        collection.add(ids=ids, documents=texts)
        usage = function.usage
    print(client.get_collection("corpus").count(), usage.cached, usage.repaid)


if __name__ == "__main__":
    main()
