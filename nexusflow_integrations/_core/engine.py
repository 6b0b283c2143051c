"""Runs calls: cuts them into batches, keeps many in flight, gathers what comes.

This is where decisions meet the event loop. One engine lives on the background loop of the process;
everything in it is touched by that loop only, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from nexusflow_integrations._core.background import BackgroundLoop, background_loop
from nexusflow_integrations._core.batching import (
    MAX_BATCH_TOKENS,
    Batch,
    Item,
    encode_item,
    plan_batches,
)
from nexusflow_integrations._core.exchange import (
    AwaitSettled,
    Call,
    Follow,
    LearntSize,
    Reply,
    Send,
    Sleep,
    Step,
    Steps,
    Stopped,
    TransportFault,
    exchange,
)
from nexusflow_integrations._core.lane import Lane
from nexusflow_integrations._core.results import Gathered
from nexusflow_integrations._core.settings import ApiKey, Settings
from nexusflow_integrations._core.transport import (
    AiohttpSender,
    AsyncHttpxSender,
    HttpxSender,
    Sender,
)
from nexusflow_integrations._core.usage import Ledger, Purse
from nexusflow_integrations._core.wire import Answer
from nexusflow_integrations.errors import APITimeoutError, NexusFlowError

DRAIN = 5.0
"""Seconds that requests in flight get to finish, and be kept, when their call fails elsewhere."""


@dataclass(eq=False)
class Request:
    """One call as the client hands it over."""

    texts: Sequence[str]
    settings: Settings
    key: ApiKey
    ledger: Ledger
    urgent: bool = False
    purse: Purse | None = None
    size: LearntSize | None = None
    http_client: Any = None
    async_http_client: Any = None
    client_loop: asyncio.AbstractEventLoop | None = None
    on_progress: Callable[[int], object] | None = None


class Engine:
    """All lanes and the connection pool, on one event loop."""

    def __init__(self, background: BackgroundLoop) -> None:
        self._lanes: dict[tuple[str, str, str], Lane] = {}
        self._pool = AiohttpSender()
        self._workers: ThreadPoolExecutor | None = None
        background.on_close(self._close)

    async def _close(self) -> None:
        await self._pool.close()
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)

    def _lane(self, settings: Settings, key: ApiKey) -> Lane:
        name = (settings.base_url, key.reveal(), settings.model)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(settings, time.monotonic)
        else:
            lane.configure(settings)
        return lane

    def _sender(self, request: Request) -> Sender:
        if request.http_client is not None:
            if self._workers is None:
                self._workers = ThreadPoolExecutor(64, thread_name_prefix="nexusflow-httpx")
            return HttpxSender(request.http_client, self._workers)
        if request.async_http_client is not None and request.client_loop is not None:
            return AsyncHttpxSender(request.async_http_client, request.client_loop)
        return self._pool

    async def embed(self, request: Request) -> Gathered:
        """Embed the texts of ``request``, all of them checked before.

        Raises:
            NexusFlowError: With ``finished`` holding whatever was ready.
        """
        settings = request.settings
        lane = self._lane(settings, request.key)
        gathered = Gathered(len(request.texts))
        call = Call(
            settings=settings,
            key=request.key,
            lane=lane,
            sink=gathered,
            ledger=request.ledger,
            until=lane.clock() + settings.deadline if settings.deadline else float("inf"),
            urgent=request.urgent,
            purse=request.purse,
            size=request.size or LearntSize(),
        )
        request.ledger.texts += len(request.texts)
        send = partial(
            _send, lane, self._sender(request), settings, _headers(settings, request.key)
        )
        job = _Job(call, gathered, send, request.on_progress)
        try:
            await job.run(request.texts)
        except NexusFlowError as error:
            error.finished = gathered.finished()
            raise
        finally:
            gathered.wake_all()
        return gathered


def _headers(settings: Settings, key: ApiKey) -> dict[str, str]:
    return {
        **settings.default_headers,
        "Authorization": f"Bearer {key.reveal()}",
        "Content-Type": "application/json",
        "Accept": "application/json",
        # Unpacking costs more than the bytes it saves: base64 shrinks by a quarter.
        "Accept-Encoding": "identity",
        "User-Agent": "nexusflow-integrations",
    }


SendStep = Callable[[Send], Coroutine[Any, Any, Reply]]


async def _send(
    lane: Lane, sender: Sender, settings: Settings, headers: dict[str, str], step: Send
) -> Reply:
    gate = lane.gate
    await gate.enter(step.tokens, urgent=step.urgent)
    sent_at = lane.clock()
    try:
        outcome: Answer | TransportFault = await sender.send(
            f"{settings.base_url}/embeddings", headers, step.body, step.timeout
        )
    finally:
        gate.leave()
    return Reply(outcome, sent_at, lane.clock())


async def drive(steps: Steps, send: SendStep) -> None:
    """Do what ``steps`` ask for, until they end."""
    reply: Reply | None = None
    try:
        while True:
            step: Step = steps.send(reply)
            reply = None
            if isinstance(step, Send):
                reply = await send(step)
            elif isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Follow):
                await _signalled(step.outage.listen, already=step.outage.over)
            elif isinstance(step, AwaitSettled):
                await _signalled(step.purse.listen)
    except StopIteration:
        return
    finally:
        steps.close()


async def _signalled(
    listen: Callable[[Callable[[], None]], None], *, already: bool = False
) -> None:
    if already:
        return
    signal = asyncio.Event()
    listen(signal.set)
    await signal.wait()


class _Job:
    """One call in progress: a few workers that take batches from one plan."""

    def __init__(
        self,
        call: Call,
        gathered: Gathered,
        send: SendStep,
        on_progress: Callable[[int], object] | None,
    ) -> None:
        self._call = call
        self._gathered = gathered
        self._send = send
        self._on_progress = on_progress

    async def run(self, texts: Sequence[str]) -> None:
        deadline = self._call.until - self._call.lane.clock()
        work = self._run(texts)
        if deadline == float("inf"):
            await work
            return
        try:
            await asyncio.wait_for(work, deadline)
        except asyncio.TimeoutError as error:
            if isinstance(error, NexusFlowError):
                raise
            raise APITimeoutError(
                f"the deadline of {self._call.settings.deadline:g} s has passed"
            ) from None

    async def _run(self, texts: Sequence[str]) -> None:
        first: dict[str, int] = {}
        copies: dict[int, int] = {}
        for index, text in enumerate(texts):
            original = first.setdefault(text, index)
            if original != index:
                copies[index] = original
        self._call.ledger.repeated += len(copies)
        items = (encode_item(index, text) for text, index in first.items())
        await self._send_all(self._batches(items), len(first))
        self._copy(copies)

    def _batches(self, items: Iterator[Item]) -> Iterator[Batch]:
        settings = self._call.settings
        per_second = (settings.tokens_per_minute or float("inf")) / 60
        # Limits that hold per second refuse a request of more tokens than a second may bring.
        return plan_batches(
            items, max_texts=settings.batch_size, max_tokens=min(MAX_BATCH_TOKENS, per_second)
        )

    async def _send_all(self, batches: Iterator[Batch], count: int) -> None:
        settings = self._call.settings
        workers = min(settings.max_concurrency, -(-count // settings.batch_size))
        if workers <= 1:
            await self._work(batches)
            return
        tasks = [asyncio.ensure_future(self._work(batches)) for _ in range(workers)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = next((task for task in tasks if task.done() and task.exception()), None)
            if failed is not None:
                self._call.stopping = True
                await asyncio.wait(tasks, timeout=DRAIN)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(
                result, (Stopped, asyncio.CancelledError)
            ):
                raise result

    async def _work(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            if self._call.stopping:
                raise Stopped
            await drive(exchange(batch, self._call), self._send)
            self._report()

    def _report(self) -> None:
        gathered = self._gathered
        if self._on_progress is not None and gathered.fresh:
            fresh, gathered.fresh = gathered.fresh, 0
            self._on_progress(fresh)

    def _copy(self, copies: dict[int, int]) -> None:
        gathered = self._gathered
        for index, original in copies.items():
            if original in gathered.refusals:
                gathered.refuse(index, gathered.refusals[original])
            elif gathered.vectors is not None:
                gathered.row(index, gathered.vectors[original])
        self._report()


_engines: dict[BackgroundLoop, Engine] = {}


def engine() -> tuple[BackgroundLoop, Engine]:
    """Return the process's loop and the engine on it."""
    background = background_loop()
    found = _engines.get(background)
    if found is None:
        # A fork leaves the parent's engine behind under the parent's loop; it is never used again.
        found = _engines.setdefault(background, Engine(background))
    return background, found
