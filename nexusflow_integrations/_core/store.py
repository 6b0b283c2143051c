"""The cache file: every vector that was paid for, and who is paying for which one now.

One SQLite file in WAL mode serves all processes of a host. A vector is found by the hash of what
it was made from (``Keyer``); neither a text nor an API key is ever written. Before a process pays
for a text it claims the key for some seconds, so that all others wait for the row instead of
paying too; the claims of a process that dies run out by themselves.

Rows are ordinary rowid rows in pages of 4 kB: four times smaller and faster here than
``WITHOUT ROWID``. Everything is committed in short transactions and no cursor stays open, so that
neither the write-ahead log nor anybody's wait grows. A commit survives the death of the process at
any point; a power cut may take the last ones with it, but leaves the file whole
(https://sqlite.org/wal.html). All of it blocks, so the engine calls it in a thread of its own.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nexusflow_integrations._core.wire import Vectors
from nexusflow_integrations.errors import CacheError

APPLICATION_ID = 0x4E465643
"""``NFVC`` in the header of the file."""
SCHEMA_VERSION = 1
BUSY_SECONDS = 10.0
"""How long to wait for the file while another process writes; a write takes milliseconds."""
BLOCK_BITS = 8
"""Last use is noted for 256 neighbouring rows at once, so that reading a corpus writes little."""
DAY = 86_400
CLOCK_SLACK = 1.0
"""Seconds that a claim may lie in the future before its clock counts as wrong."""
FORGOTTEN = 7 * DAY
"""Seconds after which a claim that nobody came back to is dropped."""
_KIND_BYTES = 4
_TEXT_BYTES = 20
_CHUNKS = (8, 64, 512)  # few different statements, so that SQLite prepares each only once
_VACUUM_PAGES = 2_000
_MIN_CLAIM = 0.1

_SCHEMA = (
    # k: 4 bytes that stand for everything but the text, so that one kind of row is one range of
    # the index, and 20 bytes of a hash over everything.
    "CREATE TABLE vector(k BLOB NOT NULL PRIMARY KEY, v BLOB NOT NULL)",
    "CREATE TABLE claim(k BLOB NOT NULL PRIMARY KEY, owner INTEGER NOT NULL,"
    " since REAL NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE kind(prefix BLOB NOT NULL PRIMARY KEY, base_url TEXT NOT NULL,"
    " model TEXT NOT NULL, dimensions INTEGER, role INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE block(id INTEGER PRIMARY KEY, created INTEGER NOT NULL, used INTEGER NOT NULL)",
    "CREATE TABLE counter(name TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE pacer(account BLOB NOT NULL PRIMARY KEY, seen REAL NOT NULL,"
    " requests_at REAL NOT NULL, tokens_at REAL NOT NULL, share REAL NOT NULL,"
    " share_at REAL NOT NULL, cut_at REAL NOT NULL) WITHOUT ROWID",
)
_TABLES = {"vector", "claim", "kind", "block", "counter", "pacer"}


class StoreUnavailable(Exception):  # noqa: N818 - it never leaves the core
    """The file cannot be used here and now: read-only, disk full, locked, no WAL. One sentence."""


class Keyer:
    """Makes the keys of all texts that one client sends with one setting: call it with a text.

    Args:
        base_url: Root of the API.
        model: Name of the model.
        dimensions: The size asked for; ``None``, the server's own, is a variant of its own.
        role: Whatever else changes the vector: the instruction or role that goes with the text,
            or ``""`` if nothing does.
    """

    __slots__ = ("_hash", "base_url", "dimensions", "has_role", "model", "prefix")

    def __init__(
        self, *, base_url: str, model: str, dimensions: int | None, role: str = ""
    ) -> None:
        self.base_url = base_url
        self.model = model
        self.dimensions = dimensions
        self.has_role = bool(role)
        parts = ("vector 1", base_url, model, str(dimensions), role)
        framed = b"".join(
            len(data).to_bytes(8, "big") + data for data in (part.encode() for part in parts)
        )
        kind = hashlib.sha256(framed).digest()
        self.prefix = kind[:_KIND_BYTES]
        self._hash = hashlib.sha256(kind)

    def __call__(self, text: str) -> bytes:
        """Return the 24 bytes under which the vector of ``text`` is kept."""
        digest = self._hash.copy()
        digest.update(text.encode())
        return self.prefix + digest.digest()[:_TEXT_BYTES]


class Claimed(NamedTuple):
    """What came of a claim.

    Attributes:
        hits: Key to its vector, float32 of shape (d,), read-only, all of one size.
        mine: Keys that this caller has to pay for now, and then to ``put`` or ``release``.
        busy: Keys that somebody else is paying for: ask again.
        repaid: How many of ``mine`` were in flight in a process that died.
    """

    hits: dict[bytes, Vectors]
    mine: list[bytes]
    busy: list[bytes]
    repaid: int


@dataclass(frozen=True)
class ModelRows:
    """How many vectors of one model and size the file holds.

    ``base_url`` and ``model`` are ``"?"`` where the file does not know them; ``dimensions`` is
    ``None`` where none was asked for; ``role`` tells whether an instruction went with the texts.
    """

    base_url: str
    model: str
    dimensions: int | None
    role: bool
    vectors: int


@dataclass(frozen=True)
class CacheInfo:
    """What is in the file.

    Attributes:
        path: Where it is.
        bytes: Its size on disk, with the write-ahead log.
        vectors: How many vectors it holds.
        models: The same by model.
        hits: Texts that were found, since the file was made.
        misses: Texts that had to be paid for.
        created: When the oldest vector was put, as seconds since 1970, to the day; ``None`` if
            there is none.
        used: The same for the last use.
        in_flight: Texts that somebody is paying for now.
    """

    path: Path
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
        """Share of the texts that were found, 0 to 1; 0 before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


@dataclass(frozen=True)
class Pruned:
    """What pruning removed: vectors, and bytes on disk."""

    vectors: int
    bytes: int


def default_path() -> Path:
    """Return where the cache of this user lives, by the convention of the platform."""
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    else:
        named = os.environ.get("XDG_CACHE_HOME", "")
        folder = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    return folder / "nexusflow" / "vectors.sqlite3"


@dataclass
class _Notes:
    """What reading found out and the next write takes along."""

    hits: int = 0
    misses: int = 0
    blocks: set[int] = field(default_factory=set)


class VectorStore:
    """The cache file, opened when it is first used, once in each process.

    Made for one thread that does nothing else; a lock keeps others apart. May be pickled, and
    survives a fork: the child opens the file anew.

    Args:
        path: The file; ``True`` is ``default_path()``.
        clock: Seconds since 1970, the same for all processes.
        claim_seconds: How long a claim holds unless it is renewed.

    All methods that touch the file raise ``CacheError`` if it is corrupt, not ours or written by
    a newer version (it is left alone), and ``StoreUnavailable`` if it cannot be used here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | bool,
        *,
        clock: Callable[[], float] = time.time,
        claim_seconds: float = 10.0,
    ) -> None:
        if path is False:
            raise ValueError("a cache needs a path, or True for the user's cache folder")
        where = default_path() if path is True else Path(path).expanduser()
        self.path = Path(os.path.abspath(where))
        self.clock = clock
        self.claim_seconds = max(_MIN_CLAIM, claim_seconds)
        self._kinds: dict[bytes, Keyer] = {}
        self._closed_state()
        _stores.add(self)

    def _closed_state(self) -> None:
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._is_damaged = False
        self._owner = 0
        self._known: set[bytes] = set()
        self._notes = _Notes()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "clock": self.clock, "claim_seconds": self.claim_seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kinds = {}
        self._closed_state()
        _stores.add(self)

    def __repr__(self) -> str:
        return f"VectorStore({str(self.path)!r})"

    # -- keys ----------------------------------------------------------------------------------

    def keyer(self, *, base_url: str, model: str, dimensions: int | None, role: str = "") -> Keyer:
        """Return a ``Keyer`` whose model ``info`` will know by name."""
        keyer = Keyer(base_url=base_url, model=model, dimensions=dimensions, role=role)
        return self._kinds.setdefault(keyer.prefix, keyer)

    @staticmethod
    def key(
        *, base_url: str, model: str, dimensions: int | None, instruction_or_role: str, text: str
    ) -> bytes:
        """Return the key of one text; a ``Keyer`` is faster for many."""
        keyer = Keyer(
            base_url=base_url, model=model, dimensions=dimensions, role=instruction_or_role
        )
        return keyer(text)

    # -- vectors and claims --------------------------------------------------------------------

    def claim(self, keys: Sequence[bytes], dimensions: int | None) -> Claimed:
        """Find what is there, and claim what nobody is paying for.

        A row that is no vector (wrong length, not finite, all zeros) counts as absent. A key that
        this object itself has claimed before is ``busy`` until it is put, released or run out.
        Writes, in one short transaction, only if there is something to claim.

        Args:
            keys: From a ``Keyer``; the same one twice is asked for once.
            dimensions: Size that the vectors must have; ``None`` takes that of the newest.
        """
        wanted = list(dict.fromkeys(keys))
        mine: list[bytes] = []
        busy: list[bytes] = []
        repaid = 0
        with self._reading() as db:
            hits = self._find(db, wanted, dimensions)
            missing = [key for key in wanted if key not in hits]
            if missing:
                now = self.clock()
                claims = _claims(db, missing)
                if all(key in claims and claims[key].live(now) for key in missing):
                    busy = missing
                else:
                    size = next((len(row) for row in hits.values()), dimensions)
                    with self.transaction() as db:
                        now = self.clock()
                        late = self._find(db, missing, size)
                        hits.update(late)
                        claims = _claims(db, missing)
                        for key in missing:
                            if key in late:
                                continue
                            claim = claims.get(key)
                            if claim is not None and claim.live(now):
                                busy.append(key)
                            else:
                                mine.append(key)
                                repaid += claim is not None and claim.owner != self._owner
                        db.executemany(
                            "INSERT INTO claim VALUES(?, ?, ?, ?) ON CONFLICT(k) DO UPDATE SET"
                            " owner = excluded.owner, since = excluded.since,"
                            " until = excluded.until",
                            [(key, self._owner, now, now + self.claim_seconds) for key in mine],
                        )
            self._notes.hits += len(hits)
            self._notes.misses += len(mine)
        return Claimed(hits, mine, busy, repaid)

    def present(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of ``keys`` that have a row; claims and counts nothing."""
        with self._reading() as db:
            return {
                row[0]
                for chunk in _chunks(list(dict.fromkeys(keys)))
                for row in db.execute(_select("k", "vector", len(chunk)), chunk).fetchall()
            }

    def put(self, rows: Sequence[tuple[bytes, Vectors]]) -> None:
        """Keep vectors, float32 of shape (d,), in one transaction, and end the claims on them.

        Once this returns they survive the death of the process.
        """
        if not rows:
            return
        day = self._today()
        with self.transaction() as db:
            before = _last_rowid(db)
            db.executemany(
                "INSERT INTO vector VALUES(?, ?) ON CONFLICT(k) DO UPDATE SET v = excluded.v",
                [(key, np.asarray(vector, dtype="<f4").tobytes()) for key, vector in rows],
            )
            db.executemany("DELETE FROM claim WHERE k = ?", [(key,) for key, _ in rows])
            first, last = (before + 1) >> BLOCK_BITS, _last_rowid(db) >> BLOCK_BITS
            db.executemany(
                "INSERT INTO block VALUES(?, ?, ?) ON CONFLICT(id) DO UPDATE SET"
                " used = excluded.used WHERE used < excluded.used",
                [(block, day, day) for block in range(first, last + 1)],
            )
            self._name_kinds(db, {key[:_KIND_BYTES] for key, _ in rows})

    def release(self, keys: Iterable[bytes]) -> None:
        """Give up claims of this object on ``keys``; somebody else may pay for them at once."""
        self._on_own_claims("DELETE FROM claim WHERE k = ? AND owner = ?", [(k,) for k in keys])

    def renew(self, keys: Iterable[bytes]) -> None:
        """Hold claims for another ``claim_seconds``; those that ran out and were taken are lost."""
        now = self.clock()
        self._on_own_claims(
            "UPDATE claim SET since = ?, until = ? WHERE k = ? AND owner = ?",
            [(now, now + self.claim_seconds, key) for key in keys],
        )

    def _on_own_claims(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            with self.transaction() as db:
                db.executemany(statement, [(*row, self._owner) for row in rows])

    def _find(
        self, db: sqlite3.Connection, keys: Sequence[bytes], dimensions: int | None
    ) -> dict[bytes, Vectors]:
        found: list[tuple[bytes, bytes, int]] = []
        for chunk in _chunks(keys):
            # The cast, which costs a blob nothing, makes one of whatever else somebody put there.
            select = _select("k, CAST(v AS BLOB), rowid", "vector", len(chunk))
            found += db.execute(select, chunk).fetchall()
        if dimensions is None:
            usable = [row for row in found if row[1] and len(row[1]) % 4 == 0]
            size = len(max(usable, key=lambda row: row[2])[1]) if usable else 4
        else:
            size = 4 * dimensions
        rows = [row for row in found if len(row[1]) == size]
        if not rows:
            return {}
        matrix = np.frombuffer(b"".join(row[1] for row in rows), dtype="<f4")
        matrix = matrix.reshape(len(rows), -1).astype(np.float32, copy=False)
        good = np.isfinite(matrix).all(axis=1) & matrix.any(axis=1)
        hits: dict[bytes, Vectors] = {}
        for (key, _, rowid), vector, is_good in zip(rows, matrix, good.tolist(), strict=True):
            if is_good:
                hits[key] = vector
                self._notes.blocks.add(rowid >> BLOCK_BITS)
        return hits

    def _name_kinds(self, db: sqlite3.Connection, prefixes: set[bytes]) -> None:
        for prefix in prefixes - self._known:
            kind = self._kinds.get(prefix)
            if kind is not None:
                db.execute(
                    "INSERT OR IGNORE INTO kind VALUES(?, ?, ?, ?, ?)",
                    (prefix, kind.base_url, kind.model, kind.dimensions, kind.has_role),
                )
                self._known.add(prefix)

    # -- care ----------------------------------------------------------------------------------

    def info(self) -> CacheInfo:
        """Tell what is in the file; makes none if there is none."""
        if not self.path.exists():
            return CacheInfo(self.path)
        with self._reading() as db:
            models = [
                ModelRows(base_url, model, dimensions, bool(role), _count(db, prefix))
                for prefix, base_url, model, dimensions, role in db.execute(
                    "SELECT prefix, base_url, model, dimensions, role FROM kind"
                ).fetchall()
            ]
            vectors: int = db.execute("SELECT count(*) FROM vector").fetchone()[0]
            unnamed = vectors - sum(model.vectors for model in models)
            if unnamed:
                models.append(ModelRows("?", "?", None, False, unnamed))
            created, used = db.execute("SELECT min(created), max(used) FROM block").fetchone()
            counters = dict(db.execute("SELECT name, n FROM counter").fetchall())
            claims = db.execute("SELECT owner, since, until FROM claim").fetchall()
            now = self.clock()
            return CacheInfo(
                path=self.path,
                bytes=self._bytes(),
                vectors=vectors,
                models=tuple(sorted(models, key=lambda rows: -rows.vectors)),
                hits=counters.get("hits", 0) + self._notes.hits,
                misses=counters.get("misses", 0) + self._notes.misses,
                created=created,
                used=used,
                in_flight=sum(_Claim(*claim).live(now) for claim in claims),
            )

    def prune(self, *, max_age: float | None = None, max_bytes: int | None = None) -> Pruned:
        """Remove what was not used for long. Others may use the file meanwhile.

        Args:
            max_age: Seconds; removes what was not used since, to the day, in groups of 256
                neighbouring rows. ``None``: any age may stay.
            max_bytes: Size of the file on disk to come down to, the least recently used going
                first. ``None``: any size may stay.
        """
        return self._prune(
            stale=float("-inf") if max_age is None else self.clock() - max_age - DAY,
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
            size, removed = self._bytes(), 0
            blocks = db.execute("SELECT id, used FROM block ORDER BY used DESC, id DESC").fetchall()
            vectors: int = db.execute("SELECT count(*) FROM vector").fetchone()[0]
            per_row = _bytes_in_use(db) / max(1, vectors)
            while blocks:
                block, used = blocks[-1]
                rows = float(1 << BLOCK_BITS)
                if used > stale:
                    rows = min(rows, (_bytes_in_use(db) - keep) / per_row)
                if rows <= 0:
                    break
                with self.transaction() as db:
                    deleted = _thin(db, block, math.ceil(rows))
                removed += deleted
                if deleted < rows:
                    blocks.pop()  # that was all of it
            self._notes.blocks.clear()
            while db.execute("PRAGMA freelist_count").fetchone()[0]:
                db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
            self._checkpoint(db)
            return Pruned(removed, max(0, size - self._bytes()))

    def _bytes(self) -> int:
        return self._size() + self._size("-wal")

    def _size(self, suffix: str = "") -> int:
        try:
            return os.stat(f"{self.path}{suffix}").st_size
        except OSError:
            return 0

    # -- life ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file, or make it; all other methods do so by themselves."""
        with self._lock:
            self._connection()

    def close(self) -> None:
        """Give up all claims, move the log into the file, and close it. Never raises."""
        with self._lock:
            db, self._db = self._db, None
            if db is None:
                return
            if self._is_damaged:  # nothing more is written to it
                db.close()
                return
            with suppress(sqlite3.Error):
                db.execute("PRAGMA busy_timeout = 500")
                db.execute("BEGIN IMMEDIATE")
                db.execute("DELETE FROM claim WHERE owner = ?", (self._owner,))
                self._write_notes(db)
                db.execute("COMMIT")
            with suppress(sqlite3.Error):
                self._checkpoint(db)
            with suppress(sqlite3.Error):
                db.close()

    def _forget(self) -> None:
        """Leave the parent's connection alone, in the child of a fork."""
        if self._db is not None:
            _inherited.append(self._db)
        self._closed_state()

    def _checkpoint(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            yield self._connection()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the file for one short write, rolled back if anything in it fails."""
        with self._lock, self._explained():
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                notes = self._write_notes(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # some failures have rolled back by themselves
                    with suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                raise
            if notes is not None:
                self._notes = _Notes()

    def _today(self) -> int:
        return int(self.clock()) // DAY * DAY

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
            raise self._damaged(error) from error

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            with self._explained():
                self._db = self._opened()
            self._owner = int.from_bytes(os.urandom(8), "big") >> 1
        return self._db

    def _opened(self) -> sqlite3.Connection:
        with _opening:
            self._make_file()
            self._check_header()
            db = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _make_file(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only its owner may read it: from a vector one can guess at the text. Opened by
            # ourselves only where it is new: to close a descriptor of a file that SQLite has open
            # in this process would drop SQLite's locks.
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            if self.path.is_dir():
                raise CacheError(
                    f"the cache {self.path} is a directory; name a file in it"
                ) from None
        except OSError as error:
            raise StoreUnavailable(
                f"the cache {self.path} cannot be made: {error.strerror or error}"
            ) from error

    def _check_header(self) -> None:
        """Refuse a file that is not ours without changing a byte in it or beside it."""
        for chance in range(5, -1, -1):
            problem = self._header_problem()
            if problem is None:
                return
            if not chance:
                raise problem
            time.sleep(0.02)  # perhaps it was seen while another process was making it

    def _header_problem(self) -> CacheError | None:
        # Takes no lock, so that it leaves no trace.
        db = sqlite3.connect(f"{self.path.as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            header = _header(db)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            if "malformed" not in str(error):
                return self._foreign("no database at all")
            if self._size("-wal") or self._size("-journal"):
                return None  # what seems to be missing is there: SQLite must have a look at both
            return self._damaged(error)
        finally:
            db.close()
        if header.pages:
            return self._header_complaint(header)
        return self._foreign("no database at all") if self._size() else None

    def _header_complaint(self, header: _Header) -> CacheError | None:
        if header.application != APPLICATION_ID or header.version < SCHEMA_VERSION:
            return self._foreign("another SQLite database")
        if header.version > SCHEMA_VERSION:
            return CacheError(
                f"the cache {self.path} was written by a newer version of nexusflow-integrations"
                f" (format {header.version}, this version reads {SCHEMA_VERSION});"
                " it was left alone: upgrade, or name another file"
            )
        return None

    def _foreign(self, what: str) -> CacheError:
        return CacheError(
            f"{self.path} is not a cache file of nexusflow-integrations but {what};"
            " it was left alone: name another file"
        )

    def _damaged(self, why: object) -> CacheError:
        return CacheError(
            f"the cache {self.path} is damaged ({why}); it was left alone:"
            " remove it, or name another file"
        )

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA secure_delete = FAST")
        db.execute("PRAGMA cache_size = -16000")
        db.execute("PRAGMA journal_size_limit = 67108864")
        if not _header(db).application:
            self._create(db)
        if complaint := self._header_complaint(_header(db)):
            raise complaint
        self._use_wal(db)
        db.execute("PRAGMA synchronous = NORMAL")
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master").fetchall()}
        if not tables >= _TABLES:
            raise self._damaged("tables are missing")
        db.execute("BEGIN IMMEDIATE")
        try:
            # Also finds out, here rather than in the midst of things, whether we may write.
            db.execute("DELETE FROM claim WHERE until < ?", (self.clock() - FORGOTTEN,))
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _create(self, db: sqlite3.Connection) -> None:
        # Both only count before the first table; the second lets pruning shrink the file while
        # others read it.
        db.execute("PRAGMA page_size = 4096")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # Before WAL is turned on, so that the header says whose file it is from the first moment.
        db.execute("BEGIN EXCLUSIVE")
        try:
            if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _SCHEMA:
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _use_wal(self, db: sqlite3.Connection) -> None:
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                # The change needs the file for itself for a moment, and does not wait for it.
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise StoreUnavailable(
                f"the cache {self.path} cannot be used: its file system does not support SQLite's"
                " write-ahead log, as network file systems do not; keep it on a local disk"
            )


class _Claim(NamedTuple):
    owner: int
    since: float
    until: float

    def live(self, now: float) -> bool:
        # One from the future was made before the clock was set back, and would hold too long.
        return self.since - CLOCK_SLACK <= now < self.until


class _Header(NamedTuple):
    pages: int
    application: int
    version: int


def _header(db: sqlite3.Connection) -> _Header:
    # Pages first: where there are any, the rest was written with them.
    names = ("page_count", "application_id", "user_version")
    return _Header(*(db.execute(f"PRAGMA {name}").fetchone()[0] for name in names))


def _claims(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, _Claim]:
    return {
        row[0]: _Claim(*row[1:])
        for chunk in _chunks(keys)
        for row in db.execute(
            _select("k, owner, since, until", "claim", len(chunk)), chunk
        ).fetchall()
    }


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut ``keys`` into pieces of few different lengths, filled up by repeating the last one."""
    start = 0
    while start < len(keys):
        left = len(keys) - start
        length = next((length for length in _CHUNKS if left <= length), _CHUNKS[-1])
        chunk = keys[start : start + length]
        yield [*chunk, *[chunk[-1]] * (length - len(chunk))]
        start += length


@lru_cache(maxsize=16)
def _select(columns: str, table: str, count: int) -> str:
    return f"SELECT {columns} FROM {table} WHERE k IN ({','.join('?' * count)})"  # noqa: S608


def _last_rowid(db: sqlite3.Connection) -> int:
    last: int | None = db.execute("SELECT max(rowid) FROM vector").fetchone()[0]
    return last or 0


def _count(db: sqlite3.Connection, prefix: bytes) -> int:
    after = (int.from_bytes(prefix, "big") + 1).to_bytes(len(prefix) + 1, "big")
    end = after[1:] if after[0] == 0 else b"\xff" * (_KIND_BYTES + _TEXT_BYTES + 1)
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
    """Delete the first ``rows`` of a block, and the block with the last of them."""
    span = (block << BLOCK_BITS, (block + 1) << BLOCK_BITS)
    deleted = db.execute(
        "DELETE FROM vector WHERE rowid IN (SELECT rowid FROM vector"
        " WHERE rowid >= ? AND rowid < ? ORDER BY rowid LIMIT ?)",
        (*span, rows),
    ).rowcount
    if not db.execute("SELECT 1 FROM vector WHERE rowid >= ? AND rowid < ?", span).fetchone():
        db.execute("DELETE FROM block WHERE id = ?", (block,))
    return deleted


_opening = threading.Lock()
_stores: weakref.WeakSet[VectorStore] = weakref.WeakSet()
_inherited: list[sqlite3.Connection] = []


def _forget_after_fork() -> None:
    global _opening
    _opening = threading.Lock()  # another thread may have held it when the process forked
    for store in list(_stores):
        store._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
