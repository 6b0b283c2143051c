"""Decides which documents a source owns: those that match Chroma's filter ``where``."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from chromadb.api.types import validate_where

from nexusflow_integrations._core.checks import refuse
from nexusflow_integrations.errors import ConfigurationError

_ORDERS = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_KNOWN = {"$eq", "$ne", "$in", "$nin", "$contains", "$not_contains", *_ORDERS}
_KINDS = (bool, int, float, str)


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


def check_owned(where: object) -> None:
    """Refuse a filter that is invalid, or for which ``finds`` cannot tell what it matches."""
    check_where(where)
    for key, condition in _conditions(where):
        names = condition if isinstance(condition, Mapping) else {"$eq": condition}
        if (
            other := [key]
            if key.startswith("#")
            else [name for name in names if name not in _KNOWN]
        ):
            raise ConfigurationError(
                f"where may use {', '.join(sorted(_KNOWN))}, $and and $or on metadata, not"
                f" {other[0]!r}: the documents that match must be known before they are paid for"
            )


def _conditions(where: Any) -> Iterator[tuple[str, Any]]:
    for key, condition in (where or {}).items():
        if key in ("$and", "$or"):
            for part in condition:
                yield from _conditions(part)
        else:
            yield key, condition


def finds(where: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> bool:
    """Return whether Chroma's filter would match this metadata."""
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
    if name in ("$contains", "$not_contains"):  # Chroma also matches documents without the key
        items = value if isinstance(value, list) else []
        found = any(_same_item(item, other) for item in items)
        return found == (name == "$contains")
    if name in ("$ne", "$nin"):  # Chroma also matches documents without the key
        others = other if name == "$nin" else [other]
        return not any(same_value(value, each) for each in others)
    if name in ("$eq", "$in"):
        others = other if name == "$in" else [other]
        return any(same_value(value, each) for each in others)
    if not _is_number(value):
        return False
    return bool(_ORDERS[name](value, other))


def same_value(one: Any, two: Any) -> bool:
    """Return whether Chroma's filters find two values of metadata alike.

    They tell ``True`` from 1; within a list, they also tell 1 from 1.0.
    """
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same_item, one, two))
    return isinstance(one, bool) == isinstance(two, bool) and bool(one == two)


def _same_item(one: Any, two: Any) -> bool:
    return _kind(one) is _kind(two) and bool(one == two)


def _kind(value: Any) -> type | None:
    return next((kind for kind in _KINDS if isinstance(value, kind)), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
