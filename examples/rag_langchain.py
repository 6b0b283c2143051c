# /// script
# requires-python = ">=3.10"
# dependencies = ["nexusflow-integrations[langchain,local,cli]", "langchain-openai>=1.0,<2"]
# ///
"""RAG with LangChain: index, ask, cite sources. The second run pays nothing.

    python rag_langchain.py "How do I pick a random item from a list?" --folder notes

Without --folder it reads the docstrings of Python's standard library. If NEXUSFLOW_API_KEY is set,
the service embeds and a chat model (NEXUSFLOW_CHAT_MODEL) writes the answer. Otherwise a small
local model embeds, and the passages are shown.
"""

import argparse
import os
from contextlib import ExitStack

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from nexusflow_integrations.cli.rag.corpus import CorpusError, load
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import CannotListenError, LocalServer

PROMPT = "Answer from the numbered passages alone and cite them, like [1].\n\n{}\n\nQuestion: {}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("question", nargs="?", default="How do I pick a random item from a list?")
    parser.add_argument("--folder", default="stdlib", help="a folder of text files")
    parser.add_argument("--cache", default="rag_langchain.sqlite3", help="the cache file")
    parser.add_argument("--port", type=int, default=8799, help="port of the local server")
    args = parser.parse_args(argv)
    key = os.getenv("NEXUSFLOW_API_KEY")
    try:
        passages = load(args.folder).documents
    except CorpusError as error:
        parser.error(str(error))
    documents = [
        Document(id=p.id, page_content=p.text, metadata={"source": p.url or p.source})
        for p in passages
    ]
    with ExitStack() as stack:
        try:
            server = None if key else stack.enter_context(LocalServer(port=args.port))
        except CannotListenError as error:
            parser.error(str(error))
        service = {"api_key": server.api_key, "base_url": server.base_url} if server else {}
        where = f"the local model {server.model}" if server else "the service"
        print(f"embedding {len(passages)} passages with {where} …", flush=True)
        embeddings = NexusFlowEmbeddings(**service, cache=args.cache)
        # The store is in memory, but the vectors are in the cache, so the next run pays nothing.
        store = InMemoryVectorStore(embeddings)
        store.add_documents(documents)
        print(f"{embeddings.usage.tokens} tokens sent, {embeddings.usage.cached} texts cached")
        hits = store.similarity_search(args.question, 3)
    context = "\n\n".join(f"[{n}] {hit.page_content}" for n, hit in enumerate(hits, 1))
    answer = context
    if key:
        from langchain_openai import ChatOpenAI

        url = os.getenv("NEXUSFLOW_BASE_URL", "https://nexusflow.vip/v1")
        model = os.getenv("NEXUSFLOW_CHAT_MODEL", "qwen3.5-plus")
        chat = ChatOpenAI(model=model, api_key=key, base_url=url)
        answer = chat.invoke(PROMPT.format(context, args.question)).text
    print(f"\n{args.question}\n\n{answer}\n")
    for number, hit in enumerate(hits, 1):
        print(f"[{number}] {hit.metadata['source']}")
    return {"tokens": embeddings.usage.tokens, "answer": answer}


if __name__ == "__main__":
    main()
