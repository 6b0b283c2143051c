"""Shortens vectors, and checks whether a service makes its smaller vectors in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nexusflow_integrations._core.checks import whole
from nexusflow_integrations._core.comparing import TOLERANCE, deviation
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import InvalidInputError


def cut_to_size(vectors: Any, size: int) -> Vectors:
    """Return the first ``size`` numbers of each vector, scaled to unit length.

    A shortened vector equals the service's vector of that size only if the service also makes its
    smaller vectors by shortening (see ``cut_sizes``).

    Args:
        vectors: Array of shape (n, d), or (d,) for one vector.
        size: From 1 to d.

    Returns:
        A new float32 array of shape (n, size), or (size,).

    Raises:
        ConfigurationError: ``size`` is not a whole number from 1 to d.
        InvalidInputError: The first ``size`` numbers of a vector are all zeros or not finite, so
            the shortened vector has no direction.
    """
    rows = np.asarray(vectors)
    if rows.ndim not in (1, 2):
        raise InvalidInputError(f"vectors must have shape (n, d) or (d,), not {rows.shape}")
    beginning = rows[..., : whole("size", size, 1, rows.shape[-1])].astype(np.float64)
    lengths = np.sqrt(np.square(beginning).sum(axis=-1, keepdims=True))
    bad = ~(np.isfinite(lengths) & (lengths > 0))
    if bad.any():
        where = f" {int(bad[:, 0].argmax())}" if rows.ndim == 2 else ""
        raise InvalidInputError(
            f"vector{where} cannot be cut to {size}: its first numbers are all zeros or not finite"
        )
    cut: Vectors = (beginning / lengths).astype(np.float32)
    return cut


def cut_sizes(rows: Mapping[int, Sequence[Vectors]]) -> dict[int, bool]:
    """Return, for each size, whether a service cuts its vectors from the largest ones.

    The vectors are compared within ``TOLERANCE``. Rounding moves a vector by at most 0.003 of its
    length (bfloat16) or 0.014 (int8); vectors of independent sizes are 1.1 or more apart (both
    measured; see docs/cache.md).

    Args:
        rows: The service's vectors of the same texts, by size; each is float32 of shape (size,).
    """
    largest = max(rows, default=0)

    def is_cut(size: int) -> bool:
        for full, own in zip(rows[largest], rows[size], strict=True):
            try:
                cut = cut_to_size(full, size)
            except InvalidInputError:
                return False
            if deviation(own, cut) > TOLERANCE:
                return False
        return True

    return {size: is_cut(size) for size in rows if size != largest}
