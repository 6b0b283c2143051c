"""``NexusFlowEmbeddings``: NexusFlow as LangChain's ``Embeddings``.

This module holds what is specific to LangChain: names, errors, the progress bar, the rate limiter,
traces and serialization. The core does the embedding.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
import pickle
import re
import sys
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nexusflow_integrations._core import checks, forks
from nexusflow_integrations._core.call.caller import NO_HOOKS, Hooks
from nexusflow_integrations._core.forks import Lock
from nexusflow_integrations._core.key_sources import EnvironmentKey, FunctionKey, key_source
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.models import DEFAULT_MODEL, texts_per_request
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.other_frameworks import missing
from nexusflow_integrations._core.redis.address import RedisAddress, address_or_path
from nexusflow_integrations._core.secret import Headers, secret_arguments
from nexusflow_integrations._core.settings import (
    BATCH_SIZE,
    DEFAULT_MAX_CONCURRENCY,
    KEY_VARIABLE,
    EncodingFormat,
    OnTooLong,
    Role,
    plain_timeout,
    resolve_api_key,
)
from nexusflow_integrations._core.texts import check_text, check_texts
from nexusflow_integrations._core.usage import Budget, Price, Usage
from nexusflow_integrations.client import ClientSettings, NexusFlow
from nexusflow_integrations.errors import ConfigurationError, NexusFlowError

with needed(
    "nexusflow_integrations.langchain",
    "langchain_core",
    install="nexusflow-integrations[langchain]",
    least="1.6",
):
    from langchain_core.embeddings import Embeddings
    from langchain_core.load.serializable import Serializable
    from langchain_core.rate_limiters import BaseRateLimiter
    from pydantic import (
        AliasChoices,
        ConfigDict,
        Field,
        PrivateAttr,
        SecretStr,
        ValidationError,
    )
    from pydantic.json_schema import GenerateJsonSchema
    from pydantic_core import InitErrorDetails, PydanticCustomError

    from nexusflow_integrations.langchain.model_errors import ALSO_LANGCHAINS
    from nexusflow_integrations.langchain.openai_names import NAMES, take_over

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from nexusflow_integrations._core.call.results import EmbeddingArray
    from nexusflow_integrations._core.shared_budget import SharedBudget
    from nexusflow_integrations._core.vectors import Vectors

    _Budget = Budget | SharedBudget | None

    class _Given(ClientSettings, total=False):
        """The constructor's arguments, for type checkers."""

        api_key: Any
        nexusflow_api_key: Any
        nexusflow_api_base: str | None
        dimensions: int | None
        chunk_size: int
        request_timeout: Any
        http_async_client: Any
        rate_limiter: BaseRateLimiter | None
        show_progress_bar: bool
        trace_texts: bool
        openai_api_key: Any
        openai_api_base: str | None
        openai_proxy: str | None
        headers: Any
        model_kwargs: dict[str, Any] | None
        check_embedding_ctx_length: bool
        embedding_ctx_length: int
        tiktoken_enabled: bool
        tiktoken_model_name: str | None
        allowed_special: Any
        disallowed_special: Any
        skip_empty: bool
        organization: str | None
        deployment: str | None
        openai_api_version: str | None
        openai_api_type: str | None
        retry_min_seconds: int
        retry_max_seconds: int
        client: None
        async_client: None

else:
    _Budget = Any  # the client checks the value

__all__ = ["NexusFlowEmbeddings"]

_ACCOUNT = {"budget", "price", "nexusflow_api_key", "nexusflow_api_base"}
"""If one of these fields changes, ``usage`` starts at zero again."""
_NOT_THE_CORES = ("chunk_size", "rate_limiter", "show_progress_bar", "trace_texts")


def _hidden_key(key: object) -> object:
    if isinstance(key, (str, SecretStr)):
        return SecretStr(key) if isinstance(key, str) else key
    if callable(key) and isinstance(key_source(key), FunctionKey):
        return key
    return SecretStr(resolve_api_key(key).reveal())


def _once_each(settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` without names that are ``None`` if the field's other name is given.

    Raises:
        ConfigurationError: Two names of one field have a value.
    """
    chosen: dict[str, str] = {}
    kept = dict(settings)
    for name in settings:
        other = chosen.setdefault(_FIELD_OF.get(name, name), name)
        if other != name:
            if settings[name] is not None and settings[other] is not None:
                raise ConfigurationError(
                    f"{other} and {name} are two names of one setting; give only one of them"
                )
            unset = name if settings[name] is None else other
            chosen[_FIELD_OF.get(name, name)] = name if unset == other else other
            del kept[unset]
    return kept


def _as_budget(value: object) -> object:
    """Convert a budget written by ``dumps`` to a ``Budget``; return anything else unchanged."""
    if isinstance(value, Mapping) and value and set(value) <= {"tokens", "money"}:
        return Budget(**value)
    return value


_HIDDEN: Mapping[str, Callable[[Any], object]] = {
    "api_key": _hidden_key,
    "nexusflow_api_key": _hidden_key,
    "default_headers": Headers,
    "cache": address_or_path,
    "budget": _as_budget,
    "timeout": plain_timeout,
    "request_timeout": plain_timeout,
}
_FIELDS = {
    **NAMES,
    "nexusflow_api_key": "api_key",
    "nexusflow_api_base": "base_url",
    "request_timeout": "timeout",
    "http_async_client": "async_http_client",
}
"""The client's names for arguments that have another name here."""
_FIELD_OF = {
    **dict.fromkeys(("api_key", "openai_api_key"), "nexusflow_api_key"),
    **dict.fromkeys(("base_url", "openai_api_base"), "nexusflow_api_base"),
    "timeout": "request_timeout",
    "batch_size": "chunk_size",
    "headers": "default_headers",
    "async_http_client": "http_async_client",
}
"""The field that each alternative name stands for."""
_noted = False
_building = Lock()
_holders = Lock()
_recorded: ContextVar[dict[str, Vectors] | None] = ContextVar("nexusflow_recorded", default=None)
"""If set, receives the vectors of this thread's or task's calls, by the text that was sent."""


class _Schema(GenerateJsonSchema):
    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


class NexusFlowEmbeddings(Serializable, Embeddings):
    """NexusFlow embeddings in LangChain.

    Setup:
        Install the extra and set the key:

            pip install "nexusflow-integrations[langchain]"
            export NEXUSFLOW_API_KEY="sk-air-..."

    Instantiate:
        Creating an object opens no connection, and a missing key is an error only when a request
        needs a key. To replace ``OpenAIEmbeddings``, change the import and the class name. Almost
        all of its arguments are accepted; those that have no effect here, such as those for
        tokenizing, are ignored with a warning. Unknown names are refused:

            from nexusflow_integrations.langchain import NexusFlowEmbeddings

            embeddings = NexusFlowEmbeddings(dimensions=1024)

    Embed single text:
        ``query_instruction``, if set, is prepended to the query, and the query is sent before
        documents that are waiting:

            vector = embeddings.embed_query("What is a red panda?")

    Embed multiple texts:
        Requests of at most ten texts run in parallel; the results are in the order of the texts. A
        duplicate text is sent once:

            vectors = embeddings.embed_documents(["Red pandas climb.", "小熊猫会爬树。"])

    Async:
        Async calls run as many requests in parallel as sync calls, on any number of event loops:

            vectors = await embeddings.aembed_documents(texts)

    Chroma:
        Create the collection with its embedding function: then Chroma itself can reopen and query
        the collection, and distances are cosine. LangChain's ``Chroma`` alone stores neither the
        function nor the distance:

            from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
            from nexusflow_integrations.chroma_collections import open_collection

            open_collection(client, "texts", NexusFlowEmbeddingFunction(dimensions=1024))
            store = Chroma("texts", embedding_function=embeddings, client=client)

    Every error is an instance of one of this package's classes (``nexusflow_integrations.errors``)
    and of one of LangChain's ``Model*Error`` classes; ``finished`` holds the vectors that were
    ready, by index. Sync and async calls may be mixed, from any thread. Pickles and ``dumps`` leave
    the key out; ``loads`` and worker processes read the key from ``NEXUSFLOW_API_KEY``.

    Raises:
        pydantic.ValidationError: A name is unknown or a value has the wrong type.
        ConfigurationError: A setting is invalid.
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
    """The size: 2048, 1536, 1024, 768, 512, 256, 128 or 64; ``None`` is the server's default."""

    nexusflow_api_key: SecretStr | str | Callable[[], Any] | None = Field(
        alias="api_key",
        default_factory=lambda: SecretStr(os.environ.get("NEXUSFLOW_API_KEY", "")) or None,
    )
    """The key, or a sync or async function that returns the key. The function is called when a key
    is first needed, and again after a 401 response. Default: ``NEXUSFLOW_API_KEY``, also read again
    after a 401."""

    nexusflow_api_base: str | None = Field(
        alias="base_url", default_factory=lambda: os.environ.get("NEXUSFLOW_BASE_URL") or None
    )
    """Root of the API. Default: ``NEXUSFLOW_BASE_URL``, else the service's root."""

    chunk_size: int = Field(
        default=BATCH_SIZE, ge=1, validation_alias=AliasChoices("chunk_size", "batch_size")
    )
    """Texts per request. ``text-embedding-v4`` accepts at most 10, so a larger value means 10."""

    max_concurrency: int = DEFAULT_MAX_CONCURRENCY
    """Maximum number of requests in flight."""

    request_timeout: float = Field(default=60.0, alias="timeout")
    """Seconds for one attempt, from connecting to the last byte."""

    deadline: float | None = None
    """Seconds for a whole call, including its retries."""

    query_timeout: float | None = None
    """Seconds for one attempt at a query; ``None`` means ``timeout``."""

    query_deadline: float | None = None
    """Seconds for a whole query, including its retries; ``None`` means ``deadline``."""

    max_retries: int = 6
    """Retries of a batch after faults and throttling."""

    requests_per_minute: float | None = None
    """The account's limit on requests; ``None`` detects the limit."""

    tokens_per_minute: float | None = None
    """The account's limit on tokens; ``None`` detects the limit."""

    on_too_long: OnTooLong = "error"
    """What to do with a text that has more tokens than the model accepts: ``"error"``, ``"split"``
    (embed it in pieces and take the mean, as ``OpenAIEmbeddings`` does), ``"truncate"`` or
    ``"send"``."""

    max_text_tokens: int | None = None
    """Maximum number of tokens of a text; ``None`` is the known limit of the model."""

    pacer: Any = Field(default=None, exclude=True, repr=False)
    """Limits shared with other processes or hosts, instead of the two limits above: a
    ``RedisLimits``, a ``ClusterLimits`` or a similar object. ``dumps`` leaves the pacer out."""

    encoding_format: EncodingFormat = "base64"
    """The format to request from the server."""

    query_instruction: str | None = None
    """Text prepended verbatim to each query. The documentation of the model's family
    (Qwen3-Embedding) recommends the form ``"Instruct: Given a question, retrieve passages that
    answer it\\nQuery: "``."""

    document_instruction: str | None = None
    """Text prepended verbatim to each document. The documentation of the model's family recommends
    using none."""

    extra_body: dict[str, Any] | None = None
    """Fields added to the body of each request. Do not put secrets in them: ``dumps`` writes
    them."""

    default_query: dict[str, Any] | None = None
    """Parameters added to the query string of each request's URL; ``dumps`` writes them, too."""

    budget: _Budget = None
    """The most that this object may spend, or a budget shared with other processes: a
    ``ClusterLimits`` or a similar object, which ``loads`` refuses."""

    price: Price | None = None
    """The price that ``usage`` is calculated with."""

    on_usage: Callable[[Usage], object] | None = Field(default=None, exclude=True, repr=False)
    """Called with the ``Usage`` of each call."""

    cache: bool | str | Path | RedisAddress | None = None
    """A file that stores every vector, ``True`` for a file in the user's cache folder, or the URL
    of a Redis server, whose password is left out of ``repr``, ``dumps`` and pickles."""

    derive: bool = False
    """Make vectors of size ``dimensions`` by shortening larger ones in ``cache``, if the service's
    smaller vectors are the beginning of its larger ones; see ``NexusFlow``."""

    rate_limiter: BaseRateLimiter | None = Field(default=None, exclude=True, repr=False)
    """A LangChain rate limiter, which may be shared with chat models.

    The limiter is acquired once for each batch of documents and each query, right before the
    request is sent. It is not acquired for texts that are cached, repeated, or in flight in another
    call, nor for retries. It is called in the caller's thread or event loop; a sync call with a
    ``deadline`` calls it in a separate thread, so that the deadline holds. If the limiter raises an
    error, nothing more is sent, and the error's ``finished`` holds the vectors that were paid
    for."""

    show_progress_bar: bool = False
    """Show a tqdm bar while documents are embedded."""

    trace_texts: bool = False
    """Whether LangSmith runs include the texts. They never include vectors."""

    default_headers: Headers | Mapping[str, str] | None = Field(
        default=None, exclude=True, repr=False
    )
    """Headers that are sent with every request. They may hold secrets, so ``dumps`` leaves them
    out."""

    http_client: Any = Field(default=None, exclude=True, repr=False)
    """An ``httpx.Client`` (or the client of httpx2) for sync calls; this object never closes it."""

    http_async_client: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        validation_alias=AliasChoices("http_async_client", "async_http_client"),
    )
    """An ``httpx.AsyncClient`` for async calls; this object never closes it."""

    allow_http: bool = False
    """Allow plain http to hosts other than loopback."""

    _client: NexusFlow | None = PrivateAttr(default=None)
    _unpickled: bool = PrivateAttr(default=False)
    _held: tuple[Mapping[str, Vectors], ...] = PrivateAttr(default=())

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[_Given]) -> None: ...

    else:

        @secret_arguments
        def __init__(self, **settings: Any) -> None:
            settings = _once_each(settings)
            names = {_FIELDS[name]: name for name in settings if name in _FIELDS}
            if "batch_size" not in settings:
                names["batch_size"] = "chunk_size"
            for name in settings.keys() & NAMES.keys():
                settings[NAMES[name]] = settings.pop(name)
            note = take_over(settings)
            with checks.named(names):
                for name in settings.keys() & _HIDDEN.keys():
                    if settings[name] is not None or "timeout" in name:
                        settings[name] = _HIDDEN[name](settings[name])
            most = texts_per_request(settings.get("model", DEFAULT_MODEL), None)
            if most != BATCH_SIZE and "batch_size" not in settings:
                settings.setdefault("chunk_size", most)
            problem = None
            try:
                super().__init__(**settings)
            except ValidationError as error:
                problem = _without_inputs(error)
            if problem is not None:
                raise problem
            with checks.named(names):
                self._client = self._new_client()  # raises an error if a setting is invalid
            if note:
                _note(note)

    # -- embedding -----------------------------------------------------------------------------

    def embed_documents(
        self,
        texts: list[str],
        chunk_size: int | None = None,
        *,
        dimensions: int | None = None,
    ) -> list[list[float]]:
        """Embed ``texts``; ``chunk_size`` and ``dimensions`` override the settings for this call.

        Returns:
            One list of d floats per text, in order; ``[]`` for no texts.

        Raises:
            InvalidInputError: ``texts`` is not a list of texts; the error names the wrong item.
                Nothing was sent.
            NexusFlowError: Any other failure. All errors are also LangChain's ``ModelError``.
        """
        with ALSO_LANGCHAINS:
            texts = check_texts(texts)
            if self._held and dimensions is None and (rows := self._rows_held(texts)) is not None:
                return rows
            with self._run("document", texts) as done, self._bar(len(texts)) as progress:
                try:
                    vectors: Any = self.client._embed(
                        texts,
                        progress=progress,
                        hooks=self._hooks(),
                        batch_size=self._batch_size(chunk_size),
                        dimensions=dimensions,
                        lists=True,
                    )
                except NexusFlowError as error:
                    _record({texts[place]: row for place, row in error.finished.items()})
                    raise
                if _recorded.get() is not None and dimensions is None:
                    _record(dict(zip(texts, vectors, strict=True)))
                done(vectors)
            return cast("list[list[float]]", vectors.tolist())

    async def aembed_documents(
        self,
        texts: list[str],
        chunk_size: int | None = None,
        *,
        dimensions: int | None = None,
    ) -> list[list[float]]:
        """Embed like ``embed_documents``, without blocking the event loop."""
        with ALSO_LANGCHAINS:
            texts = check_texts(texts)
            if self._held and dimensions is None and (rows := self._rows_held(texts)) is not None:
                return rows
            with self._run("document", texts) as done, self._bar(len(texts)) as progress:
                try:
                    vectors: Any = await self.client._aembed(
                        texts,
                        progress=progress,
                        hooks=self._ahooks(),
                        batch_size=self._batch_size(chunk_size),
                        dimensions=dimensions,
                        lists=True,
                    )
                except NexusFlowError as error:
                    _record({texts[place]: row for place, row in error.finished.items()})
                    raise
                if _recorded.get() is not None and dimensions is None:
                    _record(dict(zip(texts, vectors, strict=True)))
                done(vectors)
            return cast("list[list[float]]", vectors.tolist())

    def embed_query(self, text: str, *, dimensions: int | None = None) -> list[float]:
        """Embed one query; ``dimensions`` overrides the setting for this call.

        Returns:
            A list of d floats.

        Raises:
            InvalidInputError: The text cannot be sent.
            NexusFlowError: Any other failure. All errors are also LangChain's ``ModelError``.
        """
        with ALSO_LANGCHAINS:
            check_text(text)
            with self._run("query", [text]) as done:
                vector: Any = self.client._embed(
                    text, role="query", hooks=self._hooks(), dimensions=dimensions
                )
                done(vector)
            return cast("list[float]", vector.tolist())

    async def aembed_query(self, text: str, *, dimensions: int | None = None) -> list[float]:
        """Embed like ``embed_query``, without blocking the event loop."""
        with ALSO_LANGCHAINS:
            check_text(text)
            with self._run("query", [text]) as done:
                vector: Any = await self.client._aembed(
                    text, role="query", hooks=self._ahooks(), dimensions=dimensions
                )
                done(vector)
            return cast("list[float]", vector.tolist())

    # -- for users -----------------------------------------------------------------------------

    @property
    def client(self) -> NexusFlow:
        """The underlying client, for its other methods (``estimate``, ``embed_stream``)."""
        if self._client is None:  # unpickled
            with _building.mutex:
                self._client = self._client or self._new_client()
        return self._client

    @property
    def usage(self) -> Usage:
        """The tokens, requests and cost of all calls of this object so far."""
        return self.client.usage

    @property
    def cache_namespace(self) -> str:
        """A ``namespace`` for ``CacheBackedEmbeddings`` that holds these vectors and no others.

        The name depends on everything that changes a vector, including size and endpoint, and every
        byte store accepts it. With a ``query_instruction``, use a separate
        ``query_embedding_cache``: the namespace does not distinguish queries from documents.
        """
        parts = [self.client.base_url, self.model, self.dimensions, self.query_instruction]
        parts += filter(None, (self.document_instruction, self.client.settings.added))
        if self.on_too_long in ("split", "truncate"):
            parts.append(f"{self.on_too_long} {self.client.settings.token_limit}")
        digest = hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()[:16]
        model = re.sub(r"[^A-Za-z0-9_.-]", "-", self.model)
        return f"{model}-{self.dimensions or 'default'}-{digest}-"

    # -- copies --------------------------------------------------------------------------------

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether ``dumps`` may write this object, which it does without the key."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What ``dumps`` writes instead of the key."""
        return {"nexusflow_api_key": "NEXUSFLOW_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Settings that JSON cannot hold, as constructor arguments that it can."""
        attributes: dict[str, Any] = {
            name: asdict(value)
            for name, value in (("budget", self.budget), ("price", self.price))
            if isinstance(value, (Budget, Price))
        }
        if isinstance(self.cache, (Path, RedisAddress)):
            attributes["cache"] = str(self.cache)
        return attributes

    @secret_arguments
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; with ``update``, return a new, validated object.

        Copies, also deep ones, share http clients and the rate limiter.
        """
        if update:
            changed = {_FIELD_OF.get(name, name): value for name, value in update.items()}
            twin = type(self)(**{**dict(self), **changed})
            if not changed.keys() & _ACCOUNT:
                twin.client._succeed(self.client)  # share the budget instead of copying it
            return twin
        twin = super().model_copy()
        twin._held = ()
        if deep:
            twin._client = copy.copy(self.client)
        return twin

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy(deep=True)

    def __getstate__(self) -> dict[Any, Any]:
        # Leave out the key and the objects that belong to this process.
        state = super().__getstate__()
        limiter = self.rate_limiter
        if limiter is not None and not _travels(limiter):
            logger.warning(
                "a NexusFlowEmbeddings is pickled without its rate_limiter, a %s, which"
                " cannot be pickled: set limits with requests_per_minute or pacer",
                type(limiter).__name__,
            )
            state["__dict__"] = {**state["__dict__"], "rate_limiter": None}
        gone = dict.fromkeys(("nexusflow_api_key", "on_usage", "http_client", "http_async_client"))
        state["__dict__"] = {**state["__dict__"], **gone}
        state["__pydantic_private__"] = {"_client": None, "_held": (), "_unpickled": True}
        return state

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("_"):
                    raise
            raise missing(self, name)

    def __hash__(self) -> int:
        return hash((type(self), self.model, self.dimensions))

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """Return the JSON schema; fields that JSON cannot hold, such as clients, accept anything.

        The arguments are Pydantic's.
        """
        return super().model_json_schema(*args, **{"schema_generator": _Schema, **options})

    # -- internal ------------------------------------------------------------------------------

    def _rows_held(self, texts: list[str]) -> list[list[float]] | None:
        """Return the vectors of ``texts`` if all of them are known."""
        held = ChainMap(*cast("Any", self._held))
        if any(text not in held for text in texts):
            return None
        return [held[text].tolist() for text in texts]

    @contextmanager
    def _holding(self, *vectors: Mapping[str, Vectors]) -> Iterator[None]:
        """In the block, let ``embed_documents`` return ``vectors`` for the texts they belong to.

        This holds in every thread, because a vector store may embed its documents in any thread.
        All callers get the same vector for a text.
        """
        with _holders.mutex:
            self._held += vectors
        try:
            yield
        finally:
            with _holders.mutex:
                kept = [held for held in self._held if all(held is not one for one in vectors)]
                self._held = tuple(kept)

    def _new_client(self) -> NexusFlow:
        settings = {
            field.alias or name: getattr(self, name)
            for name, field in NexusFlowEmbeddings.model_fields.items()
            if name not in _NOT_THE_CORES
        }
        settings["async_http_client"] = settings.pop("http_async_client")
        key = self.nexusflow_api_key
        if isinstance(key, SecretStr) and key.get_secret_value() == os.environ.get(KEY_VARIABLE):
            settings["api_key"] = EnvironmentKey(first=resolve_api_key(key))
        elif key is None and self._unpickled:
            settings["api_key"] = EnvironmentKey(unpickled=type(self).__name__)
        return NexusFlow(**settings, batch_size=self._batch_size(None))

    def _batch_size(self, chunk_size: int | None) -> int:
        if chunk_size is not None:
            chunk_size = checks.whole("chunk_size", chunk_size, 1)
        return texts_per_request(self.model, chunk_size or self.chunk_size)

    def _hooks(self) -> Hooks:
        limiter = self.rate_limiter
        if limiter is None:
            return NO_HOOKS
        return Hooks(permit=lambda _: limiter.acquire(blocking=True))

    def _ahooks(self) -> Hooks:
        limiter = self.rate_limiter
        if limiter is None:
            return NO_HOOKS
        return Hooks(permit=lambda _: limiter.aacquire(blocking=True))

    @contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[int], object] | None]:
        if not self.show_progress_bar or not total:
            yield None
            return
        with forks.importing():  # the first bar imports tqdm
            try:
                tqdm = importlib.import_module("tqdm.auto").tqdm
            except ImportError as error:
                raise ImportError("show_progress_bar=True needs tqdm: pip install tqdm") from error
            made = tqdm(total=total, desc="Embedding", unit="text")
        with made as bar:
            yield bar.update

    def _run(
        self, role: Role, texts: list[str]
    ) -> AbstractContextManager[Callable[[EmbeddingArray], None]]:
        """Report the call to LangSmith as a run if tracing is on."""
        return self._traced(role, texts) if texts and _is_traced() else _UNTRACED

    @contextmanager
    def _traced(self, role: Role, texts: list[str]) -> Iterator[Callable[[EmbeddingArray], None]]:
        with forks.importing():
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


# -- the rest --------------------------------------------------------------------------------------


_TRACING = [f"LANG{who}_TRACING{v}" for who in ("SMITH", "CHAIN") for v in ("", "_V2")]


def _is_traced() -> bool:
    # Do not import LangSmith to find out: that takes longer than a query. Tracing is off unless
    # LangSmith is already imported or the environment turns tracing on.
    if "langsmith.run_helpers" not in sys.modules and not any(map(os.environ.get, _TRACING)):
        return False
    with forks.importing():
        from langsmith.utils import tracing_is_enabled

    return bool(tracing_is_enabled())


def _record(vectors: Mapping[str, Vectors]) -> None:
    if (recorded := _recorded.get()) is not None:
        recorded.update(vectors)


def _note(note: str) -> None:
    global _noted
    if not _noted:
        _noted = True
        warnings.warn(f"NexusFlowEmbeddings {note}", stacklevel=4)


def _travels(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - a user's object may raise anything
        return False
    return True


def _said(line: Mapping[str, Any]) -> str:
    hint = ""
    if line["type"] == "extra_forbidden":
        fields = NexusFlowEmbeddings.model_fields
        names = [*fields, *(field.alias for field in fields.values() if field.alias), *_FIELDS]
        hint = checks.did_you_mean(str(line["loc"][-1]), names)
    return f"{line['msg']}{hint}"


def _without_inputs(error: ValidationError) -> ValidationError:
    """Return the same error without the input values, because one of them may be the key."""
    lines = [
        InitErrorDetails(
            type=PydanticCustomError(cast("Any", line["type"]), "{text}", {"text": _said(line)}),
            loc=line["loc"],
            input=None,
        )
        for line in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return ValidationError.from_exception_data(error.title, lines, hide_input=True)


_UNTRACED: AbstractContextManager[Callable[[EmbeddingArray], None]] = nullcontext(lambda _: None)
