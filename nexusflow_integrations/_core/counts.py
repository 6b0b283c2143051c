"""Writes a number of things for readers."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """Return ``1 text``, ``2,000 texts``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
