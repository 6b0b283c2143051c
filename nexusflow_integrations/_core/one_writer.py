"""Allows only one writer at a time in a folder of Chroma's ``PersistentClient``.

Chroma itself takes no lock, and two writers damage the folder.

A lock alone is not enough: a client keeps its index in memory, and would overwrite what another
client has written in the meantime. So after a client takes the lock, it reads the folder again,
unless it was itself the last writer.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core import checks, forks
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations.errors import CollectionError

if TYPE_CHECKING:
    from filelock import FileLock

LOCK_FILE = ".nexusflow-writer.lock"
_POLL = 0.1

_lock = forks.Lock()
_held: dict[str, _Held] = {}
"""Folders that this process writes to."""
_left: weakref.WeakKeyDictionary[Any, tuple[int, ...]] = weakref.WeakKeyDictionary()
"""State of the folder after each client's last write."""


@dataclass
class _Held:
    lock: FileLock
    system: Any
    """The state that all clients of one path share."""
    calls: int = 0


def _forget() -> None:
    """In a forked child, close the parent's lock files without releasing the locks."""
    for held in _held.values():
        context: Any = held.lock._context
        if context.lock_file_fd is not None:
            os.close(context.lock_file_fd)
            context.lock_file_fd = None
    _held.clear()
    _left.clear()


forks.in_child(_forget)


def folder_of(store: Any) -> Path | None:
    """Return the folder of a collection or client of Chroma.

    It is ``None`` for one in memory or on a server, and for any other object.
    """
    settings: Any = getattr(_system_of(store), "settings", None)
    # Mocks have every attribute, but none is True.
    if getattr(settings, "is_persistent", None) is not True or settings.chroma_server_host:
        return None
    folder = Path(settings.persist_directory)
    return folder if folder.is_dir() else None


def _system_of(store: Any) -> Any:
    try:
        return getattr(getattr(store, "_client", store), "_system", None)
    except KeyError:  # the client was closed
        return None


@contextmanager
def only_writer(store: Any, wait: float) -> Iterator[None]:
    """Hold the lock on a collection's or client's folder during the block.

    Threads that share a client may write at the same time: Chroma serializes them, as a server does
    with its clients. The lock ends with the process, even if the process is killed.

    Args:
        store: A collection or client of Chroma; anything without a folder needs no lock.
        wait: Seconds to wait for another writer.

    Raises:
        ConfigurationError: ``wait`` is not a number of seconds.
        CollectionError: Another process writes to the folder, or it cannot be locked.
    """
    wait = checks.seconds("writer_wait", wait, least=0.0)
    folder = folder_of(store)
    if folder is None:
        yield
        return
    path = _path(folder)
    until = monotonic() + wait
    while not _hold(path, store):
        if monotonic() >= until:
            raise _busy(folder)
        time.sleep(_POLL)
    try:
        yield
    finally:
        _release(path)


@asynccontextmanager
async def aonly_writer(store: Any, wait: float) -> AsyncIterator[None]:
    """Hold the lock like ``only_writer``, without blocking the event loop."""
    wait = checks.seconds("writer_wait", wait, least=0.0)
    folder = folder_of(store)
    if folder is None:
        yield
        return
    turn = _Turn(_path(folder), store)
    until = monotonic() + wait
    try:
        while not await asyncio.to_thread(turn.take):
            if monotonic() >= until:
                raise _busy(folder)
            await asyncio.sleep(_POLL)
        yield
    finally:
        turn.end()


class _Turn:
    """The lock for a task, taken in a thread, which may outlast the task."""

    def __init__(self, path: str, store: Any) -> None:
        self._path, self._store = path, store
        self._is_held = self._is_over = False

    def take(self) -> bool:
        with _lock.mutex:
            self._is_held = not self._is_over and _hold(self._path, self._store)
            return self._is_held

    def end(self) -> None:
        with _lock.mutex:
            self._is_over = True
            if self._is_held:
                _release(self._path)


def _path(folder: Path) -> str:
    return os.path.realpath(folder / LOCK_FILE)


def _busy(folder: Path) -> CollectionError:
    return CollectionError(
        f"another process (or another client in this one) is writing to {folder}, and two writers"
        " would damage it: wait for it"
        " (writer_wait=SECONDS), or run a Chroma server"
    )


def _hold(path: str, store: Any) -> bool:
    system = _system_of(store)
    with _lock.mutex:
        held = _held.get(path)
        if held is None:
            if (lock := _locked(path)) is None:
                return False
            held = _Held(lock, system)
            try:
                _catch_up(system, path)
            except BaseException:
                lock.release()
                raise
            _held[path] = held
        elif held.system is not system:
            return False
        held.calls += 1
        return True


def _locked(path: str) -> FileLock | None:
    # Import here: Chroma's thin client has no folders and does not include this package.
    with needed("A collection in a folder", "filelock", install="filelock"):
        import filelock

    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        raise CollectionError(
            f"cannot lock {path}: {type(error).__name__}: {error}; you must be able to write to its"
            " folder, and the file system must support locks"
        ) from error
    return lock


def _release(path: str) -> None:
    with _lock.mutex:
        held = _held.get(path)
        if held is None:
            return  # the process was forked, and the parent has the lock
        held.calls -= 1
        if held.calls == 0:
            del _held[path]
            _left[held.system] = _state(path)
            held.lock.release()


def _catch_up(system: Any, path: str) -> None:
    """Let Chroma read the folder again if its index in memory may be out of date."""
    if _left.get(system) == _state(path):
        return
    try:
        # This replaces the index in memory; running calls finish with the old index. The module is
        # loaded, because there is a client.
        system.instance(sys.modules["chromadb.api"].ServerAPI).start()
    except Exception as error:
        if raised_by_signal_handler(error):
            raise
        raise CollectionError(f"cannot open {path} again: {error}") from error


def _state(path: str) -> tuple[int, ...]:
    """Return a value that changes with every write to the folder."""
    found: list[int] = []
    for name in ("chroma.sqlite3", "chroma.sqlite3-wal"):
        with suppress(OSError):
            status = os.stat(os.path.join(os.path.dirname(path), name))
            found += [status.st_ino, status.st_mtime_ns, status.st_size]
    return tuple(found)
