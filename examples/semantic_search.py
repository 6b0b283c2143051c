# /// script
# requires-python = ">=3.10"
# dependencies = ["nexusflow-integrations[local,cli]", "ir-measures>=0.4.1", "matplotlib>=3.9"]
# ///
"""Semantic search compared with BM25 and a hybrid of both, and the effect of fewer dimensions.

    python semantic_search.py                                 # the docstrings of your Python
    python semantic_search.py --data xquad.zh.json            # of two files, the first asks
    python semantic_search.py --data clinc150_data_full.json
    python semantic_search.py --data banking77_train.csv banking77_test.csv

XQuAD: github.com/google-deepmind/xquad (CC BY-SA 4.0). CLINC150: github.com/clinc/oos-eval (CC BY
3.0). Banking77: github.com/PolyAI-LDN/task-specific-datasets (CC BY 4.0). Uses the service if
NEXUSFLOW_API_KEY is set, otherwise a small local model. BM25 and the questions are part of this
package.
"""

import argparse
import csv
import json
import os
from contextlib import nullcontext
from pathlib import Path

import ir_measures
import matplotlib.pyplot as plt
import numpy as np
from ir_measures import P, R, nDCG

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.cli.rag.corpus import Document, stdlib
from nexusflow_integrations.cli.rag.keywords import Keywords
from nexusflow_integrations.cli.rag.questions import QUESTIONS
from nexusflow_integrations.local import LocalServer

SIZES = [2048, 1536, 1024, 768, 512, 256, 128, 64]
MEASURES = [nDCG @ 10, R @ 10, P @ 10]


def load(paths, limit):
    """Return documents, and pairs of a question and a function that accepts the right sources."""
    if not paths:
        return stdlib(limit or 500).documents, [(q.text, q.accepts) for q in QUESTIONS]
    if "xquad" in paths[0].name:
        asks, tells = (json.loads(p.read_text("utf-8"))["data"] for p in (paths[0], paths[-1]))
        pages = [page for article in asks for page in article["paragraphs"]][:limit]
        asked = [(qa["question"], str(i)) for i, page in enumerate(pages) for qa in page["qas"]]
        pages = [page for article in tells for page in article["paragraphs"]][:limit]
        known = [(page["context"], str(i)) for i, page in enumerate(pages)]
    else:  # sentences labelled with an intent: a correct answer has the same intent
        if paths[0].suffix == ".json":
            both = json.loads(paths[0].read_text("utf-8"))
            known, asked = both["train"][::3], both["test"][::2]
        else:
            known, asked = ([*csv.reader(path.open(encoding="utf-8"))][1::2] for path in paths)
        known, asked = known[:limit], asked[:limit]
    return [Document(*item) for item in known], [(text, label.__eq__) for text, label in asked]


def nearest(documents, rows, questions, asked, most=100):
    """Return the nearest documents of each question, with their cosines."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = asked / np.linalg.norm(asked, axis=1, keepdims=True) @ rows.T
    best = np.argsort(-cosines, axis=1)[:, :most]
    found = [
        {documents[i].id: float(row[i]) for i in top}
        for top, row in zip(best, cosines, strict=True)
    ]
    return dict(zip(questions, found, strict=True))


def fused(*runs):
    """Reciprocal rank fusion: Cormack, Clarke, Büttcher, SIGIR 2009."""
    merged = {}
    for run in runs:
        for rank, name in enumerate(sorted(run, key=run.get, reverse=True), 1):
            merged[name] = merged.get(name, 0) + 1 / (60 + rank)
    return merged


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", help="the files of a data set")
    parser.add_argument("--limit", type=int, help="maximum documents and questions")
    parser.add_argument("--out", default="semantic_search.png", help="the picture")
    args = parser.parse_args(argv)
    if not Path(args.out).parent.is_dir():
        parser.error(f"--out: there is no folder {str(Path(args.out).parent)!r}")
    try:
        documents, questions = load(args.data, args.limit)
    except OSError as error:
        parser.error(f"--data: {error.filename}: {error.strerror}")
    except (ValueError, LookupError, TypeError) as error:
        parser.error(f"--data is not a data set that this example reads: {error!r}")
    truth = {text: {} for text, _ in questions}
    for text, accepts in questions:  # the same question may have answers in several documents
        truth[text] |= {d.id: 1 for d in documents if accepts(d.source)}
    questions = [text for text, right in truth.items() if right]

    with nullcontext() if os.getenv("NEXUSFLOW_API_KEY") else LocalServer() as server:
        service = {"api_key": server.api_key, "base_url": server.base_url} if server else {}
        client = NexusFlow(**service, dimensions=SIZES[0])
        where = f"the local model {server.model}" if server else client.base_url
        print(
            f"embedding {len(documents)} texts and {len(questions)} questions with {where} …",
            flush=True,
        )
        rows = client.embed([d.text for d in documents])
        asked = client.embed(questions, role="query")
        small = NexusFlow(**service, dimensions=64).embed(questions[0], role="query")
    same = float(asked[0, :64] @ small / np.linalg.norm(asked[0, :64]))
    print(f"{len(documents)} documents, {len(questions)} questions, {client.usage.tokens} tokens,")
    print(f"{client.usage.cost:.4f} {client.usage.price.currency} at the service's price;", end=" ")
    print(f"64 dimensions requested or truncated to 64: cosine {same:.4f}")

    bm25 = Keywords(documents)
    hits = {text: bm25.search(text, 100) for text in questions}
    runs = {
        "BM25": {q: {Document(p.text, p.source).id: p.score for p in hits[q]} for q in questions},
        "embeddings": nearest(documents, rows, questions, asked),
    }
    runs["hybrid"] = {q: fused(runs["BM25"][q], runs["embeddings"][q]) for q in questions}
    cuts = {k: nearest(documents, rows[:, :k], questions, asked[:, :k], 10) for k in SIZES}
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    scores, curves = {}, {}
    for color, language in (("C0", "en"), ("C1", "zh")):
        written = [q for q in questions if (language == "zh") == any("一" <= c <= "鿿" for c in q)]
        if not written:
            continue
        qrels = {text: truth[text] for text in written}
        print(f"\n{len(written):5} questions, {language}", *(f"{m!s:>9}" for m in MEASURES))
        for method, run in runs.items():
            row = ir_measures.calc_aggregate(MEASURES, qrels, run)
            print(f"{method:>20}", *(f"{row[m]:9.3f}" for m in MEASURES))
            scores[language, method] = {str(m): row[m] for m in MEASURES}
        curve = [ir_measures.calc_aggregate(MEASURES, qrels, cuts[k])[nDCG @ 10] for k in SIZES]
        curves[language] = dict(zip(SIZES, curve, strict=True))
        axes.plot(SIZES, curve, "o-", color=color, label=f"embeddings, {language}")
        for method, line in (("BM25", ":"), ("hybrid", "--")):
            height = scores[language, method]["nDCG@10"]
            axes.axhline(height, ls=line, color=color, label=f"{method}, {language}")
    found = list(runs["embeddings"][questions[0]])[:3]
    print(f"\n{questions[0]}", *(d.text[:75] for d in documents if d.id in found), sep="\n  > ")
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, SIZES)
    axes.set(xlabel="dimensions", ylabel="nDCG@10", ylim=(-0.03, 1.03))
    axes.set_title("The effect of fewer dimensions")
    axes.legend(ncols=2)
    figure.savefig(args.out, dpi=110)
    print(f"\nwritten to {Path(args.out).resolve()}")
    return {"scores": scores, "curves": curves, "same": same}


if __name__ == "__main__":
    main()
