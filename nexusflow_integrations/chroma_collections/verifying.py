"""Whether a service still answers with the vectors that a collection has: no address shows that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nexusflow_integrations.errors import ConfigurationError

if TYPE_CHECKING:
    from nexusflow_integrations._core.vectors import Vectors

SAMPLE = 3
"""Documents that are embedded again: one request."""
TOLERANCE = 0.02
"""Length of the difference, as a share of the stored vector's length."""


def sampled(found: Mapping[str, Any]) -> tuple[list[str], list[str], list[Vectors]]:
    """Return ids, documents and vectors of what ``collection.get`` found, where all are there."""
    rows = zip(
        found["ids"],
        found["documents"] or (),
        () if found["embeddings"] is None else found["embeddings"],
        strict=False,
    )
    kept = [
        (name, text, np.asarray(row, np.float32))
        for name, text, row in rows
        if text is not None and text.strip() and row is not None
    ]
    return (
        [name for name, _, _ in kept],
        [text for _, text, _ in kept],
        [row for _, _, row in kept],
    )


def deviation(stored: Vectors, fresh: Vectors) -> float:
    """Return how far ``fresh`` is from ``stored``, both of shape (d,): 0.0 for the same.

    Another size, or a number that is not finite, is infinitely far.
    """
    if stored.shape != fresh.shape:
        return float("inf")
    old, new = stored.astype(np.float64), fresh.astype(np.float64)
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        return float("inf")
    length = float(np.linalg.norm(old))
    apart = float(np.linalg.norm(new - old))
    return apart / length if length else (0.0 if apart == 0 else float("inf"))


def check_same(name: str, ids: list[str], stored: list[Vectors], fresh: Sequence[Any]) -> None:
    """Refuse a service whose vectors are others than those of collection ``name``.

    Raises:
        ConfigurationError: A document got a vector that is not the stored one.
    """
    for place, (old, new) in enumerate(zip(stored, fresh, strict=True)):
        apart = deviation(old, np.asarray(new, np.float32))
        if apart > TOLERANCE:
            raise ConfigurationError(
                f"the service embeds document {ids[place]!r} of collection {name!r} differently"
                f" now (it differs by {apart:.2g} of the vector's length; {TOLERANCE} is"
                " allowed): the model or its settings changed, or the stored vector is of another"
                " source; make another collection"
            )
