"""``NexusFlowEmbedding``: NexusFlow as an embedding model of LlamaIndex.

    from llama_index.core import Settings
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

    Settings.embed_model = NexusFlowEmbedding(dimensions=1024)

Sync and async calls keep many requests of at most 10 texts in flight. The results are in the order
of the input. Vectors are lists of Python floats, as LlamaIndex expects.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from inspect import signature
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nexusflow_integrations._core.call.results import EmbeddingArray, EmbeddingList
from nexusflow_integrations._core.checks import has_methods, known_arguments, named, refuse, whole
from nexusflow_integrations._core.key_sources import FunctionKey, key_source
from nexusflow_integrations._core.models import DEFAULT_MODEL, texts_per_request
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.other_frameworks import missing
from nexusflow_integrations._core.redis.address import RedisAddress, address_or_path
from nexusflow_integrations._core.request.tokens import estimate_tokens
from nexusflow_integrations._core.secret import Headers, secret_arguments
from nexusflow_integrations._core.settings import (
    BATCH_SIZE,
    DEFAULT_MAX_CONCURRENCY,
    EncodingFormat,
    OnTooLong,
    Role,
    plain_timeout,
    resolve_api_key,
    resolve_base_url,
)
from nexusflow_integrations._core.texts import check_text, check_texts, rows_of
from nexusflow_integrations._core.usage import Budget, Price, Usage
from nexusflow_integrations.client import ClientSettings, NexusFlow
from nexusflow_integrations.errors import ConfigurationError, NexusFlowError

with needed(
    "nexusflow_integrations.llama_index",
    "llama_index",
    install="nexusflow-integrations[llama-index]",
):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import (
        ConfigDict,
        Field,
        PrivateAttr,
        SecretStr,
        model_serializer,
    )
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.schema import BaseNode, MetadataMode
    from pydantic.json_schema import GenerateJsonSchema

    from nexusflow_integrations.llama_index.events import Events
    from nexusflow_integrations.llama_index.naming import check_nodes, naming_nodes, naming_texts
    from nexusflow_integrations.llama_index.steps import Step, Steps, adrive, drive
    from nexusflow_integrations.llama_index.stored import Rows, Store, Vector
    from nexusflow_integrations.llama_index.work import Work

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nexusflow_integrations._core.shared_budget import SharedBudget

    _Budget = Budget | SharedBudget | None

    class _Given(ClientSettings, total=False):
        """The constructor's arguments, for type checkers."""

        api_key: Any
        model_name: str
        api_base: str | None
        dimensions: int | None
        embed_batch_size: int
        num_workers: int | None
        callback_manager: Any
        embeddings_cache: Any
        rate_limiter: Any

else:
    _Budget = Any  # the client checks the value

__all__ = ["NexusFlowEmbedding"]

_PAYER = ("budget", "price", "api_key", "base_url")
"""If one of these fields changes, ``usage`` starts at zero again."""

_DUCKS = (
    ("rate_limiter", ("acquire", "async_acquire"), "rate limiter"),
    ("callback_manager", ("on_event_start", "on_event_end"), "CallbackManager"),
)
"""The methods that are called on the objects in fields that LlamaIndex does not check."""
_SELDOM = {
    **dict.fromkeys(("document_instruction", "extra_body", "default_query", "max_text_tokens")),
    "on_too_long": "error",
}
"""Defaults of fields that ``to_dict`` includes only if they differ."""
_PLAIN = (
    *("embed_batch_size", "num_workers", "max_concurrency", "timeout", "deadline"),
    *("query_timeout", "query_deadline", "max_retries", "requests_per_minute"),
    *("tokens_per_minute", "encoding_format", "derive", "allow_http"),
)
"""Fields that change no vector and are numbers, texts or flags."""
_WORKFLOW_STATE = ("workflows.context.serializers", "llama_index.core.workflow.context_serializers")
"""Modules that write the state of a workflow. They call the same ``to_dict`` as all others."""
_ALIASES = {"model": "model_name", "base_url": "api_base"}
_spent: ContextVar[Usage | None] = ContextVar("nexusflow_spent", default=None)
"""Usage of the last hook called in this thread or task: LlamaIndex's hooks return only vectors."""


class _Schema(GenerateJsonSchema):
    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


class NexusFlowEmbedding(BaseEmbedding):
    """NexusFlow embeddings for LlamaIndex.

    Creating an object is cheap: it opens no connection, and reads the key only when a request needs
    it. One object serves any number of threads and event loops. Fields may be changed later. The
    next call then uses a new ``client``, which continues the budget and the ``usage`` of the former
    client unless ``budget``, ``price``, ``api_key`` or ``api_base`` changed.

    ``to_dict`` contains only what changes a vector (``model_name``, ``api_base``, ``dimensions``,
    ``query_instruction``, ``document_instruction``, ``extra_body``, ``default_query``). So the
    cache of an ``IngestionPipeline`` stays valid after a change of key, timeout or batch size, but
    not after a change of size or model. The key is never in a dict, a repr or a pickle: a worker
    process reads ``NEXUSFLOW_API_KEY`` from its environment.

    In a worker process (``IngestionPipeline.run(num_workers=...)``) an object with a ``budget``, or
    with limits and no ``cache``, raises ``ConfigurationError``: each worker would count them
    separately. The ``usage`` of the original object does not include what workers send.

    Args:
        model_name: Name of the model; ``model`` is accepted too.
        api_key: The key, as text or ``SecretStr``, or a sync or async function that returns the
            key. The function is called when a key is first needed, and again after a 401 response.
            Default: ``NEXUSFLOW_API_KEY``, also read again after a 401.
        api_base: Root of the API; ``base_url`` is accepted too. Default: ``NEXUSFLOW_BASE_URL``,
            otherwise https://nexusflow.vip/v1.
        dimensions: Size of the vectors: 2048, 1536, 1024, 768, 512, 256, 128 or 64; ``None`` is the
            server's default.
        query_instruction: Text prepended verbatim to each query, not to documents; none by default.
            The documentation of the model's family (Qwen3-Embedding) recommends the form
            ``"Instruct: Given a question, retrieve passages that answer it\\nQuery: "``.
        document_instruction: Text prepended verbatim to each document, not to queries. The
            documentation of the model's family recommends using none.
        on_too_long: What to do with a text that has more tokens than the model accepts. ``"error"``
            raises an ``InvalidInputError`` before anything is sent, if the estimate exceeds
            1.4 times the limit. ``"split"`` embeds the text in pieces; its vector is the mean of
            the pieces' vectors, weighted by tokens and scaled to unit length. ``"truncate"`` cuts
            the text at the limit. ``"send"`` sends the text unchanged; the service may refuse or
            silently truncate it.
        max_text_tokens: Maximum tokens of a text; ``None`` is the known limit of the model (8,192
            for ``text-embedding-v4``).
        extra_body: Fields added to the body of each request. ``to_dict`` includes the fields: do
            not put secrets in them.
        default_query: Parameters added to the query string of each request's URL; ``to_dict``
            includes them, too.
        embed_batch_size: Texts per request, from 1 to 2048; a batch larger than the model's limit
            of 10 is split into several requests.
        num_workers: Maximum number of requests in flight per call, sync or async; ``None`` means
            ``max_concurrency``.
        max_concurrency: Maximum number of requests in flight, over all calls to the same account.
        callback_manager: Notified of the start and the end of every request.
        embeddings_cache: A LlamaIndex key-value store of vectors. The keys are hashes of everything
            that changes a vector, so one store serves several models, sizes and instructions. The
            store is read and written while requests are in flight. If the store fails, the failure
            is logged once and the call goes on without the store.
        rate_limiter: A LlamaIndex rate limiter. It is acquired once for each batch that is sent,
            but not for cached texts; if it limits tokens, it gets the estimated tokens.
            ``deadline`` includes the wait. If the limiter raises an error, the error's ``finished``
            holds the vectors that were paid for.
        timeout: Seconds for one attempt, from connecting to the last byte.
        deadline: Seconds for a whole call including its retries; with ``None``, only ``timeout``
            and ``max_retries`` limit a call.
        query_timeout: Seconds for one attempt at a query; ``None`` means ``timeout``. Set it if
            users wait for answers: they have less patience than a batch job.
        query_deadline: Seconds for a whole query including its retries; ``None`` means
            ``deadline``.
        max_retries: Retries of a request after faults and throttling.
        requests_per_minute: The account's limit on requests; ``None`` detects the limit.
        tokens_per_minute: The account's limit on tokens; ``None`` detects the limit.
        pacer: Limits shared with other processes or hosts, instead of the two limits above: a
            ``RedisLimits``, a ``ClusterLimits`` or a similar object.
        encoding_format: Format to request: ``base64``, which takes a quarter of the bytes, or
            ``float``.
        cache: Path of this package's own cache file, ``True`` for a file in the user's cache
            folder, or the URL of a Redis server; see ``NexusFlow``.
        derive: Make vectors of size ``dimensions`` by shortening larger ones in ``cache``, if the
            service's smaller vectors are the beginning of its larger ones; see ``NexusFlow``.
        budget: The most that may be spent, as a ``Budget``; or a budget shared with other
            processes: a ``ClusterLimits`` or a similar object.
        price: The price that ``usage`` is calculated with; by default, the list price of the
            API.
        on_usage: Called with the ``Usage`` of each call.
        default_headers: Headers that are sent with every request.
        http_client: An ``httpx.Client`` to use for sync calls; this object never closes it.
        async_http_client: An ``httpx.AsyncClient`` to use for async calls; this object never closes
            it.
        allow_http: Allow plain http to hosts other than loopback.

    Raises:
        ConfigurationError: A setting is invalid.
        TypeError: An argument has an unknown name.
        pydantic.ValidationError: A value has the wrong type.
    """

    model_config = ConfigDict(
        protected_namespaces=("pydantic_model_",),
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,  # the input may be a header
    )

    model_name: str = DEFAULT_MODEL
    api_base: str | None = None
    dimensions: int | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    extra_body: dict[str, Any] | None = None
    default_query: dict[str, Any] | None = None
    on_too_long: OnTooLong = "error"
    max_text_tokens: int | None = None

    # The fields below do not change vectors, so to_dict leaves them out.
    embed_batch_size: int = Field(default=BATCH_SIZE, gt=0, le=2048, exclude=True)
    num_workers: int | None = Field(default=None, exclude=True)
    embeddings_cache: Any | None = Field(default=None, exclude=True, repr=False)
    max_concurrency: int = Field(default=DEFAULT_MAX_CONCURRENCY, exclude=True)
    timeout: float = Field(default=60.0, exclude=True)
    deadline: float | None = Field(default=None, exclude=True)
    query_timeout: float | None = Field(default=None, exclude=True)
    query_deadline: float | None = Field(default=None, exclude=True)
    max_retries: int = Field(default=6, exclude=True)
    requests_per_minute: float | None = Field(default=None, exclude=True)
    tokens_per_minute: float | None = Field(default=None, exclude=True)
    encoding_format: EncodingFormat = Field(default="base64", exclude=True)
    cache: bool | str | os.PathLike[str] | RedisAddress | None = Field(
        default=None, exclude=True, repr=False
    )
    derive: bool = Field(default=False, exclude=True)
    allow_http: bool = Field(default=False, exclude=True, repr=False)
    api_key: Any = Field(default=None, exclude=True, repr=False)
    pacer: Any = Field(default=None, exclude=True, repr=False)
    budget: _Budget = Field(default=None, exclude=True, repr=False)
    price: Price | None = Field(default=None, exclude=True, repr=False)
    on_usage: Callable[[Usage], object] | None = Field(default=None, exclude=True, repr=False)
    default_headers: Headers | dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    http_client: Any = Field(default=None, exclude=True, repr=False)
    async_http_client: Any = Field(default=None, exclude=True, repr=False)

    _made: bool = PrivateAttr(default=False)
    _built: tuple[dict[str, Any], NexusFlow] | None = PrivateAttr(default=None)
    _pickled_in: int | None = PrivateAttr(default=None)
    _left_out: list[str] = PrivateAttr(default_factory=list)
    _store_fails: bool = PrivateAttr(default=False)

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[_Given]) -> None: ...

    else:

        @secret_arguments
        def __init__(self, **given: Any) -> None:
            written = {field: alias for alias, field in _ALIASES.items() if alias in given}
            given = _named(type(self), given)
            most = texts_per_request(given.get("model_name", DEFAULT_MODEL), None)
            if most != BATCH_SIZE:
                given.setdefault("embed_batch_size", most)
            with named(written), named({"base_url": "api_base"}):
                super().__init__(**{name: _hidden(name, value) for name, value in given.items()})
                if self.num_workers is not None:
                    whole("num_workers", self.num_workers, 0, 1 << 20)
                # Read the environment now, because the vectors depend on the endpoint.
                self.api_base = resolve_base_url(self.api_base, allow_http=self.allow_http)
                self._core()  # raises an error if a setting is invalid
            self._made = True

        @secret_arguments
        def __setattr__(self, name: str, value: Any) -> None:
            if not getattr(self, "_made", False) or name not in type(self).model_fields:
                super().__setattr__(name, _hidden(name, value))
                return
            before = getattr(self, name)
            super().__setattr__(name, _hidden(name, value))
            try:
                _check_objects({name: value})
                with named(_ALIASES):
                    NexusFlow(**self._settings())
            except ConfigurationError:
                super().__setattr__(name, before)
                raise

    @classmethod
    def class_name(cls) -> str:
        return "NexusFlowEmbedding"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("_"):
                    raise
            raise missing(self, name)

    def __hash__(self) -> int:
        return hash(type(self))  # the fields may change, and equal objects must have equal hashes

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """Return the JSON schema; fields that JSON cannot hold, such as clients, accept anything.

        The arguments are Pydantic's.
        """
        return super().model_json_schema(*args, **{"schema_generator": _Schema, **options})

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: Any, info: Any) -> dict[str, Any]:
        """Leave out fields that were not given, so that new settings do not change old hashes."""
        plain = {**handler(self), "class_name": self.class_name()}
        return {
            name: value
            for name, value in plain.items()
            if name not in _SELDOM or value not in (_SELDOM[name], {})
        }

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what changes a vector; for the state of a workflow, return the limits as well.

        Raises:
            ConfigurationError: The state of a workflow is written as JSON, and JSON cannot hold the
                budget or pacer.
        """
        plain = super().to_dict(**kwargs)
        return plain | self._process_settings() if writes_workflow_state() else plain

    def _process_settings(self) -> dict[str, Any]:
        """Return the fields that change no vector, as JSON."""
        for name in ("budget", "pacer"):
            if getattr(self, name) is not None:
                raise ConfigurationError(
                    f"the state of a workflow cannot hold the {name} of a NexusFlowEmbedding as"
                    " JSON: create the model in the step that uses it, or use a PickleSerializer"
                )
        fields = type(self).model_fields
        settings = {name: getattr(self, name) for name in _PLAIN}
        settings["cache"] = self.cache if isinstance(self.cache, bool) else None
        if settings["cache"] is None and self.cache is not None:
            settings["cache"] = str(self.cache)  # text without the password of a Redis server
        return {name: value for name, value in settings.items() if value != fields[name].default}

    def to_payload(self) -> dict[str, Any]:
        """Return the fields that events and callbacks may see: no key, no headers, no URL."""
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
            "dimensions": self.dimensions,
        }

    @property
    def client(self) -> NexusFlow:
        """The underlying client, for its methods ``embed``, ``estimate`` and ``embed_stream``."""
        return self._core()

    @property
    def usage(self) -> Usage:
        """The usage so far of this object and of its copies in this process.

        The API counts the tokens. An unpickled object starts at zero.
        """
        return self._core().usage

    def _core(self) -> NexusFlow:
        if self._pickled_in is not None:
            self._check_worker(self._pickled_in)
        settings = self._settings()
        built = self._built
        if built is None or built[0] != settings:
            with named(_ALIASES):
                client = NexusFlow(**settings)
            if built is not None and all(built[0][name] == settings[name] for name in _PAYER):
                client._succeed(built[1])
            self._built = built = settings, client
        return built[1]

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the client for the current fields."""
        settings = {name: getattr(self, name) for name in _SHARED}
        settings["model"] = self.model_name
        settings["base_url"] = self.api_base
        with named({"batch_size": "embed_batch_size"}):
            size = whole("batch_size", self.embed_batch_size, 1, 2048)
        settings["batch_size"] = texts_per_request(self.model_name, size)
        if self.num_workers:
            most = whole("max_concurrency", self.max_concurrency, 1, 1024)
            settings["max_concurrency"] = min(whole("num_workers", self.num_workers, 0), most)
        return settings

    def _check_worker(self, pickled_in: int) -> None:
        """Refuse settings that would mean something else in a worker process.

        Raises:
            ConfigurationError: There is no key, or a budget or limit would apply to each worker
                separately.
        """
        if self.api_key is None and not os.environ.get("NEXUSFLOW_API_KEY"):
            raise ConfigurationError(
                "no API key in this process: a NexusFlowEmbedding is pickled without its key,"
                " so set the environment variable NEXUSFLOW_API_KEY for worker processes"
            )
        for name in self._left_out:
            if name in ("budget", "pacer") and getattr(self, name) is None:
                raise ConfigurationError(
                    f"this object was pickled without its {name}, which cannot be pickled;"
                    f" nothing is sent until you set {name} here"
                )
        if multiprocessing.parent_process() is None and os.getppid() != pickled_in:
            return  # the pickle may have been read from a file
        if isinstance(self.budget, Budget):
            raise ConfigurationError(
                "this is a worker process, and each worker would spend the whole budget: embed in"
                " one process, which keeps many requests in flight, or leave out the budget"
            )
        if (self.requests_per_minute or self.tokens_per_minute) and not self.cache:
            raise ConfigurationError(
                "this is a worker process, and each worker would send as fast as the limits allow:"
                " embed in one process, or set cache=, through which workers share the limits"
            )

    # -- the six hooks: each calls the client once, which sends parallel requests -----------------

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
        """Embed a query, with ``query_instruction`` before it; return d floats.

        Raises:
            InvalidInputError: The text cannot be sent.
            NexusFlowError: Any other failure.
        """
        if self._overrides("_get_query_embedding"):
            return drive(self._by_hook(query, "query", "_get_query_embedding"))
        return self._embed(check_text(query), "query")[0]

    async def aget_query_embedding(self, query: str) -> Vector:
        """Embed a query like ``get_query_embedding``, without blocking the event loop."""
        if self._overrides("_aget_query_embedding"):
            return await adrive(self._by_hook(query, "query", "_aget_query_embedding"))
        return (await self._aembed(check_text(query), "query"))[0]

    def get_text_embedding(self, text: str) -> Vector:
        """Embed a document; return d floats.

        Raises:
            InvalidInputError: The text cannot be sent.
            NexusFlowError: Any other failure.
        """
        if self._overrides("_get_text_embedding"):
            return drive(self._by_hook(text, "document", "_get_text_embedding"))
        return self._embed(check_text(text), "document")[0]

    async def aget_text_embedding(self, text: str) -> Vector:
        """Embed a document like ``get_text_embedding``, without blocking the event loop."""
        if self._overrides("_aget_text_embedding"):
            return await adrive(self._by_hook(text, "document", "_aget_text_embedding"))
        return (await self._aembed(check_text(text), "document"))[0]

    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        *,
        dimensions: int | None = None,
        **kwargs: Any,
    ) -> list[Vector]:
        """Embed documents with parallel requests; return n lists of d floats, in order.

        ``dimensions`` overrides the setting for this call. Equal texts are sent once. After a
        failure, nothing more is sent, and requests in flight get a few seconds to finish. All
        finished vectors are in the ``embeddings_cache``, if there is one, and in the error's
        ``finished``.

        Raises:
            InvalidInputError: A text cannot be sent. Nothing was sent.
            RefusedTextsError: The server refused some texts; the others are in ``finished``.
            NexusFlowError: Any other failure.
        """
        if (resized := self._resized(dimensions)) is not None:
            return resized.get_text_embedding_batch(texts, show_progress, **kwargs)
        texts = list(rows_of(texts))
        if self._overrides("_get_text_embeddings"):
            return super().get_text_embedding_batch(texts, show_progress, **kwargs)
        with naming_texts(texts):
            return self._embed(check_texts(texts), "document", show_progress)

    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        *,
        dimensions: int | None = None,
        **kwargs: Any,
    ) -> list[Vector]:
        """Embed documents like ``get_text_embedding_batch``, without blocking the event loop."""
        if (resized := self._resized(dimensions)) is not None:
            return await resized.aget_text_embedding_batch(texts, show_progress, **kwargs)
        texts = list(rows_of(texts))
        if self._overrides("_aget_text_embeddings"):
            return await super().aget_text_embedding_batch(texts, show_progress, **kwargs)
        with naming_texts(texts):
            return await self._aembed(check_texts(texts), "document", show_progress)

    def __call__(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> Sequence[BaseNode]:
        """Embed ``nodes`` as a step of an ``IngestionPipeline``; errors name node and document."""
        self._check_one_size(kwargs)
        if self._overrides("get_text_embedding_batch", "_get_text_embeddings"):
            return super().__call__(nodes, show_progress=show_progress, **kwargs)
        nodes = check_nodes(nodes)
        with naming_nodes(nodes):
            return _with_vectors(nodes, self._embed(_texts_of(nodes), "document", show_progress))

    async def acall(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> Sequence[BaseNode]:
        """Embed like ``__call__``, without blocking the event loop."""
        self._check_one_size(kwargs)
        if self._overrides("aget_text_embedding_batch", "_aget_text_embeddings"):
            return await super().acall(nodes, show_progress=show_progress, **kwargs)
        nodes = check_nodes(nodes)
        with naming_nodes(nodes):
            vectors = await self._aembed(_texts_of(nodes), "document", show_progress)
            return _with_vectors(nodes, vectors)

    def _check_one_size(self, given: dict[str, Any]) -> None:
        """Refuse ``dimensions`` for a call over nodes: a pipeline caches results by ``to_dict``.

        Raises:
            ConfigurationError: ``given`` contains ``dimensions``.
        """
        if given.get("dimensions") not in (None, self.dimensions):
            raise ConfigurationError(
                "dimensions must be set on the model when it embeds nodes; only"
                " get_text_embedding_batch takes it for one call"
            )

    def _resized(self, dimensions: int | None) -> NexusFlowEmbedding | None:
        """Return a copy for vectors of another size that shares everything else, or ``None``."""
        if dimensions in (None, self.dimensions):
            return None
        return self.model_copy(update={"dimensions": dimensions})

    def _embed(
        self,
        texts: str | list[str],
        role: Role,
        show_progress: bool = False,
        count: Callable[[Usage], object] | None = None,
    ) -> list[Vector]:
        client = self._core() if count is None else self._core()._counted(count)
        if not texts and not isinstance(texts, str):
            return []
        work = Work(self, client, texts, role)
        with work.observed(show_progress) as progress:
            hooks = work.hooks(drive)
            try:
                found = client._embed(
                    texts, role=role, progress=progress, hooks=hooks, lists=work.is_quiet
                )
            except NexusFlowError as error:
                drive(work.save(error.finished))
                raise
            return drive(work.result(found))

    async def _aembed(
        self,
        texts: str | list[str],
        role: Role,
        show_progress: bool = False,
        count: Callable[[Usage], object] | None = None,
    ) -> list[Vector]:
        client = self._core() if count is None else self._core()._counted(count)
        if not texts and not isinstance(texts, str):
            return []
        work = Work(self, client, texts, role)
        with work.observed(show_progress) as progress:
            hooks = work.hooks(adrive)
            try:
                found = await client._aembed(
                    texts, role=role, progress=progress, hooks=hooks, lists=work.is_quiet
                )
            except NexusFlowError as error:
                await adrive(work.save(error.finished))
                raise
            return await adrive(work.result(found))

    # -- subclasses with their own hooks -----------------------------------------------------------

    def _overrides(self, *hooks: str) -> bool:
        """Return whether a subclass overrides one of ``hooks``, which must then embed the texts."""
        classes = type(self).__mro__
        own = classes[: classes.index(NexusFlowEmbedding)]
        return any(hook in vars(cls) for cls in own for hook in hooks)

    def _by_hook(self, text: str, role: Role, name: str) -> Steps[Vector]:
        check_text(text)
        hook = getattr(self, name)
        store = Store(self, role, own=True)
        known: Rows = yield store.read([text])
        if known:
            return known[0][0]
        _spent.set(None)
        yield from self._permit([text])
        with Events(self.to_payload(), self.callback_manager) as events:
            event = events.start()
            vector: Vector = yield Step(partial(hook, text), partial(hook, text))
            events.end(event, [text], [vector], _spent.get())
        yield store.write({text: vector})
        return vector

    def _get_text_embeddings_cached(self, texts: list[str]) -> list[Vector]:
        return drive(self._cached_by_hook(texts, "_get_text_embeddings"))

    async def _aget_text_embeddings_cached(self, texts: list[str]) -> list[Vector]:
        return await adrive(self._cached_by_hook(texts, "_aget_text_embeddings"))

    def _cached_by_hook(self, texts: list[str], name: str) -> Steps[list[Vector]]:
        hook = getattr(self, name)
        own = self._overrides(name)
        store = Store(self, "document", own=own)
        front = "" if own else self._core().settings.instruction("document")
        distinct = list(dict.fromkeys(texts))
        known: Rows = yield store.read([front + text for text in distinct])
        rows = {distinct[place]: row for place, (row, _) in known.items()}
        missing = [text for text in distinct if text not in rows]
        if missing:
            vectors = yield Step(partial(hook, missing), partial(hook, missing))
            new = dict(zip(missing, vectors, strict=True))
            yield store.write({front + text: row for text, row in new.items()})
            rows |= new
        return [list(rows[text]) for text in texts]

    def _permit(self, texts: Sequence[str]) -> Steps[None]:
        limiter = self.rate_limiter
        if limiter is not None:
            tokens = {}
            if most := getattr(limiter, "tokens_per_minute", None):
                # If asked for more than a minute's tokens, the limiter would wait for ever.
                tokens["num_tokens"] = min(int(most), sum(map(estimate_tokens, texts)))
            yield Step(partial(limiter.acquire, **tokens), partial(limiter.async_acquire, **tokens))

    # -- copies and pickles ------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> NexusFlowEmbedding:
        # Copies within a process share everything: key, HTTP clients, limiter, cache, budget.
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        # Pickle a copy: LlamaIndex removes what cannot be pickled from the object that it pickles.
        twin = self.__copy__()
        twin.api_key = twin._built = None
        twin._pickled_in = os.getpid()
        given = {name for name, value in vars(twin).items() if value is not None}
        state = super(NexusFlowEmbedding, twin).__getstate__()
        state["__pydantic_private__"]["_left_out"] = sorted(given - state["__dict__"].keys())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        private = state["__pydantic_private__"]
        self._pickled_in, self._left_out = private["_pickled_in"], private.get("_left_out", [])
        if self._left_out:
            warnings.warn(
                "this NexusFlowEmbedding was unpickled without its"
                f" {' and '.join(self._left_out)}: objects that belong to one process are not"
                " pickled",
                stacklevel=2,
            )


_SHARED = NexusFlowEmbedding.model_fields.keys() & signature(NexusFlow).parameters.keys()
"""Settings of the client that have the same names as fields of this class."""


def writes_workflow_state() -> bool:
    """Return whether the ``to_dict`` that calls this function is called for a workflow's state."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller.f_code.co_name == "to_dict":
        caller = caller.f_back
    return caller is not None and caller.f_globals.get("__name__") in _WORKFLOW_STATE


def _texts_of(nodes: Sequence[BaseNode]) -> list[str]:
    """Return the text to embed for each node: the metadata, then the text."""
    return check_texts([node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes])


def _with_vectors(nodes: Sequence[BaseNode], vectors: Sequence[Vector]) -> Sequence[BaseNode]:
    """Return ``nodes``, each with its ``embedding``."""
    for node, vector in zip(nodes, vectors, strict=True):
        node.embedding = vector
    return nodes


def _vector(array: EmbeddingArray) -> Vector:
    _spent.set(array.usage)
    return cast(Vector, array.tolist())


def _vectors(array: EmbeddingArray | EmbeddingList) -> list[Vector]:
    _spent.set(array.usage)
    return cast("list[Vector]", np.asarray(array).tolist())


def _hidden(name: str, value: Any) -> Any:
    """Return a field's value as the object stores it; a stored secret is never printed."""
    if value is None and name == "callback_manager":
        return CallbackManager([])  # LlamaIndex replaces None only in the constructor
    if value is None and name != "timeout":
        return None
    if name == "api_key":
        if callable(value) and isinstance(key_source(value), FunctionKey):
            return value
        return SecretStr(resolve_api_key(value).reveal())
    if name == "default_headers":
        return Headers(value)
    if name == "cache":
        return address_or_path(value)
    return plain_timeout(value) if name == "timeout" else value


def _check_objects(given: Mapping[str, Any]) -> None:
    """Raise a ``ConfigurationError`` if an object has the wrong type: LlamaIndex does not check."""
    if (store := given.get("embeddings_cache")) is not None:
        kinds = import_module("llama_index.core.storage.kvstore.types")
        if not isinstance(store, kinds.BaseKVStore):
            raise refuse("embeddings_cache", "a BaseKVStore of LlamaIndex or None", store)
    for name, methods, wanted in _DUCKS:
        value = given.get(name)
        if value is not None and not has_methods(value, *methods):
            raise refuse(name, f"a {wanted} of LlamaIndex or None", value)


def _named(cls: type[NexusFlowEmbedding], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by the names of their fields.

    Raises:
        TypeError: There is no such field. The message leaves out the value, which may be a key.
        ConfigurationError: A field is given under two names, or a value is invalid.
    """
    for alias, name in _ALIASES.items():
        if alias in given and name in given:
            raise ConfigurationError(
                f"{name} and {alias} are two names of one setting; give only one of them"
            )
        if alias in given:
            given[name] = given.pop(alias)
            if given[name] is not None and not isinstance(given[name], str):
                raise refuse(alias, "text", given[name])
    if given.get("class_name") == cls.class_name():
        del given["class_name"]  # written by model_dump
    _check_objects(given)
    if unknown := sorted(given.keys() - cls.model_fields.keys()):
        known_arguments(cls, unknown, [*cls.model_fields, *_ALIASES])
    return given
