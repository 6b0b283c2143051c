"""Lets only one sync of this process at a time remove the documents that a filter selects.

Each of two syncs would remove what the other has added, because it is not in its own source.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.one_writer import folder_of
from nexusflow_integrations.errors import CollectionError

if TYPE_CHECKING:
    from chromadb.api.types import Where

_POLL = 0.1

_lock = forks.Lock()
_running: dict[Any, WeakSet[_Turn]] = {}
"""The syncs of each collection, by its folder and its id, which a copy of the folder shares.

They are weak, so that an interrupt leaves none.
"""
forks.in_child(_running.clear)


class _Turn:
    """One sync of the documents of ``collection`` that match ``where``.

    Different filters are taken to select different documents.
    """

    def __init__(self, collection: Any, where: Where | None) -> None:
        self._place = folder_of(collection), collection.id
        self._name, self._where = collection.name, where

    def begins(self, until: float) -> bool:
        """Return whether no other sync has the same filter, or none.

        Raises:
            CollectionError: There is one, and the time is over.
        """
        with _lock.mutex:
            others = _running.setdefault(self._place, WeakSet())
            if not any(map(self._overlaps, others)):
                others.add(self)
                return True
        if monotonic() >= until:
            raise CollectionError(
                f"another sync of collection {self._name!r} is running in this process, and each"
                " would remove what the other has added: wait for it (writer_wait=SECONDS), or"
                " give each source its own documents with where={...}"
            )
        return False

    def _overlaps(self, other: _Turn) -> bool:
        return self._where is None or other._where is None or self._where == other._where

    def ends(self) -> None:
        with _lock.mutex:
            if others := _running.get(self._place):
                others.discard(self)
            if not others:
                _running.pop(self._place, None)


@contextmanager
def only_sync(collection: Any, where: Where | None, until: float) -> Iterator[None]:
    """Keep other syncs of this process from the same documents during the block.

    Args:
        collection: The collection.
        where: The filter that says which documents the sync may remove; ``None`` means all.
        until: The time, of ``clock.monotonic``, until which to wait for another sync.

    Raises:
        CollectionError: Another sync is running.
    """
    turn = _Turn(collection, where)
    while not turn.begins(until):
        time.sleep(_POLL)
    try:
        yield
    finally:
        turn.ends()


@asynccontextmanager
async def aonly_sync(collection: Any, where: Where | None, until: float) -> AsyncIterator[None]:
    """Keep other syncs away like ``only_sync``, without blocking the event loop."""
    turn = _Turn(collection, where)
    while not turn.begins(until):
        await asyncio.sleep(_POLL)
    try:
        yield
    finally:
        turn.ends()
