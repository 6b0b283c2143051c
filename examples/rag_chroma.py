# /// script
# requires-python = ">=3.10"
# dependencies = ["nexusflow-integrations[chroma,local,cli]", "openai>=2"]
# ///
"""RAG with Chroma: keep a collection equal to a folder, ask, cite sources.

    python rag_chroma.py "How do I pick a random item from a list?" --folder notes

Without --folder it reads the docstrings of Python's standard library. If NEXUSFLOW_API_KEY is set,
the service embeds and a chat model (NEXUSFLOW_CHAT_MODEL) writes the answer. Otherwise a small
local model embeds, and the passages are shown.
"""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")  # Chroma before 1.5.3

import chromadb

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection, sync_documents
from nexusflow_integrations.cli.rag.corpus import CorpusError, load
from nexusflow_integrations.local import CannotListenError, LocalServer

PROMPT = "Answer from the numbered passages alone and cite them, like [1].\n\n{}\n\nQuestion: {}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("question", nargs="?", default="How do I pick a random item from a list?")
    parser.add_argument("--folder", default="stdlib", help="a folder of text files")
    parser.add_argument("--store", default="rag_chroma", help="folder of the collection")
    parser.add_argument("--port", type=int, default=8799, help="port of the local server")
    args = parser.parse_args(argv)
    key = os.getenv("NEXUSFLOW_API_KEY")
    try:
        passages = load(args.folder).documents
    except CorpusError as error:
        parser.error(str(error))
    with ExitStack() as stack:
        try:
            server = None if key else stack.enter_context(LocalServer(port=args.port))
        except CannotListenError as error:
            parser.error(str(error))
        service = {"api_key": server.api_key, "api_base": server.base_url} if server else {}
        where = f"the local model {server.model}" if server else "the service"
        print(f"embedding {len(passages)} passages with {where} …", flush=True)
        function = NexusFlowEmbeddingFunction(**service)
        client = chromadb.PersistentClient(Path(args.store).resolve())
        # One collection per model, because vectors of two models cannot be compared.
        collection = open_collection(client, "nexusflow" if key else "local", function)
        done = sync_documents(
            collection,
            ids=[p.id for p in passages],
            documents=[p.text for p in passages],
            metadatas=[{"source": p.url or p.source} for p in passages],
        )
        print(f"{done.added} added, {done.removed} removed, {done.usage.tokens} tokens sent")
        found = collection.query(query_texts=[args.question], n_results=3)
    context = "\n\n".join(f"[{n}] {text}" for n, text in enumerate(found["documents"][0], 1))
    answer = context
    if key:
        from openai import OpenAI

        url = os.getenv("NEXUSFLOW_BASE_URL", "https://nexusflow.vip/v1")
        chat = OpenAI(api_key=key, base_url=url).chat.completions
        prompt = PROMPT.format(context, args.question)
        model = os.getenv("NEXUSFLOW_CHAT_MODEL", "qwen3.5-plus")
        written = chat.create(model=model, messages=[{"role": "user", "content": prompt}])
        answer = written.choices[0].message.content
    print(f"\n{args.question}\n\n{answer}\n")
    for number, about in enumerate(found["metadatas"][0], 1):
        print(f"[{number}] {about['source']}")
    return {"tokens": done.usage.tokens, "answer": answer}


if __name__ == "__main__":
    main()
