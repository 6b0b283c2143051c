"""``NexusFlow``, the client that every adapter uses: turns texts into float32 vectors."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload
from weakref import ref

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.call.background import BackgroundLoop, LoopCall, Signal
from nexusflow_integrations._core.call.caller import (
    NO_HOOKS,
    Callback,
    Caller,
    CallingTask,
    CallingThread,
    Hooks,
    Progress,
)
from nexusflow_integrations._core.call.imports import import_all, without_sqlite
from nexusflow_integrations._core.fields import OURS, Fields
from nexusflow_integrations._core.key_sources import EnvironmentKey, key_source
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.models import DEFAULT_MODEL, model_named, texts_per_request
from nexusflow_integrations._core.other_frameworks import missing
from nexusflow_integrations._core.pace.terms import Presence, Terms
from nexusflow_integrations._core.paths import absolute
from nexusflow_integrations._core.redis.address import WANTED, RedisAddress, address_or_path
from nexusflow_integrations._core.secret import Headers, secret_arguments
from nexusflow_integrations._core.settings import (
    DEFAULT_MAX_CONCURRENCY,
    ON_REFUSED,
    ROLES,
    TIMEOUT,
    EncodingFormat,
    OnRefused,
    OnTooLong,
    OnTooLongOrCollect,
    Role,
    Settings,
    check_dimensions,
    check_pacer,
    plain_timeout,
    resolve_base_url,
)
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations._core.telemetry import observed
from nexusflow_integrations._core.texts import check_text, check_texts, rows_of, sort_out_blank
from nexusflow_integrations._core.usage import (
    Budget,
    BudgetGuard,
    Ledger,
    Price,
    Total,
    Usage,
    check_budget,
    check_price,
)
from nexusflow_integrations.errors import CacheError, ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.engine import Engine
    from nexusflow_integrations._core.call.estimate import Estimate
    from nexusflow_integrations._core.call.job import Stop
    from nexusflow_integrations._core.call.results import CallResults, EmbeddingArray, EmbeddingList
    from nexusflow_integrations._core.call.streaming import Embedded, Stream
    from nexusflow_integrations._core.pace.shared import SharedLimits
    from nexusflow_integrations._core.request.exchange import Call
    from nexusflow_integrations._core.shared_budget import SharedBudget

__all__ = ["ClientOptions", "ClientSettings", "NexusFlow"]

_NOT_PICKLED = (
    *("_key", "_http_client", "_async_http_client", "_on_usage"),
    *("_guard", "_presence", "_terms"),
)
_MISSED_WHEN_UNPICKLED = ("http_client", "async_http_client", "on_usage")
"""Settings that are not pickled; unpickling warns that they are missing."""
GIVE_BACK = 2.0
"""Seconds that ``close`` waits for the rest of a shared budget to be returned."""


class ClientOptions(TypedDict, total=False):
    """Settings of ``NexusFlow`` that belong to a process, not to a collection of vectors."""

    encoding_format: EncodingFormat
    batch_size: int | None
    max_concurrency: int
    timeout: float | Any
    deadline: float | None
    query_timeout: float | None
    query_deadline: float | None
    max_retries: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    pacer: SharedLimits | None
    cache: bool | str | os.PathLike[str] | RedisAddress | None
    derive: bool
    budget: Budget | SharedBudget | None
    price: Price | None
    on_usage: Callable[[Usage], object] | None
    default_headers: Mapping[str, str] | Headers | None
    http_client: Any
    async_http_client: Any
    allow_http: bool
    on_too_long: OnTooLong
    max_text_tokens: int | None


class ClientSettings(ClientOptions, total=False):
    """All settings of ``NexusFlow`` except ``api_key`` and ``dimensions``."""

    base_url: str | None
    model: str
    query_instruction: str | None
    document_instruction: str | None
    on_refused: OnRefused
    on_blank: OnRefused
    extra_body: Mapping[str, Any] | None
    default_query: Mapping[str, object] | None


class NexusFlow:
    """A client for the NexusFlow embeddings API.

    Creating a client is cheap: it opens no connection, and reads the key only when a request needs
    it. All clients of a process share one connection pool, and all clients of one account share one
    pace (the rate of sending). A client may be used from any number of threads and event loops.

    Args:
        api_key: The key, an object with ``get_secret_value``, or a sync or async function that
            returns either. The function is called when a key is first needed, and again after a 401
            response. Default: ``NEXUSFLOW_API_KEY``, also read again after a 401.
        base_url: Root of the API. Default: ``NEXUSFLOW_BASE_URL``, or https://nexusflow.vip/v1.
        model: Name of the model. Models other than ``text-embedding-v4`` may have vectors of any
            size; their limits and price are unknown.
        dimensions: Size of the vectors: 2048, 1536, 1024, 768, 512, 256, 128 or 64. ``None`` means
            the server's default.
        encoding_format: Format to request. ``base64`` takes a quarter of the bytes of ``float``. A
            response may have either format.
        batch_size: Texts per request; ``None`` is the known limit of the model (10 for
            ``text-embedding-v4`` and for unknown models). If the server reports a smaller limit,
            the client uses that limit.
        max_concurrency: Maximum number of requests in flight. All clients of an account share the
            largest value in use.
        timeout: Seconds for one attempt, from connecting to the last byte. For an ``httpx.Timeout``
            or a tuple of seconds, the longest part counts; ``None`` means 60.
        deadline: Seconds for a whole call including its retries; with ``None``, only ``timeout``
            and ``max_retries`` limit a call.
        query_timeout: Seconds for one attempt of a call with ``role="query"``; ``None`` means
            ``timeout``. Set it if users wait for answers: they have less patience than a batch job.
        query_deadline: Seconds for a whole call with ``role="query"``; ``None`` means ``deadline``.
        max_retries: Retries of a batch after faults and throttling.
        requests_per_minute: The account's limit on requests; ``None`` detects the limit. The value
            applies to all clients of the account until this client is closed or garbage-collected;
            the newest value wins.
        tokens_per_minute: The account's limit on tokens, treated like ``requests_per_minute``.
        pacer: Limits shared with other processes or hosts, instead of the two limits above: a
            ``ClusterLimits`` of ``nexusflow_integrations.ray``, a ``RedisLimits`` of
            ``nexusflow_integrations.redis``, or any object with the methods of ``SharedLimits``.
            The pacer is pickled with the client.
        on_refused: What to do if the server refuses a text. ``"raise"`` raises a
            ``RefusedTextsError`` once all other texts are finished. With ``"collect"``, the result
            has ``None`` in the text's place and the reason in ``refused`` and ``left_out``.
        on_blank: What to do with a blank text in a list. ``"raise"`` raises an
            ``InvalidInputError`` before anything is sent. With ``"collect"``, the result has
            ``None`` in the text's place and the reason in ``left_out``.
        on_too_long: What to do with a text that has more tokens than the model accepts. ``"error"``
            raises an ``InvalidInputError`` before anything is sent, if the estimate exceeds
            1.4 times the limit; ``"collect"`` leaves such texts out of the result of a list, as
            ``on_blank`` does. ``"split"`` embeds the text in pieces; its vector is the mean of the
            pieces' vectors, weighted by tokens and scaled to unit length. ``"truncate"`` cuts the
            text at the limit. ``"send"`` sends the text unchanged; the service may refuse or
            silently truncate it.
        max_text_tokens: Maximum number of tokens of a text; ``None`` is the known limit of the
            model (8,192 for ``text-embedding-v4``).
        query_instruction: Text prepended verbatim to each query, not to documents; none by default.
            The documentation of the model's family (Qwen3-Embedding) recommends the form
            ``"Instruct: Given a question, retrieve passages that answer it\\nQuery: "``.
        document_instruction: Text prepended verbatim to each document, not to queries. The
            documentation of the model's family recommends using none.
        extra_body: Fields added to the body of each request. The fields may change vectors, so they
            are part of cache keys and are stored in Chroma collections: do not put secrets in them.
        default_query: Parameters added to the query string of each request's URL; treated like
            ``extra_body``.
        cache: Where to store every vector for later calls and processes: the path of a file;
            ``True`` for a file in the user's cache folder; or the ``redis://`` URL of a server, for
            workers on several hosts (needs the extra ``[redis]``). Off by default.
        derive: Make vectors of size ``dimensions`` by shortening larger ones: those in the cache,
            and new ones, which are fetched at the model's largest size. The first call compares a
            few vectors. If the service's smaller vectors are not the beginning of its largest ones,
            the setting has no effect and a warning is logged. Needs ``cache`` and ``dimensions``.
        budget: The most that this client may spend, as a ``Budget``; or a budget shared with other
            processes: a ``ClusterLimits`` of ``nexusflow_integrations.ray``, or any object with the
            methods of ``SharedBudget``.
        price: The price that ``usage`` is calculated with; by default, the list price of the
            API. For a model without a known price, costs are NaN, and a budget must be in tokens.
        on_usage: Called with the ``Usage`` of each call when it ends, successfully or not. Errors
            that the function raises do not affect the call; the first error is logged.
        default_headers: Headers that are sent with every request.
        http_client: An ``httpx.Client`` (or the client of httpx2) to use for sync calls; this
            client never closes it.
        async_http_client: An ``httpx.AsyncClient`` to use for async calls; never closed, either.
        allow_http: Allow plain http to hosts other than loopback.

    Raises:
        ConfigurationError: A setting is invalid.
    """

    _presence: Presence | None

    @secret_arguments
    def __init__(
        self,
        api_key: object = None,
        *,
        base_url: str | None = None,
        model: str = DEFAULT_MODEL,
        dimensions: int | None = None,
        encoding_format: EncodingFormat = "base64",
        batch_size: int | None = None,
        max_concurrency: int = DEFAULT_MAX_CONCURRENCY,
        timeout: float | Any = TIMEOUT,
        deadline: float | None = None,
        query_timeout: float | None = None,
        query_deadline: float | None = None,
        max_retries: int = 6,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        pacer: SharedLimits | None = None,
        on_refused: OnRefused = "raise",
        on_blank: OnRefused = "raise",
        on_too_long: OnTooLongOrCollect = "error",
        max_text_tokens: int | None = None,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        default_query: Mapping[str, object] | None = None,
        cache: bool | str | os.PathLike[str] | RedisAddress | None = None,
        derive: bool = False,
        budget: Budget | SharedBudget | None = None,
        price: Price | None = None,
        on_usage: Callable[[Usage], object] | None = None,
        default_headers: Mapping[str, str] | Headers | None = None,
        http_client: Any = None,
        async_http_client: Any = None,
        allow_http: bool = False,
    ) -> None:
        if pacer is not None:
            if requests_per_minute is not None or tokens_per_minute is not None:
                raise ConfigurationError(
                    "pacer has its own limits: leave out requests_per_minute and tokens_per_minute"
                )
            requests_per_minute, tokens_per_minute = check_pacer(pacer)
        self._settings = Settings(
            base_url=resolve_base_url(base_url, allow_http=allow_http),
            model=model,
            dimensions=dimensions,
            encoding_format=encoding_format,
            batch_size=texts_per_request(model, None) if batch_size is None else batch_size,
            max_concurrency=max_concurrency,
            timeout=plain_timeout(timeout),
            deadline=deadline,
            query_timeout=query_timeout,
            query_deadline=query_deadline,
            max_retries=max_retries,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            on_refused=on_refused,
            on_blank=on_blank,
            on_too_long=on_too_long,
            max_text_tokens=max_text_tokens,
            query_instruction=query_instruction,
            document_instruction=document_instruction,
            extra_body=Fields("extra_body", extra_body, taken=OURS),
            default_query=Fields("default_query", default_query, flat=True),
            default_headers=Headers(default_headers),
        )
        self._key = key_source(api_key)
        self._price = check_price(price, self._settings.model)
        self._cache = _cache_path(cache)
        self._derive = self._check_derive(derive)
        self._budget = check_budget(budget)
        self._guard = self._new_guard()
        on_usage = checks.function("on_usage", on_usage)
        self._on_usage = None if on_usage is None else Callback("on_usage", on_usage)
        self._http_client = checks.http_client("http_client", http_client, asynchronous=False)
        self._async_http_client = checks.http_client(
            "async_http_client", async_http_client, asynchronous=True
        )
        self._pacer = pacer
        self._take_part()
        self._spent = Total()
        self._size: Any = None
        self._has_imports = False
        self._closed = False

    # -- embedding -----------------------------------------------------------------------------

    @overload
    def embed(self, input: str, *, role: Role = ...) -> EmbeddingArray: ...

    @overload
    def embed(
        self,
        input: Iterable[str],
        *,
        role: Role = ...,
        on_refused: Literal["raise"] | None = ...,
        on_blank: Literal["raise"] | None = ...,
        on_too_long: OnTooLong | None = ...,
        progress: Progress | None = ...,
    ) -> EmbeddingArray: ...

    @overload
    def embed(
        self,
        input: Iterable[str],
        *,
        role: Role = ...,
        on_refused: Literal["collect"],
        on_blank: OnRefused | None = ...,
        on_too_long: OnTooLongOrCollect | None = ...,
        progress: Progress | None = ...,
    ) -> EmbeddingList: ...

    @overload
    def embed(
        self,
        input: Iterable[str],
        *,
        role: Role = ...,
        on_refused: OnRefused | None = ...,
        on_blank: Literal["collect"],
        on_too_long: OnTooLongOrCollect | None = ...,
        progress: Progress | None = ...,
    ) -> EmbeddingList: ...

    @overload
    def embed(
        self,
        input: Iterable[str],
        *,
        role: Role = ...,
        on_refused: OnRefused | None = ...,
        on_blank: OnRefused | None = ...,
        on_too_long: Literal["collect"],
        progress: Progress | None = ...,
    ) -> EmbeddingList: ...

    def embed(
        self,
        input: str | Iterable[str],  # noqa: A002 - the API calls it so
        *,
        role: Role = "document",
        on_refused: OnRefused | None = None,
        on_blank: OnRefused | None = None,
        on_too_long: OnTooLongOrCollect | None = None,
        progress: Progress | None = None,
    ) -> EmbeddingArray | EmbeddingList:
        """Embed one text or a list of texts.

        Args:
            input: A text, or any iterable of texts.
            role: ``"query"`` prepends ``query_instruction`` instead of ``document_instruction`` to
                each text, and sends the request before documents that are waiting.
            on_refused: Overrides the client's setting for this call.
            on_blank: Overrides the client's setting for this call.
            on_too_long: Overrides the client's setting for this call.
            progress: Called in this thread with the number of texts completed since the last call,
                so ``tqdm.update`` can be passed. The first error that it raises is logged and does
                not end the call.

        Returns:
            For one text, a float32 array of shape (d,); for a list, one of shape (n, d), rows in
            the order of the input. If one of the three settings is ``"collect"``, a list of rows,
            with ``None`` for each text that was left out. Every result has the attribute ``usage``.

        Raises:
            InvalidInputError: A text cannot be sent. Nothing was sent.
            RefusedTextsError: The server refused some texts.
            NexusFlowError: The call failed for another reason; the error's ``finished`` holds the
                vectors that were ready.
        """
        return self._embed(
            input,
            role=role,
            on_refused=on_refused,
            on_blank=on_blank,
            on_too_long=on_too_long,
            progress=progress,
        )

    @overload
    async def aembed(self, input: str, *, role: Role = ...) -> EmbeddingArray: ...

    @overload
    async def aembed(
        self,
        input: Iterable[str],
        *,
        role: Role = ...,
        on_refused: Literal["raise"] | None = ...,
        on_blank: Literal["raise"] | None = ...,
        on_too_long: OnTooLong | None = ...,
        progress: Progress | None = ...,
    ) -> EmbeddingArray: ...

    @overload
    async def aembed(
        self,
        input: Iterable[str],
        *,
        role: Role = ...,
        on_refused: Literal["collect"],
        on_blank: OnRefused | None = ...,
        on_too_long: OnTooLongOrCollect | None = ...,
        progress: Progress | None = ...,
    ) -> EmbeddingList: ...

    @overload
    async def aembed(
        self,
        input: Iterable[str],
        *,
        role: Role = ...,
        on_refused: OnRefused | None = ...,
        on_blank: Literal["collect"],
        on_too_long: OnTooLongOrCollect | None = ...,
        progress: Progress | None = ...,
    ) -> EmbeddingList: ...

    @overload
    async def aembed(
        self,
        input: Iterable[str],
        *,
        role: Role = ...,
        on_refused: OnRefused | None = ...,
        on_blank: OnRefused | None = ...,
        on_too_long: Literal["collect"],
        progress: Progress | None = ...,
    ) -> EmbeddingList: ...

    async def aembed(
        self,
        input: str | Iterable[str],  # noqa: A002
        *,
        role: Role = "document",
        on_refused: OnRefused | None = None,
        on_blank: OnRefused | None = None,
        on_too_long: OnTooLongOrCollect | None = None,
        progress: Progress | None = None,
    ) -> EmbeddingArray | EmbeddingList:
        """Embed like ``embed`` without blocking the event loop; ``progress`` is called on it."""
        return await self._aembed(
            input,
            role=role,
            on_refused=on_refused,
            on_blank=on_blank,
            on_too_long=on_too_long,
            progress=progress,
        )

    def __call__(self, input: str | Iterable[str]) -> EmbeddingArray:  # noqa: A002
        """Embed like ``embed``, for tools that take any callable from texts to vectors."""
        return self.embed(input)

    # -- streaming -----------------------------------------------------------------------------

    def embed_stream(
        self, texts: Iterable[str], *, role: Role = "document", ordered: bool = True
    ) -> Generator[Embedded, None, None]:
        """Embed any number of texts with limited memory, and yield each result when it is ready.

        The stream reads ahead at most about twice the texts of ``max_concurrency`` requests.

        Args:
            texts: Any iterable of texts; it is read in the calling thread. If it raises an error,
                the results of all texts that were sent come first, then the error.
            role: As for ``embed``.
            ordered: Whether to yield in the order of ``texts``; if false, in the order of
                completion.

        Yields:
            ``Embedded(index, vector, error)``: ``vector`` is float32 of shape (d,), or ``None``
            with the error if the text cannot be sent or was refused. Such a text does not end the
            stream, whatever ``on_refused`` and ``on_blank`` of the client are.

        Raises:
            NexusFlowError: The stream cannot continue; the error's ``finished`` holds the vectors
                that were ready but not yet yielded.
        """
        ordered = checks.flag("ordered", ordered)
        texts = rows_of(texts)
        yield from self._stream(role, ordered=ordered).results(texts)

    async def aembed_stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        role: Role = "document",
        ordered: bool = True,
    ) -> AsyncGenerator[Embedded, None]:
        """Embed like ``embed_stream``, from an iterable or an async iterable."""
        ordered = checks.flag("ordered", ordered)
        texts = texts if isinstance(texts, AsyncIterable) else rows_of(texts)
        loop = _running_loop()
        async with aclosing(self._stream(role, ordered=ordered, loop=loop).aresults(texts)) as rows:
            async for result in rows:
                yield result

    def _stream(
        self, role: Role, *, ordered: bool, loop: asyncio.AbstractEventLoop | None = None
    ) -> Stream:
        self._import()
        from nexusflow_integrations._core.call.streaming import Stream

        return Stream(
            self._settings,
            self._instruction(role),
            start=partial(
                self._start, settings=self._settings.of(role), urgent=role == "query", loop=loop
            ),
            recorded=self._recorded,
            report=self._report,
            ordered=ordered,
        )

    # -- usage and cost ------------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """The tokens, requests and cost of all calls of this client so far."""
        return self._spent.snapshot(self._price)

    def estimate(self, texts: Iterable[str], *, role: Role = "document") -> Estimate:
        """Estimate the requests, cost and time of embedding ``texts``; nothing is sent.

        Texts that ``on_blank="collect"`` or ``on_too_long="collect"`` leaves out are not counted.

        Raises:
            InvalidInputError: A text cannot be sent.
            CacheError: The cache is damaged, is not a cache, or is of a newer version.
        """
        return self._estimate(texts, role)

    def _estimate(
        self, texts: Iterable[str], role: Role = "document", *, comparing: bool = True
    ) -> Estimate:
        """Estimate; with ``comparing=False``, leave out the requests that compare sizes."""
        self._import()
        from nexusflow_integrations._core.call.estimate import estimate

        prepared, unsent, _ = self._prepare(texts, self._instruction(role), self._settings)
        if unsent:
            prepared = [text for place, text in enumerate(prepared) if place not in unsent]
        distinct = list(dict.fromkeys(prepared))
        stored, comparisons = self._find_stored(distinct)
        return estimate(
            distinct,
            stored=stored,
            given=len(prepared),
            settings=self._settings,
            price=self._price,
            comparisons=comparisons if comparing else 0,
        )

    def verify_cache(self) -> bool:
        """Compare vectors in the cache with those that the service returns now.

        A service can change its model without changing its address; the cache would then mix old
        and new vectors. The first call stores the vectors of three fixed texts in the cache. Each
        later call embeds them again, bypassing the cache. Each call sends one request of about 30
        tokens.

        Returns:
            ``True`` if stored vectors were compared; ``False`` if this call stored them.

        Raises:
            ConfigurationError: There is no cache, or the service returns different vectors.
            CacheError: The cache can neither be read nor written.
            NexusFlowError: The texts cannot be embedded.
        """
        if self._cache is None:
            raise ConfigurationError("this client has no cache: pass cache=...")
        from nexusflow_integrations._core.comparing import FIXED_TEXTS

        kept = self._embed_plainly(FIXED_TEXTS)
        if kept.usage is None or not kept.usage.cached:
            instruction = self._instruction("document")
            texts = {instruction + text for text in FIXED_TEXTS}
            if not texts <= self._find_stored(list(texts))[0]:
                raise CacheError(
                    "the vectors could neither be compared nor stored, because the cache"
                    f" {self._cache} could not be used in time; the log may say why"
                )
            return False
        self._compare(kept, FIXED_TEXTS)
        return True

    def _verify_cached(self, texts: Iterable[str]) -> None:
        """Compare vectors of up to three of ``texts``, if they are cached, with new ones.

        Raises:
            ConfigurationError: The service returns different vectors.
            NexusFlowError: The texts cannot be embedded.
        """
        instruction = self._instruction("document")
        by_sent = {instruction + text: text for text in texts}
        stored, _ = self._find_stored(list(by_sent))
        if some := [text for sent, text in by_sent.items() if sent in stored][:3]:
            self._compare(self._embed_plainly(some), some)

    def _embed_plainly(self, texts: Sequence[str]) -> EmbeddingArray:
        return self.embed(texts, on_refused="raise", on_blank="raise", on_too_long="send")

    def _compare(self, kept: EmbeddingArray, texts: Sequence[str]) -> None:
        """Raise an error if the service's vectors of ``texts`` differ from ``kept``."""
        from nexusflow_integrations._core.comparing import TOLERANCE, deviation

        fresh = self._uncached()._embed_plainly(texts)
        apart = max(map(deviation, kept, fresh))
        if apart > TOLERANCE:
            raise ConfigurationError(
                f"the service embeds a text differently than when {self.model!r} filled the cache"
                f" (the vectors differ by {apart:.2g} of their length; {TOLERANCE} is allowed): its"
                " model or settings changed, and the vectors in the cache are not comparable with"
                " new ones; name another cache, or clear this one with `nexusflow cache clear`"
            )

    def _find_stored(self, texts: list[str]) -> tuple[set[str], int]:
        if self._cache is None:
            return set(), 0
        from nexusflow_integrations._core.call.engine import engine

        background, running = engine()
        asked = running.stored(texts, self._settings, self._cache, derive=self._derive)
        return background.submit(asked).result()

    def _keeps_all(self) -> bool:
        """Return whether the vectors that were paid for are in the cache."""
        if self._cache is None:
            return False
        from nexusflow_integrations._core.call.engine import engine

        _, running = engine()
        cache = running._caches.get(self._cache)
        return cache is not None and cache.keeps_all

    def _recorded(self, ledger: Ledger) -> AbstractContextManager[None]:
        return _Recorded(observed(self._settings, ledger), lambda: self._report(ledger))

    def _report(self, ledger: Ledger) -> None:
        if self._on_usage is not None:
            self._on_usage(ledger.snapshot(self._price))

    # -- settings ------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._settings.model

    @property
    def dimensions(self) -> int | None:
        """The requested size, or ``None``."""
        return self._settings.dimensions

    @property
    def price(self) -> Price:
        """The price that ``usage`` is calculated with."""
        return self._price

    @property
    def base_url(self) -> str:
        """Root of the API."""
        return self._settings.base_url

    @property
    def settings(self) -> Settings:
        """The settings of this client, without the key."""
        return self._settings

    def resized(self, dimensions: int | None) -> NexusFlow:
        """Return a client for another size, with the same key, cache and budget but its own usage.

        If the client already has this size, the client itself is returned.

        Raises:
            ConfigurationError: The model does not have this size.
        """
        if check_dimensions(dimensions, self.model) == self.dimensions:
            return self
        twin = copy.copy(self)
        twin._settings = replace(self._settings, dimensions=dimensions)
        twin._spent = Total()
        return twin

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise missing(self, name)

    def __repr__(self) -> str:
        if "_settings" not in vars(self):
            return "NexusFlow()"  # for a traceback, if the constructor failed
        size = "" if self.dimensions is None else f", dimensions={self.dimensions}"
        return f"NexusFlow(model={self.model!r}, base_url={self.base_url!r}{size})"

    # -- lifecycle -----------------------------------------------------------------------------

    def close(self) -> None:
        """Refuse further calls. The process's pool stays open for other clients.

        The client returns what it drew from a shared budget and did not spend, and waits at most
        two seconds for that.
        """
        self._closed, self._presence = True, None
        if (given := self._to_give_back()) is not None:
            background, give_back = given
            try:
                background.submit(give_back).result(self._closing_time)
            except TimeoutError as error:  # tokens that are not returned count as spent
                if raised_by_signal_handler(error):
                    raise

    async def aclose(self) -> None:
        """Close like ``close``, without blocking the event loop."""
        self._closed, self._presence = True, None
        await self._agive_back()

    async def _agive_back(self) -> None:
        if (given := self._to_give_back()) is not None:
            ended = Signal()
            LoopCall(*given, ended.set).start()
            # Not wait_for, which may lose a cancellation on Python 3.10 and 3.11.
            waiting = asyncio.ensure_future(ended.wait())
            try:
                await asyncio.wait([waiting], timeout=self._closing_time)
            finally:
                waiting.cancel()

    @property
    def _closing_time(self) -> float:
        return min(GIVE_BACK, self._settings.deadline or GIVE_BACK)

    def _to_give_back(self) -> tuple[BackgroundLoop, Coroutine[Any, Any, None]] | None:
        """Return the loop and the work that returns tokens to a shared budget, if there is any."""
        if self._guard is None or isinstance(self._budget, Budget):
            return None
        self._import()
        from nexusflow_integrations._core.call.engine import engine

        return engine()[0], self._guard.give_back()

    def __enter__(self) -> NexusFlow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> NexusFlow:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __getstate__(self) -> dict[str, Any]:
        # Leave out the key and objects of this process. A worker process reads the key from its
        # environment.
        state = dict(self.__dict__)
        state["_left_out"] = [
            name for name in _MISSED_WHEN_UNPICKLED if getattr(self, f"_{name}") is not None
        ]
        for name in _NOT_PICKLED:
            state.pop(name)
        state["_size"] = None
        state["_has_imports"] = False
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._http_client = self._async_http_client = self._on_usage = None
        self._key = EnvironmentKey(unpickled=type(self).__name__)
        if left_out := self.__dict__.pop("_left_out", None):
            logger.warning(
                "this %s was unpickled without its %s: objects that belong to one process are not"
                " pickled",
                type(self).__name__,
                " and ".join(left_out),
            )
        self._guard = self._new_guard()
        self._take_part()

    def __deepcopy__(self, memo: dict[int, Any]) -> NexusFlow:
        return copy.copy(self)

    def __copy__(self) -> NexusFlow:
        # A copy in the same process keeps what pickling leaves out: key, HTTP clients, guard.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._spent = self._spent.copy()
        return twin

    # -- for adapters -------------------------------------------------------------------------

    def _embed(
        self,
        input: str | Iterable[str],  # noqa: A002
        *,
        role: Role = "document",
        on_refused: OnRefused | None = None,
        on_blank: OnRefused | None = None,
        on_too_long: OnTooLongOrCollect | None = None,
        progress: Progress | None = None,
        hooks: Hooks = NO_HOOKS,
        batch_size: int | None = None,
        dimensions: int | None = None,
        lists: bool = False,
    ) -> EmbeddingArray | EmbeddingList:
        """Embed like ``embed``.

        Args:
            input: As for ``embed``.
            role: As for ``embed``.
            on_refused: As for ``embed``.
            on_blank: As for ``embed``.
            on_too_long: As for ``embed``.
            progress: As for ``embed``.
            hooks: The adapter's functions, called in this thread for each batch.
            batch_size: Overrides the client's setting for this call.
            dimensions: Overrides the client's setting for this call.
            lists: Convert rows to lists of floats while requests are in flight, so that the
                result's ``tolist`` is fast.
        """
        single = isinstance(input, str)
        instruction = self._instruction(role)
        collect = self._collects("on_refused", on_refused)
        settings = self._settings_of(role, dimensions, on_too_long)
        texts, unsent, gaps = self._prepare(input, instruction, settings, on_blank)
        progress = checks.function("progress", progress)
        if not single and not texts:
            return self._nothing(collect=collect or gaps)
        ledger = Ledger()
        with self._recorded(ledger):
            call, background, running = self._call(
                texts,
                ledger,
                settings=settings,
                urgent=single or role == "query",
                batch_size=batch_size,
                lists=lists and not (single or collect or gaps),
                unsent=unsent,
            )
            results = caller = None
            if hooks is not NO_HOOKS:
                caller = CallingThread(hooks, progress, deadline=settings.deadline)
            if progress is None and not hooks.decide:
                results = self._embed_here(running, call, caller)
            if results is None:
                if caller is None:
                    caller = CallingThread(hooks, progress, deadline=settings.deadline)
                work = _counted(running, call, self._spent, caller, None)
                results = caller.wait(background, work, call.until)
            return results.result(
                ledger.snapshot(self._price), single=single, collect=collect, gaps=gaps
            )

    def _embed_here(
        self, running: Engine, call: Call, caller: CallingThread | None
    ) -> CallResults | None:
        begun = None if caller is None else partial(caller.begin_here, call.texts)
        results = None
        try:
            results = running.embed_here(call, begun)
            if results is None:
                # The event loop counts everything again, including a request that was sent here.
                call.ledger.reset()
            elif caller is not None:
                caller.end_here(call.texts, results, call.ledger)
        finally:
            if call.ledger.texts:
                self._spent.add(call.ledger)
        return results

    async def _aembed(
        self,
        input: str | Iterable[str],  # noqa: A002
        *,
        role: Role = "document",
        on_refused: OnRefused | None = None,
        on_blank: OnRefused | None = None,
        on_too_long: OnTooLongOrCollect | None = None,
        progress: Progress | None = None,
        hooks: Hooks = NO_HOOKS,
        batch_size: int | None = None,
        dimensions: int | None = None,
        lists: bool = False,
    ) -> EmbeddingArray | EmbeddingList:
        """Embed like ``_embed``, but await the hooks on this event loop."""
        loop = _running_loop()
        single = isinstance(input, str)
        instruction = self._instruction(role)
        collect = self._collects("on_refused", on_refused)
        settings = self._settings_of(role, dimensions, on_too_long)
        texts, unsent, gaps = self._prepare(input, instruction, settings, on_blank)
        progress = checks.function("progress", progress)
        if not single and not texts:
            return self._nothing(collect=collect or gaps)
        ledger = Ledger()
        with self._recorded(ledger):
            call, background, running = self._call(
                texts,
                ledger,
                settings=settings,
                urgent=single or role == "query",
                loop=loop,
                batch_size=batch_size,
                lists=lists and not (single or collect or gaps),
                unsent=unsent,
            )
            results = caller = None
            if hooks is not NO_HOOKS:
                caller = CallingTask(hooks, progress, deadline=settings.deadline)
            if progress is None and not hooks.decide:
                results = await self._embed_on_loop(running, call, caller)
            if results is None:
                if caller is None:
                    caller = CallingTask(hooks, progress, deadline=settings.deadline)
                work = _counted(running, call, self._spent, caller, None)
                with running.announced(call):
                    results = await caller.wait(background, work, call.until)
            return results.result(
                ledger.snapshot(self._price), single=single, collect=collect, gaps=gaps
            )

    async def _embed_on_loop(
        self, running: Engine, call: Call, caller: CallingTask | None
    ) -> CallResults | None:
        begun = None if caller is None else partial(caller.begin_here, call.texts)
        results = None
        try:
            results = await running.embed_on_loop(call, begun)
            if results is None:
                call.ledger.reset()  # as in `_embed_here`
            elif caller is not None:
                await caller.end_here(call.texts, results, call.ledger)
        finally:
            if call.ledger.texts:
                self._spent.add(call.ledger)
        return results

    def _limited(self, budget: Budget) -> NexusFlow:
        """Return a copy of this client that shares its usage and may spend at most ``budget``."""
        if self._budget is not None:
            raise ConfigurationError("the client already has a budget: set only one of the two")
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._budget = check_budget(budget)
        twin._guard = twin._new_guard()
        return twin

    def _succeed(self, former: NexusFlow) -> None:
        """Take over the budget and usage of ``former``, a client that is no longer used."""
        self._guard = former._guard
        self._spent = former._spent

    def _counted(self, count: Callable[[Usage], object]) -> NexusFlow:
        """Return a copy of this client that also calls ``count`` with the usage of each call."""
        given, twin = self._on_usage, object.__new__(type(self))
        twin.__dict__.update(self.__dict__)

        def both(usage: Usage) -> None:
            count(usage)
            if given is not None:
                given(usage)

        twin._on_usage = Callback("on_usage", both)
        return twin

    def _uncached(self) -> NexusFlow:
        """Return a copy of this client that has no cache but shares its budget and usage."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._cache = None
        return twin

    # -- internal ------------------------------------------------------------------------------

    def _check_derive(self, value: object) -> bool:
        if not checks.flag("derive", value):
            return False
        settings = self._settings
        lacking = {
            "a cache: pass cache=...": self._cache is None,
            "a size: pass dimensions=...": settings.dimensions is None,
            "a model whose sizes are known": not model_named(settings.model).sizes,
            "on_too_long other than 'split': the mean of pieces cannot be shortened": (
                settings.on_too_long == "split"
            ),
        }
        for needed, lacks in lacking.items():
            if lacks:
                raise ConfigurationError(f"derive=True needs {needed}")
        return True

    def _take_part(self) -> None:
        """Apply the limits to the account while this client or a copy of it is in use."""
        presence = self._presence = Presence()
        self._terms = Terms(self._settings, self._pacer, ref(presence))

    def _new_guard(self) -> BudgetGuard | None:
        if self._budget is None:
            return None
        if isinstance(self._budget, Budget):
            return BudgetGuard(self._budget.in_tokens(self._price))
        from nexusflow_integrations._core.shared_budget import SharedBudgetGuard

        return SharedBudgetGuard(self._budget)

    def _import(self) -> None:
        # Import late, because creating a client and importing an adapter should be cheap.
        if not self._has_imports:
            import_all(
                self._cache, self._pacer, async_http_client=self._async_http_client is not None
            )
            self._has_imports = True

    def _settings_of(
        self, role: Role, dimensions: int | None, on_too_long: OnTooLongOrCollect | None
    ) -> Settings:
        """Return the settings for a call that overrides some of the client's."""
        settings = self._settings.of(role)
        if dimensions not in (None, settings.dimensions):
            settings = replace(settings, dimensions=dimensions)
        if on_too_long is not None:
            settings = replace(settings, on_too_long=on_too_long)
        return settings

    def _prepare(
        self,
        input: str | Iterable[str],  # noqa: A002
        instruction: str,
        settings: Settings,
        on_blank: OnRefused | None = None,
    ) -> tuple[list[str], dict[int, InvalidInputError], bool]:
        """Check the texts of a call, prepend the instruction, and find the texts to leave out.

        Returns:
            All texts with the instruction; the errors of the texts to leave out, by index; and
            whether the caller expects a list with ``None`` in their places.
        """
        collect = self._collects("on_blank", on_blank)
        unsent: dict[int, InvalidInputError] = {}
        single = isinstance(input, str)
        if isinstance(input, str):
            texts = [check_text(input)]
        elif collect:
            texts, unsent = sort_out_blank(input)
        else:
            texts = check_texts(input)
        if instruction:
            texts = [instruction + text for text in texts]
        leave_long = settings.on_too_long == "collect"
        if settings.token_limit and (leave_long or settings.on_too_long == "error"):
            self._import()
            from nexusflow_integrations._core.request import long_texts

            if leave_long and not single:
                long_texts.sort_out_long(texts, settings, unsent)
            else:
                long_texts.check_lengths(texts, settings, single=single)
        return texts, unsent, collect or leave_long

    def _instruction(self, role: Role) -> str:
        if self._closed:
            raise ConfigurationError("this client is closed: create another one")
        if type(role) is not str or role not in ROLES:
            role = checks.one_of("role", role, ROLES)
        return self._settings.instruction(role)

    def _collects(self, setting: Literal["on_refused", "on_blank"], given: object) -> bool:
        if given is None:
            return bool(getattr(self._settings, setting) == "collect")
        return bool(checks.one_of(setting, given, ON_REFUSED) == "collect")

    def _nothing(self, *, collect: bool) -> EmbeddingArray | EmbeddingList:
        self._import()
        import numpy as np

        from nexusflow_integrations._core.call.results import EmbeddingArray, EmbeddingList

        usage = Usage(price=self._price)
        if collect:
            return EmbeddingList([], {}, usage)
        empty = np.empty((0, self.dimensions or 0), dtype=np.float32).view(EmbeddingArray)
        empty.usage = usage
        return empty

    def _start(
        self,
        texts: list[str],
        ledger: Ledger,
        *,
        settings: Settings,
        urgent: bool,
        caller: Caller | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        lists: bool = False,
        unsent: Mapping[int, InvalidInputError] = MappingProxyType({}),
        stop: Stop | None = None,
    ) -> tuple[BackgroundLoop, Coroutine[Any, Any, CallResults]]:
        """Return the work for a call that was made on ``loop``, or in a thread without one."""
        call, background, running = self._call(
            texts,
            ledger,
            settings=settings,
            urgent=urgent,
            loop=loop,
            batch_size=batch_size,
            lists=lists,
            unsent=unsent,
        )
        return background, _counted(running, call, self._spent, caller, stop)

    def _call(
        self,
        texts: list[str],
        ledger: Ledger,
        *,
        settings: Settings,
        urgent: bool,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        lists: bool = False,
        unsent: Mapping[int, InvalidInputError] = MappingProxyType({}),
    ) -> tuple[Call, BackgroundLoop, Engine]:
        self._import()
        from nexusflow_integrations._core.call.engine import engine
        from nexusflow_integrations._core.request.exchange import Call, LearntSize

        if self._size is None:
            self._size = LearntSize()
        if batch_size not in (None, settings.batch_size):
            settings = replace(settings, batch_size=batch_size)
        call = Call(
            texts=texts,
            settings=settings,
            key=self._key.key,
            keys=self._key,
            ledger=ledger,
            urgent=urgent,
            guard=self._guard,
            size=self._size,
            http_client=self._http_client if loop is None else None,
            async_http_client=self._async_http_client,
            client_loop=loop,
            cache=self._cache,
            terms=self._terms,
            lists=lists,
            unsent=unsent,
            derive=self._derive,
        )
        return call, *engine()


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "no asyncio event loop is running: with trio, call the sync method in a thread, as"
            " in trio.to_thread.run_sync(client.embed, texts)"
        ) from None


async def _counted(
    running: Engine, call: Call, spent: Total, caller: Caller | None, stop: Stop | None
) -> CallResults:
    """Run ``call`` and add its requests to ``spent``, even if the caller no longer waits."""
    try:
        return await running.embed(call, caller, stop)
    finally:
        spent.add(call.ledger)


class _Recorded(AbstractContextManager[None]):
    """Runs a call inside ``span``, then reports it to ``report``, even if it failed."""

    def __init__(self, span: AbstractContextManager[None], report: Callable[[], None]) -> None:
        self._span = span
        self._report = report

    def __enter__(self) -> None:
        self._span.__enter__()

    def __exit__(self, *raised: Any) -> bool | None:
        try:
            return self._span.__exit__(*raised)
        finally:
            self._report()


def _cache_path(
    cache: bool | str | os.PathLike[str] | RedisAddress | None,
) -> str | RedisAddress | None:
    if cache is None or cache is False:
        return None
    if cache is True:
        try:
            from nexusflow_integrations._core.cache.file import default_path
        except ModuleNotFoundError as error:
            raise without_sqlite(error) from None
        return str(default_path())
    place = address_or_path(cache)
    if isinstance(place, RedisAddress):
        return place
    try:
        path = os.fspath(place)
        is_path = isinstance(path, str) and path.strip() and b"\0" not in os.fsencode(path)
    except Exception:  # noqa: BLE001 - a user's object may raise anything
        is_path = False
    if not is_path:
        raise checks.refuse("cache", WANTED, cache)
    return absolute("cache", path)
