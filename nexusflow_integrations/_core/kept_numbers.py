"""Numbers that Chroma does not keep as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_INT64 = 1 << 63


def check_kept(key: Any, value: Any) -> None:
    """Refuse a number that Chroma silently changes, also in a list.

    Raises:
        ValueError: The message names the key.
    """
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"metadata {key!r} is {item}, which Chroma does not keep")
        if isinstance(item, int) and not -_INT64 <= item < _INT64:
            raise ValueError(f"metadata {key!r} is {item}, which does not fit into 64 bits")


def number_problem(metadata: Mapping[Any, Any]) -> str | None:
    """Return which number of ``metadata`` Chroma would silently change, or ``None``."""
    try:
        for key, value in metadata.items():
            check_kept(key, value)
    except ValueError as error:
        return str(error)[:300]
    return None
