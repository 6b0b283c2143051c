"""``NexusFlowEmbedding``: NexusFlow as an embedding model of LlamaIndex.

    from llama_index.core import Settings
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

    Settings.embed_model = NexusFlowEmbedding(dimensions=1024)

Sync and async calls both keep many requests in flight, of at most 10 texts each, in the order of
the input. Vectors come as LlamaIndex wants them: lists of Python floats.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from inspect import signature
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.call.results import (
    EmbeddingArray,
    EmbeddingList,
    Gathered,
)
from nexusflow_integrations._core.checks import has_methods, named, refuse, whole
from nexusflow_integrations._core.redis.address import RedisAddress, address_or_path
from nexusflow_integrations._core.request.tokens import estimate_tokens
from nexusflow_integrations._core.secret import Headers, secret_arguments
from nexusflow_integrations._core.settings import (
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_MODEL,
    MAX_BATCH_SIZE,
    EncodingFormat,
    Role,
    resolve_api_key,
    resolve_base_url,
)
from nexusflow_integrations._core.texts import check_text, check_texts
from nexusflow_integrations._core.usage import Budget, Ledger, Price, Usage
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import (
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    NexusFlowError,
)

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, SecretStr
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation.events.embedding import (
        EmbeddingEndEvent,
        EmbeddingStartEvent,
    )
    from llama_index_instrumentation import get_dispatcher
except ModuleNotFoundError as error:
    if error.name not in ("llama_index", "llama_index.core"):
        raise
    raise ImportError(
        "nexusflow_integrations.llama_index needs LlamaIndex:"
        ' pip install "nexusflow-integrations[llama-index]"',
        name=error.name,
    ) from error

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.job import Stop

__all__ = ["NexusFlowEmbedding", "NexusFlowEmbeddingEndEvent"]

Vector = list[float]
Loop = asyncio.AbstractEventLoop
T = TypeVar("T")

_COLLECTION = "embeddings"  # of an embeddings_cache, as LlamaIndex names it
_BATCHES_A_FLIGHT = 4
"""With ``cache=``: batches handed over together, so that what is not cached fills its requests."""

_DUCKS = (
    ("rate_limiter", ("acquire", "async_acquire"), "rate limiter"),
    ("callback_manager", ("on_event_start", "on_event_end"), "CallbackManager"),
)
"""Fields that LlamaIndex itself does not check, and what is called of them."""
_ALIASES = {"model": "model_name", "base_url": "api_base"}
_dispatcher = get_dispatcher(__name__)
_spent: ContextVar[Usage | None] = ContextVar("nexusflow_spent", default=None)
"""What the last hook of this thread or task sent: LlamaIndex's hooks return nothing but vectors."""


class NexusFlowEmbeddingEndEvent(EmbeddingEndEvent):
    """LlamaIndex's event at the end of a request, which also knows what the API billed.

    A subclass under the same ``class_name``, so that what handles the original handles this one.

    Attributes:
        usage: Requests, tokens and price, as the API counted; ``None`` where nothing was sent.
    """

    usage: Usage | None = None


class NexusFlowEmbedding(BaseEmbedding):
    """NexusFlow embeddings for LlamaIndex.

    Building one costs nothing: no connection is opened, and the key is looked for when it is first
    needed. One object serves any number of threads and event loops. Fields may be changed later;
    a changed field starts a new ``client``, with its own ``usage`` and budget.

    ``to_dict`` holds what changes a vector (``model_name``, ``api_base``, ``dimensions``,
    ``query_instruction``) and nothing else, so the cache of an ``IngestionPipeline`` outlives a
    new key, timeout or batch size, and not a new size or model. The key is never in a dict, a
    repr or a pickle: a worker process reads ``NEXUSFLOW_API_KEY`` in its own environment.

    Args:
        model_name: Name of the model; ``model`` is accepted too.
        api_key: The key, as text or ``SecretStr``. Default: ``NEXUSFLOW_API_KEY``.
        api_base: Root of the API; ``base_url`` is accepted too. Default: ``NEXUSFLOW_BASE_URL``,
            else https://nexusflow.vip/v1.
        dimensions: 2048, 1536, 1024, 768, 512, 256, 128 or 64; ``None`` takes the server's.
        query_instruction: Text put before each query, not before documents. Off by default.
        embed_batch_size: Texts a request, from 1 to 2048; more than 10 are sent as several.
        num_workers: Requests in flight at most, of a sync or async call; ``None`` leaves it to
            ``max_concurrency``.
        max_concurrency: Requests in flight at most, over all calls to the same account.
        callback_manager: Told of the start and the end of every request.
        embeddings_cache: A LlamaIndex key-value store of vectors. Its keys are hashes over all
            that changes the vector, so one store serves several models, sizes and instructions.
        rate_limiter: A LlamaIndex rate limiter, asked once a request, never for a cached text,
            and told the estimated tokens where it limits them.
        timeout: Seconds for one attempt, from connection to last byte.
        deadline: Seconds for a whole call with all its retries; ``None`` leaves it to the retries.
        max_retries: Further attempts for a request after faults and throttling.
        requests_per_minute: Limit of the account, if known; otherwise it is found out.
        tokens_per_minute: The same for tokens.
        encoding_format: ``base64`` (a quarter of the bytes) or ``float``.
        cache: Path of this package's own cache file, ``True`` for the user's cache folder, or the
            URL of a Redis server; see ``NexusFlow``.
        budget: The most that may be spent; see ``Budget``.
        price: Price list for ``usage``; the default is the API page's.
        on_usage: Called with a ``Usage`` whenever something was sent.
        default_headers: Sent with every request.
        http_client: An ``httpx.Client`` to use for sync calls; never closed by us.
        async_http_client: An ``httpx.AsyncClient`` to use for async calls; never closed by us.
        allow_http: Permit plain http to other hosts than loopback.

    Raises:
        ConfigurationError: A setting is impossible.
        TypeError: An argument has another name than these.
    """

    model_config = ConfigDict(
        protected_namespaces=("pydantic_model_",),
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,  # it may be a header
    )

    model_name: str = DEFAULT_MODEL
    api_base: str | None = None
    dimensions: int | None = None
    query_instruction: str | None = None

    # Nothing below changes a vector, so nothing below is in to_dict.
    embed_batch_size: int = Field(default=MAX_BATCH_SIZE, gt=0, le=2048, exclude=True)
    num_workers: int | None = Field(default=None, exclude=True)
    embeddings_cache: Any | None = Field(default=None, exclude=True, repr=False)
    max_concurrency: int = Field(default=DEFAULT_MAX_CONCURRENCY, exclude=True)
    timeout: float = Field(default=60.0, exclude=True)
    deadline: float | None = Field(default=None, exclude=True)
    max_retries: int = Field(default=6, exclude=True)
    requests_per_minute: float | None = Field(default=None, exclude=True)
    tokens_per_minute: float | None = Field(default=None, exclude=True)
    encoding_format: EncodingFormat = Field(default="base64", exclude=True)
    cache: bool | str | os.PathLike[str] | RedisAddress | None = Field(
        default=None, exclude=True, repr=False
    )
    allow_http: bool = Field(default=False, exclude=True, repr=False)
    api_key: Any = Field(default=None, exclude=True, repr=False)
    budget: Budget | None = Field(default=None, exclude=True, repr=False)
    price: Price | None = Field(default=None, exclude=True, repr=False)
    on_usage: Callable[[Usage], object] | None = Field(default=None, exclude=True, repr=False)
    default_headers: Headers | dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    http_client: Any = Field(default=None, exclude=True, repr=False)
    async_http_client: Any = Field(default=None, exclude=True, repr=False)

    _built: tuple[dict[str, Any], _Client] | None = PrivateAttr(default=None)
    _unpickled: bool = PrivateAttr(default=False)

    if not TYPE_CHECKING:  # type checkers read the fields

        @secret_arguments
        def __init__(self, **given: Any) -> None:
            written = {field: alias for alias, field in _ALIASES.items() if alias in given}
            given = _named(type(self), given)
            with named(written), named({"base_url": "api_base"}):
                super().__init__(**{name: _hidden(name, value) for name, value in given.items()})
                if self.num_workers is not None:
                    whole("num_workers", self.num_workers, 0, 1 << 20)
                # Not left to the environment of a later call: the vectors depend on it.
                self.api_base = resolve_base_url(self.api_base, allow_http=self.allow_http)
                self._core()  # says now what is impossible

        @secret_arguments
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, _hidden(name, value))

    @classmethod
    def class_name(cls) -> str:
        return "NexusFlowEmbedding"

    def to_payload(self) -> dict[str, Any]:
        """Return what events and callbacks may know of this model: no key, no headers, no URL."""
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
            "dimensions": self.dimensions,
        }

    @property
    def client(self) -> NexusFlow:
        """The client that does the work: ``embed`` to float32 arrays, ``estimate``, streams."""
        return self._core()

    @property
    def usage(self) -> Usage:
        """What this object, and copies of it, sent and cost so far, as the API counted."""
        return self._core().usage

    def _core(self) -> _Client:
        if self._unpickled and self.api_key is None and not os.environ.get("NEXUSFLOW_API_KEY"):
            raise ConfigurationError(
                "no API key in this process: a NexusFlowEmbedding is pickled without its key,"
                " so set the environment variable NEXUSFLOW_API_KEY for worker processes"
            )
        settings = {name: getattr(self, name) for name in _SHARED}
        settings["model"] = self.model_name
        settings["base_url"] = self.api_base
        settings["batch_size"] = min(self.embed_batch_size, MAX_BATCH_SIZE)
        if self.num_workers:
            settings["max_concurrency"] = min(self.num_workers, self.max_concurrency)
        if self._built is None or self._built[0] != settings:
            with named(_ALIASES):
                self._built = settings, _Client(**settings)
        return self._built[1]

    # -- the six hooks: one call of the client each, which splits at 10 and runs in parallel -------

    def _get_query_embedding(self, query: str) -> Vector:
        return _vector(self._core().embed(query, role="query"))

    async def _aget_query_embedding(self, query: str) -> Vector:
        return _vector(await self._core().aembed(query, role="query"))

    def _get_text_embedding(self, text: str) -> Vector:
        return _vector(self._core().embed(text))

    async def _aget_text_embedding(self, text: str) -> Vector:
        return _vector(await self._core().aembed(text))

    def _get_text_embeddings(self, texts: list[str]) -> list[Vector]:
        return _vectors(self._core().embed(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Vector]:
        return _vectors(await self._core().aembed(texts))

    # -- the public methods: events, rate limiter and cache around every request -------------------

    def get_query_embedding(self, query: str) -> Vector:
        """Embed a query, with ``query_instruction`` before it: d floats.

        Raises:
            InvalidInputError: The text cannot be sent.
            NexusFlowError: Any other failure.
        """
        return _drive(self._one(query, "query"))

    async def aget_query_embedding(self, query: str) -> Vector:
        """Embed a query like ``get_query_embedding``, without blocking the event loop."""
        return await _adrive(self._one(query, "query"))

    def get_text_embedding(self, text: str) -> Vector:
        """Embed a document: d floats.

        Raises:
            InvalidInputError: The text cannot be sent.
            NexusFlowError: Any other failure.
        """
        return _drive(self._one(text, "document"))

    async def aget_text_embedding(self, text: str) -> Vector:
        """Embed a document like ``get_text_embedding``, without blocking the event loop."""
        return await _adrive(self._one(text, "document"))

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Vector]:
        """Embed documents, many requests at a time: n lists of d floats, in the order of ``texts``.

        Equal texts are sent once. After a failure nothing more is sent, what is in flight gets a
        few seconds to finish, and all that is finished is in the ``embeddings_cache``, if there is
        one, and in the error's ``finished``.

        Raises:
            InvalidInputError: A text cannot be sent; nothing was.
            RefusedTextsError: The server refused some texts; the others are in ``finished``.
            NexusFlowError: Any other failure.
        """
        if self._overrides("_get_text_embeddings"):
            return super().get_text_embedding_batch(texts, show_progress, **kwargs)
        return _drive(self._many(texts, show_progress, None))

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Vector]:
        """Embed documents like ``get_text_embedding_batch``, without blocking the event loop."""
        if self._overrides("_aget_text_embeddings"):
            return await super().aget_text_embedding_batch(texts, show_progress, **kwargs)
        return await _adrive(self._many(texts, show_progress, asyncio.get_running_loop()))

    def _overrides(self, hook: str) -> bool:
        """Tell whether a subclass has a hook of its own, through which batches must then go."""
        classes = type(self).__mro__
        return any(hook in vars(cls) for cls in classes[: classes.index(NexusFlowEmbedding)])

    def _one(self, text: str, role: Role) -> _Steps[Vector]:
        check_text(text)
        hook, ahook = (
            (self._get_query_embedding, self._aget_query_embedding)
            if role == "query"
            else (self._get_text_embedding, self._aget_text_embedding)
        )
        known = yield from self._recall(text, role)
        if known is not None:
            return known
        _spent.set(None)
        yield from self._permit([text])
        with _Events(self) as events:
            event = events.start()
            vector: Vector = yield _Step(partial(hook, text), partial(ahook, text))
            yield from self._remember(text, role, vector)
            events.end(event, [text], [vector], _spent.get())
        return vector

    def _many(
        self, texts: Sequence[str], show_progress: bool, loop: Loop | None
    ) -> _Steps[list[Vector]]:
        client = self._core()
        batch = _Batch(client, check_texts(texts), loop)
        if not texts:
            return []
        with _Events(self) as events, client.recorded(batch.ledger), batch.begun(show_progress):
            for text in batch.distinct:
                known = yield from self._recall(text, "document")
                if known is not None:
                    batch.put(text, known)
            try:
                for flight in batch.flights():
                    while batch.full:
                        yield from self._land(batch, events)
                    for request in flight.requests:
                        yield from self._permit(request)
                    while not batch.landed.empty():  # perhaps with a failure: then send no more
                        yield from self._land(batch, events)
                    flight.event = events.start()
                    batch.launch(flight)
                while batch.flying:
                    yield from self._land(batch, events)
            except NexusFlowError as error:
                yield from self._drain(batch, events)
                batch.blame(error)
                raise
            return batch.result()

    def _land(self, batch: _Batch, events: _Events) -> _Steps[None]:
        """Wait for one flight, and keep what it brings."""
        future = yield batch.wait()
        if future is None:
            raise batch.too_late()
        yield from self._keep(batch, events, future)

    def _keep(self, batch: _Batch, events: _Events, future: Future[Gathered]) -> _Steps[None]:
        flight, landed = batch.land(future)
        for text, vector in landed.items():
            yield from self._remember(text, "document", vector)
        usage = self._core().usage_of(flight.ledger)
        events.end(flight.event, list(landed), list(landed.values()), usage)

    def _drain(self, batch: _Batch, events: _Events) -> _Steps[None]:
        """Keep what is paid for already, as far as it lands soon; nothing more is sent."""
        by = time.monotonic() + batch.patience
        while batch.flying and (future := (yield batch.wait(by))) is not None:
            try:
                yield from self._keep(batch, events, future)
            except NexusFlowError:  # noqa: PERF203
                continue  # the first error is the one to raise

    def _recall(self, text: str, role: Role) -> _Steps[Vector | None]:
        store = self.embeddings_cache
        if store is None:
            return None
        key = self._cache_key(text, role)
        held = yield _Step(
            partial(store.get, key, collection=_COLLECTION),
            partial(store.aget, key, collection=_COLLECTION),
        )
        return cast(Vector, next(iter(held.values()))) if held else None

    def _remember(self, text: str, role: Role, vector: Vector) -> _Steps[None]:
        store = self.embeddings_cache
        if store is not None:
            key, value = self._cache_key(text, role), {"embedding": vector}
            yield _Step(
                partial(store.put, key, value, collection=_COLLECTION),
                partial(store.aput, key, value, collection=_COLLECTION),
            )

    def _cache_key(self, text: str, role: Role) -> str:
        # LlamaIndex's own key is the text alone, which gives one model's vector to another.
        instruction = self.query_instruction if role == "query" else None
        parts = (self.api_base, self.model_name, self.dimensions, (instruction or "") + text)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _permit(self, texts: Sequence[str]) -> _Steps[None]:
        limiter = self.rate_limiter
        if limiter is not None:
            tokens = {}
            if most := getattr(limiter, "tokens_per_minute", None):
                # More than a minute's tokens would be waited for without end.
                tokens["num_tokens"] = min(int(most), sum(map(estimate_tokens, texts)))
            yield _Step(
                partial(limiter.acquire, **tokens), partial(limiter.async_acquire, **tokens)
            )

    # -- copies and pickles ------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> NexusFlowEmbedding:
        # Within a process all is shared: key, HTTP clients, limiter, cache, budget.
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        # Of a copy: LlamaIndex takes what cannot be pickled out of the living object.
        twin = self.__copy__()
        twin.api_key = twin._built = None
        return super(NexusFlowEmbedding, twin).__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._unpickled = True


_SHARED = NexusFlowEmbedding.model_fields.keys() & signature(NexusFlow).parameters.keys()
"""Settings of the client that are fields here under the same name."""


class _Client(NexusFlow):
    """A client whose calls of one batch can be waited for together, from a thread or a loop."""

    def launch(self, flight: _Flight, loop: Loop | None, stop: Stop) -> Future[Gathered]:
        background, work = self._start(
            flight.texts, flight.ledger, urgent=False, loop=loop, stop=stop
        )
        return background.submit(work)

    def recorded(self, ledger: Ledger) -> AbstractContextManager[None]:
        """Count what ``ledger`` holds at the end, and trace what happens until then."""
        return self._recorded(ledger)

    def usage_of(self, ledger: Ledger) -> Usage:
        return ledger.snapshot(self._price)

    @property
    def caches(self) -> bool:
        return self._cache is not None


@dataclass(eq=False)
class _Flight:
    """Texts handed to the client in one call: one request, or a few that share a cache's answer."""

    texts: list[str]
    requests: list[list[str]]
    event: str = ""
    ledger: Ledger = field(default_factory=Ledger)


class _Batch:
    """One call of a batch method: which texts are in flight, and which have a vector."""

    def __init__(self, client: _Client, texts: Sequence[str], loop: Loop | None) -> None:
        self.distinct: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            self.distinct.setdefault(text, []).append(index)
        repeated = len(texts) - len(self.distinct)
        self.ledger = Ledger(texts=repeated, repeated=repeated)
        self.flying: dict[Future[Gathered], _Flight] = {}
        self.landed: SimpleQueue[Future[Gathered]] | asyncio.Queue[Future[Gathered]] = (
            SimpleQueue() if loop is None else asyncio.Queue()
        )
        self._client = client
        self._loop = loop
        self._rows: list[Vector | None] = [None] * len(texts)
        self._refusals: dict[int, APIStatusError] = {}
        self._size = client.settings.batch_size
        self._batches = _BATCHES_A_FLIGHT if client.caches else 1
        self._bar: Any = None

    @contextmanager
    def begun(self, show_progress: bool) -> Iterator[None]:
        # Imported here: importing an adapter should cost next to nothing.
        self._client._import()
        from nexusflow_integrations._core.call.job import DRAIN, Stop

        self.patience = DRAIN
        self._stop = Stop()
        self._until = time.monotonic() + (self._client.settings.deadline or math.inf)
        if show_progress:
            with forks.importing:  # a first bar imports as well
                tqdm = import_module("tqdm.auto").tqdm
                self._bar = tqdm(total=len(self._rows), desc="Generating embeddings")
        try:
            yield
        finally:
            for future, flight in self.flying.items():
                future.cancel()
                self._count(flight)
            if self._bar is not None:
                self._bar.close()

    def flights(self) -> Iterator[_Flight]:
        """Yield what has to be sent, in order."""
        missing = [text for text, (index, *_) in self.distinct.items() if self._rows[index] is None]
        for texts in _slices(missing, self._size * self._batches):
            yield _Flight(texts, list(_slices(texts, self._size)))

    @property
    def full(self) -> bool:
        """Whether as many requests are in flight as may be."""
        return len(self.flying) >= max(1, self._client.settings.max_concurrency // self._batches)

    def launch(self, flight: _Flight) -> None:
        future = self._client.launch(flight, self._loop, self._stop)
        self.flying[future] = flight
        if isinstance(self.landed, SimpleQueue):
            future.add_done_callback(self.landed.put)
        else:
            tell = partial(cast(Any, self._loop).call_soon_threadsafe, self.landed.put_nowait)
            future.add_done_callback(tell)

    def wait(self, by: float = math.inf) -> _Step:
        """Return the step that waits for a flight to land; it gives None when time is up."""
        left = min(by, self._until) - time.monotonic()
        timeout = None if left == math.inf else max(0.0, left)
        return _Step(partial(self._wait, timeout), partial(self._await, timeout))

    def _wait(self, timeout: float | None) -> Future[Gathered] | None:
        try:
            return cast("SimpleQueue[Future[Gathered]]", self.landed).get(timeout=timeout)
        except Empty:
            return None

    async def _await(self, timeout: float | None) -> Future[Gathered] | None:
        try:
            landed = cast("asyncio.Queue[Future[Gathered]]", self.landed)
            return await asyncio.wait_for(landed.get(), timeout)
        except asyncio.TimeoutError:
            return None

    def land(self, future: Future[Gathered]) -> tuple[_Flight, dict[str, Vector]]:
        """Take the vectors of a flight, or raise what ended it."""
        flight = self.flying.pop(future)
        self._count(flight)
        try:
            gathered = future.result()
        except NexusFlowError as error:
            for place, row in error.finished.items():
                self.put(flight.texts[place], row.tolist())
            raise
        rows = [] if gathered.vectors is None else gathered.vectors.tolist()
        landed = {}
        for place, text in enumerate(flight.texts):
            if place in gathered.refusals:
                for index in self.distinct[text]:
                    self._refusals[index] = gathered.refusals[place]
            else:
                landed[text] = rows[place]
                self.put(text, rows[place])
        return flight, landed

    def _count(self, flight: _Flight) -> None:
        self.ledger.add(flight.ledger)

    def put(self, text: str, vector: Vector) -> None:
        first, *others = self.distinct[text]
        self._rows[first] = vector
        for index in others:
            self._rows[index] = vector.copy()
        if self._bar is not None:
            self._bar.update(1 + len(others))

    def result(self) -> list[Vector]:
        if self._refusals:
            raise self._gathered().refused_error()
        return cast("list[Vector]", self._rows)

    def blame(self, error: NexusFlowError) -> None:
        """Give ``error`` the vectors that are there, by index of the caller's list."""
        error.finished = self._gathered().finished()

    def too_late(self) -> APITimeoutError:
        deadline = self._client.settings.deadline
        return APITimeoutError(f"the deadline of {deadline:g} s has passed")

    def _gathered(self) -> Gathered:
        gathered = Gathered(len(self._rows))
        gathered.refusals = self._refusals
        for index, row in enumerate(self._rows):
            if row is not None:
                gathered.row(index, np.asarray(row, dtype=np.float32))
        return gathered


class _Events:
    """The events of one call: every one that starts ends, with its vectors or with the error."""

    def __init__(self, embedding: NexusFlowEmbedding) -> None:
        self._payload = embedding.to_payload()
        self._callbacks = embedding.callback_manager
        self._open: dict[str, None] = {}

    def start(self) -> str:
        _dispatcher.event(EmbeddingStartEvent(model_dict=self._payload))
        event = self._callbacks.on_event_start(
            CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: self._payload}
        )
        self._open[event] = None
        return event

    def end(self, event: str, texts: list[str], vectors: list[Vector], usage: Usage | None) -> None:
        del self._open[event]
        self._callbacks.on_event_end(
            CBEventType.EMBEDDING,
            payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: vectors},
            event_id=event,
        )
        ended = NexusFlowEmbeddingEndEvent(chunks=texts, embeddings=[], usage=usage)
        ended.embeddings = vectors  # past validation, which would copy every number
        _dispatcher.event(ended)

    def __enter__(self) -> _Events:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for event in self._open:
            self._callbacks.on_event_end(
                CBEventType.EMBEDDING, payload={EventPayload.EXCEPTION: error}, event_id=event
            )


class _Step(NamedTuple):
    """Something to wait for, as threads do it and as event loops do."""

    do: Callable[[], Any]
    ado: Callable[[], Awaitable[Any]]


_Steps = Generator[_Step, Any, T]


def _drive(steps: _Steps[T]) -> T:
    """Do the steps in this thread."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = step.do()
            except BaseException as error:  # noqa: BLE001, PERF203 - the steps decide
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        steps.close()


async def _adrive(steps: _Steps[T]) -> T:
    """Do the steps on this event loop."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = await step.ado()
            except BaseException as error:  # noqa: BLE001, PERF203 - the steps decide
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        steps.close()


def _vector(array: EmbeddingArray) -> Vector:
    _spent.set(array.usage)
    return cast(Vector, array.tolist())


def _vectors(array: EmbeddingArray | EmbeddingList) -> list[Vector]:
    _spent.set(array.usage)
    return cast("list[Vector]", np.asarray(array).tolist())


def _hidden(name: str, value: Any) -> Any:
    """Return the value of a field as the object keeps it: what may be secret cannot be printed."""
    if value is None:
        return None
    if name == "api_key":
        return SecretStr(resolve_api_key(value).reveal())
    if name == "default_headers":
        return Headers(value)
    return address_or_path(value) if name == "cache" else value


def _slices(texts: list[str], size: int) -> Iterator[list[str]]:
    return (texts[start : start + size] for start in range(0, len(texts), size))


def _named(cls: type[NexusFlowEmbedding], given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given under the fields' own names.

    Raises:
        TypeError: There is no such field. Without the value: it may be a key.
        ConfigurationError: Two names of one field are given, or a value is impossible.
    """
    for alias, name in _ALIASES.items():
        if alias in given and name in given:
            raise ConfigurationError(f"{name} and {alias} are two names of one setting; give one")
        if alias in given:
            given[name] = given.pop(alias)
            if given[name] is not None and not isinstance(given[name], str):
                raise refuse(alias, "text", given[name])
    if (store := given.get("embeddings_cache")) is not None:
        kinds = import_module("llama_index.core.storage.kvstore.types")
        if not isinstance(store, kinds.BaseKVStore):
            raise refuse("embeddings_cache", "a BaseKVStore of LlamaIndex or None", store)
    for name, methods, wanted in _DUCKS:
        value = given.get(name)
        if value is not None and not has_methods(value, *methods):
            raise refuse(name, f"a {wanted} of LlamaIndex or None", value)
    unknown = sorted(given.keys() - cls.model_fields.keys())
    if unknown:
        likely = get_close_matches(unknown[0], [*cls.model_fields, *_ALIASES], n=1)
        hint = f"; did you mean {likely[0]!r}?" if likely else ""
        raise TypeError(f"{cls.__name__} has no argument {unknown[0]!r}{hint}")
    return given
