"""The ids of a source of any length, each only once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator


class SeenIds:
    """All ids of a source, with their places, in a temporary file: memory does not grow."""

    def __init__(self) -> None:
        # An empty name is a private database on disk, which SQLite removes when it is closed.
        self._db = sqlite3.connect("", check_same_thread=False)
        self._db.execute("CREATE TABLE seen(id TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID")
        self._db.execute("CREATE TABLE gone(id TEXT PRIMARY KEY) WITHOUT ROWID")

    def note(self, name: str, place: int) -> int | None:
        """Note an id; return the place at which it was before, if it was."""
        before = self._db.execute("SELECT place FROM seen WHERE id = ?", (name,)).fetchone()
        if before is not None:
            return int(before[0])
        self._db.execute("INSERT INTO seen VALUES(?, ?)", (name, place))
        return None

    def note_gone(self, stored: Iterable[str]) -> None:
        """Note those of the ``stored`` ids that the source does not have."""
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
    """Say that an id is there twice."""
    return f"id {name!r} is there twice: at {before} and at {place}; make ids unique"
