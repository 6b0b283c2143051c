"""The sources of a call's batches: all of its texts, or the texts that the store does not have."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Any, Protocol

from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.request.batching import Batch, Item, item_of
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations._core.vectors import Vectors

if TYPE_CHECKING:
    from nexusflow_integrations._core.cache.cache import Cache
    from nexusflow_integrations._core.pace.admission import AdmissionQueue


Texts = Sequence[tuple[int, str]]
Plan = Callable[[Iterable[Item]], Iterator[Batch]]

POLL = 0.075
"""Average seconds between two lookups of texts that another process is paying for."""
AHEAD = 0.1
"""Texts that can be sent in this many seconds are claimed together, because that costs less."""
FRESH = 0.25
"""Seconds for which fresh claims need no check if the call sends its only batch at once."""
SURE = 0.9
"""The fraction of a claim's time in which no other process can have taken over the claim."""
MOST_LOSSES = 3
"""How often a text whose claim was lost is looked up again before it is sent anyway."""

_Text = tuple[int, str, bytes]


class ClaimsLost(Exception):  # noqa: N818 - it never leaves the core
    """Another process may now be paying for texts of this batch, so the batch must not be sent."""


class Source(Protocol):
    """Hands out batches to any number of workers."""

    async def next(self) -> Batch | None:
        """Return the next batch to send, or ``None`` if there are no more batches."""

    async def confirm(self, batch: Batch) -> float:
        """Check, right before ``batch`` is sent, that it should still be sent.

        ``batch`` is a batch that was handed out, or a part of such a batch.

        Return the seconds, counted from the call, for which the result remains valid.

        Raises:
            ClaimsLost: The batch must not be sent. Its texts are handed out again where necessary,
                after ``keep`` was called for the whole batch.
        """

    def keep(self, batch: Batch) -> asyncio.Future[Any] | None:
        """Store the results of ``batch``, even if its exchange failed.

        Return a future to wait for before the call ends, or ``None``. Later confirmations happen
        after this write.
        """

    def close(self) -> None:
        """Give up the texts that were not sent."""


class DirectSource:
    """Sends every text."""

    def __init__(self, texts: Texts, plan: Plan) -> None:
        self._batches = plan(starmap(item_of, texts))

    async def next(self) -> Batch | None:
        return next(self._batches, None)

    async def confirm(self, batch: Batch) -> float:
        return float("inf")

    def keep(self, batch: Batch) -> None:
        pass

    def close(self) -> None:
        pass


class CachedSource:
    """Sends only texts that are not in the store and that no other process is paying for.

    Only the texts of the next few batches are claimed at a time, so that two processes with the
    same corpus share the work. A claim is a lease: it expires if this process is suspended. So
    ``confirm`` checks the store again right before sending, and a text that another process may
    have taken over is not sent.

    Args:
        texts: Index and text, without duplicates.
        plan: Cuts items into batches.
        cache: Where vectors are looked up and stored.
        key: Makes the key of a text.
        dimensions: Size that the vectors must have; ``None`` accepts the stored size.
        results: Receives the vectors.
        ledger: Counts the texts that need not be paid for.
        batch_size: Maximum texts per batch.
        chunk: How many texts to look up at once.
        admission: The admission queue that batches have to pass.
        time_left: Returns the seconds left for the call. Only a part of this time is spent waiting
            for the cache.
        is_storable: Returns whether the vector that was received for an item belongs to its key.
    """

    def __init__(
        self,
        texts: Texts,
        plan: Plan,
        *,
        cache: Cache,
        key: Callable[[str], bytes],
        dimensions: int | None,
        results: CallResults,
        ledger: Ledger,
        batch_size: int,
        chunk: int,
        admission: AdmissionQueue,
        time_left: Callable[[], float],
        is_storable: Callable[[Item], bool] = lambda _: True,
    ) -> None:
        self._plan = plan
        self._is_storable = is_storable
        self._cache = cache
        self._call = cache.new_call()
        self._dimensions = dimensions
        self._results = results
        self._ledger = ledger
        self._batch_size = batch_size
        self._chunk = chunk
        self._gate = admission
        self._time_left = time_left
        self._pending = [(index, text, key(text)) for index, text in reversed(texts)]
        # Texts that were looked up, and that nobody had claimed then.
        self._missing: list[_Text] = []
        self._busy: list[_Text] = []
        self._ready: list[Item] = []
        self._batches: list[Batch] = []
        self._claimed: dict[int, bytes] = {}
        self._unsent: set[int] = set()  # the first texts of batches that were not sent yet
        self._lost: set[int] = set()
        self._losses: Counter[int] = Counter()
        self._asking = 0
        self._sent = 0
        self._is_one_batch = len(texts) <= batch_size
        self._fresh_until = float("-inf")
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._refill = asyncio.Lock()
        self._has_left = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None

    async def next(self) -> Batch | None:
        self._asking += 1
        try:
            async with self._refill:
                while not self._batches and (
                    self._ready or self._missing or self._pending or self._busy
                ):
                    await self._make_ready()
                return self._batches.pop() if self._batches else None
        finally:
            self._asking -= 1

    async def _make_ready(self) -> None:
        batches = min(max(self._asking, self._ahead()), self._gate.wanted(len(self._unsent)))
        if batches < 1:
            self._has_left.clear()
            await self._has_left.wait()
            return
        most = batches * self._batch_size - len(self._ready)
        texts, self._missing = self._missing[:most], self._missing[most:]
        if len(texts) < most:
            if not (texts or self._pending or self._ready):
                await asyncio.sleep(random.uniform(0.5, 1.5) * POLL)
                self._pending, self._busy = self._busy[::-1], []
            texts += [self._pending.pop() for _ in range(min(self._chunk, len(self._pending)))]
        if texts:
            await self._claim(texts, most)
        planned = list(self._plan(self._ready))
        # While more texts may come, a last batch that is not full waits for them.
        more = (self._missing or self._pending) and planned
        self._ready = list(planned.pop()) if more and len(planned[-1]) < self._batch_size else []
        self._batches = planned[::-1]
        self._unsent.update(batch[0].index for batch in planned)

    def _ahead(self) -> int:
        """Return how many batches are sent within ``AHEAD`` seconds."""
        if not self._sent:
            return 0
        passed = self._clock() - self._began
        return int(AHEAD * self._sent / passed) if passed > 0 else 0

    async def _claim(self, texts: Sequence[_Text], most: int) -> None:
        vectors = self._results.vectors
        size = self._dimensions
        if size is None and vectors is not None:
            size = vectors.shape[1]
        # Do not send together with texts that were claimed earlier, because their claims may have
        # expired.
        at_once = self._is_one_batch and not self._claimed and self._gate.is_open
        if at_once:
            self._fresh_until = self._clock() + FRESH
        claimed = await self._cache.claim(
            [key for _, _, key in texts],
            size,
            self._patience(),
            call=self._call,
            most=most,
            sent=at_once,
        )
        mine, busy = set(claimed.mine), set(claimed.busy)
        left: list[_Text] = []
        for index, text, key in texts:
            vector = claimed.hits.get(key)
            if vector is not None:
                self._results.row(index, vector)
                self._ledger.cached += 1
            elif key in mine:
                self._claimed[index] = key
                self._ready.append(item_of(index, text))
            else:
                (self._busy if key in busy else left).append((index, text, key))
        self._missing = left + self._missing
        self._results.report()
        if claimed.repaid:
            self._ledger.repaid += claimed.repaid
            logger.warning(
                "up to %d texts were sent but not stored by a process that ended or was suspended;"
                " they are paid for again",
                claimed.repaid,
            )
        if self._renewing is None and self._claimed:
            self._renewing = asyncio.ensure_future(self._renew())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._cache.store.claim_seconds / 3)
            await self._cache.renew(list(self._claimed.values()), self._call)

    def _patience(self) -> float:
        return self._time_left() / 4  # leave the rest of the time for the request

    async def confirm(self, batch: Batch) -> float:
        self._leaves(batch)
        sure = SURE * self._cache.store.claim_seconds
        if self._clock() < self._fresh_until:
            return sure
        places = {self._claimed[item.index]: item.index for item in batch}
        lost = await self._cache.confirm(list(places), self._call, self._patience())
        if not lost:
            return sure
        gone = {places[key] for key in lost}
        self._losses.update(gone)
        if all(self._losses[index] > MOST_LOSSES for index in gone):
            return sure  # send anyway: a store that loses claims must not hold back a text for ever
        self._lost |= gone
        if self._losses.total() == len(gone):
            logger.info(
                "claims on texts expired before the texts were sent, because this process was"
                " suspended or its cache could not be used; texts that no other process sent are"
                " claimed again"
            )
        raise ClaimsLost

    def _leaves(self, batch: Batch) -> None:
        if batch[0].index in self._unsent:
            self._unsent.discard(batch[0].index)
            self._sent += 1
            self._has_left.set()

    def keep(self, batch: Batch) -> asyncio.Future[Any] | None:
        self._leaves(batch)
        results = self._results
        is_lost = any(item.index in self._lost for item in batch)
        paid: list[tuple[int, bytes]] = []
        unpaid: list[bytes] = []
        for item in batch:
            if results.settled(item.index) or not is_lost:
                key = self._claimed.pop(item.index)
                if results.done[item.index] and self._is_storable(item):
                    paid.append((item.index, key))
                else:
                    unpaid.append(key)
            elif item.index in self._lost:
                self._lost.discard(item.index)
                self._missing.append((item.index, item.text, self._claimed.pop(item.index)))
            else:
                self._ready.append(item)
        self._cache.release(unpaid, self._call)
        if not paid or results.vectors is None:
            return None
        # Store a copy: the caller may get the vectors, and change them, before they are stored.
        copies = results.received([index for index, _ in paid])
        rows = [(key, row) for (_, key), row in zip(paid, copies, strict=True)]
        return self._cache.put(rows, self._patience())

    def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None  # break a cycle: its error holds the frame of `_renew`
        keys, self._claimed = list(self._claimed.values()), {}
        self._cache.release(keys, self._call)


class RecalledSource:
    """Sends only texts whose vector the caller does not have, in batches that ``source`` makes.

    The caller is asked for the vectors of a few texts first, then of more and more at once, while
    requests for earlier texts are in flight.

    Args:
        texts: All texts.
        source: Makes the source of the texts to send.
        recall: Returns the vectors that the caller has, by index in the list of texts.
        results: Receives these vectors.
        ledger: Counts these vectors.
        least: Number of texts to ask for at first; texts are sent in multiples of this number.
        most: Maximum texts to ask for at once.
    """

    def __init__(
        self,
        texts: Texts,
        *,
        source: Callable[[Texts], Source],
        recall: Callable[[list[str]], Awaitable[Mapping[int, Vectors]]],
        results: CallResults,
        ledger: Ledger,
        least: int,
        most: int,
    ) -> None:
        self._make = source
        self._recall = recall
        self._results = results
        self._ledger = ledger
        self._least, self._most = least, most
        self._chunk = least
        self._texts = texts
        self._asked = 0
        self._missing: list[tuple[int, str]] = []
        self._sources: list[Source] = []
        self._source_of: dict[int, Source] = {}
        self._returned: dict[Source, None] = {}  # sources that have texts to hand out again
        self._refill = asyncio.Lock()

    async def next(self) -> Batch | None:
        async with self._refill:
            while True:
                for source in (*self._returned, *self._sources[-1:]):
                    if (batch := await source.next()) is not None:
                        self._source_of.update((item.index, source) for item in batch)
                        return batch
                    self._returned.pop(source, None)
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
            if vector is None or not self._results.takes(vector.shape[0]):
                self._missing.append((index, text))
            else:
                self._results.row(index, vector)
                self._ledger.cached += 1
        self._results.report()
        count = len(self._missing)
        if self._asked < len(self._texts):
            count -= count % self._least  # the other texts wait until they fill a request
        if count:
            self._sources.append(self._make(self._missing[:count]))
            self._missing = self._missing[count:]

    async def confirm(self, batch: Batch) -> float:
        source = self._source_of[batch[0].index]
        try:
            return await source.confirm(batch)
        except ClaimsLost:
            self._returned[source] = None
            raise

    def keep(self, batch: Batch) -> asyncio.Future[Any] | None:
        sources = [self._source_of.pop(item.index) for item in batch]
        return sources[0].keep(batch)

    def close(self) -> None:
        for source in self._sources:
            source.close()
