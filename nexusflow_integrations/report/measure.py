"""Measures a set of vectors: map, groups, neighbours, near-duplicates, outliers."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nexusflow_integrations._core.needed import needed

Projection = Literal["auto", "pca", "tsne"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

NEIGHBOURS = 6
COLOURS = 11
"""Number of colours for groups on the page, besides the grey of ``OTHERS``."""
OTHERS = "others"
BINS = 40
_PAIRS = 20_000
_REDUCED = 50
_ATTRACTING = 15
"""Number of nearest neighbours of each point that t-SNE uses."""
_MOST_CLUSTERS = 30
_MOST_GROUPS = 40
_NAMED = 0.8
"""If named groups contain this share of the texts, sources are not shortened further."""
_BLOCK = 20_000_000
"""Maximum number of cosines in memory at once."""
_EQUAL = 1e-9
"""Vectors of length 1 count as equal if their total variance is at most this."""
_FLAT = 0.999
"""If the first two components hold more than this share of the variance, PCA is used."""
_SEED = 7

_FILLERS = {"does", "did", "doing"}  # scikit-learn's list of stop words lacks these
_WORD = re.compile(r"[^\W\d_]+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+")


@dataclass(frozen=True)
class Grouping:
    """The group of each point: ``of`` holds indices into ``names``; the largest group is first.

    If small groups were merged, the last name is ``OTHERS``.
    """

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

    def first(self, count: int) -> Neighbours:
        """Return the ``count`` nearest neighbours of each point."""
        return Neighbours(self.places[:, :count], self.scores[:, :count])


@dataclass(frozen=True)
class Reduced:
    """Principal components: ``points`` of shape (n, k), 2 <= k <= 50, and their ``shares``.

    ``shares`` has shape (k,); its sum is at most 1. If all vectors are equal, every share is 0.
    """

    points: Floats
    shares: Floats

    @property
    def flat(self) -> float:
        """The share of the variance that the first two components hold."""
        return float(self.shares[:2].sum())


@dataclass(frozen=True)
class Layout:
    """The map of the points, and how it was made.

    Attributes:
        points: The positions, of shape (n, 2); each axis is from 0 to 1.
        method: ``PCA`` or ``t-SNE``.
        kept: Share of the nearest neighbours of all points that are among the ten nearest on the
            map.
    """

    points: Floats
    method: str
    kept: float


def unit(vectors: Floats) -> Floats:
    """Return the rows scaled to length 1; rows of zeros are unchanged."""
    clean = np.nan_to_num(vectors.astype(np.float32, copy=False))
    lengths = np.linalg.norm(clean, axis=1, keepdims=True)
    found: Floats = (clean / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return found


def reduced(vectors: Floats) -> Reduced:
    """Return the first principal components, at most 50."""
    count, size = vectors.shape
    centred = vectors - vectors.mean(axis=0)
    if count < 2 or float(np.square(centred, dtype=np.float64).sum()) / count < _EQUAL:
        return Reduced(np.zeros((count, 2), np.float32), np.zeros(2, np.float32))
    most = min(_REDUCED, count, size)
    pca = _sklearn("decomposition").PCA(most, random_state=_SEED)
    points = np.asarray(pca.fit_transform(centred), np.float32)
    shares = np.asarray(pca.explained_variance_ratio_, np.float32)
    if most < 2:
        points, shares = np.pad(points, ((0, 0), (0, 1))), np.pad(shares, (0, 1))
    return Reduced(points, shares)


def project(low: Reduced, near: Neighbours, projection: Projection) -> Layout:
    """Return the map of points whose principal components and neighbours are known.

    ``auto`` is t-SNE, or PCA for fewer than 12 points. Vectors that two components describe
    completely, such as equal or collinear ones, are always shown by PCA.
    """
    count = len(low.points)
    least = 4 if projection == "tsne" else 12
    if projection == "pca" or count < least or not 0 < low.flat < _FLAT:
        points, method = low.points[:, :2], "PCA"
    else:
        points, method = _tsne(low, near), "t-SNE"
    fitted = _fit(points)
    return Layout(fitted, method, _kept(fitted, near))


def _tsne(low: Reduced, near: Neighbours) -> Floats:
    # Measured on 9,500 docstrings with 896 dimensions: CPU time, share of the ten nearest
    # neighbours that the map keeps, and trustworthiness. With these settings: 25 s, 0.43, 0.94.
    # openTSNE's defaults: 54 s, 0.45, 0.91. PaCMAP: 18 s, 0.19, 0.86. PCA: 3 s, 0.02, 0.71.
    # scikit-learn's t-SNE takes minutes.
    affinity, nearest = _opentsne("affinity"), _opentsne("nearest_neighbors")
    count = len(low.points)
    # In a small collection, 15 neighbours are most of the texts, and the map shows little. Share of
    # the three nearest that it keeps, for nine samples of 19 texts: 0.28 with 15 neighbours, 0.74
    # with a fifth of the texts (PCA: 0.59); for eight samples of 50: 0.35 and 0.44 (PCA: 0.36).
    near = near.first(min(_ATTRACTING, max(2, (count - 1) // 5)))
    distances = np.sqrt(np.maximum(0, 2 - 2 * near.scores.astype(np.float64)))
    affinities = affinity.Uniform(
        knn_index=nearest.PrecomputedNeighbors(near.places, distances),
        k_neighbors=near.places.shape[1],
        random_state=_SEED,
    )
    first = low.points[:, :2].astype(np.float64)
    first *= 1e-4 / first[:, 0].std()
    # Add a little noise: points that start at the same place would never separate.
    first += np.random.default_rng(_SEED).normal(scale=1e-6, size=first.shape)
    settings = {
        "negative_gradient_method": "fft" if count > 1000 else "bh",
        "early_exaggeration_iter": 125,
        "n_iter": 250,
        "random_state": _SEED,
        # For few points, threads wait for each other longer than they work.
        "n_jobs": (os.cpu_count() or 1) if count > 1000 else 1,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tsne = _opentsne("tsne").TSNE(**settings)
        found = tsne.fit(affinities=affinities, initialization=first)
    return np.asarray(found, np.float32)


def _kept(points: Floats, near: Neighbours) -> float:
    count = len(points)
    most = min(10, count - 1)
    if most < 1:
        return 1.0
    finder = _sklearn("neighbors").NearestNeighbors(n_neighbors=most).fit(points)
    on_map = finder.kneighbors(return_distance=False)
    real = near.places[:, :NEIGHBOURS]
    found = (real[:, :, None] == on_map[:, None, :]).any(axis=2)
    return float(found.mean())


def _fit(points: Floats) -> Floats:
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.where(high > low, high - low, 1)
    fitted: Floats = np.where(high > low, (points - low) / span, 0.5).astype(np.float32)
    return fitted


def neighbours(vectors: Floats, most: int = _ATTRACTING) -> Neighbours:
    """Return the exact nearest neighbours of each row, by cosine: at most ``most``."""
    count = len(vectors)
    most = max(0, min(most, count - 1))
    places = np.empty((count, most), np.int32)
    scores = np.empty((count, most), np.float32)
    step = max(1, _BLOCK // max(1, count))
    for start in range(0, count if most else 0, step):
        block = vectors[start : start + step] @ vectors.T
        rows = np.arange(len(block))
        block[rows, start + rows] = -np.inf  # a point is not its own neighbour
        best = np.argpartition(-block, most - 1, axis=1)[:, :most]
        cosines = np.take_along_axis(block, best, 1)
        order = np.lexsort((best, -cosines))
        places[start : start + step] = np.take_along_axis(best, order, 1)
        scores[start : start + step] = np.take_along_axis(cosines, order, 1)
    return Neighbours(places, scores)


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


def clusters(low: Reduced, texts: Sequence[str]) -> Grouping:
    """Return clusters of vectors, each named by its most distinctive words."""
    count = len(low.points)
    distinct = len(np.unique(low.points.round(4), axis=0))
    many = min(distinct, _MOST_CLUSTERS, max(3, round((count / 8) ** 0.5)))
    if count < 12 or many < 2:
        return Grouping("cluster", ["all"], np.zeros(count, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns if equal points leave fewer clusters
        found = _sklearn("cluster").KMeans(many, n_init=4, random_state=_SEED)
        found = found.fit_predict(low.points)
    matrix, vocabulary = _tfidf(texts)
    overall = np.asarray(matrix.mean(axis=0)).ravel()
    names: dict[int, str] = {}
    for cluster in np.unique(found):
        mean = np.asarray(matrix[np.flatnonzero(found == cluster)].mean(axis=0)).ravel()
        best = [place for place in np.argsort(overall - mean)[:3] if mean[place] > overall[place]]
        name = ", ".join(vocabulary[place] for place in best)
        fresh = name and name not in names.values()
        names[int(cluster)] = name if fresh else f"{name or 'cluster'} {cluster + 1}"
    return _largest_first("cluster", [names[cluster] for cluster in found.tolist()])


def sources(labels: Sequence[str]) -> Grouping | None:
    """Return groups by source; ``None`` if all texts have the same source, or few share one.

    Sources such as ``random.choice`` or ``guide/start.md:12`` are shortened to the file, the folder
    or the first part, until few texts remain in ``OTHERS``.
    """
    ways: tuple[Callable[[str], str], ...] = (
        lambda label: label,
        lambda label: re.sub(r"[:#].*$", "", label),
        lambda label: label.rpartition("/")[0] or label.rpartition(".")[0] or label,
        lambda label: label.rpartition("/")[0] or ".".join(label.split(".")[:2]) or label,
        lambda label: re.split(r"[/.]", label.lstrip("/"), maxsplit=1)[0],
    )
    best: tuple[float, list[str]] | None = None
    for way in ways:
        short = [way(label) or "–" for label in labels]
        counts = Counter(short)
        if len(counts) == 1:
            break  # shorter forms would not differ, either
        if len(counts) > max(COLOURS + 1, len(labels) / 3):
            continue
        named = sum(count for _, count in counts.most_common(_MOST_GROUPS)) / len(labels)
        if best is None or named > best[0]:
            best = named, short
        if named >= _NAMED:
            break
    return None if best is None else _largest_first("source", best[1])


def colours(grouping: Grouping, points: Floats) -> list[int]:
    """Return a colour index for each group; groups near each other get different colours.

    There are more groups than colours that the eye can distinguish, so groups that are far apart
    on the map share a colour. ``OTHERS`` gets the last colour, grey.
    """
    named = [name for name in grouping.names if name != OTHERS]
    centres = np.array(
        [np.median(points[grouping.of == place], axis=0) for place in range(len(named))]
    )
    chosen: list[int] = []
    for place, centre in enumerate(centres):
        if place < COLOURS:
            chosen.append(place)
            continue
        far = np.full(COLOURS, np.inf)
        np.minimum.at(far, chosen, np.linalg.norm(centres[:place] - centre, axis=1))
        chosen.append(int(far.argmax()))
    return [*chosen, *[COLOURS] * (len(grouping.names) - len(named))]


def _largest_first(label: str, of: Sequence[str]) -> Grouping:
    counts = Counter(of).most_common()
    names = [name for name, _ in counts]
    if len(names) > _MOST_GROUPS + 1:
        names = [*names[:_MOST_GROUPS], OTHERS]
    places = {name: place for place, name in enumerate(names)}
    last = len(names) - 1
    return Grouping(label, names, np.array([places.get(name, last) for name in of], np.uint8))


# -- words ---------------------------------------------------------------------------------------


def words(text: str) -> Iterator[str]:
    """Yield the words of ``text`` in lower case, or pairs of characters for CJK scripts."""
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
    folded = [text.casefold() for text in texts]
    most = max(3, len(folded) * 0.4)
    return [word for word in asked if sum(word in text for text in folded) <= most]


def _tfidf(texts: Sequence[str]) -> tuple[Any, list[str]]:
    text = _sklearn("feature_extraction.text")
    stop = text.ENGLISH_STOP_WORDS

    def analyse(document: str) -> list[str]:
        return [word for word in words(document) if word not in stop]

    vectorizer = text.TfidfVectorizer(analyzer=analyse, max_features=5000, sublinear_tf=True)
    try:
        return vectorizer.fit_transform(texts), list(vectorizer.get_feature_names_out())
    except ValueError:  # the texts contain no words
        return np.zeros((len(texts), 1)), [""]


def need_packages() -> None:
    """Raise an ``ImportError`` if a package of the report is missing."""
    _sklearn("base")
    _opentsne("nearest_neighbors")


def _opentsne(part: str) -> Any:
    with needed("The report", "openTSNE", install="nexusflow-integrations[report]"):
        return import_module(f"openTSNE.{part}")


def _sklearn(part: str) -> Any:
    # scikit-learn and openTSNE have no type hints, so importing them by name loses nothing.
    with needed("The report", "sklearn", install="nexusflow-integrations[report]"):
        return import_module(f"sklearn.{part}")
