"""One writer for a folder of ``PersistentClient``: two processes that write damage it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations.errors import CollectionError

if TYPE_CHECKING:
    from chromadb.api import AsyncClientAPI, ClientAPI
    from chromadb.api.models.AsyncCollection import AsyncCollection
    from chromadb.api.models.Collection import Collection
    from filelock import FileLock

    Store = Collection | AsyncCollection | ClientAPI | AsyncClientAPI

LOCK_FILE = ".nexusflow-writer.lock"
_POLL = 0.1

_lock = forks.Lock()
_held: dict[str, tuple[FileLock, int]] = {}
"""Folders that this process writes to, and how many of its calls do."""


def _forget() -> None:
    """Close the parent's lock files in a child, which must not release what the parent holds."""
    for held, _ in _held.values():
        context: Any = held._context
        if context.lock_file_fd is not None:
            os.close(context.lock_file_fd)
            context.lock_file_fd = None
    _held.clear()


forks.in_child(_forget)


def folder_of(store: Store) -> Path | None:
    """Return the folder of a collection or client on disk; ``None``: in memory or on a server."""
    client = getattr(store, "_client", store)
    settings = getattr(getattr(client, "_system", None), "settings", None)
    if settings is None or not settings.is_persistent or settings.chroma_server_host:
        return None
    folder = Path(settings.persist_directory)
    return folder if folder.is_dir() else None


@contextmanager
def only_writer(store: Store, wait: float) -> Iterator[None]:
    """Hold the folder of a collection or client for this process.

    Threads of one process may write together; Chroma keeps them apart, as a server does with its
    clients. The lock ends with the process, however that ends.

    Args:
        store: Any; what is not in a folder needs no lock.
        wait: Seconds to wait for another process.

    Raises:
        CollectionError: Another process is writing.
    """
    folder = folder_of(store)
    if folder is None:
        yield
        return
    path = _path(folder)
    until = time.monotonic() + wait
    while not _hold(path):
        if time.monotonic() >= until:
            raise _busy(folder)
        time.sleep(_POLL)
    try:
        yield
    finally:
        _release(path)


@asynccontextmanager
async def aonly_writer(store: Store, wait: float) -> AsyncIterator[None]:
    """Hold like ``only_writer``, without blocking the event loop."""
    folder = folder_of(store)
    if folder is None:
        yield
        return
    path = _path(folder)
    until = time.monotonic() + wait
    while not _hold(path):
        if time.monotonic() >= until:
            raise _busy(folder)
        await asyncio.sleep(_POLL)
    try:
        yield
    finally:
        _release(path)


def _path(folder: Path) -> str:
    return os.path.realpath(folder / LOCK_FILE)


def _busy(folder: Path) -> CollectionError:
    return CollectionError(
        f"another process is writing to {folder}, and two writers would damage it: wait for it"
        " (writer_wait=SECONDS), or run a Chroma server"
    )


def _hold(path: str) -> bool:
    with _lock:
        held, count = _held.get(path, (None, 0))
        if held is None:
            # Here: Chroma's thin client has no folders, and comes without this package.
            with needed("A collection in a folder", "filelock", install="filelock"):
                import filelock

            held = filelock.FileLock(path, thread_local=False)
            try:
                held.acquire(timeout=0)
            except filelock.Timeout:
                return False
        _held[path] = held, count + 1
        return True


def _release(path: str) -> None:
    with _lock:
        if path not in _held:
            return  # forked meanwhile: it was the parent's
        held, count = _held.pop(path)
        if count > 1:
            _held[path] = held, count - 1
        else:
            held.release()
