"""The store, seen from the event loop: one thread does its I/O, and rows are committed in groups.

Rows that arrive while a commit runs go into the next one, so the store keeps up with any rate, and
a batch counts as in flight until its rows are committed. That is what makes the promise exact: a
process that dies pays again at most for what was in flight.

A store that cannot be used (full disk, read-only file, unreachable server) is given up with one
warning; the vectors still come.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from nexusflow_integrations._core.cache.in_file import Claimed, VectorStore
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import CacheError

if TYPE_CHECKING:
    from pathlib import Path

    from nexusflow_integrations._core.cache.keys import Keyer
    from nexusflow_integrations._core.cache.upkeep import CacheInfo, Pruned

logger = logging.getLogger("nexusflow_integrations")

T = TypeVar("T")
Row = tuple[bytes, Vectors]


class Store(Protocol):
    """Where vectors are kept: a file (``VectorStore``) or a server (``RedisStore``).

    All methods but ``keyer`` block, and all others but ``close`` raise
    ``CacheError`` if what is there is not ours and ``StoreUnavailable`` if it cannot be used.
    """

    claim_seconds: float
    """How long a claim holds unless it is renewed."""

    @property
    def path(self) -> Path | str:
        """Where it is, for people."""

    def keyer(self, *, base_url: str, model: str, dimensions: int | None) -> Keyer:
        """Return what makes keys of texts."""

    def open(self) -> None:
        """Open it, or make it."""

    def claim(self, keys: Sequence[bytes], dimensions: int | None) -> Claimed:
        """Find what is there, and claim what nobody is paying for."""

    def present(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of ``keys`` that are there."""

    def put(self, rows: Sequence[tuple[bytes, Vectors]]) -> None:
        """Keep vectors, all or none, and end the claims on them."""

    def release(self, keys: Iterable[bytes]) -> None:
        """Give up claims of this object."""

    def renew(self, keys: Iterable[bytes]) -> None:
        """Hold claims of this object for another ``claim_seconds``."""

    def info(self) -> CacheInfo:
        """Tell what is there."""

    def prune(self, *, max_age: float | None = None, max_bytes: int | None = None) -> Pruned:
        """Remove what was not used for ``max_age`` seconds, or beyond ``max_bytes``."""

    def clear(self) -> Pruned:
        """Remove all vectors."""

    def close(self) -> None:
        """Give up all claims. Never raises."""


def store_at(place: bool | str | os.PathLike[str] | RedisAddress) -> Store:
    """Return the store in a file (``True``: the user's) or on a server; nothing is opened yet."""
    if isinstance(place, RedisAddress):
        from nexusflow_integrations._core.cache.in_redis import RedisStore

        return RedisStore(place)
    return VectorStore(place)


class Cache:
    """One store, used by the event loop that made it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="nexusflow-cache")
        self._usable: bool | None = None
        self._group: list[Row] = []
        self._committed: asyncio.Future[None] | None = None
        self._giving_back: set[asyncio.Future[None]] = set()

    async def open(self) -> bool:
        """Tell whether the store can be used; opens it the first time.

        Raises:
            CacheError: It is corrupt, foreign or newer, and was left alone.
            ImportError: What it needs is not installed.
        """
        if self._usable is None:
            self._usable = True
            try:
                await self._run(self.store.open, None)
            except (CacheError, ImportError):
                self._usable = None
                raise
        return bool(self._usable)

    async def claim(self, keys: Sequence[bytes], dimensions: int | None) -> Claimed:
        """Return what is known and claim the rest; everything is ours if the store is given up."""
        alone = Claimed(hits={}, mine=list(keys), busy=[], repaid=0)
        claiming = asyncio.ensure_future(
            self._run(lambda: self.store.claim(keys, dimensions), alone)
        )
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(self._give_back)
            raise

    def _give_back(self, claiming: asyncio.Future[Claimed]) -> None:
        # Nobody is left to pay for what was claimed meanwhile, or to renew it.
        if not claiming.cancelled() and claiming.exception() is None:
            self._giving_back.add(
                task := asyncio.ensure_future(self.release(claiming.result().mine))
            )
            task.add_done_callback(self._giving_back.discard)

    async def present(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of ``keys`` that the store holds, without claiming any."""
        return await self._run(lambda: self.store.present(keys), set())

    async def put(self, rows: Sequence[Row]) -> None:
        """Commit ``rows``, together with whatever else arrives before the commit begins."""
        self._group.extend(rows)
        if self._committed is None:
            self._committed = asyncio.ensure_future(self._commit())
        await asyncio.shield(self._committed)

    async def _commit(self) -> None:
        await asyncio.sleep(0)  # let others that are ready join this group
        rows, self._group, self._committed = self._group, [], None
        await self._run(lambda: self.store.put(rows), None)

    async def release(self, keys: Sequence[bytes]) -> None:
        """Let others have ``keys``, which will not be paid for here."""
        # Finished even if the caller is cancelled: else nobody gets them before they run out.
        release = asyncio.ensure_future(self._run(lambda: self.store.release(keys), None))
        self._giving_back.add(release)
        release.add_done_callback(self._giving_back.discard)
        await asyncio.shield(release)

    async def renew(self, keys: Sequence[bytes]) -> None:
        """Keep ``keys`` claimed for another while."""
        await self._run(lambda: self.store.renew(keys), None)

    async def _run(self, work: Callable[[], T], otherwise: T) -> T:
        if not self._usable:
            return otherwise
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, work)
        except RuntimeError:
            return otherwise  # the interpreter is going down, and its threads have ended
        except StoreUnavailable as error:
            if self._usable:
                self._usable = False
                logger.warning("the cache is off for this process: %s", error)
            return otherwise

    async def close(self) -> None:
        # Not in the thread: at interpreter exit it has ended, and takes no more work.
        self.thread.shutdown(wait=True)
        self.store.close()
