"""Decides whether two vectors of the same text come from the same model; rounding may differ."""

from __future__ import annotations

import numpy as np

from nexusflow_integrations._core.vectors import Vectors

TOLERANCE = 0.02
"""The maximum distance between two such vectors, as a share of the stored vector's length."""
FIXED_TEXTS = (
    "The red panda sleeps in a tree.",
    "7 Zwerge, 3 Wünsche und kein Schuh.",
    "数据库里保存着向量。",
)
"""A cache keeps the vectors of these texts for comparison, so they must never change."""


def deviation(stored: Vectors, fresh: Vectors) -> float:
    """Return the distance between ``fresh`` and ``stored``, both of shape (d,).

    The distance is a share of the length of ``stored``: 0.0 for equal vectors, infinite if the
    sizes differ or a number is not finite.
    """
    if stored.shape != fresh.shape:
        return float("inf")
    old, new = stored.astype(np.float64), fresh.astype(np.float64)
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        return float("inf")
    length = float(np.linalg.norm(old))
    apart = float(np.linalg.norm(new - old))
    return apart / length if length else (0.0 if apart == 0 else float("inf"))
