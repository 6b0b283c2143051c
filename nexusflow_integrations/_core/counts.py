"""Writes numbers with their nouns, such as ``1 text`` or ``2,000 texts``."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int, what: str) -> str:
    """Return ``1 text``, ``2,000 texts``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def different_lengths(number: int, short: Sequence[str], long: Sequence[str]) -> str:
    """Return ``only 1 item in ids, but more in documents``; the arguments ``short`` are shorter."""
    ended, others = " and ".join(short), " and ".join(long)
    if not number:
        return f"no items in {ended}, but some in {others}"
    return f"only {count(number, 'item')} in {ended}, but more in {others}"
