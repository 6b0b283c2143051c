"""Checks the arguments of a server; each error names its argument and shows no text."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return a whole number.

    Raises:
        ValueError: ``value`` is not a whole number from ``least`` to ``most``.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        found = int(value)
        if least <= found and (most is None or found <= most):
            return found
    upper = "up" if most is None else f"to {most:,}"
    raise ValueError(f"{name} must be a whole number from {least} {upper}; got {_shown(value)}.")


def number(name: str, value: Any, wanted: str, *, zero: bool = False) -> None:
    """Refuse a value that is not a number above zero; with ``zero``, zero is allowed, too.

    ``wanted`` describes the allowed values in the message.

    Raises:
        ValueError: ``value`` is not such a number.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        found: Any = value
        if found > 0 or (zero and found == 0):
            return
    raise ValueError(f"{name} must be {wanted}; got {_shown(value)}.")


def flag(name: str, value: object) -> bool:
    """Return ``True`` or ``False``.

    Raises:
        ValueError: ``value`` is neither.
    """
    if isinstance(value, bool):
        return value
    raise ValueError(f"{name} must be True or False; got {_shown(value)}.")


def text(name: str, value: object) -> str:
    """Return text.

    Raises:
        ValueError: ``value`` is not text.
    """
    if isinstance(value, str):
        return value
    raise ValueError(f"{name} must be text; got {_shown(value)}.")


def _shown(value: object) -> str:
    """Return a number, or the type of anything else: a text may be a key."""
    if isinstance(value, (int, float)) and not abs(value) >= 1e20:  # NaN is shown, too
        return repr(value)
    return type(value).__name__
