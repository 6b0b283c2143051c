"""The statistics of the cache file, and pruning."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from nexusflow_integrations._core.cache.keys import KIND_BYTES, TEXT_BYTES

BLOCK_BITS = 8
"""The base-2 logarithm of the number of adjacent rows that share one time of last use.

The time is shared so that reading writes little.
"""
_VACUUM_PAGES = 2_000
_YEAR_10000 = 253_402_300_800
_MOST_BLOCKS = 1 << 54


@dataclass(frozen=True)
class ModelRows:
    """The number of stored vectors of one model and size.

    ``base_url`` and ``model`` are ``"?"`` if unknown; ``dimensions`` is ``None`` if no size was
    requested.
    """

    base_url: str
    model: str
    dimensions: int | None
    vectors: int


@dataclass(frozen=True)
class CacheInfo:
    """The content of a cache.

    Attributes:
        path: The file, or the URL of a server without its password.
        bytes: Size on disk, including the write-ahead log; for a server, the approximate memory.
        vectors: Number of vectors.
        models: Number of vectors by model.
        hits: Number of texts that were found since the cache was created.
        misses: Number of texts that were not found.
        created: Day on which the oldest vector was stored, in seconds since 1970; ``None`` if
            there is none.
        used: Day of the last use, in seconds since 1970; ``None`` if there is none.
        in_flight: Number of texts that a process has claimed but not stored yet.
    """

    path: Path | str
    bytes: int = 0
    vectors: int = 0
    models: tuple[ModelRows, ...] = ()
    hits: int = 0
    misses: int = 0
    created: int | None = None
    used: int | None = None
    in_flight: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the texts that were found, 0 to 1; 0 before the first lookup."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


@dataclass(frozen=True)
class Pruned:
    """The number of vectors, and of bytes on disk, that pruning removed."""

    vectors: int
    bytes: int


def contents(db: sqlite3.Connection, path: Path) -> CacheInfo:
    """Count the valid rows of the file at ``path``."""
    models = [
        ModelRows(base_url, model, dimensions, _count(db, prefix))
        for prefix, base_url, model, dimensions in db.execute(
            "SELECT CAST(prefix AS BLOB), CAST(base_url AS TEXT), CAST(model AS TEXT),"
            " iif(typeof(dimensions) = 'integer', dimensions, NULL) FROM kind"
        ).fetchall()
        if prefix
    ]
    vectors: int = db.execute("SELECT count(*) FROM vector").fetchone()[0]
    unnamed = vectors - sum(model.vectors for model in models)
    if unnamed > 0:
        models.append(ModelRows("?", "?", None, unnamed))
    created, used = db.execute(
        "SELECT min(created), max(used) FROM block"
        " WHERE created BETWEEN 0 AND ?1 AND used BETWEEN 0 AND ?1",
        (_YEAR_10000,),
    ).fetchone()
    counters = dict(
        db.execute("SELECT name, n FROM counter WHERE typeof(n) = 'integer'").fetchall()
    )
    return CacheInfo(
        path=path,
        vectors=vectors,
        models=tuple(sorted(models, key=lambda rows: -rows.vectors)),
        hits=counters.get("hits", 0),
        misses=counters.get("misses", 0),
        created=created,
        used=used,
    )


def remove(
    db: sqlite3.Connection,
    writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
    *,
    stale: float,
    keep: float,
) -> int:
    """Remove the least recently used vectors, and free their pages; return how many.

    Args:
        db: The open file.
        writing: Locks the file for one short write, so that other processes can write in between.
        stale: Remove vectors that were last used at or before this time, in seconds since 1970.
        keep: Remove more vectors until at most this number of bytes is in use.
    """
    removed = 0
    blocks = db.execute(
        "SELECT id, iif(used BETWEEN 0 AND ?, used, 0) AS used FROM block"
        " WHERE id BETWEEN 0 AND ? ORDER BY used DESC, id DESC",
        (_YEAR_10000, _MOST_BLOCKS),
    ).fetchall()
    vectors: int = db.execute("SELECT count(*) FROM vector").fetchone()[0]
    per_row = max(1, _bytes_in_use(db)) / max(1, vectors)
    while blocks:
        block, used = blocks[-1]
        rows = float(1 << BLOCK_BITS)
        if used > stale:
            rows = min(rows, (_bytes_in_use(db) - keep) / per_row)
        if rows <= 0:
            break
        with writing():
            deleted = _thin(db, block, math.ceil(rows))
        removed += deleted
        if deleted < rows:
            blocks.pop()  # the block is empty
    free = _free_pages(db)
    while free:
        db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        before, free = free, _free_pages(db)
        if free >= before:
            break  # other processes use up pages as fast as they are freed, or the list is damaged
    return removed


def _free_pages(db: sqlite3.Connection) -> int:
    pages: int = db.execute("PRAGMA freelist_count").fetchone()[0]
    return pages


def _count(db: sqlite3.Connection, prefix: bytes) -> int:
    after = (int.from_bytes(prefix, "big") + 1).to_bytes(len(prefix) + 1, "big")
    end = after[1:] if after[0] == 0 else b"\xff" * (KIND_BYTES + TEXT_BYTES + 1)
    count: int = db.execute(
        "SELECT count(*) FROM vector WHERE k >= ? AND k < ?", (prefix, end)
    ).fetchone()[0]
    return count


def _bytes_in_use(db: sqlite3.Connection) -> int:
    page, pages, free = (
        db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_size", "page_count", "freelist_count")
    )
    used: int = page * (pages - free)
    return used


def _thin(db: sqlite3.Connection, block: int, rows: int) -> int:
    """Delete the first ``rows`` of a block; delete the block when it has no rows left."""
    span = (block << BLOCK_BITS, (block + 1) << BLOCK_BITS)
    deleted = db.execute(
        "DELETE FROM vector WHERE rowid IN (SELECT rowid FROM vector"
        " WHERE rowid >= ? AND rowid < ? ORDER BY rowid LIMIT ?)",
        (*span, rows),
    ).rowcount
    if not db.execute("SELECT 1 FROM vector WHERE rowid >= ? AND rowid < ?", span).fetchone():
        db.execute("DELETE FROM block WHERE id = ?", (block,))
    return deleted
