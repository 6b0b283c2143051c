"""The cache file on disk: its default location, creation, format check and opening.

A file that is not a cache of this package, is damaged, or was written by a newer version is
refused. No byte is changed in the file or beside it.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import CacheError, ConfigurationError

APPLICATION_ID = 0x4E465643
"""The bytes ``NFVC`` in the header of the file."""
SCHEMA_VERSION = 1
BUSY_SECONDS = 2.0
"""Seconds to wait for the file while another process writes; a write takes milliseconds."""
_BESIDE = ("-wal", "-shm")
"""Suffixes of the files that SQLite keeps beside an open file."""
DAY = 86_400
FORGOTTEN = 7 * DAY
"""Seconds after which an abandoned claim is dropped."""

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SCHEMA = (
    # k begins with 4 bytes that stand for everything except the text, so that the rows of a model
    # form one range of the index. The other 20 bytes are a hash of everything.
    "CREATE TABLE vector(k BLOB NOT NULL PRIMARY KEY, v BLOB NOT NULL)",
    "CREATE TABLE claim(k BLOB NOT NULL PRIMARY KEY, owner INTEGER NOT NULL,"
    " since REAL NOT NULL, until REAL NOT NULL, boot INTEGER NOT NULL DEFAULT 0,"
    " sent INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID",
    "CREATE TABLE kind(prefix BLOB NOT NULL PRIMARY KEY, base_url TEXT NOT NULL,"
    " model TEXT NOT NULL, dimensions INTEGER) WITHOUT ROWID",
    "CREATE TABLE block(id INTEGER PRIMARY KEY, created INTEGER NOT NULL, used INTEGER NOT NULL)",
    "CREATE TABLE counter(name TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE pacer(account BLOB NOT NULL PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID",
)


def default_path() -> Path:
    """Return the path of this user's cache, which follows the convention of the platform.

    Raises:
        ConfigurationError: The user has no home folder, and the environment names no cache folder.
    """
    try:
        if sys.platform == "win32":
            folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            folder = Path.home() / "Library" / "Caches"
        else:
            named = os.environ.get("XDG_CACHE_HOME", "")
            folder = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except RuntimeError:
        raise ConfigurationError(
            'the cache needs a path, because this user has no home folder: pass cache="/a/path"'
        ) from None
    return folder / "nexusflow" / "vectors.sqlite3"


class CacheFile:
    """The cache file at ``path``; every process opens it once.

    Args:
        path: Absolute path.
        clock: Returns seconds; all processes of this boot get the same time.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self._clock = clock
        self._target = path  # symbolic links resolved
        self._opened: tuple[object, ...] = ()

    def connect(self) -> sqlite3.Connection:
        """Open or create the file; the connection autocommits and may be used from any thread.

        Raises:
            CacheError: The file belongs to another program, is damaged or has a newer format.
            StoreUnavailable: The file cannot be created, or cannot have a write-ahead log.
            sqlite3.Error: The file cannot be read or written.
        """
        self._target = Path(os.path.realpath(self.path))
        with _opening.mutex:
            self._make_file()
            self._check_header()
            file = self._identity("")
            db = sqlite3.connect(
                self._target, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        # Damaged text must not raise a decoding error.
        db.text_factory = lambda text: text.decode(errors="replace")
        try:
            self._prepare(db)
            self._opened = self._identities()
            if self._opened[0] != file:
                raise StoreUnavailable(f"the cache {self.path} was replaced while it was opened")
        except BaseException:
            db.close()
            raise
        return db

    def has_moved(self) -> bool:
        """Whether the path no longer names the file that was opened, or the log is missing."""
        return self._identities() != self._opened

    def _identities(self) -> tuple[object, ...]:
        return tuple(map(self._identity, ("", *_BESIDE)))

    def _identity(self, suffix: str) -> tuple[int, int] | None:
        # Use the unresolved path, so that a changed symbolic link is noticed.
        try:
            found = os.stat(f"{self._target}{suffix}" if suffix else self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def remove_orphans(self) -> None:
        """Remove the log and index of the opened file after another file has replaced it.

        SQLite would apply the log to whatever file is beside it.
        """
        if self._identity("") == self._opened[0]:
            return
        with suppress(OSError), _alone_in(self._target.parent):
            for place, suffix in enumerate(_BESIDE, start=1):
                if self._opened[place] and self._identity(suffix) == self._opened[place]:
                    os.unlink(f"{self._target}{suffix}")

    def size(self) -> int:
        """Return the size on disk in bytes, including the write-ahead log."""
        return self._size() + self._size("-wal")

    def _exists(self, suffix: str) -> bool:
        return os.path.exists(f"{self._target}{suffix}")

    def _size(self, suffix: str = "") -> int:
        try:
            return os.stat(f"{self._target}{suffix}").st_size
        except OSError:
            return 0

    def _make_file(self) -> None:
        try:
            self._target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._target.exists():
                self._make_new()
            elif self._target.is_dir():
                raise FileExistsError
        except FileExistsError:
            if self._target.is_dir():
                raise CacheError(f"the cache {self.path} is a folder; name a file in it") from None
        except OSError as error:
            raise StoreUnavailable(
                f"the cache {self.path} cannot be created: {error.strerror or error}"
            ) from error

    def _make_new(self) -> None:
        with _alone_in(self._target.parent):
            # Only the owner may read the file, because texts can be guessed from vectors. Python
            # code opens only new files: closing a descriptor of a file that SQLite has open in this
            # process would drop SQLite's locks.
            if self._target.exists():
                return
            # These are left over from a removed file, or other processes have them open.
            for suffix in _BESIDE:
                with suppress(OSError):
                    os.unlink(f"{self._target}{suffix}")
            os.close(os.open(self._target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def _check_header(self) -> None:
        """Refuse a file that is not a cache, without changing a byte in it or beside it."""
        until = monotonic() + BUSY_SECONDS
        chances = 5
        while (problem := self._header_problem()) is not None:
            # Another process may be creating the file: the journal exists until that is done.
            chances -= not (self._exists("-journal") and monotonic() < until)
            if not chances:
                raise problem
            time.sleep(0.02)

    def _header_problem(self) -> CacheError | None:
        # This connection takes no lock, so it leaves no trace.
        db = sqlite3.connect(f"{self._target.as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            header = _header(db)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            if "malformed" not in str(error):
                return self._foreign("not a database")
            if self._size("-wal") or self._size("-journal"):
                return None  # a missing part may be in the log: let SQLite read both
            return self.damaged(error)
        finally:
            db.close()
        if header.pages:
            return self._header_complaint(header)
        return self._foreign("not a database") if self._size() else None

    def _header_complaint(self, header: _Header) -> CacheError | None:
        if header.application != APPLICATION_ID or header.version < SCHEMA_VERSION:
            return self._foreign("another SQLite database")
        if header.version > SCHEMA_VERSION:
            return CacheError(
                f"the cache {self.path} was written by a newer version of nexusflow-integrations"
                f" (format {header.version}, this version reads {SCHEMA_VERSION});"
                " it was not changed: upgrade, or name another file"
            )
        return None

    def _foreign(self, what: str) -> CacheError:
        return CacheError(
            f"{self.path} is not a cache file of nexusflow-integrations: it is {what};"
            " it was not changed; name another file"
        )

    def damaged(self, why: object) -> CacheError:
        """Return the error for a damaged file."""
        return CacheError(
            f"the cache {self.path} is damaged ({why}); it was not changed:"
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
        tables = {row[0] for row in db.execute("SELECT sql FROM sqlite_master").fetchall()}
        if not tables >= {*_SCHEMA}:
            raise self.damaged("its tables are not those of a cache")
        db.execute("BEGIN IMMEDIATE")
        try:
            # This also shows, when the file is opened, whether it is writable.
            db.execute("DELETE FROM claim WHERE until < ?", (self._clock() - FORGOTTEN,))
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _create(self, db: sqlite3.Connection) -> None:
        # Both settings take effect only before the first table exists. The second lets pruning
        # shrink the file while others read it.
        db.execute("PRAGMA page_size = 4096")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # Do this before WAL is turned on, so that the header identifies the file from the start.
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
        until = monotonic() + BUSY_SECONDS
        while True:
            try:
                mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                # The change to WAL needs exclusive access for a moment, and SQLite does not wait
                # for it.
                if "locked" not in str(error) or monotonic() > until:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise StoreUnavailable(
                f"the cache {self.path} cannot be used: its file system does not support SQLite's"
                " write-ahead log, as network file systems do not; keep it on a local disk"
            )


class _Header(NamedTuple):
    pages: int
    application: int
    version: int


def _header(db: sqlite3.Connection) -> _Header:
    # Read the page count first: if there are pages, the other values were written with them.
    names = ("page_count", "application_id", "user_version")
    return _Header(*(db.execute(f"PRAGMA {name}").fetchone()[0] for name in names))


_opening = forks.Lock()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes of this package from creating or removing files in ``folder``."""
    if fcntl is None:  # on Windows, an open file cannot be removed
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # the file system has no such locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
