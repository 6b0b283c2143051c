"""The store in a file: the vectors that were paid for, and the claims of processes that are paying.

One SQLite file in WAL mode serves all processes of a host. The key of a vector is a hash of
everything that determines the vector (``Keyer``); texts and API keys are never written. Before a
process pays for a text, it claims the key for some seconds, so that all other processes wait for
the row instead of paying for it, too. The claims of a process that dies expire.

Rows are ordinary rowid rows in pages of 4 kB: for these rows, that is four times smaller and faster
than ``WITHOUT ROWID``. Everything is committed in short transactions and no cursor stays open, so
that the write-ahead log stays small and waits stay short. A commit survives the death of the
process at any point; a power cut may lose the last commits, but leaves the file intact
(https://sqlite.org/wal.html). All methods block, so the engine calls them in a separate thread.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.cache.boot import boot_number
from nexusflow_integrations._core.cache.file import BUSY_SECONDS, DAY, CacheFile, default_path
from nexusflow_integrations._core.cache.keys import KIND_BYTES, Keyer
from nexusflow_integrations._core.cache.rows import (
    DamageLog,
    dimensions_of,
    is_whole,
    packed,
    unpacked,
)
from nexusflow_integrations._core.cache.upkeep import (
    BLOCK_BITS,
    CacheInfo,
    Pruned,
    contents,
    remove,
)
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.paths import absolute
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import CacheError

T = TypeVar("T")

_CHUNKS = (8, 16, 64, 512)  # only a few lengths, so that SQLite prepares few statements
_MIN_CLAIM = 0.1
_CALLS = 1 << 20
"""How many calls of one process have distinct numbers."""


class Claimed(NamedTuple):
    """The result of a claim.

    Attributes:
        hits: The stored vectors by key: float32 of shape (d,), read-only, all of one size.
        mine: Keys that this caller must pay for now, and then ``put`` or ``release``.
        busy: Keys that another process or call is paying for: ask again later.
        repaid: How many of ``mine`` were already sent under a claim that has expired.
    """

    hits: dict[bytes, Vectors]
    mine: list[bytes]
    busy: list[bytes]
    repaid: int


@dataclass
class _Notes:
    """Statistics from reads, which are saved with the next write."""

    hits: int = 0
    misses: int = 0
    blocks: set[int] = field(default_factory=set)


class VectorStore:
    """The cache file, which each process opens once, at first use.

    The object is meant for one dedicated thread; a lock makes it safe for other threads. It can be
    pickled, and survives a fork: the child opens the file again.

    Args:
        path: The file; ``True`` is ``default_path()``.
        clock: A clock for tests. By default, claims and limits use ``time.monotonic``, which is the
            same for all processes of this boot, and days of use come from the wall clock.
        claim_seconds: Seconds that a claim is valid unless it is renewed.

    All methods that use the file raise ``CacheError`` if the file is damaged, is not a cache, or
    is of a newer version (it is then not changed), and ``StoreUnavailable`` if the file cannot be
    used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | bool,
        *,
        clock: Callable[[], float] | None = None,
        claim_seconds: float = 10.0,
    ) -> None:
        if path is False:
            raise ValueError("a cache needs a path, or True for the user's cache folder")
        self.path = default_path() if path is True else Path(absolute("cache", os.fspath(path)))
        self.claim_seconds = max(_MIN_CLAIM, claim_seconds)
        self._given_clock = clock
        self._begin()

    def _begin(self) -> None:
        self.clock = self._given_clock or monotonic
        self._wall_clock = self._given_clock or time.time
        self._kinds: dict[bytes, Keyer] = {}
        self._damage = DamageLog(self.path)
        self._lock = forks.Lock()
        self._closed_state()
        forks.around(self._pause)
        forks.in_child(self._forget)

    def _closed_state(self) -> None:
        self._file = CacheFile(self.path, self.clock)
        self._db: sqlite3.Connection | None = None
        self._is_in_sqlite = False
        self._is_damaged = False
        self._was_open = False
        self.boot = 0
        self._owner = (int.from_bytes(os.urandom(8), "big") >> 1) // _CALLS * _CALLS
        self._known: set[bytes] = set()
        self._notes = _Notes()

    def __getstate__(self) -> dict[str, Any]:
        names = ("path", "claim_seconds", "_given_clock")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __repr__(self) -> str:
        return f"VectorStore({str(vars(self).get('path', ''))!r})"

    # -- keys ----------------------------------------------------------------------------------

    def keyer(self, *, base_url: str, model: str, dimensions: int | None, added: str = "") -> Keyer:
        """Return a ``Keyer``, and record the model for ``info``."""
        keyer = Keyer(base_url=base_url, model=model, dimensions=dimensions, added=added)
        return self._kinds.setdefault(keyer.prefix, keyer)

    # -- vectors and claims --------------------------------------------------------------------

    def claim(
        self,
        keys: Sequence[bytes],
        dimensions: int | None,
        *,
        call: int = 0,
        most: int | None = None,
        sent: bool = False,
    ) -> Claimed:
        """Find stored vectors, and claim the keys that nobody is paying for.

        A row that was altered, or that is not a valid vector (wrong size, not finite, all zeros),
        counts as absent. A key that this object has already claimed is ``busy`` until it is put or
        released, or the claim expires. The method writes only if there is something to claim, in
        one short transaction.

        Args:
            keys: Keys from a ``Keyer``; duplicates are looked up once.
            dimensions: Size that the vectors must have; ``None`` means the size of the newest
                vector.
            call: The owner of the claims: a number for each call of this process.
            most: Maximum number of keys to claim, from the beginning; ``None`` means all.
            sent: Whether the texts are sent immediately, so that ``confirm`` is not needed.
        """
        wanted = list(dict.fromkeys(keys))
        mine: list[bytes] = []
        busy: list[bytes] = []
        repaid = 0
        with self._reading() as db:
            hits = self._find(db, wanted, dimensions)
            missing = [key for key in wanted if key not in hits]
            claims = self._claims(db, missing)
            busy = [key for key in missing if key in claims and claims[key].is_live]
            free = [key for key in missing if key not in claims or not claims[key].is_live][:most]
            if free:
                size = next((len(row) for row in hits.values()), dimensions)
                with self.transaction() as db:
                    late = self._find(db, free, size)
                    hits.update(late)
                    claims = self._claims(db, free)
                    owner = self._owner_of(call)
                    for key in free:
                        claim = claims.get(key)
                        if key in late:
                            continue
                        if claim is not None and claim.is_live:
                            busy.append(key)
                        else:
                            mine.append(key)
                            repaid += claim is not None and claim.is_sent and claim.owner != owner
                    now = self.clock()
                    new = (owner, now, now + self.claim_seconds, self.boot, sent)
                    db.executemany(
                        "INSERT OR REPLACE INTO claim VALUES(?, ?, ?, ?, ?, ?)",
                        [(key, *new) for key in mine],
                    )
            self._notes.hits += len(hits)
            self._notes.misses += len(mine)
        return Claimed(hits, mine, busy, repaid)

    def present(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the ``keys`` that have a row, without claiming or counting anything."""
        with self._reading() as db:
            return {
                row[0]
                for chunk in _chunks(list(dict.fromkeys(keys)))
                for row in db.execute(_select("asked.k", "vector", len(chunk)), chunk).fetchall()
            }

    def put(self, rows: Sequence[tuple[bytes, Vectors]]) -> None:
        """Store vectors, float32 of shape (d,), in one transaction, and end the claims on them.

        Once this method returns, the vectors survive the death of the process.
        """
        if rows:
            self.together(partial(self._put, rows))

    def _put(self, rows: Sequence[tuple[bytes, Vectors]]) -> None:
        day = self._today()
        with self.transaction() as db:
            before = _last_rowid(db)
            db.executemany(
                "INSERT INTO vector VALUES(?, ?) ON CONFLICT(k) DO UPDATE SET v = excluded.v",
                [(key, packed(key, vector)) for key, vector in rows],
            )
            db.executemany("DELETE FROM claim WHERE k = ?", [(key,) for key, _ in rows])
            first, last = (before + 1) >> BLOCK_BITS, _last_rowid(db) >> BLOCK_BITS
            db.executemany(
                "INSERT INTO block VALUES(?, ?, ?) ON CONFLICT(id) DO UPDATE SET"
                " used = excluded.used WHERE used < excluded.used",
                [(block, day, day) for block in range(first, last + 1)],
            )
            self._name_kinds(db, {key[:KIND_BYTES] for key, _ in rows})

    def release(self, keys: Iterable[bytes], call: int = 0) -> None:
        """Give up claims of ``call`` on ``keys``, so that others may pay for them immediately."""
        self._on_claims("DELETE FROM claim", [], keys, call)

    def renew(self, keys: Iterable[bytes], call: int = 0) -> None:
        """Extend claims by ``claim_seconds``; claims that expired and were taken over are lost."""
        now = self.clock()
        times = [now, now + self.claim_seconds]
        self._on_claims("UPDATE claim SET since = ?, until = ?", times, keys, call)

    def probe(self) -> None:
        """Write a number that nobody reads, to find out whether the file is writable."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO counter VALUES('probes', 1) ON CONFLICT(name) DO UPDATE SET n = n + 1"
            )

    def confirm(self, keys: Sequence[bytes], call: int = 0) -> set[bytes]:
        """Renew the claims of ``call`` on ``keys``, which are sent next, and mark them as sent.

        Return the keys that ``call`` no longer holds: their claims expired, and other calls are
        paying or have paid for the texts. These texts must not be sent.
        """
        now = self.clock()
        times = [now, now + self.claim_seconds]
        with self.transaction() as db:
            renewed = self._on_claims(
                "UPDATE claim SET since = ?, until = ?, sent = 1", times, keys, call
            )
            if renewed == len(keys):
                return set()
            owner, claims = self._owner_of(call), self._claims(db, keys)
        return {key for key in keys if key not in claims or claims[key].owner != owner}

    def _on_claims(
        self, statement: str, values: Sequence[Any], keys: Iterable[bytes], call: int
    ) -> int:
        """Run ``statement`` for the ``keys`` that ``call`` has claimed; return their number."""
        owner = self._owner_of(call)
        rows = [(*values, key, owner) for key in keys]
        if not rows:
            return 0
        with self.transaction() as db:
            return db.executemany(f"{statement} WHERE k = ? AND owner = ?", rows).rowcount

    def _owner_of(self, call: int) -> int:
        return self._owner + call % _CALLS

    def _claims(self, db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, _Claim]:
        return self._judged(
            row
            for chunk in _chunks(keys)
            for row in db.execute(_select("claim.*", "claim", len(chunk)), chunk).fetchall()
        )

    def _judged(self, rows: Iterable[tuple[Any, ...]]) -> dict[bytes, _Claim]:
        """Return the claims of ``rows`` by key, ignoring invalid ones.

        A claim is valid for at most ``claim_seconds``, even if its stored time is later, and only
        during the boot in which it was made.
        """
        rows = list(rows)  # read the rows before the clock, so that no claim is newer than the time
        now = self.clock()
        claims = {}
        for key, owner, since, until, boot, sent in rows:
            is_live = (
                boot == self.boot
                and isinstance(since, float)
                and isinstance(until, float)
                and since <= now < min(until, since + self.claim_seconds)
            )
            claims[key] = _Claim(owner, is_live, sent == 1)
        return claims

    def _find(
        self, db: sqlite3.Connection, keys: Sequence[bytes], dimensions: int | None
    ) -> dict[bytes, Vectors]:
        found: list[tuple[bytes, bytes, int]] = []
        for chunk in _chunks(keys):
            # Select the requested key instead of the stored one. The cast is free for a blob, and
            # converts any other type.
            select = _select("asked.k, CAST(v AS BLOB), rowid", "vector", len(chunk))
            found += db.execute(select, chunk).fetchall()
        whole = [row for row in found if is_whole(row[0], row[1])]
        self._damage.note(len(found) - len(whole))
        if dimensions is None:
            newest = max(whole, key=lambda row: row[2], default=None)
            dimensions = 0 if newest is None else dimensions_of(newest[1])
        hits = unpacked([(key, row) for key, row, _ in whole], dimensions)
        self._notes.blocks.update(rowid >> BLOCK_BITS for key, _, rowid in whole if key in hits)
        return hits

    def _name_kinds(self, db: sqlite3.Connection, prefixes: set[bytes]) -> None:
        for prefix in prefixes - self._known:
            kind = self._kinds.get(prefix)
            if kind is not None:
                db.execute(
                    "INSERT OR IGNORE INTO kind VALUES(?, ?, ?, ?)",
                    (prefix, kind.base_url, kind.model, kind.dimensions),
                )
                self._known.add(prefix)

    # -- maintenance ---------------------------------------------------------------------------

    def info(self) -> CacheInfo:
        """Describe the contents of the file; if there is no file, do not create one."""
        if not self.path.exists():
            return CacheInfo(self.path)
        with self._reading() as db:
            found = contents(db, self.path)
            claims = self._judged(db.execute("SELECT * FROM claim").fetchall())
            return replace(
                found,
                bytes=self._file.size(),
                hits=found.hits + self._notes.hits,
                misses=found.misses + self._notes.misses,
                in_flight=sum(claim.is_live for claim in claims.values()),
            )

    def prune(self, *, max_age: float | None = None, max_bytes: int | None = None) -> Pruned:
        """Remove vectors that were not used for a long time, while others may use the file.

        Args:
            max_age: Remove vectors unused for longer than this number of seconds, with a precision
                of a day, in groups of 256 neighbouring rows. ``None`` is no limit.
            max_bytes: Maximum size of the file on disk; the least recently used vectors are removed
                first. ``None`` is no limit.
        """
        return self._prune(
            stale=float("-inf") if max_age is None else self._wall_clock() - max_age - DAY,
            keep=float("inf") if max_bytes is None else max_bytes,
        )

    def clear(self) -> Pruned:
        """Remove all vectors and all counts."""
        pruned = self._prune(stale=float("inf"), keep=0)
        if self.path.exists():
            with self.transaction() as db:
                self._notes = _Notes()
                self._known.clear()
                db.execute("DELETE FROM kind")
                db.execute("DELETE FROM counter")
        return pruned

    def _prune(self, *, stale: float, keep: float) -> Pruned:
        if not self.path.exists():
            return Pruned(0, 0)
        with self._reading() as db:
            size = self._file.size()
            removed = remove(db, self.transaction, stale=stale, keep=keep)
            self._notes.blocks.clear()
            self._checkpoint(db)
            return Pruned(removed, max(0, size - self._file.size()))

    # -- lifecycle -----------------------------------------------------------------------------

    def open(self) -> None:
        """Open or create the file. All other methods do this themselves."""
        with self._held():
            self._connection()

    def close(self) -> None:
        """Give up all claims, move the log into the file, and close it. Never raises."""
        with self._lock.mutex:
            db, self._db = self._db, None
            if db is None:
                return
            if self._is_damaged:  # do not write to a damaged file
                db.close()
                return
            with suppress(sqlite3.Error):
                db.execute("PRAGMA busy_timeout = 500")
                db.execute("BEGIN IMMEDIATE")
                db.execute(
                    "DELETE FROM claim WHERE owner BETWEEN ? AND ?",
                    (self._owner, self._owner_of(-1)),
                )
                self._write_notes(db)
                db.execute("COMMIT")
            with suppress(sqlite3.Error):
                self._checkpoint(db)
            with suppress(sqlite3.Error):
                db.close()

    def _pause(self, until: float) -> Callable[[], None] | None:
        """Close the file while the process forks.

        SQLite keeps in memory which locks this process holds on a file, for all connections to it.
        A child that inherited this memory would wait for its parent's locks for ever, or hold no
        locks itself
        (https://sqlite.org/howtocorrupt.html#_carrying_an_open_database_across_a_fork).
        """
        is_nested, mutex = self._lock.is_held, self._lock.mutex
        if not mutex.acquire(timeout=max(0.0, until - monotonic())):
            return None
        if not is_nested:
            db, self._db = self._db, None
            self._is_in_sqlite = db is not None and not _closed(db, until)
        release: Callable[[], None] = mutex.release
        return release

    def _forget(self) -> None:
        """Reset the state in a forked child; never use the file if it could not be closed."""
        if self._is_in_sqlite:
            _torn.add(os.path.realpath(self.path))
            _inherited.append(self._db)
        self._closed_state()

    def _checkpoint(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _held(self) -> Iterator[None]:
        # Use a timeout: the thread that holds the lock may wait for a disk that no longer answers.
        mutex = self._lock.mutex
        if not mutex.acquire(timeout=BUSY_SECONDS):
            raise StoreUnavailable(f"the cache {self.path} cannot be used: a read or write hangs")
        try:
            yield
        finally:
            mutex.release()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._held(), self._explained():
            self._follow()
            yield self._connection()

    def together(self, work: Callable[[], T]) -> T:
        """Run ``work`` in one transaction and return its result.

        If the file was removed or replaced in the meantime, ``work`` runs again in the new file.
        """
        with self._held():
            is_part = self._db is not None and self._db.in_transaction
            with self.transaction():
                done = work()
            if is_part or not self._file.has_moved():
                return done
            with self.transaction():
                return work()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one short write transaction, which is rolled back if anything in it fails.

        Inside another transaction, it becomes a part of that transaction.
        """
        with self._held(), self._explained():
            if self._db is not None and self._db.in_transaction:
                yield self._db
                return
            self._follow()
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                notes = self._write_notes(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # some failures have already rolled back
                    with suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                raise
            if notes is not None:
                self._notes = _Notes()

    def _follow(self) -> None:
        """Leave the file if the path now names another one, except within a transaction."""
        if self._db is not None and not self._db.in_transaction and self._file.has_moved():
            self._leave()

    def _leave(self) -> None:
        """Close a file that was moved or removed, or whose log is gone."""
        logger.warning(
            "the cache %s was removed or replaced while it was open; using the new file",
            self.path,
        )
        db, self._db = self._db, None
        self._known.clear()
        self._is_damaged = False
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()
        self._file.remove_orphans()

    def _today(self) -> int:
        return int(self._wall_clock()) // DAY * DAY

    def _write_notes(self, db: sqlite3.Connection) -> _Notes | None:
        notes = self._notes
        if not (notes.hits or notes.misses or notes.blocks):
            return None
        today = self._today()
        db.executemany(
            "INSERT INTO counter VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET n = n + excluded.n",
            [("hits", notes.hits), ("misses", notes.misses)],
        )
        db.executemany(
            "UPDATE block SET used = ? WHERE id = ? AND used < ?",
            [(today, block, today) for block in notes.blocks],
        )
        return notes

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"the cache {self.path} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            self._is_damaged = True
            raise self._file.damaged(error) from error

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            if _torn and os.path.realpath(self.path) in _torn:
                raise StoreUnavailable(
                    f"the cache {self.path} cannot be used in this process, which was forked while"
                    " its parent waited for the file"
                )
            self._is_in_sqlite = True
            with self._explained():
                try:
                    self._db = self._file.connect()
                except CacheError as error:
                    if not self._was_open:
                        raise
                    # A process that is already running continues without the cache.
                    raise StoreUnavailable(str(error)) from None
            self._was_open = True
            self.boot = boot_number()
        return self._db


class _Claim(NamedTuple):
    owner: int
    is_live: bool
    is_sent: bool


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes | None]]:
    """Cut ``keys`` into pieces of a few fixed lengths; padding keys match no row."""
    start = 0
    while start < len(keys):
        left = len(keys) - start
        length = next((length for length in _CHUNKS if left <= length), _CHUNKS[-1])
        chunk = keys[start : start + length]
        yield [*chunk, *[None] * (length - len(chunk))]
        start += length


@lru_cache(maxsize=16)
def _select(columns: str, table: str, count: int) -> str:
    values = ",".join(["(?)"] * count)
    return (
        f"WITH asked(k) AS (VALUES {values})"  # noqa: S608
        f" SELECT {columns} FROM asked CROSS JOIN {table} ON {table}.k = asked.k"
    )


def _last_rowid(db: sqlite3.Connection) -> int:
    last: int | None = db.execute("SELECT max(rowid) FROM vector").fetchone()[0]
    return last or 0


def _closed(db: sqlite3.Connection, until: float) -> bool:
    """Close ``db`` in a thread, because closing may write; return whether it closed in time."""

    def close() -> None:
        with suppress(sqlite3.Error):
            db.close()

    closing = threading.Thread(target=close, name="nexusflow-close", daemon=True)
    closing.start()
    closing.join(max(0.1, until - monotonic()))
    return not closing.is_alive()


_inherited: list[sqlite3.Connection | None] = []
_torn: set[str] = set()
"""Files that this process cannot use, because it was forked while its parent was using them."""
