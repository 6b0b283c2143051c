"""Find duplicate ids in a source of any length."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator


class SeenIds:
    """All ids of a source with their positions, in a temporary file so that memory stays flat."""

    def __init__(self) -> None:
        # An empty name makes a private database on disk, which SQLite removes at close.
        self._db = sqlite3.connect("", check_same_thread=False)
        self._db.execute("CREATE TABLE seen(id TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID")
        self._db.execute("CREATE TABLE gone(id TEXT PRIMARY KEY) WITHOUT ROWID")

    def note(self, name: str, place: int) -> int | None:
        """Record an id; return the position where it was seen before, if any."""
        before = self._db.execute("SELECT place FROM seen WHERE id = ?", (name,)).fetchone()
        if before is not None:
            return int(before[0])
        self._db.execute("INSERT INTO seen VALUES(?, ?)", (name, place))
        return None

    def note_gone(self, stored: Iterable[str]) -> None:
        """Record those of the ``stored`` ids that are not in the source."""
        self._db.executemany(
            "INSERT OR IGNORE INTO gone SELECT ?1 WHERE NOT EXISTS"
            " (SELECT 1 FROM seen WHERE id = ?1)",
            ((name,) for name in stored),
        )

    def gone(self, count: int) -> Iterator[list[str]]:
        """Yield what ``note_gone`` found, up to ``count`` ids at a time."""
        cursor = self._db.execute("SELECT id FROM gone")
        while found := cursor.fetchmany(count):
            yield [name for (name,) in found]

    def close(self) -> None:
        """Remove the temporary file."""
        self._db.close()


def twice(name: str, before: int, place: int) -> str:
    """Return the message for a duplicate id."""
    return f"id {name!r} appears twice: at {before} and at {place}; make ids unique"
