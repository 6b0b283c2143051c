"""Rank passages by vectors in several formats, by keywords, or by both.

The search is exact and in memory, with numpy, because settings, not databases, are compared.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nexusflow_integrations._core.keywords import fused
from nexusflow_integrations._core.vectors import Vectors

Storage = Literal["float32", "int8", "binary"]
STORAGES: tuple[Storage, ...] = ("float32", "int8", "binary")
Places = NDArray[np.int64]
"""Indices of passages, best first: shape (k,)."""

_RESCORED = 4
"""Candidates by Hamming distance per result, which the query's full vector then ranks again."""
_BLOCK = 1 << 24
"""Maximum number of scores in memory at once."""


def unit(rows: Vectors) -> Vectors:
    """Return rows of unit length, float32 of the same shape (n, d). Rows of zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Vectors = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return scaled


def shortened(rows: Vectors, size: int) -> Vectors:
    """Return the first ``size`` numbers of each row, scaled to unit length: shape (n, size)."""
    return unit(np.ascontiguousarray(rows[:, :size], np.float32))


def bytes_of_vectors(count: int, size: int, storage: Storage) -> int:
    """Return the bytes of ``count`` vectors, including the four-byte scale of each int8 vector."""
    return count * {"float32": 4 * size, "int8": size + 4, "binary": (size + 7) // 8}[storage]


class Vectored:
    """Passages ranked by the cosine of their vectors.

    Args:
        rows: Vectors of the passages, float32 of shape (n, d), unit length. A row of zeros
            stands for a passage without a vector, which ranks below all similar passages.
        storage: ``int8`` scales each row so that its largest number is 127. ``binary`` keeps the
            signs: the candidates have the smallest Hamming distance, and are ranked by the dot
            product of the query's numbers with the signs.
    """

    def __init__(self, rows: Vectors, storage: Storage = "float32") -> None:
        self._storage = storage
        self._rows = rows
        if storage == "int8":
            scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.float32(1e-30)) / 127
            self._rows = np.rint(rows / scales).astype(np.int8).astype(np.float32) * scales
        elif storage == "binary":
            self._rows = np.where(rows > 0, np.int8(1), np.int8(-1)).astype(np.float32)
            self._bits = np.packbits(rows > 0, axis=1)

    def nearest(self, queries: Vectors, k: int) -> list[Places]:
        """Rank passages for questions, float32 of shape (q, d), unit length.

        Returns:
            ``q`` arrays of at most ``k`` places. Passages with equal scores keep their order.
        """
        k = min(k, len(self._rows))
        if not k:
            return [np.empty(0, np.int64) for _ in queries]
        if self._storage == "binary":
            return [self._by_signs(query, k) for query in queries]
        found: list[Places] = []
        step = max(1, _BLOCK // len(self._rows))
        for start in range(0, len(queries), step):
            found += [_best(row, k) for row in queries[start : start + step] @ self._rows.T]
        return found

    def _by_signs(self, query: Vectors, k: int) -> Places:
        distance = _ONES[self._bits ^ np.packbits(query > 0)].sum(axis=1, dtype=np.int32)
        most = min(len(self._rows), _RESCORED * k)
        candidates = np.sort(_best(-distance.astype(np.float32), most))
        best: Places = candidates[_best(self._rows[candidates] @ query, k)]
        return best


def _best(scores: Vectors, k: int) -> Places:
    if k < len(scores):
        # Keep all passages that tie with the last one, so that the order does not depend on the
        # partition.
        limit = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= limit)
    else:
        places = np.arange(len(scores))
    order: Places = places[np.argsort(-scores[places], kind="stable")][:k]
    return order


_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def joined(*rankings: Places, k: int) -> Places:
    """Join rankings by reciprocal rank fusion: best first, the smaller index first in a tie."""
    scored = fused(ranking.tolist() for ranking in rankings)
    best = sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]
    return np.array([place for place, _ in best], np.int64)
