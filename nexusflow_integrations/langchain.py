"""``NexusFlowEmbeddings``: NexusFlow as LangChain's ``Embeddings``.

What is LangChain's lives here: its names, its errors, its progress bar, its rate limiter, its
traces, its serialization. All embedding is the core's.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import importlib
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nexusflow_integrations import errors
from nexusflow_integrations._core.redis.address import RedisAddress, address_or_path
from nexusflow_integrations._core.settings import (
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_MODEL,
    MAX_BATCH_SIZE,
    EncodingFormat,
    Role,
)
from nexusflow_integrations._core.texts import check_text, check_texts
from nexusflow_integrations._core.usage import Budget, Price, Usage
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import NexusFlowError, _rebuild

try:
    from langchain_core.embeddings import Embeddings
    from langchain_core.exceptions import (
        ContextOverflowError,
        ModelAPIError,
        ModelAuthenticationError,
        ModelConnectionError,
        ModelError,
        ModelInvalidRequestError,
        ModelNotFoundError,
        ModelPermissionDeniedError,
        ModelRateLimitError,
        ModelTimeoutError,
    )
    from langchain_core.load.serializable import Serializable
    from langchain_core.rate_limiters import BaseRateLimiter
    from pydantic import (
        AliasChoices,
        ConfigDict,
        Field,
        PrivateAttr,
        SecretStr,
        ValidationError,
        field_validator,
    )
    from pydantic_core import InitErrorDetails, PydanticCustomError
except ImportError as error:
    if (error.name or "").partition(".")[0] != "langchain_core":
        raise
    raise ImportError(
        "nexusflow_integrations.langchain needs LangChain (langchain-core 1.6 or newer):"
        ' pip install "nexusflow-integrations[langchain]"',
        name=error.name,
    ) from error

if TYPE_CHECKING:
    from typing_extensions import Self

    from nexusflow_integrations._core.call.results import EmbeddingArray, EmbeddingList

__all__ = ["NexusFlowEmbeddings"]

_NOT_THE_CORES = ("chunk_size", "rate_limiter", "show_progress_bar", "trace_texts")
_OPENAI_NAMES = {"openai_api_key": "api_key", "openai_api_base": "base_url"}
_NOT_NEEDED = (
    "check_embedding_ctx_length",
    "embedding_ctx_length",
    "tiktoken_enabled",
    "tiktoken_model_name",
    "allowed_special",
    "disallowed_special",
)
_noted = False


class NexusFlowEmbeddings(Serializable, Embeddings):
    """NexusFlow embeddings in LangChain.

    Setup:
        Install the extra and set the key:

            pip install "nexusflow-integrations[langchain]"
            export NEXUSFLOW_API_KEY="sk-air-..."

    Instantiate:
        Costs nothing: no connection is opened, and a missing key is an error only when it is
        first needed. Where ``OpenAIEmbeddings`` was used, changing the import is enough: what it
        needed for tokenizing is accepted with a note and ignored, other unknown names are refused:

            from nexusflow_integrations.langchain import NexusFlowEmbeddings

            embeddings = NexusFlowEmbeddings(dimensions=1024)

    Embed single text:
        A query may be given ``query_instruction``, and passes before documents that wait:

            vector = embeddings.embed_query("What is a red panda?")

    Embed multiple texts:
        In parallel, at most ten texts a request, in order; a text that stands twice is sent once
        (with a ``rate_limiter``, once a batch):

            vectors = embeddings.embed_documents(["Red pandas climb.", "小熊猫会爬树。"])

    Async:
        Just as parallel, on any number of event loops:

            vectors = await embeddings.aembed_documents(texts)

    Chroma:
        Let the collection store how it was made: then Chroma itself can reopen and query it, and
        distances are cosine. LangChain's ``Chroma`` alone would store neither:

            from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

            client.create_collection("texts", embedding_function=NexusFlowEmbeddingFunction())
            store = Chroma("texts", embedding_function=embeddings, client=client)

    Errors are at once this package's (``nexusflow_integrations.errors``) and LangChain's
    ``Model*Error``; ``finished`` holds the vectors that were ready, by index. Sync and async calls
    may be mixed, from any thread. Pickles and ``dumps`` leave the key out; ``loads`` and worker
    processes find it in ``NEXUSFLOW_API_KEY``.

    Raises:
        pydantic.ValidationError: A name is unknown or a value has the wrong type.
        ConfigurationError: A setting is impossible.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    model: str = DEFAULT_MODEL
    """Name of the model."""

    dimensions: int | None = None
    """2048, 1536, 1024, 768, 512, 256, 128 or 64; ``None`` takes the server's default."""

    nexusflow_api_key: SecretStr | str | None = Field(
        alias="api_key",
        default_factory=lambda: SecretStr(os.environ.get("NEXUSFLOW_API_KEY", "")) or None,
    )
    """The key. Default: ``NEXUSFLOW_API_KEY``."""

    nexusflow_api_base: str | None = Field(
        alias="base_url", default_factory=lambda: os.environ.get("NEXUSFLOW_BASE_URL") or None
    )
    """Root of the API. Default: ``NEXUSFLOW_BASE_URL``, else the service's."""

    chunk_size: int = Field(
        default=MAX_BATCH_SIZE, ge=1, validation_alias=AliasChoices("chunk_size", "batch_size")
    )
    """Texts a request. The model takes at most 10, which larger values therefore mean."""

    max_concurrency: int = DEFAULT_MAX_CONCURRENCY
    """Requests in flight at most."""

    request_timeout: float = Field(default=60.0, alias="timeout")
    """Seconds for one attempt, from connection to last byte."""

    deadline: float | None = None
    """Seconds for a whole call with its retries."""

    max_retries: int = 6
    """Further attempts for a batch after faults and throttling."""

    requests_per_minute: float | None = None
    """Limit of the account, if known; otherwise it is found out."""

    tokens_per_minute: float | None = None
    """The same for tokens."""

    encoding_format: EncodingFormat = "base64"
    """What to ask the server for."""

    query_instruction: str | None = None
    """Text put before each query, not before documents."""

    budget: Budget | None = None
    """The most this object may spend."""

    price: Price | None = None
    """Price list of ``usage``."""

    on_usage: Callable[[Usage], object] | None = Field(default=None, exclude=True, repr=False)
    """Called with the ``Usage`` of each call."""

    cache: bool | str | Path | RedisAddress | None = None
    """A file that remembers every vector, ``True`` for the user's cache folder, or the URL of a
    Redis server; its password is in no ``repr``, ``dumps`` or pickle."""

    rate_limiter: BaseRateLimiter | None = Field(default=None, exclude=True, repr=False)
    """LangChain's rate limiter, as chat models take it: acquired once for every batch of documents
    and every query, right before it is handed over, in the caller's thread or event loop. Retries
    are paced by the core, which also finds the account's limits by itself; this is for sharing
    one limit with other models."""

    show_progress_bar: bool = False
    """Show a tqdm bar while documents are embedded."""

    trace_texts: bool = False
    """Let LangSmith runs hold the texts. Vectors they never hold."""

    default_headers: Mapping[str, str] | None = Field(default=None, exclude=True, repr=False)
    """Sent with every request. May hold secrets, so ``dumps`` leaves them out."""

    http_client: Any = Field(default=None, exclude=True, repr=False)
    """An ``httpx.Client`` (or httpx2's) for sync calls; never closed by us."""

    http_async_client: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        validation_alias=AliasChoices("http_async_client", "async_http_client"),
    )
    """The same for async calls."""

    allow_http: bool = False
    """Permit plain http to other hosts than loopback."""

    _clients: dict[int, NexusFlow] = PrivateAttr(default_factory=dict)

    @field_validator("nexusflow_api_key")
    @classmethod
    def _hide_key(cls, key: SecretStr | str | None) -> SecretStr | None:
        return SecretStr(key) if isinstance(key, str) else key

    _hide_password = field_validator("cache")(staticmethod(address_or_path))

    if not TYPE_CHECKING:  # for checkers, the fields make the signature

        def __init__(self, **settings: Any) -> None:
            for name in settings.keys() & _OPENAI_NAMES.keys():
                settings.setdefault(_OPENAI_NAMES[name], settings.pop(name))
            not_needed = [name for name in _NOT_NEEDED if settings.pop(name, None) is not None]
            problem = None
            try:
                super().__init__(**settings)
            except ValidationError as error:
                problem = _without_inputs(error)
            if problem is not None:
                raise problem
            self._client_for(None)  # says at once what is impossible
            if not_needed:
                _note(not_needed)

    # -- embedding -----------------------------------------------------------------------------

    def embed_documents(self, texts: list[str], chunk_size: int | None = None) -> list[list[float]]:
        """Embed ``texts``; ``chunk_size`` overrides the object's for this call.

        Returns:
            One list of floats a text, in order; ``[]`` for no texts.

        Raises:
            InvalidInputError: Not a list of texts; the error says which one. Nothing was sent.
            NexusFlowError: Any other failure. All are LangChain ``ModelError`` as well.
        """
        with _ALSO_LANGCHAINS:
            texts = check_texts(texts)
            client = self._client_for(chunk_size)
            with self._run("document", texts) as done, self._bar(len(texts)) as progress:
                if self.rate_limiter is None or not texts:
                    vectors = client.embed(texts, progress=progress)
                else:
                    vectors = _embed_paced(client, texts, self.rate_limiter, progress)
                done(vectors)
            return cast("list[list[float]]", vectors.tolist())

    async def aembed_documents(
        self, texts: list[str], chunk_size: int | None = None
    ) -> list[list[float]]:
        """Embed like ``embed_documents``, without blocking the event loop."""
        with _ALSO_LANGCHAINS:
            texts = check_texts(texts)
            client = self._client_for(chunk_size)
            with self._run("document", texts) as done, self._bar(len(texts)) as progress:
                if self.rate_limiter is None or not texts:
                    vectors = await client.aembed(texts, progress=progress)
                    done(vectors)
                    return cast("list[list[float]]", vectors.tolist())
                vectors = await _aembed_paced(client, texts, self.rate_limiter, progress)
                done(vectors)
            from nexusflow_integrations._core.call.results import RowLists

            return await RowLists(len(vectors)).of(vectors)

    def embed_query(self, text: str) -> list[float]:
        """Embed one query.

        Raises:
            InvalidInputError: Not a text that can be sent.
            NexusFlowError: Any other failure. All are LangChain ``ModelError`` as well.
        """
        with _ALSO_LANGCHAINS:
            check_text(text)
            with self._run("query", [text]) as done:
                if self.rate_limiter is not None:
                    self.rate_limiter.acquire(blocking=True)
                vector = self.client.embed(text, role="query")
                done(vector)
            return cast("list[float]", vector.tolist())

    async def aembed_query(self, text: str) -> list[float]:
        """Embed like ``embed_query``, without blocking the event loop."""
        with _ALSO_LANGCHAINS:
            check_text(text)
            with self._run("query", [text]) as done:
                if self.rate_limiter is not None:
                    await self.rate_limiter.aacquire(blocking=True)
                vector = await self.client.aembed(text, role="query")
                done(vector)
            return cast("list[float]", vector.tolist())

    # -- for users -----------------------------------------------------------------------------

    @property
    def client(self) -> NexusFlow:
        """The client underneath, with all it can do besides (``estimate``, ``embed_stream``)."""
        return self._client_for(None)

    @property
    def usage(self) -> Usage:
        """What all calls of this object sent and cost so far."""
        clients = list(self._clients.values())
        return sum((client.usage for client in clients), Usage(price=self.price or Price()))

    @property
    def cache_namespace(self) -> str:
        """A ``namespace`` for ``CacheBackedEmbeddings`` that no other vectors share.

        Made of everything that changes a vector, the size and the endpoint included, and of
        characters that every byte store takes. With a ``query_instruction``, queries need a
        ``query_embedding_cache`` of their own: the namespace cannot tell them from documents.
        """
        told = (self.client.base_url, self.model, self.dimensions, self.query_instruction)
        digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
        model = re.sub(r"[^A-Za-z0-9_.-]", "-", self.model)
        return f"{model}-{self.dimensions or 'default'}-{digest}-"

    # -- copies --------------------------------------------------------------------------------

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """``dumps`` writes a constructor call, without the key."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What ``dumps`` writes in place of the key."""
        return {"nexusflow_api_key": "NEXUSFLOW_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Settings that are not JSON by themselves, as constructor arguments that are."""
        told: dict[str, Any] = {
            name: asdict(value)
            for name, value in (("budget", self.budget), ("price", self.price))
            if value is not None
        }
        if isinstance(self.cache, (Path, RedisAddress)):
            told["cache"] = str(self.cache)
        return told

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy; with an ``update``, make a new object of it, checked like any other.

        No copy, however deep, copies http clients or the rate limiter: it shares them.
        """
        if update:
            names = {field.alias: name for name, field in type(self).model_fields.items()}
            changed = {names.get(name, name): value for name, value in update.items()}
            return type(self)(**{**dict(self), **changed})
        twin = super().model_copy()
        if deep:
            twin._clients = {size: copy.copy(client) for size, client in self._clients.items()}
        return twin

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy(deep=True)

    def __getstate__(self) -> dict[Any, Any]:
        # Neither the key nor anything that only lives in this process.
        state = super().__getstate__()
        gone = dict.fromkeys(("nexusflow_api_key", "on_usage", "http_client", "http_async_client"))
        state["__dict__"] = {**state["__dict__"], **gone}
        state["__pydantic_private__"] = {"_clients": {}}
        return state

    # -- inside --------------------------------------------------------------------------------

    def _client_for(self, chunk_size: int | None) -> NexusFlow:
        size = min(chunk_size or self.chunk_size, MAX_BATCH_SIZE)
        client = self._clients.get(size)
        if client is None:
            told = {
                field.alias or name: getattr(self, name)
                for name, field in NexusFlowEmbeddings.model_fields.items()
                if name not in _NOT_THE_CORES
            }
            told["async_http_client"] = told.pop("http_async_client")
            client = NexusFlow(**told, batch_size=size)
            client._want_lists()
            for other in self._clients.values():
                client._spend_from(other)  # one budget, whatever the size of the batches
            client = self._clients.setdefault(size, client)
        return client

    @contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[int], object] | None]:
        if not self.show_progress_bar or not total:
            yield None
            return
        try:
            tqdm = importlib.import_module("tqdm.auto").tqdm
        except ImportError as error:
            raise ImportError("show_progress_bar=True needs tqdm: pip install tqdm") from error
        with tqdm(total=total, desc="Embedding", unit="text") as bar:
            yield bar.update

    def _run(
        self, role: Role, texts: list[str]
    ) -> AbstractContextManager[Callable[[EmbeddingArray], None]]:
        """Report the call to LangSmith as a run, if anybody traces."""
        return self._traced(role, texts) if texts and _is_traced() else _UNTRACED

    @contextmanager
    def _traced(self, role: Role, texts: list[str]) -> Iterator[Callable[[EmbeddingArray], None]]:
        from langsmith.run_helpers import trace

        inputs: dict[str, Any] = {"role": role, "count": len(texts)}
        if self.trace_texts:
            inputs["texts"] = texts
        with trace(
            type(self).__name__,
            run_type="embedding",
            inputs=inputs,
            metadata={"ls_provider": "nexusflow", "ls_model_name": self.model},
        ) as run:

            def done(vectors: EmbeddingArray) -> None:
                usage = vectors.usage or Usage()
                run.metadata["usage_metadata"] = {
                    "input_tokens": usage.tokens,
                    "output_tokens": 0,
                    "total_tokens": usage.tokens,
                }
                run.end(outputs={"count": len(texts), "dimensions": vectors.shape[-1]})

            yield done


# -- LangChain's rate limiter --------------------------------------------------------------------


class _Joined:
    """The result of one call that is made in batches."""

    def __init__(self, count: int, progress: Callable[[int], object] | None) -> None:
        from nexusflow_integrations._core.call.results import Gathered

        self._gathered = Gathered(count, progress)
        self._usages: list[Usage] = []
        self.failure: NexusFlowError | None = None

    def add(self, start: int, batch: EmbeddingList) -> None:
        """Take the result of the batch whose first text is number ``start``."""
        for place, row in enumerate(batch):
            if row is None:
                self._gathered.refuse(start + place, batch.refused[place])
            else:
                self._gathered.row(start + place, row)
        self._usages.append(batch.usage)
        self._gathered.report()

    def fail(self, start: int, error: NexusFlowError) -> None:
        """Take the failure of a batch, and what it had finished."""
        for place, row in error.finished.items():
            self._gathered.row(start + place, row)
        self.failure = self.failure or error

    def result(self) -> EmbeddingArray:
        """Return all vectors, or raise what went wrong."""
        if self.failure is not None:
            self.failure.finished = self._gathered.finished()
            raise self.failure
        first, *rest = self._usages
        vectors = self._gathered.result(sum(rest, first), single=False, collect=False)
        return cast("EmbeddingArray", vectors)


_ALIKE = (errors.AuthenticationError, errors.PermissionDeniedError, errors.NotFoundError)


def _batches(texts: list[str], size: int) -> Iterator[tuple[int, list[str]]]:
    return ((start, texts[start : start + size]) for start in range(0, len(texts), size))


def _embed_paced(
    client: NexusFlow,
    texts: list[str],
    limiter: BaseRateLimiter,
    progress: Callable[[int], object] | None,
) -> EmbeddingArray:
    joined = _Joined(len(texts), progress)
    flying: deque[tuple[int, Future[Any]]] = deque()

    def land(*, all_of_them: bool) -> None:
        for _ in range(len(flying)):
            start, future = flying.popleft()
            if future.cancelled():
                continue
            if not (all_of_them or future.done()):
                flying.append((start, future))
                continue
            try:
                joined.add(start, future.result())
            except NexusFlowError as error:
                joined.fail(start, error)
                for _, other in flying:
                    other.cancel()  # those not begun need not be sent any more

    pool = ThreadPoolExecutor(client.settings.max_concurrency)
    try:
        for start, batch in _batches(texts, client.settings.batch_size):
            limiter.acquire(blocking=True)
            land(all_of_them=False)
            if joined.failure is not None:
                break
            call = partial(client.embed, batch, on_refused="collect")
            flying.append((start, pool.submit(copy_context().run, call)))
        land(all_of_them=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return joined.result()


async def _aembed_paced(
    client: NexusFlow,
    texts: list[str],
    limiter: BaseRateLimiter,
    progress: Callable[[int], object] | None,
) -> EmbeddingArray:
    joined = _Joined(len(texts), progress)
    flying: deque[tuple[int, asyncio.Task[Any]]] = deque()

    async def land(*, all_of_them: bool) -> None:
        for _ in range(len(flying)):
            start, task = flying.popleft()
            if isinstance(joined.failure, _ALIKE) and task.cancel():
                continue  # it would fail alike
            if not (all_of_them or task.done()):
                flying.append((start, task))
                continue
            try:
                joined.add(start, await task)
            except NexusFlowError as error:
                joined.fail(start, error)

    try:
        for start, batch in _batches(texts, client.settings.batch_size):
            await limiter.aacquire(blocking=True)
            await land(all_of_them=False)
            if joined.failure is not None:
                break
            work = client.aembed(batch, on_refused="collect")
            flying.append((start, asyncio.ensure_future(work)))
        await land(all_of_them=True)
    finally:
        for _, task in flying:
            task.cancel()
    return joined.result()


# -- the rest --------------------------------------------------------------------------------------


_TRACING = [f"LANG{who}_TRACING{v}" for who in ("SMITH", "CHAIN") for v in ("", "_V2")]


def _is_traced() -> bool:
    # Importing LangSmith takes longer than a query. A trace can only be on if somebody has
    # imported it before, or if the environment says so.
    if "langsmith.run_helpers" not in sys.modules and not any(map(os.environ.get, _TRACING)):
        return False
    from langsmith.utils import tracing_is_enabled

    return bool(tracing_is_enabled())


def _note(names: list[str]) -> None:
    global _noted
    if not _noted:
        _noted = True
        warnings.warn(
            f"NexusFlowEmbeddings does not need {', '.join(names)}: texts are sent as they are,"
            " never as tokens, and one that is too long for the model is an error",
            stacklevel=3,
        )


def _without_inputs(error: ValidationError) -> ValidationError:
    """Make the same error without the values that were passed in: one may be the key."""
    lines = [
        InitErrorDetails(
            type=PydanticCustomError(cast("Any", line["type"]), "{text}", {"text": line["msg"]}),
            loc=line["loc"],
            input=None,
        )
        for line in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return ValidationError.from_exception_data(error.title, lines, hide_input=True)


# -- errors ------------------------------------------------------------------------------------

_THEIRS: Mapping[type, type[ModelError]] = {
    NexusFlowError: ModelError,
    errors.InvalidInputError: ModelInvalidRequestError,
    errors.APIConnectionError: ModelConnectionError,
    errors.APITimeoutError: ModelTimeoutError,
    errors.BadRequestError: ModelInvalidRequestError,
    errors.AuthenticationError: ModelAuthenticationError,
    errors.PermissionDeniedError: ModelPermissionDeniedError,
    errors.NotFoundError: ModelNotFoundError,
    errors.RateLimitError: ModelRateLimitError,
    errors.InternalServerError: ModelAPIError,
    errors.InvalidResponseError: ModelAPIError,
    errors.RefusedTextsError: ModelInvalidRequestError,
}


def _reduce(error: NexusFlowError) -> tuple[Any, ...]:
    # Pickle cannot find a class that was made here by its name, but it can find ours.
    return _revive, (type(error).__bases__[0], error.args, dict(error.__dict__))


def _revive(
    ours: type[NexusFlowError], args: tuple[Any, ...], state: dict[str, Any]
) -> NexusFlowError:
    return _native(_rebuild(ours, args, state))


def _both(ours: type[NexusFlowError], theirs: type[ModelError], prefix: str = "") -> Any:
    contents = {"__module__": __name__, "__doc__": ours.__doc__, "__reduce__": _reduce}
    return type(prefix + ours.__name__, (ours, theirs), contents)


def _nearest(ours: type[NexusFlowError]) -> type[ModelError]:
    return next(_THEIRS[base] for base in ours.__mro__ if base in _THEIRS)


_BOTH = {ours: _both(ours, _nearest(ours)) for ours in (getattr(errors, n) for n in errors.__all__)}
_TOO_LONG: dict[type[NexusFlowError], Any] = {
    ours: _both(ours, ContextOverflowError, "TooLong")
    for ours in (errors.BadRequestError, errors.RefusedTextsError)
}


def _is_too_long(error: NexusFlowError) -> bool:
    from nexusflow_integrations._core.request.failures import (
        TOO_LONG,  # with numpy, which takes a while
    )

    if isinstance(error, errors.RefusedTextsError):
        return any(_is_too_long(reason) for reason in error.refused.values())
    return isinstance(error, errors.BadRequestError) and (
        error.status_code == 413 or TOO_LONG.search(str(error)) is not None
    )


def _native(error: NexusFlowError) -> NexusFlowError:
    """Return ``error`` with all it holds, as ours and LangChain's at once."""
    kinds = _TOO_LONG if _is_too_long(error) else _BOTH
    cls: type[NexusFlowError] | None = kinds.get(type(error))
    if cls is None:
        return error
    state = dict(error.__dict__)
    if isinstance(error, errors.RefusedTextsError):
        state["refused"] = {place: _native(why) for place, why in error.refused.items()}
    return _rebuild(cls, error.args, state)


class _AlsoLangchains(AbstractContextManager[None]):
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: Any
    ) -> None:
        if isinstance(error, NexusFlowError) and (native := _native(error)) is not error:
            raise native.with_traceback(at) from error.__cause__


_ALSO_LANGCHAINS = _AlsoLangchains()
_UNTRACED: AbstractContextManager[Callable[[EmbeddingArray], None]] = nullcontext(lambda _: None)
