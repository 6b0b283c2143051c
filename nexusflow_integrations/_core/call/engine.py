"""Runs calls: cuts them into batches, keeps many in flight, gathers what comes.

This is where decisions meet the event loop. One engine lives on the background loop of the process;
everything in it is touched by that loop only, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core.call.background import BackgroundLoop, background_loop
from nexusflow_integrations._core.call.results import Gathered, RowLists
from nexusflow_integrations._core.call.sources import (
    CachedSource,
    DirectSource,
    Plan,
    Source,
    Texts,
)
from nexusflow_integrations._core.request.batching import max_tokens, plan_batches
from nexusflow_integrations._core.request.endpoint import Lane
from nexusflow_integrations._core.request.exchange import (
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
    exchange,
)
from nexusflow_integrations._core.request.transport import (
    AiohttpSender,
    AsyncHttpxSender,
    HttpxSender,
    Pool,
    Sender,
    Target,
    proxy_for,
)
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations._core.settings import ApiKey, Settings
from nexusflow_integrations._core.usage import Ledger, Purse
from nexusflow_integrations.errors import APITimeoutError, NexusFlowError

if TYPE_CHECKING:
    from nexusflow_integrations._core.cache.cache import Cache, Store
    from nexusflow_integrations._core.pace.shared import SharedLimits
    from nexusflow_integrations._core.redis.address import RedisAddress

Headers = tuple[tuple[str, str], ...]

MOST_SENDERS = 64
"""Senders that are kept made up; a client may give each of its calls headers of its own."""
DRAIN = 5.0
"""Seconds that requests in flight get to finish, and be kept, when their call fails elsewhere."""


class StoppedElsewhere(NexusFlowError):  # noqa: N818 - it is never raised to a user
    """A call that was ended together with one that failed; that one's error is what to raise."""


class Stop:
    """Ends several calls together: what is in flight is kept, nothing more is sent.

    Touched by the event loop only, except for its making.
    """

    def __init__(self) -> None:
        self._calls: set[_Job] = set()
        self._requested = False

    def request(self) -> None:
        """Stop all calls that joined, and those that will."""
        self._requested = True
        for call in list(self._calls):
            call.stop()

    def join(self, call: _Job) -> None:
        self._calls.add(call)
        if self._requested:
            call.stop()

    def leave(self, call: _Job) -> None:
        self._calls.discard(call)


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
    cache: str | RedisAddress | None = None
    pacer: SharedLimits | None = None
    stop: Stop | None = None
    lists: bool = False


class Engine:
    """All lanes and the connection pool, on one event loop."""

    def __init__(self, background: BackgroundLoop) -> None:
        self._lanes: dict[tuple[str, str, str], Lane] = {}
        self._flights: dict[tuple[object, ...], Flights] = {}
        self._caches: dict[str | RedisAddress, Cache] = {}
        self._pacing: dict[Lane, ThreadPoolExecutor] = {}
        self._pool = Pool()
        self._own_sender = lru_cache(maxsize=MOST_SENDERS)(self._make_sender)
        background.on_close(self._close)

    async def _close(self) -> None:
        await self._pool.close()
        for cache in self._caches.values():
            await cache.close()
        for thread in self._pacing.values():
            thread.shutdown(wait=False, cancel_futures=True)

    def _lane(self, settings: Settings, key: ApiKey) -> Lane:
        name = (settings.base_url, key.reveal(), settings.model)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(settings, time.monotonic)
        else:
            lane.configure(settings)
        return lane

    def _pace_with(self, lane: Lane, shared: SharedLimits) -> None:
        """Send at the pace that ``shared`` keeps for all who ask it."""
        if lane.paced_by == shared:
            return
        from nexusflow_integrations._core.pace.shared import LeasedPacer

        if lane not in self._pacing:
            self._pacing[lane] = ThreadPoolExecutor(1, thread_name_prefix="nexusflow-pacer")
        pacer = LeasedPacer(shared, self._pacing[lane].submit, lane.gate.pump)
        lane.use_pacer(pacer, paced_by=shared)

    def _flights_of(self, request: Request) -> Flights:
        """Return the flights that a call may join: same vectors, same payer, same store."""
        told = request.settings
        name = (told.base_url, told.model, told.dimensions, request.key.reveal(), request.cache)
        flights = self._flights.get(name)
        if flights is None:
            flights = self._flights[name] = Flights()
        return flights

    def _cache(self, place: str | RedisAddress) -> Cache:
        if place not in self._caches:
            from nexusflow_integrations._core.cache.cache import Cache, store_at

            self._caches[place] = Cache(store_at(place))
        return self._caches[place]

    async def _opened(self, cache: Cache, settings: Settings) -> bool:
        try:
            return await asyncio.wait_for(asyncio.shield(cache.open()), settings.deadline)
        except asyncio.TimeoutError:
            raise APITimeoutError(
                f"the deadline of {settings.deadline:g} s passed while the cache was being opened"
            ) from None

    async def held(
        self, texts: Sequence[str], settings: Settings, place: str | RedisAddress
    ) -> set[str]:
        """Return those of ``texts`` whose vector the store at ``place`` holds."""
        cache = self._cache(place)
        if not await cache.open():
            return set()
        key = _keyer(cache, settings)
        keys = {key(text): text for text in texts}
        return {keys[found] for found in await cache.present(list(keys))}

    def _sender(self, request: Request) -> Sender:
        url, key = request.settings.base_url, request.key.reveal()
        headers = tuple(request.settings.default_headers.items())
        if request.http_client is not None:
            return HttpxSender(request.http_client, _target(url, key, headers))
        if request.async_http_client is not None and request.client_loop is not None:
            target = _target(url, key, headers)
            return AsyncHttpxSender(request.async_http_client, request.client_loop, target)
        return self._own_sender(url, key, headers, proxy_for(url))

    def _make_sender(
        self, base_url: str, key: str, headers: Headers, proxy: str | None
    ) -> AiohttpSender:
        return AiohttpSender(self._pool, _target(base_url, key, headers), proxy)

    async def embed(self, request: Request) -> Gathered:
        """Embed the texts of ``request``, all of them checked before.

        Raises:
            NexusFlowError: With ``finished`` holding whatever was ready.
        """
        settings = request.settings
        lane = self._lane(settings, request.key)
        lists = RowLists(len(request.texts)) if request.lists else None
        gathered = Gathered(len(request.texts), request.on_progress, lists=lists)
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
        if request.pacer is not None:
            self._pace_with(lane, request.pacer)
        send = partial(_send, call, self._sender(request))
        source: Callable[[Texts], Source] = partial(DirectSource, plan=_plan(settings))
        if request.cache is not None:
            cache = self._cache(request.cache)
            if await self._opened(cache, settings):
                source = _cached(cache, call, gathered)
                _share_pace(lane, cache, settings, request.key)
        job = _Job(
            call,
            gathered,
            send,
            flights=self._flights_of(request),
            source=source,
        )
        stop = request.stop or Stop()
        stop.join(job)
        try:
            await job.run(request.texts)
        except Stopped:
            stopped = StoppedElsewhere("stopped, because another part of the call failed")
            stopped.finished = gathered.finished()
            raise stopped from None
        except NexusFlowError as error:
            error.finished = gathered.finished()
            stop.request()
            raise
        finally:
            stop.leave(job)
        await gathered.make_lists()
        return gathered


def _plan(settings: Settings) -> Plan:
    return partial(
        plan_batches,
        max_texts=settings.batch_size,
        max_tokens=max_tokens(settings.tokens_per_minute),
    )


def _cached(cache: Cache, call: Call, gathered: Gathered) -> Callable[[Texts], Source]:
    settings = call.settings
    return partial(
        CachedSource,
        plan=_plan(settings),
        cache=cache,
        key=_keyer(cache, settings),
        dimensions=settings.dimensions,
        gathered=gathered,
        ledger=call.ledger,
        slab=settings.max_concurrency * settings.batch_size,
    )


def _share_pace(lane: Lane, cache: Cache, settings: Settings, key: ApiKey) -> None:
    """Keep given limits together with all processes that use the same store."""
    if lane.given == (None, None) or lane.paced_by is not None:
        return
    from nexusflow_integrations._core.pace.shared import LeasedPacer, account_id

    requests, tokens = lane.given
    account = account_id(base_url=settings.base_url, key=key, model=settings.model)
    shared = limits_kept_in(cache.store, account, requests, tokens)
    lane.use_pacer(LeasedPacer(shared, cache.thread.submit, lane.gate.pump), paced_by=cache)


def limits_kept_in(
    store: Store, account: bytes, requests: float | None, tokens: float | None
) -> SharedLimits:
    """Return the limits of ``account``, kept together by all who use ``store``."""
    from nexusflow_integrations._core.cache.in_file import VectorStore

    if isinstance(store, VectorStore):
        from nexusflow_integrations._core.pace.in_file import SharedPacer

        return SharedPacer(store, account, requests_per_minute=requests, tokens_per_minute=tokens)
    from nexusflow_integrations._core.cache.in_redis import RedisStore
    from nexusflow_integrations._core.pace.in_redis import AccountLimits

    assert isinstance(store, RedisStore)
    return AccountLimits(
        store.server,
        account,
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        clock=store.clock,
    )


def _keyer(cache: Cache, settings: Settings) -> Callable[[str], bytes]:
    # A query's instruction is part of its text by now, so the role needs no part of its own.
    return cache.store.keyer(
        base_url=settings.base_url, model=settings.model, dimensions=settings.dimensions
    )


def _target(base_url: str, key: str, headers: Headers) -> Target:
    given = {name.lower() for name, _ in headers}
    usual = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        # Unpacking costs more than the bytes it saves: base64 shrinks by a quarter.
        "Accept-Encoding": "identity",
        "User-Agent": "nexusflow-integrations",
    }
    return Target(
        f"{base_url}/embeddings",
        {
            **{name: value for name, value in usual.items() if name.lower() not in given},
            **dict(headers),
            "Authorization": f"Bearer {key}",
        },
    )


SendStep = Callable[[Send], Coroutine[Any, Any, Reply]]


async def _send(call: Call, sender: Sender, step: Send) -> Reply:
    lane = call.lane
    await lane.gate.enter(step.tokens, urgent=step.urgent)
    if call.stopping:
        lane.gate.leave()
        raise Stopped
    step.admitted = True
    sent_at = lane.clock()
    task = asyncio.current_task()
    call.in_flight.add(task)
    try:
        outcome: Answer | TransportFault = await sender.send(step.body, step.timeout)
    finally:
        call.in_flight.discard(task)
        lane.gate.leave()
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


class Flights:
    """Who is embedding which text now, so that nobody else in the process pays for it too."""

    def __init__(self) -> None:
        self._flights: dict[str, tuple[Gathered, int]] = {}

    def board(
        self, texts: Iterable[tuple[int, str]], gathered: Gathered
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str, Gathered, int]]]:
        """Part ``texts`` into those now ours to embed, and those that another call embeds."""
        if not self._flights:
            self._flights = {text: (gathered, index) for index, text in texts}
            return list(texts), []
        mine = []
        others = []
        for index, text in texts:
            carrier, place = self._flights.setdefault(text, (gathered, index))
            if carrier is gathered and place == index:
                mine.append((index, text))
            else:
                others.append((index, text, carrier, place))
        return mine, others

    def carries(self, text: str, carrier: Gathered, place: int) -> bool:
        """Tell whether ``carrier`` is still under way with ``text``."""
        return self._flights.get(text) == (carrier, place)

    def land(self, texts: Texts, gathered: Gathered) -> None:
        """End our flights; whoever still waits for one must see to it himself."""
        if len(texts) == len(self._flights):
            self._flights = {}  # nobody else has boarded
        else:
            for _, text in texts:
                self._flights.pop(text, None)
        gathered.wake_all()


class _Job:
    """One call in progress: a few workers that take batches from one source."""

    def __init__(
        self,
        call: Call,
        gathered: Gathered,
        send: SendStep,
        *,
        flights: Flights,
        source: Callable[[Texts], Source],
    ) -> None:
        self._call = call
        self._gathered = gathered
        self._send = send
        self._flights = flights
        self._source = source
        self._tasks: Sequence[asyncio.Task[None]] = ()
        self._failure: NexusFlowError | None = None

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
        wanted = list(enumerate(texts))
        copies: dict[int, int] = {}
        if len(set(texts)) < len(texts):
            first: dict[str, int] = {}
            for index, text in wanted:
                original = first.setdefault(text, index)
                if original != index:
                    copies[index] = original
            wanted = [(index, text) for text, index in first.items()]
            self._call.ledger.repeated += len(copies)
        try:
            await self._run_distinct(wanted)
        finally:
            self._copy(copies)

    async def _run_distinct(self, wanted: Texts) -> None:
        while wanted:
            mine, others = self._flights.board(wanted, self._gathered)
            try:
                if mine:
                    await self._obtain(mine)
            finally:
                self._flights.land(mine, self._gathered)
            wanted = [
                (index, text)
                for index, text, carrier, place in others
                if not await self._join(index, text, carrier, place)
            ]

    async def _join(self, index: int, text: str, carrier: Gathered, place: int) -> bool:
        """Take the row of a text that another call embeds; ``False`` if that call ends without."""
        # It may have ended while this call waited for another of its texts.
        if not carrier.settled(place) and self._flights.carries(text, carrier, place):
            await carrier.wait(place)
        if carrier.done[place] and carrier.vectors is not None:
            self._gathered.row(index, carrier.vectors[place])
            self._call.ledger.cached += 1
        elif place in carrier.refusals:
            self._gathered.refuse(index, carrier.refusals[place])
        else:
            return False
        self._gathered.report()
        return True

    async def _obtain(self, texts: Texts) -> None:
        settings = self._call.settings
        source = self._source(texts)
        workers = min(settings.max_concurrency, -(-len(texts) // settings.batch_size))
        try:
            if workers <= 1:
                await self._work(source)
            else:
                await self._work_together(source, workers)
        finally:
            await source.close()

    async def _work_together(self, source: Source, most: int) -> None:
        """Work with up to ``most`` tasks, one more at each turn of the loop that brings no answer.

        A slow server soon has them all; one that answers as fast as its answers are read is asked
        over a few connections, which costs less and takes no longer.
        """
        ledger = self._call.ledger
        tasks = self._tasks = [asyncio.create_task(self._work(source))]
        try:
            while len(tasks) < most:
                answered = ledger.requests
                await asyncio.sleep(0)
                if self._call.stopping or any(task.done() for task in tasks):
                    break  # there is no more to take, or the call has failed
                if ledger.requests == answered:
                    tasks.append(asyncio.create_task(self._work(source)))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if not all(task.done() for task in tasks):
                self.stop()
                await asyncio.wait(tasks, timeout=DRAIN)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure  # its worker may have been ended while it kept what it had
        for result in results:
            if isinstance(result, BaseException) and not isinstance(
                result, (Stopped, asyncio.CancelledError)
            ):
                raise result
        if self._call.stopping:
            raise Stopped

    def stop(self) -> None:
        """Keep what is paid for already, and send nothing more; whatever only waits is ended."""
        self._call.stopping = True
        for task in self._tasks:
            if task not in self._call.in_flight:
                task.cancel()

    async def _work(self, source: Source) -> None:
        while (batch := await source.next()) is not None:
            if self._call.stopping:
                raise Stopped
            try:
                await drive(exchange(batch, self._call), self._send)
            except NexusFlowError as error:
                self._call.stopping = True  # at once, before the gate lets in the next
                self._failure = self._failure or error
                raise
            finally:
                await source.keep(batch)
            self._gathered.report()
        self._gathered.report()

    def _copy(self, copies: dict[int, int]) -> None:
        gathered = self._gathered
        for index, original in copies.items():
            if original in gathered.refusals:
                gathered.refuse(index, gathered.refusals[original])
            elif gathered.done[original] and gathered.vectors is not None:
                gathered.row(index, gathered.vectors[original])
        self._gathered.report()


_engines: dict[BackgroundLoop, Engine] = {}


def engine() -> tuple[BackgroundLoop, Engine]:
    """Return the process's loop and the engine on it."""
    background = background_loop()
    found = _engines.get(background)
    if found is None:
        # A fork leaves the parent's engine behind under the parent's loop; it is never used again.
        found = _engines.setdefault(background, Engine(background))
    return background, found
