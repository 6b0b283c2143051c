"""Where a call's batches come from: from all its texts, or from those the store does not hold."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Protocol

from nexusflow_integrations._core.call.results import Gathered
from nexusflow_integrations._core.request.batching import Batch, Item, item_of
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations._core.vectors import Vectors

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


class RecalledSource:
    """Only texts whose vector the caller does not have are sent, as ``source`` hands them out.

    The caller is asked for a few texts first, then for more and more at once, while requests for
    those before are in flight.

    Args:
        texts: All texts.
        source: Makes the source of those that are to be sent.
        recall: Returns the vectors that the caller has, by index in the list of texts.
        gathered: Takes them.
        ledger: Counts them.
        least: Texts to ask for at first; what is sent comes in multiples of it.
        most: Texts to ask for at once in the end.
    """

    def __init__(
        self,
        texts: Texts,
        *,
        source: Callable[[Texts], Source],
        recall: Callable[[list[str]], Awaitable[Mapping[int, Vectors]]],
        gathered: Gathered,
        ledger: Ledger,
        least: int,
        most: int,
    ) -> None:
        self._make = source
        self._recall = recall
        self._gathered = gathered
        self._ledger = ledger
        self._least, self._most = least, most
        self._chunk = least
        self._texts = texts
        self._asked = 0
        self._missing: list[tuple[int, str]] = []
        self._sources: list[Source] = []
        self._source_of: dict[int, Source] = {}
        self._refill = asyncio.Lock()

    async def next(self) -> Batch | None:
        async with self._refill:
            while True:
                if self._sources:
                    source = self._sources[-1]
                    if (batch := await source.next()) is not None:
                        self._source_of[batch[0].index] = source
                        return batch
                if self._asked == len(self._texts):
                    return None
                await self._ask()

    async def _ask(self) -> None:
        chunk = self._texts[self._asked : self._asked + self._chunk]
        self._chunk = min(2 * self._chunk, self._most)
        found = await self._recall([text for _, text in chunk])
        self._asked += len(chunk)
        for place, (index, text) in enumerate(chunk):
            vector = found.get(place)
            if vector is None or not self._gathered.takes(vector.shape[0]):
                self._missing.append((index, text))
            else:
                self._gathered.row(index, vector)
                self._ledger.cached += 1
        self._gathered.report()
        count = len(self._missing)
        if self._asked < len(self._texts):
            count -= count % self._least  # what fills no request waits for more
        if count:
            self._sources.append(self._make(self._missing[:count]))
            self._missing = self._missing[count:]

    def keep(self, batch: Batch) -> asyncio.Future[None] | None:
        return self._source_of.pop(batch[0].index).keep(batch)

    def close(self) -> None:
        for source in self._sources:
            source.close()
