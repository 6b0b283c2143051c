"""Writes a number with its noun, such as ``1 text`` or ``2,000 texts``."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """Return ``1 text``, ``2,000 texts``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
