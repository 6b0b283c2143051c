"""Finds duplicate ids in a source of any length."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from functools import cached_property

from nexusflow_integrations.errors import NexusFlowError


class SeenIds:
    """All ids of a source with their positions, in a temporary file to save memory.

    All methods block. They may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the thread of a cancelled task may still be writing

    @cached_property
    def _db(self) -> sqlite3.Connection:
        # An empty name creates a private database on disk, which SQLite removes when it is closed.
        db = sqlite3.connect("", check_same_thread=False)
        db.execute("CREATE TABLE seen(id TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID")
        db.execute("CREATE TABLE gone(id TEXT PRIMARY KEY) WITHOUT ROWID")
        return db

    def note(self, name: str, place: int) -> int | None:
        """Record an id; return the position where it was seen before, if any.

        Raises:
            NexusFlowError: The temporary file could not be written.
        """
        with self._lock:
            try:
                before = self._db.execute("SELECT place FROM seen WHERE id = ?", (name,)).fetchone()
                if before is not None:
                    return int(before[0])
                self._db.execute("INSERT INTO seen VALUES(?, ?)", (name, place))
            except sqlite3.OperationalError as error:
                raise _not_noted(error) from error
            return None

    def note_gone(self, stored: Iterable[str]) -> None:
        """Record which of the ``stored`` ids are not in the source."""
        with self._lock:
            try:
                self._db.executemany(
                    "INSERT OR IGNORE INTO gone SELECT ?1 WHERE NOT EXISTS"
                    " (SELECT 1 FROM seen WHERE id = ?1)",
                    ((name,) for name in stored),
                )
            except sqlite3.OperationalError as error:
                raise _not_noted(error) from error

    def forget_gone(self) -> None:
        """Forget what ``note_gone`` recorded."""
        with self._lock:
            try:
                self._db.execute("DELETE FROM gone")
            except sqlite3.OperationalError as error:
                raise _not_noted(error) from error

    def gone(self, count: int) -> Iterator[list[str]]:
        """Yield the ids that ``note_gone`` recorded, up to ``count`` at a time."""
        with self._lock:
            cursor = self._db.execute("SELECT id FROM gone")
        while True:
            with self._lock:
                found = cursor.fetchmany(count)
            if not found:
                return
            yield [name for (name,) in found]

    def close(self) -> None:
        """Remove the temporary file."""
        with self._lock:
            if "_db" in vars(self):
                self._db.close()


def _not_noted(error: sqlite3.OperationalError) -> NexusFlowError:
    return NexusFlowError(
        f"the ids of the source could not be written to a temporary file: {error}; is the disk with"
        " the folder for temporary files (TMPDIR) full?"
    )


def twice(name: str, before: int, place: int) -> str:
    """Return the message for a duplicate id."""
    return f"id {name!r} appears twice: at positions {before} and {place}; make ids unique"
