"""The engine: the state that all calls of a process share on one event loop, and how a call starts.

One engine runs on the background loop of the process. Only that loop changes the engine's state, so
no lock is needed. A call that needs only one request and does not have to wait is driven by its
caller: see ``direct`` and ``direct_async``.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from nexusflow_integrations._core.call.background import BackgroundLoop, background_loop
from nexusflow_integrations._core.call.caller import Caller
from nexusflow_integrations._core.call.coalescing import Coalescer
from nexusflow_integrations._core.call.deriving import (
    Comparison,
    at_size,
    compared,
    derived,
    larger_sizes,
    share_of,
)
from nexusflow_integrations._core.call.direct import DirectCall, fits
from nexusflow_integrations._core.call.direct_async import AsyncDirectCall
from nexusflow_integrations._core.call.job import Job, Stop, StoppedElsewhere, admit_and_send
from nexusflow_integrations._core.call.results import CallResults, RowLists
from nexusflow_integrations._core.call.sources import (
    CachedSource,
    DirectSource,
    Plan,
    RecalledSource,
    Source,
    Texts,
)
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.comparing import FIXED_TEXTS
from nexusflow_integrations._core.offload import Worker
from nexusflow_integrations._core.pace.terms import Terms
from nexusflow_integrations._core.request.batching import max_tokens, plan_batches
from nexusflow_integrations._core.request.blocking import BlockingSender, Connections, Peer
from nexusflow_integrations._core.request.endpoint import EndpointState
from nexusflow_integrations._core.request.exchange import (
    Call,
    LearntSize,
    Reply,
    Send,
    Stopped,
)
from nexusflow_integrations._core.request.long_texts import is_cut
from nexusflow_integrations._core.request.message import Origin, origin_of
from nexusflow_integrations._core.request.opening import OpeningSender
from nexusflow_integrations._core.request.polled import can_poll
from nexusflow_integrations._core.request.pool import AiohttpSender, LoopSender, Pool
from nexusflow_integrations._core.request.transport import (
    KEEPALIVE,
    AsyncHttpxSender,
    HttpxSender,
    Sender,
    Target,
    proxy_for,
)
from nexusflow_integrations._core.secret import ApiKey, Headers, Secret, without_frames
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import (
    APITimeoutError,
    BadRequestError,
    InvalidResponseError,
    NexusFlowError,
)

if TYPE_CHECKING:
    from nexusflow_integrations._core.cache.cache import Cache, Store
    from nexusflow_integrations._core.key_sources import FunctionKey
    from nexusflow_integrations._core.pace.shared import LeasedPacer, SharedLimits
    from nexusflow_integrations._core.redis.address import RedisAddress

D = TypeVar("D", bound=DirectCall)

MOST_ON_LOOPS = 8
"""An async call sends its own request only if fewer requests of callers than this are in flight.

Otherwise, the background loop sends it. If both loops have much to do, they compete for the
interpreter: 200 calls at once, of ten texts each, cost 12 us of CPU more per text if callers' loops
sent as many requests as the window allows.
"""

MOST_ANNOUNCED = 1000
"""Maximum texts of a call that is announced, which takes about 1 us a text."""

MOST_SENDERS = 64
"""Maximum number of senders kept for reuse; clients may set different headers for each call."""

MOST_ENDPOINTS = 256
"""At this many endpoints, those without clients are removed, with the limits that they learned."""

MOST_CACHES = 32
"""With this many caches open, unused ones are closed: each has a thread and three descriptors."""


class Engine:
    """All endpoints and the connection pool, on one event loop."""

    def __init__(self, background: BackgroundLoop) -> None:
        self._endpoints: dict[tuple[str, ApiKey | FunctionKey, str], EndpointState] = {}
        self._coalescers: dict[tuple[object, ...], Coalescer] = {}
        self._caches: OrderedDict[str | RedisAddress, Cache] = OrderedDict()  # newest use last
        self._users: Counter[str | RedisAddress | None] = Counter()
        self._closing: set[asyncio.Task[None]] = set()
        self._comparisons: dict[tuple[object, ...], Comparison] = {}
        self._pacing: dict[EndpointState, Worker] = {}
        self._background = background
        self._pool = Pool(self._connected)
        self._connections = Connections(lambda: self._pool.trust, self._end_one_later)
        self._ending_idle: asyncio.TimerHandle | None = None
        self._own_sender = lru_cache(maxsize=MOST_SENDERS)(self._make_sender)
        self._sender_here = lru_cache(maxsize=MOST_SENDERS)(self._make_sender_here)
        background.on_close(self._close)

    async def _close(self) -> None:
        await self._pool.close()
        self._connections.close()
        open_now = [cache.close() for cache in self._caches.values()]
        await asyncio.gather(*open_now, *self._closing)
        for worker in self._pacing.values():
            worker.end()

    def _endpoint(self, settings: Settings, key: ApiKey | FunctionKey) -> EndpointState:
        name = (settings.base_url, key, settings.model)
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            if len(self._endpoints) >= MOST_ENDPOINTS:
                self._forget_unused()
            endpoint = EndpointState(monotonic, self._pace_with, self._background.call_soon)
            self._endpoints[name] = endpoint
        return endpoint

    def _forget_unused(self) -> None:
        """Remove endpoints without clients: if each request has its own key function, each is a new
        account.

        A thread that has just found one of them can still use it.
        """
        unused = {
            name
            for name, endpoint in self._endpoints.items()
            if endpoint not in self._pacing and not endpoint.is_in_use
        }
        for name in unused:
            del self._endpoints[name]
        for kind in list(self._coalescers):
            base_url, model, *_, account, _ = kind
            if (base_url, account, model) in unused:
                del self._coalescers[kind]

    def _pace_with(self, endpoint: EndpointState, shared: SharedLimits) -> None:
        """Send at the rate that ``shared`` keeps for all its users."""
        if endpoint.paced_by != shared:
            endpoint.use_pacer(self._leased(endpoint, shared), paced_by=shared)

    def _share_pace(
        self,
        endpoint: EndpointState,
        cache: Cache,
        settings: Settings,
        key: ApiKey | FunctionKey,
    ) -> None:
        """Share the given limits with all processes that use the same store."""
        if endpoint.given == (None, None) or endpoint.paced_by is not None:
            return
        from nexusflow_integrations._core.pace.shared import account_id

        requests, tokens = endpoint.given
        account = account_id(base_url=settings.base_url, key=key, model=settings.model)
        shared = limits_kept_in(cache.store, account, requests, tokens)
        endpoint.use_pacer(self._leased(endpoint, shared), paced_by=cache)

    def _leased(self, endpoint: EndpointState, shared: SharedLimits) -> LeasedPacer:
        from nexusflow_integrations._core.pace.shared import LeasedPacer

        if endpoint not in self._pacing:
            self._pacing[endpoint] = Worker("nexusflow-pacer")
        return LeasedPacer(
            shared, self._pacing[endpoint].submit, endpoint.admission.pump, endpoint.clock
        )

    def _coalescer_of(self, call: Call, cut_to: int | None) -> Coalescer:
        """Return the coalescer for calls that share vectors, account and store with ``call``."""
        settings = call.settings
        vectors = (
            settings.base_url,
            settings.model,
            settings.dimensions,
            settings.added,
            settings.on_too_long,
            settings.token_limit,
            cut_to,
        )
        name = (*vectors, call.account, call.cache)
        coalescer = self._coalescers.get(name)
        if coalescer is None:
            coalescer = self._coalescers.setdefault(name, Coalescer())
        return coalescer

    def _cache(self, place: str | RedisAddress) -> Cache:
        if place not in self._caches:
            from nexusflow_integrations._core.cache.cache import Cache, store_at

            if len(self._caches) >= MOST_CACHES:
                self._close_unused_caches()
            self._caches[place] = Cache(store_at(place))
        self._caches.move_to_end(place)
        return self._caches[place]

    @contextmanager
    def _using(self, place: str | RedisAddress | None) -> Iterator[None]:
        """Keep the cache at ``place`` open in the block."""
        self._users[place] += 1
        try:
            yield
        finally:
            self._users[place] -= 1
            if not self._users[place]:
                del self._users[place]

    def _close_unused_caches(self) -> None:
        """Close the caches that have not been used for longest, so that descriptors do not run out.

        Limits that are kept in a cache's file need it open. The next call opens it again.
        """
        pacing = {id(endpoint.paced_by) for endpoint in self._endpoints.values()}
        for place, cache in list(self._caches.items()):
            if len(self._caches) < MOST_CACHES:
                return
            if cache.is_idle and not self._users[place] and id(cache) not in pacing:
                del self._caches[place]
                closing = asyncio.ensure_future(cache.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    async def stored(
        self, texts: Sequence[str], settings: Settings, place: str | RedisAddress, *, derive: bool
    ) -> tuple[set[str], int]:
        """Return the texts whose vectors the store at ``place`` holds.

        With ``derive``, also return the number of sizes at which the fixed texts must be embedded
        first. Until that is done, only vectors of the wanted size count.
        """
        with self._using(place):
            return await self._stored(texts, settings, place, derive=derive)

    async def _stored(
        self, texts: Sequence[str], settings: Settings, place: str | RedisAddress, *, derive: bool
    ) -> tuple[set[str], int]:
        cache = self._cache(place)
        until = monotonic() + settings.deadline / 2 if settings.deadline else float("inf")

        def time_left() -> float:
            return until - monotonic()

        sources: tuple[int | None, ...] = (settings.dimensions,)
        to_ask = 0
        larger = larger_sizes(settings) if derive else ()
        if larger and settings.dimensions is not None:
            sizes = (*larger, settings.dimensions)
            comparison = self._comparison(settings, place)
            if comparison.lacks(sizes):
                rows = await compared(cache, partial(_keyer_at, cache, settings), sizes, time_left)
                to_ask = len(sizes) - len(rows)
                if not to_ask:
                    comparison.learn(sizes, rows)
            sources = comparison.sources(sizes) or sources
        stored: set[str] = set()
        for size in sources:
            if (within := time_left()) <= 0:
                break
            key = _keyer_at(cache, settings, size)
            keys = {key(text): text for text in texts if text not in stored}
            stored |= {keys[found] for found in await cache.present(list(keys), within)}
        return stored, to_ask

    def _sender(self, call: Call) -> Sender:
        settings, key = call.settings, call.key
        assert key is not None
        url, headers = _url(settings), settings.default_headers
        if call.http_client is not None:
            return HttpxSender(call.http_client, _target(url, key, headers))
        if call.async_http_client is not None and call.client_loop is not None:
            target = _target(url, key, headers)
            return AsyncHttpxSender(call.async_http_client, call.client_loop, target)
        sender = self._own_sender(url, key, headers, proxy_for(url))
        if call.opens_connection:
            here = self._sender_here(url, key, headers)
            return OpeningSender(here, sender, MOST_ON_LOOPS, self._pool.end_one)
        return sender

    async def _renew(self, call: Call, refused: ApiKey | None) -> bool:
        """Let ``call`` continue with a key other than ``refused``, if there is another key."""
        assert call.keys is not None
        found = await call.keys.renewed(refused, call.client_loop)
        if found is None:
            return False
        if call.key is not None and call.key != found:
            call.old_keys.append(call.key)
        if call.key is not found:
            call.key = found
            call.sender = self._sender(call)
        return True

    def _make_sender(self, url: str, key: ApiKey, headers: Headers, proxy: Secret | None) -> Sender:
        target = _target(url, key, headers)
        if proxy is None:
            with suppress(ValueError):  # aiohttp reports an invalid URL
                callers = self._sender_here(url, key, headers)
                return LoopSender(self._pool, target, callers)
        return AiohttpSender(self._pool, target, proxy)

    def _make_sender_here(self, url: str, key: ApiKey, headers: Headers) -> BlockingSender:
        return BlockingSender(self._connections, _target(url, key, headers))

    def _connected(self, url: Any, transport: Any) -> None:
        """Let ``Connections`` connect to the address to which aiohttp has just connected."""
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            self._connections.peers[origin_of(url)] = Peer(address, ref(transport), monotonic())
        if self._ending_idle is None:
            self._end_idle()

    def _end_one_later(self, origin: Origin) -> None:
        """Close an idle connection of the background loop, which a thread's connection replaces."""

        def end_one() -> None:
            if self._pool.end_one(origin):
                self._connections.renew(origin)

        self._background.call_soon(end_one)

    def _end_idle(self) -> None:
        self._connections.end_idle()
        self._pool.end_idle()
        self._ending_idle = self._background.loop.call_later(KEEPALIVE, self._end_idle)

    def embed_here(
        self, call: Call, begun: Callable[[], object] | None = None
    ) -> CallResults | None:
        """Embed like ``embed``, but in the calling thread, if one request is enough.

        ``begun`` is called before the attempt. Return ``None`` if the call must go through
        ``embed``.
        """
        direct = self._direct(DirectCall, call)
        if direct is None:
            return None
        if begun is not None:
            if direct.has_texts_of_others:
                return None
            begun()  # call this before the call takes a place that others may wait for
        try:
            try:
                return direct.run()
            finally:
                direct.end()
        finally:
            if not direct.has_ended:  # a signal handler raised an error before or during `end`
                direct.end()

    async def embed_on_loop(
        self, call: Call, begun: Callable[[], Awaitable[object]] | None = None
    ) -> CallResults | None:
        """Embed like ``embed_here``, but on the running event loop, without blocking it.

        ``begun`` is awaited before the attempt.
        """
        if not can_poll(asyncio.get_running_loop()):
            return None
        direct = self._direct(AsyncDirectCall, call, most=MOST_ON_LOOPS)
        if direct is None:
            return None
        if begun is not None:
            if direct.has_texts_of_others:
                return None
            await begun()
        try:
            return await direct.run_here()
        finally:
            if not direct.has_ended:  # a signal handler raised an error before or during `end`
                direct.end()

    @contextmanager
    def announced(self, call: Call) -> Iterator[None]:
        """While ``call`` is handed to the background loop, let no call of its loop send its texts.

        This does nothing for a call with very many texts, or for one with a cache: calls that are
        sent on their caller's loop have no cache, so they never share its texts.
        """
        if call.cache is not None or len(call.texts) > MOST_ANNOUNCED:
            yield
            return
        coalescer = self._coalescer_of(call, None)
        coalescer.announce(call.texts, call.thread)
        try:
            yield
        finally:
            coalescer.withdraw(call.texts, call.thread)

    def _direct(self, kind: type[D], call: Call, most: int = sys.maxsize) -> D | None:
        """Return the direct call for ``call``, or ``None`` if it must go through ``embed``."""
        settings = call.settings
        if not fits(call):
            return None
        endpoint = self._endpoints.get((settings.base_url, call.account, settings.model))
        if endpoint is None or call.terms is None or not endpoint.knows(call.terms):
            return None
        if not endpoint.admission.lends(most):
            return None
        url = _url(settings)
        assert call.key is not None
        if proxy_for(url) is not None or self._pool.is_observed:
            return None
        sender = self._sender_here(url, call.key, settings.default_headers)
        coalescer = self._coalescer_of(call, None)
        return kind(call, endpoint, coalescer, sender, self._background.call_soon)

    async def embed(
        self, call: Call, caller: Caller | None = None, stop: Stop | None = None
    ) -> CallResults:
        """Embed the texts of ``call``, which were checked before; ``stop`` may end the call early.

        Raises:
            NexusFlowError: The call failed; the error's ``finished`` holds the vectors that were
                ready.
        """
        lists = RowLists(len(call.texts)) if call.lists else None
        on_progress = None if caller is None else caller.on_progress
        results = call.sink = CallResults(len(call.texts), on_progress, lists=lists)
        results.leave_out(call.unsent)
        results.thread, results.is_of_loop = call.thread, call.client_loop is not None
        failure: NexusFlowError
        terms = call.terms or Terms(call.settings)
        try:
            endpoint = call.endpoint = self._endpoint(call.settings, call.account)
            try:
                endpoint.begin(terms)
                with self._using(call.cache):
                    await self._run(call, results, caller, stop)
            finally:
                endpoint.end(terms)
                call.renew = None  # break a cycle, which would keep the vectors in memory
                if call.sent is not None:  # another call has embedded the text in the meantime
                    call.ledger.sent(retry=False)
                results.part()
                if lists is not None:
                    lists.stop()  # also if the call failed
            await results.make_lists()
            return results
        except Stopped:
            failure = StoppedElsewhere("stopped, because another part of the call failed")
        except NexusFlowError as error:
            # Remove the frames: they hold headers and responses, and some tools show the frames of
            # errors.
            failure = without_frames(error)
        except ImportError:  # the message says what to install
            raise
        except Exception as error:  # noqa: BLE001 - keep the vectors that were paid for
            failure = NexusFlowError(
                f"the call failed with {type(error).__name__}, which is a bug in this package or in"
                " an object that was passed to it; this error's cause says where"
            )
            failure.__cause__ = error
        if stop is not None:
            stop.request()
        failure.finished = results.finished()
        try:
            raise failure  # raise outside the except blocks, so that the error has no __context__
        finally:
            del failure

    async def _run(
        self, call: Call, results: CallResults, caller: Caller | None, stop: Stop | None
    ) -> None:
        settings, endpoint = call.settings, call.endpoint
        if call.key is not None:
            # Create the sender before the deadline starts, because the first sender loads
            # certificates.
            call.sender = self._sender(call)
        if settings.deadline and call.until == float("inf"):
            call.until = endpoint.clock() + settings.deadline
        if call.keys is not None:
            call.renew = partial(self._renew, call)
            if call.key is None:
                await _within(call, call.renew(None))

        def send(source: Source, step: Send) -> Coroutine[Any, Any, Reply]:
            return admit_and_send(call, call.sender, source, step)

        call.ledger.texts += len(call.texts) - len(call.unsent)
        source: Callable[[Texts], Source] = partial(DirectSource, plan=_plan(settings))
        if call.cache is not None:
            cache = self._cache(call.cache)
            sources = await self._sources(call, cache, caller) if call.derive else ()
            if sources:
                results.cut_to = settings.dimensions
                recall = partial(
                    derived,
                    cache,
                    partial(_keyer_at, cache, settings),
                    sources,
                    call.ledger,
                    lambda: call.until - endpoint.clock(),
                )
                settings = call.settings = at_size(settings, sources[0])
            source = _cached(cache, call, results)
            if sources:
                source = _recalled(source, recall, call, results)
            self._share_pace(endpoint, cache, settings, call.account)
        if caller is not None and caller.recalls:
            source = _recalled(source, caller.recall, call, results)
        coalescer = self._coalescer_of(call, results.cut_to)
        job = Job(
            call,
            results,
            send,
            coalescer=coalescer,
            source=source,
            caller=caller,
            is_stoppable=stop is not None,
        )
        try:
            if stop is None:
                await job.run(call.texts)
                return
            stop.join(job)
            try:
                await job.run(call.texts)
            finally:
                stop.leave(job)
        finally:
            call.ledger.derived += results.derived

    def _comparison(self, settings: Settings, place: str | RedisAddress) -> Comparison:
        name = (settings.base_url, settings.model, settings.added, place)
        return self._comparisons.setdefault(name, Comparison())

    async def _sources(self, call: Call, cache: Cache, caller: Caller | None) -> tuple[int, ...]:
        """Return the sizes from which vectors are cut for ``call``, largest first; may be empty.

        The first call for a cache requests the fixed texts at every size at which they are not
        stored.
        """
        settings, place = call.settings, call.cache
        larger = larger_sizes(settings)
        if not larger or settings.dimensions is None or place is None:
            return ()
        sizes = (*larger, settings.dimensions)
        comparison = self._comparison(settings, place)
        if comparison.lacks(sizes):
            patience = share_of(lambda: call.until - call.endpoint.clock(), 1 / 4)
            rows = await compared(cache, partial(_keyer_at, cache, settings), sizes, patience)
            missing = [size for size in sizes if size not in rows]
            limited = None if caller is None else caller.for_own_texts()
            asked = await asyncio.gather(
                *(self._ask(call, size, limited) for size in missing), return_exceptions=True
            )
            for size, own in zip(missing, asked, strict=True):
                if isinstance(own, BaseException):
                    raise own
                if own:
                    rows[size] = own
            comparison.learn(sizes, rows)
        sources = comparison.sources(sizes)
        if not sources:
            comparison.warn(settings.dimensions, settings.model)
        return sources

    async def _ask(self, call: Call, size: int, caller: Caller | None) -> list[Vectors]:
        """Return the vectors of the fixed texts at ``size``; empty if the server has no such size.

        ``call`` pays for the fixed texts, but does not count them as its texts.
        """
        ledger = Ledger()
        part = replace(
            call,
            texts=FIXED_TEXTS,
            settings=at_size(call.settings, size),
            ledger=ledger,
            size=LearntSize(),
            lists=False,
            unsent={},
            derive=False,
        )
        part.until = call.until
        try:
            results = await self.embed(part, caller)
        except (BadRequestError, InvalidResponseError):
            return []
        finally:
            ledger.texts = ledger.cached = ledger.refused = 0
            call.ledger.add(ledger)
        return [] if results.refusals else [*results.finished().values()]


def _url(settings: Settings) -> str:
    url = f"{settings.base_url}/embeddings"
    return url + settings.default_query.query if settings.default_query else url


async def _within(call: Call, work: Awaitable[bool]) -> None:
    """Wait for ``work`` until the deadline."""
    left = call.until - call.endpoint.clock()
    try:
        await asyncio.wait_for(work, None if left == float("inf") else left)
    except asyncio.TimeoutError as error:
        if isinstance(error, NexusFlowError):
            raise
        raise APITimeoutError(
            f"the deadline of {call.settings.deadline:g} s has passed, and the function that gives"
            " the API key has not returned"
        ) from None


def _plan(settings: Settings) -> Plan:
    return partial(
        plan_batches,
        max_texts=settings.batch_size,
        max_tokens=max_tokens(settings),
    )


def _cached(cache: Cache, call: Call, results: CallResults) -> Callable[[Texts], Source]:
    settings = call.settings
    return partial(
        CachedSource,
        plan=_plan(settings),
        cache=cache,
        key=_keyer(cache, settings),
        dimensions=settings.dimensions,
        results=results,
        ledger=call.ledger,
        batch_size=settings.batch_size,
        chunk=settings.max_concurrency * settings.batch_size,
        admission=call.endpoint.admission,
        time_left=lambda: call.until - call.endpoint.clock(),
        # If the server found a text too long, its key was made for the whole text, not for the
        # piece.
        is_storable=lambda item: item.index not in call.shortened or is_cut(item.text, settings),
    )


def limits_kept_in(
    store: Store, account: bytes, requests: float | None, tokens: float | None
) -> SharedLimits:
    """Return the limits of ``account`` that all users of ``store`` share."""
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


def _recalled(
    source: Callable[[Texts], Source],
    recall: Callable[[list[str]], Awaitable[Mapping[int, Vectors]]],
    call: Call,
    results: CallResults,
) -> Callable[[Texts], Source]:
    settings = call.settings
    return partial(
        RecalledSource,
        source=source,
        recall=recall,
        results=results,
        ledger=call.ledger,
        least=settings.batch_size,
        most=settings.max_concurrency * settings.batch_size,
    )


def _keyer(cache: Cache, settings: Settings) -> Callable[[str], bytes]:
    return _keyer_at(cache, settings, settings.dimensions)


def _keyer_at(cache: Cache, settings: Settings, size: int | None) -> Callable[[str], bytes]:
    # The text already contains the instruction.
    def keyer(added: str) -> Callable[[str], bytes]:
        return cache.store.keyer(
            base_url=settings.base_url,
            model=settings.model,
            dimensions=size,
            added=added,
        )

    plain = keyer(settings.added)
    if settings.on_too_long not in ("split", "truncate"):
        return plain
    # The server does not return the vector of a split or truncated text, so the text needs another
    # key.
    of_long = keyer(f"{settings.added}\n{settings.on_too_long} {settings.token_limit}")
    return lambda text: (of_long if is_cut(text, settings) else plain)(text)


def _target(url: str, key: ApiKey, headers: Headers) -> Target:
    given = {name.lower() for name, _ in headers.items()}
    usual = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        # Compression makes base64 only a quarter smaller, and decompressing costs more than that.
        "Accept-Encoding": "identity",
        "User-Agent": "nexusflow-integrations",
    }
    return Target(
        url,
        {
            **{name: value for name, value in usual.items() if name.lower() not in given},
            **dict(headers.items()),
            "Authorization": key.bearer(),
        },
    )


_engines: dict[BackgroundLoop, Engine] = {}


def engine() -> tuple[BackgroundLoop, Engine]:
    """Return the process's loop and the engine on it."""
    background = background_loop()
    found = _engines.get(background)
    if found is None:
        # After a fork, the parent's engine stays in the table under the parent's loop, and is never
        # used again.
        found = _engines.setdefault(background, Engine(background))
    return background, found
