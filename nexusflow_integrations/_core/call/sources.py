"""Where a call's batches come from: from all its texts, or from those the store does not hold."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Protocol

from nexusflow_integrations._core.call.results import Gathered
from nexusflow_integrations._core.request.batching import Batch, Item, item_of
from nexusflow_integrations._core.usage import Ledger

if TYPE_CHECKING:
    from nexusflow_integrations._core.cache.cache import Cache

logger = logging.getLogger("nexusflow_integrations")

Texts = Sequence[tuple[int, str]]
Plan = Callable[[Iterable[Item]], Iterator[Batch]]

POLL = 0.075
"""Seconds, on average, between two looks at texts that another process is paying for."""


class Source(Protocol):
    """Hands out batches to any number of workers."""

    async def next(self) -> Batch | None:
        """Return the next batch to send, or ``None`` if there is no more."""

    def keep(self, batch: Batch) -> asyncio.Future[None] | None:
        """Keep what became known about ``batch``, however its exchange ended.

        Returns what to wait for before more is sent, if there is anything to wait for.
        """

    def close(self) -> None:
        """Give up what was not sent."""


class DirectSource:
    """Every text is sent."""

    def __init__(self, texts: Texts, plan: Plan) -> None:
        self._batches = plan(starmap(item_of, texts))

    async def next(self) -> Batch | None:
        return next(self._batches, None)

    def keep(self, batch: Batch) -> None:
        pass

    def close(self) -> None:
        pass


class CachedSource:
    """Only texts that the store does not hold, and that nobody else is paying for, are sent.

    Texts are claimed slab by slab, shortly before they are sent, so that two processes on one
    corpus share the work instead of waiting for each other.

    ``time_left`` is the call's, in seconds. It waits for the cache for a part of it at most.
    """

    def __init__(
        self,
        texts: Texts,
        plan: Plan,
        *,
        cache: Cache,
        key: Callable[[str], bytes],
        dimensions: int | None,
        gathered: Gathered,
        ledger: Ledger,
        slab: int,
        time_left: Callable[[], float],
    ) -> None:
        self._plan = plan
        self._cache = cache
        self._dimensions = dimensions
        self._gathered = gathered
        self._ledger = ledger
        self._slab = slab
        self._time_left = time_left
        self._pending = [(index, text, key(text)) for index, text in reversed(texts)]
        self._busy: list[tuple[int, str, bytes]] = []
        self._ready: list[Item] = []
        self._batches: list[Batch] = []
        self._claimed: dict[int, bytes] = {}
        self._refill = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    async def next(self) -> Batch | None:
        async with self._refill:
            while not self._batches and (self._pending or self._busy):
                await self._claim()
            return self._batches.pop() if self._batches else None

    async def _claim(self) -> None:
        if not self._pending:
            await asyncio.sleep(random.uniform(0.5, 1.5) * POLL)
            self._pending, self._busy = self._busy[::-1], []
        slab = [self._pending.pop() for _ in range(min(self._slab, len(self._pending)))]
        keys = [key for _, _, key in slab]
        claimed = await self._cache.claim(keys, self._dimensions, self._patience())
        mine = set(claimed.mine)
        for index, text, key in slab:
            vector = claimed.hits.get(key)
            if vector is not None:
                self._gathered.row(index, vector)
                self._ledger.cached += 1
            elif key in mine:
                self._claimed[index] = key
                self._ready.append(item_of(index, text))
            else:
                self._busy.append((index, text, key))
        self._gathered.report()
        if claimed.repaid:
            self._ledger.repaid += claimed.repaid
            logger.warning(
                "up to %d texts were in flight when an earlier run ended; they are paid for again",
                claimed.repaid,
            )
        if self._renewing is None and self._claimed:
            self._renewing = asyncio.ensure_future(self._renew())
        batches = list(self._plan(self._ready))
        # A short last batch waits for more texts, as long as more may come.
        self._ready = list(batches.pop()) if batches and self._pending else []
        self._batches = batches[::-1]

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._cache.store.claim_seconds / 3)
            await self._cache.renew(list(self._claimed.values()))

    def _patience(self) -> float:
        return self._time_left() / 4  # the rest is for the request

    def keep(self, batch: Batch) -> asyncio.Future[None] | None:
        gathered = self._gathered
        paid: list[tuple[int, bytes]] = []
        unpaid: list[bytes] = []
        for item in batch:
            key = self._claimed.pop(item.index, None)
            if key is None:
                continue
            if gathered.done[item.index]:
                paid.append((item.index, key))
            else:
                unpaid.append(key)
        if unpaid:
            self._cache.release(unpaid)
        if not paid or gathered.vectors is None:
            return None
        # A copy: it may be stored later than the caller gets the vectors, and changes them.
        copies = gathered.vectors[[index for index, _ in paid]]
        rows = [(key, row) for (_, key), row in zip(paid, copies, strict=True)]
        return self._cache.put(rows, self._patience())

    def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        if self._claimed:
            keys, self._claimed = list(self._claimed.values()), {}
            self._cache.release(keys)
