"""Indexing documents into a Chroma on disk, through each framework, with Chroma's own seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import vectors
from child import Timed
from contestants import (
    KEY,
    peer_chroma_function,
    peer_langchain_embeddings,
    peer_llama_model,
)

NAME = "documents"


class ChromasOwn:
    """Counts the seconds inside Chroma's engine, below all embedding and checking."""

    def __init__(self) -> None:
        from chromadb.api.rust import RustBindingsAPI

        self.seconds = 0.0
        for name in ("_add", "_upsert"):
            setattr(RustBindingsAPI, name, self._timed(getattr(RustBindingsAPI, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def index(spec: dict[str, Any]) -> dict[str, Any]:
    """Index documents and check what the collection then holds."""
    import chromadb

    own = ChromasOwn()
    client = chromadb.PersistentClient(spec["folder"])
    texts = vectors.texts(spec["texts"])
    way = WAYS[spec["way"]](client, spec["url"])
    with Timed() as timed:
        way(texts)
    collection = client.get_collection(NAME, embedding_function=None)
    checked = 0
    for start in range(0, collection.count(), 1000):
        part: Any = collection.get(limit=1000, offset=start, include=["documents", "embeddings"])
        # A collection with cosine distance holds its vectors scaled.
        checked += vectors.check(part["documents"], part["embeddings"], of_length_one=True)
    if checked != len(texts):
        raise AssertionError(f"{checked} documents are in the collection, not {len(texts)}")
    return {**timed.figures, "chroma": own.seconds, "checked": checked}


def _ids(texts: list[str]) -> list[str]:
    return [f"{number:08d}" for number in range(len(texts))]


Way = Callable[[list[str]], object]


def _langchain(client: Any, embedding: Any) -> Way:
    from langchain_chroma import Chroma

    return lambda texts: Chroma.from_texts(
        texts, embedding, ids=_ids(texts), client=client, collection_name=NAME
    )


def _langchain_ours(client: Any, url: str) -> Way:
    from nexusflow_integrations.langchain import NexusFlowEmbeddings

    return _langchain(client, NexusFlowEmbeddings(api_key=KEY, base_url=url))


def _langchain_peer(client: Any, url: str) -> Way:
    return _langchain(client, peer_langchain_embeddings(url))


def _llama(client: Any, model: Any, use_async: bool) -> Way:
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.chroma import ChromaVectorStore

    store = ChromaVectorStore(chroma_collection=client.create_collection(NAME))
    context = StorageContext.from_defaults(vector_store=store)

    def way(texts: list[str]) -> object:
        nodes = [TextNode(text=text, id_=id_) for text, id_ in zip(texts, _ids(texts), strict=True)]
        return VectorStoreIndex(
            nodes, storage_context=context, embed_model=model, use_async=use_async
        )

    return way


def _llama_ours(client: Any, url: str) -> Way:
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

    return _llama(client, NexusFlowEmbedding(api_key=KEY, api_base=url), use_async=False)


def _llama_peer(client: Any, url: str) -> Way:
    return _llama(client, peer_llama_model(url), use_async=False)


def _llama_peer_16(client: Any, url: str) -> Way:
    return _llama(client, peer_llama_model(url, num_workers=16), use_async=True)


def _chroma_ours(client: Any, url: str) -> Way:
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
    from nexusflow_integrations.chroma_collections import add_documents, open_collection

    function = NexusFlowEmbeddingFunction(KEY, api_base=url)
    collection = open_collection(client, NAME, function)
    return lambda texts: add_documents(collection, ids=_ids(texts), documents=texts)


def _chroma_peer(client: Any, url: str) -> Way:
    collection = client.create_collection(NAME, embedding_function=peer_chroma_function(url))

    def way(texts: list[str]) -> None:
        ids = _ids(texts)
        for start in range(0, len(texts), 10):  # more in one call is more in one request
            stop = start + 10
            collection.add(ids=ids[start:stop], documents=texts[start:stop])

    return way


WAYS: dict[str, Callable[[Any, str], Way]] = {
    "nexusflow for LangChain": _langchain_ours,
    "LangChain OpenAIEmbeddings": _langchain_peer,
    "nexusflow for LlamaIndex": _llama_ours,
    "LlamaIndex OpenAILikeEmbedding": _llama_peer,
    "LlamaIndex OpenAILikeEmbedding, async, 16 workers": _llama_peer_16,
    "nexusflow for Chroma": _chroma_ours,
    "Chroma OpenAIEmbeddingFunction, tens": _chroma_peer,
}

TASKS = {"index": index}
