"""Decides which documents a source owns: those that match Chroma's filter ``where``."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from chromadb.api.types import validate_where

from nexusflow_integrations._core.checks import refuse
from nexusflow_integrations.errors import ConfigurationError

_ORDERS = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_KNOWN = {"$eq", "$ne", "$in", "$nin", *_ORDERS}


def check_where(where: object) -> None:
    """Refuse an invalid Chroma filter before anything is paid for."""
    if where is None:
        return
    if not isinstance(where, dict):
        raise refuse("where", "a filter of Chroma, such as {'source': 'docs'}", where)
    try:
        validate_where(where)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"where must be a filter of Chroma, such as {{'source': 'docs'}}: {error}"
        ) from None


def finds(where: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> bool:
    """Return whether Chroma's filter would match this metadata, or ``True`` if unknown."""
    return all(_holds(key, wanted, metadata or {}) for key, wanted in where.items())


def _holds(key: str, wanted: Any, metadata: Mapping[str, Any]) -> bool:
    if key == "$and":
        return all(finds(part, metadata) for part in wanted)
    if key == "$or":
        return any(finds(part, metadata) for part in wanted)
    if not isinstance(wanted, Mapping):
        wanted = {"$eq": wanted}
    return all(_compares(metadata.get(key), name, other) for name, other in wanted.items())


def _compares(value: Any, name: str, other: Any) -> bool:
    if isinstance(value, list) or name not in _KNOWN:
        return True
    if name in ("$ne", "$nin"):  # Chroma also matches documents without the key
        others = other if name == "$nin" else [other]
        return not any(_equal(value, each) for each in others)
    if name in ("$eq", "$in"):
        others = other if name == "$in" else [other]
        return any(_equal(value, each) for each in others)
    if not _is_number(value):
        return False
    return bool(_ORDERS[name](value, other))


def _equal(one: Any, two: Any) -> bool:
    return isinstance(one, bool) == isinstance(two, bool) and bool(one == two)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
