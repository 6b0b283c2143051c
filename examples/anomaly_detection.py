# /// script
# requires-python = ">=3.10"
# dependencies = ["nexusflow-integrations[local]", "matplotlib>=3.9", "scikit-learn>=1.5"]
# ///
"""Find texts that are far from all known texts, and compare embeddings with TF-IDF.

    python anomaly_detection.py                                  # docstrings about numbers
    python anomaly_detection.py --data clinc150_data_full.json   # out of scope

CLINC150: github.com/clinc/oos-eval, data/data_full.json (CC BY 3.0). Uses the service if
NEXUSFLOW_API_KEY is set, otherwise a small local model.
"""

import argparse
import json
import os
from contextlib import nullcontext
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import RocCurveDisplay, precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.cli.rag.corpus import stdlib
from nexusflow_integrations.local import LocalServer

FAMILY = {"cmath", "decimal", "fractions", "math", "random", "statistics"}


def load(path, limit):
    """Return known texts, new texts in scope, and texts out of scope."""
    if path:
        sets = json.loads(path.read_text("utf-8"))
        parts = sets["train"][::3], sets["test"][::2], sets["oos_test"][::2]
        # Both lists are sorted by intent, so a smaller run takes every n-th text.
        return [[text for text, _ in part[:: -(-len(part) // (limit or 10**6))]] for part in parts]
    split = [(d.source.rpartition("."), d.text.partition(": ")[2]) for d in stdlib(None).documents]
    family = [text for (module, _, _), text in split if module in FAMILY]
    others = [text for (module, _, _), text in split if module not in FAMILY]
    return family[::2][:limit], family[1::2][:limit], others[:: len(others) // 40][:limit]


def distance(known, new):
    """Return the distance of each row to its nearest known text: 1 - cosine."""
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(known)
    return nearest.kneighbors(new)[0][:, 0]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the file of CLINC150")
    parser.add_argument("--limit", type=int, help="maximum texts per kind")
    parser.add_argument("--out", default="anomaly_detection.png", help="the picture")
    args = parser.parse_args(argv)
    if not Path(args.out).parent.is_dir():
        parser.error(f"--out: there is no folder {str(Path(args.out).parent)!r}")
    try:
        known, alike, strange = load(args.data, args.limit)
    except OSError as error:
        parser.error(f"--data: {error.filename}: {error.strerror}")
    except (ValueError, LookupError, TypeError) as error:
        parser.error(f"--data is not a data set that this example reads: {error!r}")
    new = alike + strange
    truth = np.repeat([False, True], [len(alike), len(strange)])

    with nullcontext() if os.getenv("NEXUSFLOW_API_KEY") else LocalServer() as server:
        service = {"api_key": server.api_key, "base_url": server.base_url} if server else {}
        client = NexusFlow(**service)
        where = f"the local model {server.model}" if server else client.base_url
        print(f"embedding {len(known) + len(new)} texts with {where} …", flush=True)
        far = {"embeddings": distance(client.embed(known), client.embed(new))}
    words = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit(known)
    far["TF-IDF"] = distance(words.transform(known), words.transform(new))

    print(f"{len(known)} known texts; new: {len(alike)} in scope, {len(strange)} out of scope")
    print(f"{client.usage.tokens} tokens, {client.usage.cost:.4f} CNY at the service's price\n")
    counts, scores = (10, len(strange)), {}
    print(" " * 12, "  AUROC", *(f"precision@{k}" for k in counts))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for way, values in far.items():
        order = np.argsort(-values)
        found = [precision_score(truth[order[:k]], np.ones(min(k, len(new)))) for k in counts]
        scores[way] = {"AUROC": roc_auc_score(truth, values), "precision": found}
        print(f"{way:>12} {scores[way]['AUROC']:7.3f}", *(f"{p:12.2f}" for p in found))
        RocCurveDisplay.from_predictions(truth, values, name=way, ax=right)
    print("\nthe ten farthest by embeddings (x: out of scope)")
    for n in np.argsort(-far["embeddings"])[:10]:
        print(f"  {far['embeddings'][n]:.2f} {'x' if truth[n] else ' '} {new[n][:75]}")

    halves = [far["embeddings"][~truth], far["embeddings"][truth]]
    left.hist(halves, bins=30, label=["in scope", "out of scope"], stacked=True)
    left.set(xlabel="distance to the nearest known text (1 - cosine)", ylabel="texts")
    left.set_title("Distance to the known texts")
    left.legend()
    right.set_title("ROC curve for texts out of scope")
    figure.savefig(args.out, dpi=110)
    print(f"\nwritten to {Path(args.out).resolve()}")
    return scores


if __name__ == "__main__":
    main()
