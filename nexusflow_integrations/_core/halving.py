"""Finds the rows that a store refuses, by splitting a refused write into halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_REFUSED = 250
"""After this many refusals without a stored row between them, the store is at fault."""


class Halving(Generic[T]):
    """Rows to write to a store that accepts all rows of a write or none.

    A store seldom names the bad rows. So a refused write is split until the bad rows are alone.

        rows = Halving(batch)
        while part := rows.next:
            if (error := write(part)) is None:
                rows.stored()
            elif (row := rows.refused()) is not None:
                report(row, error)
    """

    def __init__(self, rows: Sequence[T]) -> None:
        self._parts = [rows]  # a stack: the last part is the next one

    @property
    def next(self) -> Sequence[T]:
        """What to write next; empty at the end."""
        return self._parts[-1] if self._parts else ()

    @property
    def left(self) -> list[T]:
        """The rows that are neither stored nor refused, in order."""
        return [row for part in reversed(self._parts) for row in part]

    def stored(self) -> None:
        """Record that ``next`` was written."""
        self._parts.pop()

    def refused(self) -> T | None:
        """Split ``next``, which was refused; if it is a single row, return that row."""
        part = self._parts.pop()
        if len(part) == 1:
            return part[0]
        middle = len(part) // 2
        self._parts += [part[middle:], part[:middle]]
        return None
