"""Streams: any number of texts, of which only a limited number is in flight.

Texts are read from the iterable in chunks of a few batches. At first, enough chunks are read to
keep all requests busy; later, the next chunk is read when a chunk is done. So only a few chunks are
in memory, even if the iterable is long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import CancelledError as Abandoned
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from nexusflow_integrations._core.call.background import BackgroundLoop, LoopCall, Signal
from nexusflow_integrations._core.call.job import PARTS, STOPPED, Stop, StoppedElsewhere
from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.call.waiting import next_item
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.outcome import Outcome
from nexusflow_integrations._core.request.long_texts import check_length, longest
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations._core.texts import check_text
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import InvalidInputError, NexusFlowError

BATCHES_A_CHUNK = 4

Started = tuple[BackgroundLoop, Coroutine[Any, Any, CallResults]]
"""The event loop of a call, and the call's work."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The result of one text: ``vector`` is float32 of shape (d,), or ``None`` with ``error`` set.

    ``index`` counts the texts from 0 in the order in which they were read.
    """

    index: int
    vector: Vectors | None
    error: NexusFlowError | None = None


@dataclass
class Chunk:
    """Texts for one call, with their positions in the stream and the errors of invalid texts."""

    indices: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    invalid: list[Embedded] = field(default_factory=list)

    def results(self, results: CallResults | None) -> Iterator[Embedded]:
        """Yield the result of every text of the chunk, in order."""
        found = list(self.invalid)
        for place, index in enumerate(self.indices):
            if results is not None and place in results.refusals:
                found.append(Embedded(index, None, results.refusals[place]))
            elif results is not None and results.vectors is not None:
                found.append(Embedded(index, results.vectors[place]))
        yield from sorted(found, key=lambda item: item.index)

    def named(self, finished: Mapping[int, Vectors]) -> dict[int, Vectors]:
        """Return the ``finished`` vectors of this chunk, by index in the stream."""
        return {self.indices[place]: row for place, row in finished.items()}


class Cutter:
    """Cuts a stream into chunks; ``add`` returns a chunk when it is full."""

    def __init__(self, settings: Settings, instruction: str) -> None:
        self._size = settings.batch_size * BATCHES_A_CHUNK
        self._settings = settings
        self._instruction = instruction
        self._longest = longest(settings)
        self._count = 0
        self._chunk = Chunk()
        # Enough chunks for twice the requests in flight, so that the next chunk is sent while the
        # last request of a chunk is pending.
        self.in_flight = max(2, -(-2 * settings.max_concurrency // BATCHES_A_CHUNK))

    def add(self, text: object) -> Chunk | None:
        """Add the next text of the stream; a text that cannot be sent gets its error at once."""
        index, self._count = self._count, self._count + 1
        try:
            whole = self._instruction + check_text(text, index)
            if len(whole) > self._longest:
                check_length(whole, self._settings, index)
            self._chunk.texts.append(whole)
            self._chunk.indices.append(index)
        except InvalidInputError as error:
            self._chunk.invalid.append(Embedded(index, None, error))
        full = len(self._chunk.texts) + len(self._chunk.invalid) >= self._size
        return self.rest() if full else None

    def rest(self) -> Chunk | None:
        """Return the last chunk, which is not full, unless it is empty."""
        chunk, self._chunk = self._chunk, Chunk()
        return chunk if chunk.texts or chunk.invalid else None

    def cut(self, texts: Iterable[str]) -> Iterator[Chunk]:
        for text in texts:
            if chunk := self.add(text):
                yield chunk
        if chunk := self.rest():
            yield chunk

    async def acut(self, texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[Chunk]:
        if isinstance(texts, AsyncIterable):
            async for text in texts:
                if chunk := self.add(text):
                    yield chunk
            if chunk := self.rest():
                yield chunk
        else:
            for chunk in self.cut(texts):
                yield chunk


class _Running:
    """A chunk whose call is running or has ended; ``wake`` is called when it ends."""

    def __init__(self, chunk: Chunk, ledger: Ledger, wake: Callable[[object], object]) -> None:
        self.chunk = chunk
        self.ledger = ledger
        self.outcome: Outcome[CallResults] | None = None
        self._wake = wake
        self._call: LoopCall[CallResults] | None = None

    def start(self, background: BackgroundLoop, work: Coroutine[Any, Any, CallResults]) -> None:
        self._call = LoopCall(background, work, self.settle)
        self._call.start()

    def settle(self, outcome: Outcome[CallResults]) -> None:
        self.outcome = outcome
        self._wake(None)

    @property
    def is_done(self) -> bool:
        return self.outcome is not None

    def result(self) -> CallResults:
        """Return the results or raise the error of a call that has ended. Call this only once."""
        assert self.outcome is not None
        return self.outcome.result()

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()


class Stream:
    """A few calls at a time, one for each chunk of texts.

    Args:
        settings: The settings of the client.
        instruction: Text that is prepended to each text.
        start: Starts a call for texts, with a ledger and the ``Stop`` of all calls of the stream.
        recorded: Wraps the end of a call in telemetry, and reports the call.
        report: Reports a call that nobody waits for.
        ordered: Whether to yield in the order of the texts; if false, in the order of completion.
    """

    def __init__(
        self,
        settings: Settings,
        instruction: str,
        *,
        start: Callable[..., Started],
        recorded: Callable[[Ledger], AbstractContextManager[None]],
        report: Callable[[Ledger], object],
        ordered: bool,
    ) -> None:
        self._cutter = Cutter(settings, instruction)
        self._start = start
        self._recorded = recorded
        self._report = report
        self._ordered = ordered
        self._running: deque[_Running] = deque()
        self._stop = Stop()
        self._background: BackgroundLoop | None = None

    def results(self, texts: Iterable[str]) -> Generator[Embedded, None, None]:
        """Yield each text's result. Texts are read and results awaited in this thread.

        If reading the texts raises an error, the results of all texts that were sent come first.
        """
        chunks = self._cutter.cut(texts)
        running = self._running
        ended: SimpleQueue[object] = SimpleQueue()
        more = True
        failure: Exception | None = None
        try:
            while more or running:
                if more and len(running) < self._cutter.in_flight:
                    chunk = None
                    try:
                        chunk = next(chunks, None)
                    except Exception as error:
                        if raised_by_signal_handler(error):
                            raise
                        failure = error
                    more = chunk is not None
                    if chunk is not None:
                        self._launch(chunk, ended.put)
                    if not self._is_ready():
                        # Yield ready results before reading more texts, which may take long.
                        continue
                if not self._ordered:
                    _wait(ended, self._is_ready)
                one = self._take()
                try:
                    with self._recorded(one.ledger):
                        _wait(ended, lambda: one.is_done)  # noqa: B023 - called only here
                        found = one.result()
                except NexusFlowError as error:
                    for _ in range(PARTS):
                        _wait(ended, self._all_done, STOPPED / PARTS)
                    raise self._rescued(error, one) from failure
                except BaseException:  # Ctrl-C
                    self._abandon()
                    running.clear()
                    one.cancel()
                    raise
                yield from one.chunk.results(found)
            if failure is not None:
                raise failure
        finally:
            failure = None  # break a cycle: the error holds this frame
            self._abandon()

    async def aresults(
        self, texts: Iterable[str] | AsyncIterable[str]
    ) -> AsyncGenerator[Embedded, None]:
        """Yield each text's result. Texts are read and results awaited on this event loop.

        If reading the texts raises an error, the results of all texts that were sent come first.
        """
        loop = asyncio.get_running_loop()
        chunks = self._cutter.acut(texts)
        running = self._running
        ended = Signal()
        more = True
        reading: asyncio.Future[Chunk | None] | None = None
        failure: Exception | None = None
        try:
            while more or running:
                if more and reading is None and len(running) < self._cutter.in_flight:
                    reading = asyncio.ensure_future(_next(chunks))
                    reading.add_done_callback(ended.set)
                # Wait for the source and for results: the source may be slow, or may itself wait
                # for a result.
                if not self._is_ready():
                    await ended.wait()
                if reading is not None and reading.done():
                    chunk = None
                    try:
                        chunk = reading.result()
                    except Exception as error:
                        if raised_by_signal_handler(error):
                            raise
                        failure = error
                    reading = None
                    more = chunk is not None
                    if chunk is not None:
                        self._launch(chunk, ended.set)
                if not self._is_ready():
                    continue
                one = self._take()
                try:
                    with self._recorded(one.ledger):
                        found = one.result()
                except NexusFlowError as error:
                    for _ in range(PARTS):
                        until = loop.time() + STOPPED / PARTS
                        timer = loop.call_at(until, ended.set, None)
                        while loop.time() < until and not self._all_done():
                            await ended.wait()
                        timer.cancel()
                    raise self._rescued(error, one) from failure
                except Abandoned:  # the loop has ended
                    raise asyncio.CancelledError from None
                for result in one.chunk.results(found):
                    yield result
            if failure is not None:
                raise failure
        finally:
            failure = None  # break a cycle: the error holds this frame
            if reading is not None:
                reading.cancel()
            reading = None
            self._abandon()

    def _launch(self, chunk: Chunk, wake: Callable[[object], object]) -> None:
        one = _Running(chunk, Ledger(), wake)
        if chunk.texts:
            self._background, work = self._start(chunk.texts, one.ledger, stop=self._stop)
            self._running.append(one)  # before the start, so that Ctrl-C during it cancels the call
            one.start(self._background, work)
        else:
            one.settle(Outcome(CallResults(0)))
            self._running.append(one)

    def _is_ready(self) -> bool:
        if self._ordered:
            return bool(self._running) and self._running[0].is_done
        return any(one.is_done for one in self._running)

    def _all_done(self) -> bool:
        return all(one.is_done for one in self._running)

    def _take(self) -> _Running:
        """Return the next chunk in order, or the first chunk that has ended."""
        if not self._ordered:
            ended = (place for place, one in enumerate(self._running) if one.is_done)
            self._running.rotate(-next(ended))
        return self._running.popleft()

    def _abandon(self) -> None:
        if self._background is not None and self._running:
            # Stop all calls first, or a place that one cancelled call frees would go to another
            # such call.
            self._background.call_soon(self._stop.request)
        for one in self._running:
            one.cancel()
        for one in self._running:
            self._report(one.ledger)

    def _rescued(self, error: NexusFlowError, failed: _Running) -> NexusFlowError:
        """Return the error of the stream; its ``finished`` holds the vectors of all chunks."""
        finished = failed.chunk.named(error.finished)
        for one in self._running:
            if one.outcome is not None:
                other = one.outcome.error
                if other is None:
                    finished |= one.chunk.named(one.result().finished())
                elif isinstance(other, NexusFlowError):
                    finished |= one.chunk.named(other.finished)
                    if isinstance(error, StoppedElsewhere):
                        error = other
        error.finished = finished
        return error


def _wait(
    ended: SimpleQueue[object], ready: Callable[[], bool], seconds: float = float("inf")
) -> None:
    """Wait until ``ready()``, which is called again after each item, but at most ``seconds``."""
    until = monotonic() + seconds
    with suppress(Empty):
        while not ready():
            next_item(ended, until)


async def _next(chunks: AsyncIterator[Chunk]) -> Chunk | None:
    return await anext(chunks, None)
