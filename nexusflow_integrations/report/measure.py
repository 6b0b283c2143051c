"""Measurements of a set of vectors: map, groups, neighbours, near-duplicates, outliers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nexusflow_integrations._core.needed import needed

Projection = Literal["auto", "pca", "tsne", "umap"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

NEIGHBOURS = 6
GROUPS = 12
BINS = 40
_PAIRS = 20_000
_TSNE_AT_MOST = 2000
"""t-SNE takes about ten seconds for this many points."""
_REDUCED = 50
_SEED = 7

_FILLERS = {"does", "did", "doing"}  # missing in scikit-learn's list of stop words
_WORD = re.compile(r"[^\W\d_]+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+")


@dataclass(frozen=True)
class Grouping:
    """The group of each point: ``of`` holds indices into ``names``; the largest group is first."""

    label: str
    names: list[str]
    of: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of each point, nearest first.

    ``places`` holds their indices, ``scores`` their cosines; both have shape (n, k).
    """

    places: Integers
    scores: Floats


def unit(vectors: Floats) -> Floats:
    """Return the rows scaled to length 1; rows of zeros are unchanged."""
    clean = np.nan_to_num(vectors.astype(np.float32, copy=False))
    lengths = np.linalg.norm(clean, axis=1, keepdims=True)
    found: Floats = (clean / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return found


def project(vectors: Floats, projection: Projection) -> tuple[Floats, str]:
    """Return points of shape (n, 2), each axis from 0 to 1, and the name of the method."""
    count = len(vectors)
    if projection == "auto":
        projection = "pca"
        if count >= 12:
            small = count <= _TSNE_AT_MOST
            projection = "umap" if find_spec("umap") else "tsne" if small else "pca"
    if projection == "umap":
        with needed("The UMAP projection", "umap", install="umap-learn"):
            umap: Any = import_module("umap")
        points = umap.UMAP(metric="cosine", random_state=_SEED).fit_transform(vectors)
        return _fit(points), "UMAP"
    if projection == "tsne" and count >= 4:
        manifold = _sklearn("manifold")
        low = reduced(vectors)
        tsne = manifold.TSNE(perplexity=min(30, (count - 1) / 3), init="pca", random_state=_SEED)
        # Its threads synchronise a thousand times a second; on a busy machine that is 8 x slower.
        with import_module("threadpoolctl").threadpool_limits(1):
            points = tsne.fit_transform(low)
        return _fit(points), "t-SNE"
    return _fit(reduced(vectors)[:, :2]), "PCA"


def reduced(vectors: Floats) -> Floats:
    """Return the first principal components, at most 50."""
    most = min(_REDUCED, *vectors.shape)
    if len(vectors) < 2:
        return np.zeros((len(vectors), 2), np.float32)
    pca = _sklearn("decomposition").PCA(most, random_state=_SEED)
    with np.errstate(invalid="ignore"):  # identical vectors have no variance
        found: Floats = pca.fit_transform(vectors)
    return found


def _fit(points: Floats) -> Floats:
    points = np.asarray(points, np.float32)
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.where(high > low, high - low, 1)
    fitted: Floats = np.where(high > low, (points - low) / span, 0.5).astype(np.float32)
    return fitted


def neighbours(vectors: Floats) -> Neighbours:
    """Return the exact nearest neighbours of each row, by cosine."""
    count = len(vectors)
    most = min(NEIGHBOURS, count - 1)
    if most < 1:
        return Neighbours(np.empty((count, 0), np.int32), np.empty((count, 0), np.float32))
    finder = _sklearn("neighbors").NearestNeighbors(
        n_neighbors=most, metric="cosine", algorithm="brute"
    )
    distances, places = finder.fit(vectors).kneighbors()
    return Neighbours(places.astype(np.int32), (1 - distances).astype(np.float32))


def near_duplicates(near: Neighbours, least: float, most: int) -> list[tuple[int, int, float]]:
    """Return pairs of points whose cosine is at least ``least``, highest first."""
    found = {
        (min(mine, int(other)), max(mine, int(other))): float(score)
        for mine, row in enumerate(near.places)
        for other, score in zip(row, near.scores[mine], strict=True)
        if score >= least
    }
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [(*pair, score) for pair, score in ranked[:most]]


def outliers(near: Neighbours, most: int) -> list[tuple[int, float]]:
    """Return the points farthest from their nearest neighbours, by mean cosine."""
    if not near.scores.size:
        return []
    mean = near.scores.mean(axis=1)
    return [(int(place), float(mean[place])) for place in np.argsort(mean, kind="stable")[:most]]


def histogram(vectors: Floats, near: Neighbours) -> dict[str, list[float]]:
    """Return a histogram of the cosines of random pairs and of nearest neighbours."""
    count = len(vectors)
    if count < 3:
        return {"edges": [], "random": [], "nearest": []}
    random = np.random.default_rng(_SEED)
    left, right = random.integers(0, count, (2, _PAIRS))
    apart = left != right
    pairs = np.einsum("ij,ij->i", vectors[left[apart]], vectors[right[apart]])
    nearest = near.scores[:, 0]
    low = float(min(pairs.min(), nearest.min()))
    edges = np.linspace(low, max(1.0, float(nearest.max())), BINS + 1)
    return {
        "edges": [round(float(edge), 4) for edge in edges],
        "random": _shares(pairs, edges),
        "nearest": _shares(nearest, edges),
    }


def _shares(values: Floats, edges: npt.NDArray[np.float64]) -> list[float]:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return [round(float(count) / len(values), 5) for count in counts]


# -- groups --------------------------------------------------------------------------------------


def clusters(vectors: Floats, texts: Sequence[str]) -> Grouping:
    """Return clusters of vectors, each named by its most distinctive words."""
    count = len(vectors)
    if count < 12:
        return Grouping("cluster", ["all"], np.zeros(count, np.uint8))
    many = min(GROUPS, max(3, round((count / 8) ** 0.5)))
    low = reduced(vectors)
    found = _sklearn("cluster").KMeans(many, n_init=4, random_state=_SEED).fit_predict(low)
    matrix, vocabulary = _tfidf(texts)
    overall = np.asarray(matrix.mean(axis=0)).ravel()
    names = []
    for cluster in range(many):
        mean = np.asarray(matrix[np.flatnonzero(found == cluster)].mean(axis=0)).ravel()
        best = [place for place in np.argsort(overall - mean)[:3] if mean[place] > overall[place]]
        name = ", ".join(vocabulary[place] for place in best)
        fresh = name and name not in names
        names.append(name if fresh else f"{name or 'cluster'} {cluster + 1}")
    return _largest_first("cluster", [names[cluster] for cluster in found])


def sources(labels: Sequence[str]) -> Grouping | None:
    """Return groups by source; ``None`` if all texts share one, or hardly any do.

    Sources such as ``random.choice`` or ``guide/start.md:12`` are shortened, to ``random`` or to
    the file or its folder, until most groups hold several texts.
    """
    ways: tuple[Callable[[str], str], ...] = (
        lambda label: label,
        lambda label: re.sub(r"[:#].*$", "", label),
        lambda label: label.rpartition("/")[0] or label.partition(".")[0] or label,
        lambda label: re.split(r"[/.]", label.lstrip("/"), maxsplit=1)[0],
    )
    for way in ways:
        short = [way(label) or "–" for label in labels]
        distinct = len(set(short))
        if distinct == 1:
            return None
        if distinct <= max(GROUPS, len(labels) / 3):
            return _largest_first("source", short)
    return None


def _largest_first(label: str, of: Sequence[str]) -> Grouping:
    counts = Counter(of).most_common()
    names = [name for name, _ in counts]
    if len(names) > GROUPS:
        names = [*names[: GROUPS - 1], "others"]
    places = {name: place for place, name in enumerate(names)}
    last = len(names) - 1
    return Grouping(label, names, np.array([places.get(name, last) for name in of], np.uint8))


# -- words ---------------------------------------------------------------------------------------


def words(text: str) -> Iterator[str]:
    """Yield the words of ``text`` in lower case; character pairs for CJK scripts."""
    for found in _WORD.findall(text.casefold()):
        rest = found
        for run in _CJK.findall(found):
            yield from (run[at : at + 2] for at in range(max(1, len(run) - 1)))
            rest = rest.replace(run, " ")
        yield from (word for word in rest.split() if len(word) > 2)


def distinctive_words(question: str, texts: Sequence[str]) -> list[str]:
    """Return the words of a question that occur in few texts and are not stop words."""
    stop = _sklearn("feature_extraction.text").ENGLISH_STOP_WORDS | _FILLERS
    asked = [word for word in dict.fromkeys(words(question)) if word not in stop]
    held = [text.casefold() for text in texts]
    most = max(3, len(held) * 0.4)
    return [word for word in asked if sum(word in text for text in held) <= most]


def _tfidf(texts: Sequence[str]) -> tuple[Any, list[str]]:
    text = _sklearn("feature_extraction.text")
    stop = text.ENGLISH_STOP_WORDS

    def analyse(document: str) -> list[str]:
        return [word for word in words(document) if word not in stop]

    vectorizer = text.TfidfVectorizer(analyzer=analyse, max_features=5000, sublinear_tf=True)
    try:
        return vectorizer.fit_transform(texts), list(vectorizer.get_feature_names_out())
    except ValueError:  # no words at all
        return np.zeros((len(texts), 1)), [""]


def need_sklearn() -> None:
    """Raise an ``ImportError`` if scikit-learn is missing."""
    _sklearn("base")


def _sklearn(part: str) -> Any:
    # scikit-learn has no type hints, so nothing is lost by importing it by name.
    with needed("The report", "sklearn", install="nexusflow-integrations[report]"):
        return import_module(f"sklearn.{part}")
