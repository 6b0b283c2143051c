"""Writes numbers with their nouns, such as ``1 text`` or ``2,000 texts``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice


def count(number: int, what: str) -> str:
    """Return ``1 text``, ``2,000 texts``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def first_three(items: Iterable[object], number: int) -> str:
    """Return the first three of ``number`` items: ``a; b; c; and 2 more``."""
    more = f"; and {number - 3} more" if number > 3 else ""
    return "; ".join(map(str, islice(items, 3))) + more


def different_lengths(number: int, short: Sequence[str], long: Sequence[str]) -> str:
    """Return ``only 1 item in ids, but more in documents``; the arguments ``short`` are shorter."""
    ended, others = " and ".join(short), " and ".join(long)
    if not number:
        return f"no items in {ended}, but some in {others}"
    return f"only {count(number, 'item')} in {ended}, but more in {others}"
