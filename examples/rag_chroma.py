# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "nexusflow-integrations[chroma,local,cli]",
#   "ir-measures>=0.4.1",
#   "matplotlib>=3.9",
#   "openai>=2",
# ]
# ///
"""RAG with Chroma: index, ask, cite; and the second run pays nothing.

    python rag_chroma.py "How do I pick a random item from a list?"
    python rag_chroma.py --corpus topics "..."   # or a folder of text files

The Python reference is searched by default. The service embeds, and a chat model
writes, where NEXUSFLOW_API_KEY is set; else a small local model embeds, and passages are quoted.
"""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")  # Chroma before 1.5.3

import chromadb
import ir_measures
import matplotlib.pyplot as plt
from ir_measures import Success
from tqdm import tqdm

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import add_documents, open_collection
from nexusflow_integrations.cli.rag.corpus import Document, load
from nexusflow_integrations.cli.rag.keywords import Keywords
from nexusflow_integrations.cli.rag.questions import QUESTIONS
from nexusflow_integrations.local import LocalServer

PROMPT = "Answer from the numbered passages alone and cite them, like [1].\n\n{}\n\nQuestion: {}"


def write(prompt):
    """Stream an answer; tell whether there was one."""
    key, url = os.getenv("NEXUSFLOW_API_KEY"), os.getenv("NEXUSFLOW_BASE_URL")
    model = os.getenv("NEXUSFLOW_CHAT_MODEL", "qwen3.5-plus")
    try:
        from openai import OpenAI
    except ImportError:
        return False
    if not key or not model:
        return False
    chat = OpenAI(api_key=key, base_url=url or "https://nexusflow.vip/v1").chat.completions
    messages = [{"role": "user", "content": prompt}]
    for piece in chat.create(model=model, messages=messages, stream=True):
        if piece.choices:
            print(piece.choices[0].delta.content or "", end="", flush=True)
    print()
    return True


def score(documents, find, out):
    """Score ten hits a question beside BM25's, and draw how soon a right one comes."""
    truth = {q.text: {d.id: 1 for d in documents if q.accepts(d.source)} for q in QUESTIONS}
    truth = {question: right for question, right in truth.items() if right}
    bm25, scores = Keywords(documents), {}
    words = {
        q: [(Document(hit.text, hit.source).id, hit.score) for hit in bm25.search(q, 10)]
        for q in truth
    }
    ours = {q: [(id_, score) for id_, score, *_ in find(q, 10)] for q in truth}
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    print(f"\n{len(truth):6} questions", *(f"  hit@{k}" for k in (1, 3, 5)))
    for way, found in (("BM25", words), ("embeddings", ours)):
        run = {question: dict(hits) for question, hits in found.items()}
        row = ir_measures.calc_aggregate([Success @ k for k in range(1, 11)], truth, run)
        scores[way] = [float(row[Success @ k]) for k in range(1, 11)]
        print(f"{way:>16}", *(f"{scores[way][k - 1]:7.2f}" for k in (1, 3, 5)))
        axes.plot(range(1, 11), scores[way], "o-", label=way)
    axes.set(title="RAG with Chroma: the Python reference", ylim=(0, 1.03))
    axes.set(xlabel="k passages read", ylabel="questions answered by one of them (hit@k)")
    axes.legend()
    figure.savefig(out, dpi=110)
    return scores


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("question", nargs="?", default="How do I pick a random item from a list?")
    parser.add_argument("--corpus", default="stdlib", help="stdlib, topics, or a folder")
    parser.add_argument("--limit", type=int, help="the most documents")
    parser.add_argument("--store", default="rag_chroma", help="folder that keeps the index")
    parser.add_argument("--port", type=int, default=8799, help="of the local server")
    parser.add_argument("--out", default="rag_chroma.png", help="the picture")
    args = parser.parse_args(argv)
    documents = load(args.corpus, args.limit).documents
    with nullcontext() if os.getenv("NEXUSFLOW_API_KEY") else LocalServer(port=args.port) as server:
        service = {"api_key": server.api_key, "api_base": server.base_url} if server else {}
        function = NexusFlowEmbeddingFunction(**service, cache=f"{args.store}.sqlite3")
        # A collection for each source of vectors: those of two models must never meet.
        name = f"{'local' if server else 'nexusflow'}-{Path(args.corpus).name}"
        collection = open_collection(
            chromadb.PersistentClient(Path(args.store).resolve()), name, function
        )
        with tqdm(total=len(documents), unit="text", desc="indexing") as bar:
            add_documents(
                collection,
                ids=[d.id for d in documents],
                documents=[d.text for d in documents],
                metadatas=[{"source": d.source, "url": d.url} for d in documents],
                progress=bar.update,
            )
        paid = function.usage
        print(f"paid for the index: {paid.tokens} tokens, {paid.cost:.4f} CNY")

        def find(question, k):
            found = collection.query(query_texts=[question], n_results=k)
            columns = (found[name][0] for name in ("ids", "distances", "metadatas", "documents"))
            return [
                (id_, 1 - distance, about["source"], text, about["url"])
                for id_, distance, about, text in zip(*columns, strict=True)
            ]

        hits = find(args.question, 3)
        passages = "\n\n".join(f"[{n}] {hit[2]}\n{hit[3]}" for n, hit in enumerate(hits, 1))
        print(f"\n{args.question}\n")
        if not write(PROMPT.format(passages, args.question)):
            print(passages)  # without a chat model the passages speak for themselves
        print("", *(f"[{n}] {hit[4] or hit[2]}" for n, hit in enumerate(hits, 1)), sep="\n")
        scores = score(documents, find, args.out) if args.corpus == "stdlib" else {}
        paid = function.usage
        print(f"\npaid in all: {paid.tokens} tokens, {paid.cost:.4f} CNY, {paid.cached} cached")
        return {"scores": scores, "tokens": paid.tokens, "answer": passages}


if __name__ == "__main__":
    main()
