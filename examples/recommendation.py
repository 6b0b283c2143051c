# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "nexusflow-integrations[local,cli]",
#   "ir-measures>=0.4.1", "matplotlib>=3.9", "scikit-learn>=1.5",
# ]
# ///
"""Recommend what to read next: pages of Python's reference, with pydoc's links as ground truth.

    python recommendation.py                  # what to read after help("while")?
    python recommendation.py --reader class

The authors of pydoc decided which pages are related; ``help()`` shows them below each page. Uses
the service if NEXUSFLOW_API_KEY is set, otherwise a small local model.
"""

import argparse
import os
import random
import re
import textwrap
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from pydoc import Helper
from pydoc_data.topics import topics

import ir_measures
import matplotlib.pyplot as plt
import numpy as np
from ir_measures import Success, nDCG
from sklearn.manifold import TSNE

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.cli.rag.corpus import Document
from nexusflow_integrations.cli.rag.keywords import Keywords
from nexusflow_integrations.local import LocalServer

MEASURES = {"hit@5": Success @ 5, "hit@10": Success @ 10, "nDCG@10": nDCG @ 10}
HELP = Helper.keywords | Helper.topics


def page(name):
    """Return the page that ``help(name)`` shows; some names only refer to another page."""
    while isinstance(HELP.get(name), str) and HELP[name]:
        name = HELP[name]
    return (HELP.get(name) or (name,))[0]


def related():
    """Return the related pages of each page, according to pydoc."""
    found = {}
    for name, entry in HELP.items():
        others = {page(other) for other in entry[1].split()} if isinstance(entry, tuple) else set()
        if (own := page(name)) in topics and (others := (others & topics.keys()) - {own}):
            found.setdefault(own, {}).update(dict.fromkeys(sorted(others), 1))
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reader", default="while", help="the page that was read")
    parser.add_argument("--limit", type=int, default=6, help="passages to embed per page")
    parser.add_argument("--out", default="recommendation.png", help="the picture")
    args = parser.parse_args(argv)
    if not Path(args.out).parent.is_dir():
        parser.error(f"--out: there is no folder {str(Path(args.out).parent)!r}")
    truth = related()
    if args.reader not in truth:
        parser.error(f"--reader must be one of {', '.join(sorted(truth))}, not {args.reader!r}")
    pages = sorted(truth.keys() | {name for right in truth.values() for name in right})
    plain = {name: re.sub(r"[-=*~^]{3,}", " ", topics[name]) for name in pages}  # no underlines
    passages = {name: textwrap.wrap(text, 500)[: args.limit] for name, text in plain.items()}

    with nullcontext() if os.getenv("NEXUSFLOW_API_KEY") else LocalServer() as server:
        service = {"api_key": server.api_key, "base_url": server.base_url} if server else {}
        client = NexusFlow(**service)
        texts = [text for name in pages for text in passages[name]]
        where = f"the local model {server.model}" if server else client.base_url
        print(f"embedding {len(texts)} texts with {where} …", flush=True)
        rows = client.embed(texts)
    starts = np.cumsum([0] + [len(passages[name]) for name in pages[:-1]])
    means = np.add.reduceat(np.asarray(rows), starts)  # a page is the mean of its passages
    means /= np.linalg.norm(means, axis=1, keepdims=True)

    cosines = dict(zip(pages, means @ means.T, strict=True))
    bm25 = Keywords([Document(" ".join(passages[name]), name) for name in pages])
    named = Counter(name for right in truth.values() for name in right)
    chance = random.Random(0)
    runs = {way: {} for way in ("random", "popularity", "BM25", "embeddings")}
    for reader, right in truth.items():
        words = {p.source: p.score for p in bm25.search(" ".join(passages[reader]), len(pages))}
        others = [name for name in pages if name != reader]
        runs["random"][reader] = {name: chance.random() for name in others}
        # How often other pages link to a page; the reader's own links are the ground truth.
        runs["popularity"][reader] = {name: named[name] - (name in right) for name in others}
        runs["BM25"][reader] = {name: words.get(name, 0) for name in others}
        row = dict(zip(pages, map(float, cosines[reader]), strict=True))
        runs["embeddings"][reader] = {name: row[name] for name in others}

    print(f"{len(truth)} readers, {len(pages)} pages, {client.usage.tokens} tokens\n")
    print(" " * 12, *(f"{name:>8}" for name in MEASURES))
    scores = {}
    for way, run in runs.items():
        row = ir_measures.calc_aggregate(MEASURES.values(), truth, run)
        scores[way] = {name: row[measure] for name, measure in MEASURES.items()}
        print(f"{way:>12}", *(f"{value:8.3f}" for value in scores[way].values()))
    best = sorted(runs["embeddings"][args.reader].items(), key=lambda item: -item[1])[:8]
    print(f"\nafter help({args.reader!r}) read (x: also linked by pydoc)")
    for name, cosine in best:
        print(f"  {cosine:.2f} {'x' if name in truth[args.reader] else ' '} {name}")

    flat = TSNE(metric="cosine", init="random", perplexity=10, random_state=0)
    places = dict(zip(pages, flat.fit_transform(means), strict=True))
    figure, axes = plt.subplots(figsize=(10, 7.5), layout="constrained")
    for reader, right in truth.items():
        for name in right:
            axes.plot(
                *zip(places[reader], places[name], strict=True), color="C1", lw=0.6, alpha=0.5
            )
    for name, place in places.items():
        weight = "bold" if name == args.reader else "normal"
        axes.annotate(name, place, ha="center", va="center", size=8, weight=weight)
    axes.set_title("Pages by meaning; lines: pydoc's links")
    axes.set_axis_off()
    figure.savefig(args.out, dpi=110)
    print(f"\nwritten to {Path(args.out).resolve()}")
    return {"scores": scores, "list": [name for name, _ in best]}


if __name__ == "__main__":
    main()
