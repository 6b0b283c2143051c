"""Numbers with their nouns, and times."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """Return ``1 text``, ``2 texts``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def time_left(seconds: float) -> str:
    """Return ``0:07 left``, or ``1:30 h left``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02} h left"
    return f"{whole // 60}:{whole % 60:02} left"
