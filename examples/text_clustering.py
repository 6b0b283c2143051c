# /// script
# requires-python = ">=3.10"
# dependencies = ["nexusflow-integrations[local]", "matplotlib>=3.9", "scikit-learn>=1.5"]
# ///
"""Cluster texts by meaning, name each cluster by its most distinctive words, and draw a map.

    python text_clustering.py                                  # docstrings, labelled by module
    python text_clustering.py --data clinc150_data_full.json   # or banking77_test.csv

CLINC150: github.com/clinc/oos-eval, data/data_full.json (CC BY 3.0). Banking77:
github.com/PolyAI-LDN/task-specific-datasets (CC BY 4.0). Uses the service if NEXUSFLOW_API_KEY is
set, otherwise a small local model.
"""

import argparse
import csv
import json
import os
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.cli.rag.corpus import stdlib
from nexusflow_integrations.local import LocalServer

MODULES = {
    "calendar",
    "hashlib",
    "itertools",
    "logging",
    "math",
    "random",
    "re",
    "shutil",
    "socket",
}
MODULES |= {"statistics", "threading", "urllib.parse"}


def load(path, limit):
    """Return pairs of a text and its label, for the first ``limit`` labels."""
    if not path:  # the text without its name, which would reveal the module
        parts = [
            (d.text.partition(": ")[2], d.source.rpartition(".")[0]) for d in stdlib(None).documents
        ]
        pairs = [(text, module) for text, module in parts if module in MODULES]
    elif path.suffix == ".json":
        pairs = json.loads(path.read_text("utf-8"))["test"][::2]
    else:
        pairs = [*csv.reader(path.open(encoding="utf-8"))][1::2]
    kept = list(dict.fromkeys(label for _, label in pairs))[:limit]
    return zip(*[(text, label) for text, label in pairs if label in kept], strict=True)


def names(texts, clusters):
    """Return the three most distinctive words of each cluster: TF-IDF over whole clusters."""
    joined = [
        " ".join(t for t, c in zip(texts, clusters, strict=True) if c == k)
        for k in range(max(clusters) + 1)
    ]
    words = TfidfVectorizer(stop_words="english", sublinear_tf=True, token_pattern=r"[^\W\d_]{3,}")
    weights = words.fit_transform(joined).toarray()
    vocabulary = words.get_feature_names_out()
    return [" ".join(vocabulary[np.argsort(-row)[:3]]) for row in weights]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the file of CLINC150 or Banking77")
    parser.add_argument("--limit", type=int, help="maximum number of labels")
    parser.add_argument("--out", default="text_clustering.png", help="the picture")
    args = parser.parse_args(argv)
    if not Path(args.out).parent.is_dir():
        parser.error(f"--out: there is no folder {str(Path(args.out).parent)!r}")
    try:
        texts, labels = load(args.data, args.limit)
    except OSError as error:
        parser.error(f"--data: {error.filename}: {error.strerror}")
    except (ValueError, LookupError, TypeError) as error:
        parser.error(f"--data is not a data set that this example reads: {error!r}")

    with nullcontext() if os.getenv("NEXUSFLOW_API_KEY") else LocalServer() as server:
        service = {"api_key": server.api_key, "base_url": server.base_url} if server else {}
        client = NexusFlow(**service)
        where = f"the local model {server.model}" if server else client.base_url
        print(f"embedding {len(texts)} texts with {where} …", flush=True)
        rows = np.asarray(client.embed(texts))
    words = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit_transform(texts)
    count, tries = len(set(labels)), 20 if len(texts) < 1000 else 5
    print(f"{len(texts)} texts with {count} labels, {client.usage.tokens} tokens")
    print(f"{'k-means on':>12}    NMI    ARI")
    scores, found = {}, {}
    for way, points in {"TF-IDF": words, "embeddings": rows}.items():
        found[way] = KMeans(count, n_init=tries, random_state=0).fit_predict(points)
        nmi = normalized_mutual_info_score(labels, found[way])
        scores[way] = {"NMI": nmi, "ARI": adjusted_rand_score(labels, found[way])}
        print(f"{way:>12} {nmi:6.3f} {scores[way]['ARI']:6.3f}")
    clusters = found["embeddings"]
    called = names(texts, clusters)
    print("\n  size  most distinctive words             main label")
    inside = [Counter(np.array(labels)[clusters == k]) for k in range(count)]
    largest = sorted(range(count), key=lambda k: -inside[k].total())[:15]
    for k in largest:
        (label, most), size = inside[k].most_common(1)[0], inside[k].total()
        print(f"{size:6}  {called[k][:34]:34} {label} {most / size:.0%}")

    places = TSNE(metric="cosine", init="random", random_state=0).fit_transform(rows)
    figure, axes = plt.subplots(figsize=(9, 7), layout="constrained")
    for n, label in enumerate(sorted(set(labels))):
        color = plt.get_cmap("tab20")(n % 20)
        axes.scatter(*places[np.array(labels) == label].T, color=color, s=14, label=label)
    if count <= 20:
        axes.legend(title="true label")
    for k in largest:
        middle = np.median(places[clusters == k], axis=0)
        axes.annotate(called[k], middle, ha="center", weight="bold", size=8).set_bbox(
            {"facecolor": "white", "alpha": 0.7, "edgecolor": "none"}
        )
    axes.set_title(
        f"Colour: the true label; words: of the clusters. NMI {scores['embeddings']['NMI']:.2f}"
    )
    axes.set_axis_off()
    figure.savefig(args.out, dpi=110)
    print(f"\nwritten to {Path(args.out).resolve()}")
    return scores | {"names": called}


if __name__ == "__main__":
    main()
