"""``NexusFlowEmbeddingFunction``: NexusFlow in Chroma; importing this module registers it.

A collection made with this function stores the name of the model, never the key. Any process that
imports this module can reopen the collection and query it with ``query_texts``. Chroma rebuilds
embedding functions from the stored configuration several times per call, so creating a function
takes microseconds and opens no connection.

Anyone with write access to the database can change the stored configuration, so that configuration
must not decide where the key is sent. A rebuilt function reads the key only from a ``NEXUSFLOW_*``
variable, and sends it only to the default host, to this machine, or to a host that this process has
configured itself (``NEXUSFLOW_BASE_URL``, or ``api_base=`` of a function created here).

``AsyncCollection`` calls embedding functions on the event loop and blocks it. Await the vectors
first and pass them instead:

    vectors = await embedding_function.aembed_query(["how do I ...?"])
    found = await collection.query(query_embeddings=vectors)

``nexusflow_integrations.chroma_collections`` opens collections and fills them, sync and async.
The thin client works too: ``pip install nexusflow-integrations chromadb-client``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import numpy as np

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.checks import known_arguments, named, one_of
from nexusflow_integrations._core.fields import OURS, Fields
from nexusflow_integrations._core.hosts import in_url, is_loopback
from nexusflow_integrations._core.key_sources import (
    EnvironmentKey,
    FunctionKey,
    key_in_environment,
    key_source,
)
from nexusflow_integrations._core.models import DEFAULT_MODEL
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.other_frameworks import missing
from nexusflow_integrations._core.redis.address import address_or_path
from nexusflow_integrations._core.secret import ApiKey, Headers, secret_arguments
from nexusflow_integrations._core.settings import (
    DEFAULT_BASE_URL,
    ON_TOO_LONG,
    Settings,
    resolve_base_url,
)
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.client import ClientOptions, NexusFlow
from nexusflow_integrations.errors import ConfigurationError, InvalidInputError

with needed(__name__, "chromadb", install="nexusflow-integrations[chroma]", least="1.1"):
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nexusflow_integrations._core.call.results import EmbeddingArray, EmbeddingList

__all__ = ["NexusFlowEmbeddingFunction"]

KEY_VARIABLE = "NEXUSFLOW_API_KEY"
_KEY_VARIABLES = re.compile(r"NEXUSFLOW_[A-Z0-9_]{1,64}")
_STORED = (
    "model_name",
    "dimensions",
    "api_base",
    "api_key_env_var",
    "query_instruction",
    "document_instruction",
    "extra_body",
    "default_query",
    "service",
)

COMPARED = ("document_instruction", "extra_body", "default_query")
"""Settings that change vectors, in addition to model, size and service."""

_NAMES = {"model": "model_name", "base_url": "api_base"}
"""The client's names of settings, mapped to the names that this module uses."""

_KNOWN = (*_STORED[:-1], "api_key", *ClientOptions.__optional_keys__)

_NOT_PICKLED = ("on_usage", "http_client", "async_http_client")

_LONGEST_SERVICE = 300
_PORTS = {"http": 80, "https": 443}

_lock = forks.Lock()
_made_here: dict[str, NexusFlowEmbeddingFunction | None] = {}
"""The function that this process made for a configuration; ``None`` if several keys were used."""
_named_here: dict[tuple[str, str, int | None], bool] = {}
"""The origins that functions created in this process use, and whether plain http is allowed."""


@register_embedding_function
class NexusFlowEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds any number of documents or queries for Chroma, with many requests in flight.

    A collection stores ``model_name``, ``dimensions``, ``api_base``, ``api_key_env_var``,
    ``query_instruction``, ``document_instruction``, ``extra_body`` and ``default_query``, if they
    were given. Without ``api_base``, it stores the origin of the endpoint (``service``), so that a
    process with another ``NEXUSFLOW_BASE_URL`` does not mix in vectors from another service. All
    other settings (key, timeouts, budget, ...) belong to this process. If Chroma rebuilds a
    function in the same process, the rebuilt function takes these settings from the newest function
    that was created with the same configuration.

    Args:
        api_key: The key, an object with ``get_secret_value``, or a function, sync or async, that
            returns it. The function is called when a key is first needed, and again after a 401.
            Default: ``api_key_env_var``, read at the same times. The key is never stored.
        model_name: Name of the model.
        dimensions: Size of the vectors: 2048, 1536, 1024, 768, 512, 256, 128 or 64; ``None`` is the
            server's default.
        api_base: Root of the API. A given value is stored. Default: ``NEXUSFLOW_BASE_URL``, which
            each process reads again, or https://nexusflow.vip/v1.
        api_key_env_var: Name of the environment variable with the key; it must begin with
            ``NEXUSFLOW_``.
        query_instruction: Text prepended verbatim to each query, not to documents; none by default.
            The documentation of the model's family (Qwen3-Embedding) recommends the form
            ``"Instruct: Given a question, retrieve passages that answer it\\nQuery: "``.
        document_instruction: Text prepended verbatim to each document, not to queries. The
            documentation of the model's family recommends using none.
        extra_body: Fields added to the body of each request. The collection stores the fields: do
            not put secrets in them.
        default_query: Parameters added to the query string of each request's URL; the collection
            stores them, too.

        options: All other settings of ``nexusflow_integrations.NexusFlow`` except ``on_refused``
            and ``on_blank``: each document gets a vector, or the call fails.

    Raises:
        ConfigurationError: A setting is invalid. A missing key is an error only when a request
            needs it.
        TypeError: An argument has an unknown name.
    """

    @secret_arguments
    def __init__(
        self,
        api_key: object = None,
        *,
        model_name: str = DEFAULT_MODEL,
        dimensions: int | None = None,
        api_base: str | None = None,
        api_key_env_var: str = KEY_VARIABLE,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        default_query: Mapping[str, object] | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        known_arguments(type(self), options, _KNOWN)
        allow_http = options.setdefault("allow_http", False)
        if "on_too_long" in options:
            one_of("on_too_long", options["on_too_long"], ON_TOO_LONG)
        options["cache"] = address_or_path(
            options.get("cache")
        )  # an address is pickled without its password
        options["default_headers"] = Headers(options.get("default_headers"))
        if api_base is not None:
            with named(_NAMES):
                api_base = resolve_base_url(api_base, allow_http=allow_http)
        self._set(
            {
                "model_name": model_name,
                "dimensions": dimensions,
                "api_base": api_base,
                "api_key_env_var": api_key_env_var,
                "query_instruction": query_instruction,
                "document_instruction": document_instruction,
                "extra_body": extra_body,
                "default_query": default_query,
                "service": None
                if api_base is not None
                else _service_at(resolve_base_url(allow_http=allow_http)),
            },
            api_key=None if api_key is None else key_source(api_key).account,
            options=options,
        )
        self._connect(None)  # raises an error if a setting is invalid
        self._remember()

    def _set(
        self,
        config: Mapping[str, Any],
        api_key: ApiKey | FunctionKey | None,
        options: ClientOptions | None = None,
    ) -> None:
        self._config = _checked(config)
        self._options: ClientOptions = {} if options is None else options
        self._api_key = api_key
        # One attribute, so that threads read both parts together without a lock.
        self._connected: tuple[ApiKey | FunctionKey | None, NexusFlow] | None = None
        self._rebuilt = False

    # -- what Chroma calls to embed ------------------------------------------------------------

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma calls it so
        """Embed documents.

        Returns:
            One float32 vector of shape (d,) for each document, in order; all are rows of one array.

        Raises:
            InvalidInputError: A document cannot be sent. Nothing was sent.
            NexusFlowError: The call failed for another reason; ``finished`` holds the vectors
                that were ready.
        """
        return _rows(self.client.embed(_listed(input)))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002
        """Embed queries like ``__call__``, with ``query_instruction`` before each query."""
        return _rows(self.client.embed(_listed(input), role="query"))

    async def aembed(self, input: Documents) -> Embeddings:  # noqa: A002
        """Embed documents without blocking the event loop, for ``add(embeddings=...)``."""
        return _rows(await self.client.aembed(_listed(input)))

    async def aembed_query(self, input: Documents) -> Embeddings:  # noqa: A002
        """Embed queries without blocking the event loop, for ``query(query_embeddings=...)``."""
        return _rows(await self.client.aembed(_listed(input), role="query"))

    # -- what Chroma stores and rebuilds -------------------------------------------------------

    @staticmethod
    def name() -> str:
        """The name under which Chroma knows this function: ``nexusflow``."""
        return "nexusflow"

    def get_config(self) -> dict[str, Any]:
        """Return what a collection stores: JSON, and never the key."""
        return dict(self._config)

    @staticmethod
    @secret_arguments
    def build_from_config(config: dict[str, Any]) -> NexusFlowEmbeddingFunction:
        """Rebuild a function from a stored configuration, without a key or a connection.

        Raises:
            ConfigurationError: ``config`` holds an invalid or unknown setting.
        """
        rebuilt = NexusFlowEmbeddingFunction.__new__(NexusFlowEmbeddingFunction)
        rebuilt._set(config, api_key=None)
        rebuilt._rebuilt = True
        return rebuilt

    @staticmethod
    @secret_arguments
    def validate_config(config: dict[str, Any]) -> None:
        """Raise ``ConfigurationError`` (a ValueError) if ``config`` is not valid here."""
        _checked(config)

    @secret_arguments
    def validate_config_update(
        self, old_config: dict[str, Any], new_config: dict[str, Any]
    ) -> None:
        """Refuse a change of a setting after which vectors would not be comparable.

        These are the model, the size, the service, ``document_instruction``, ``extra_body`` and
        ``default_query``.

        Chroma calls this method after ``collection.modify`` has stored the change: after this
        error, undo the change with another ``modify``.
        """
        before, after = _identified(old_config), _identified(new_config)
        for setting, old in before.items():
            new = after[setting]
            if old == new or (
                setting == "service" and old is None
            ):  # older versions did not store the service
                continue
            moved = (
                "; or, if it is the same service at a new address, call"
                " open_collection(..., address_changed=True)"
                if setting == "service"
                else ""
            )
            raise ConfigurationError(
                f"{setting} of a collection cannot change from {old!r} to {new!r}: its vectors"
                " would not be comparable; Chroma has already stored the change, so change it back"
                f" with modify, and make another collection for the new value{moved}"
            )

    def default_space(self) -> Space:
        """The distance that new collections use: cosine, unless the collection sets another one."""
        return "cosine"

    # -- settings ------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return cast(str, self._config["model_name"])

    @property
    def dimensions(self) -> int | None:
        """The requested size, or ``None``."""
        return self._config.get("dimensions")

    @property
    def query_instruction(self) -> str | None:
        """The text that is prepended to each query, or ``None``."""
        return self._config.get("query_instruction")

    @property
    def service(self) -> str | None:
        """The service that made the vectors: an origin, or ``localhost`` for this machine.

        ``None`` for a stored configuration that names neither ``service`` nor ``api_base``.
        """
        base = self._config.get("api_base")
        return self._config.get("service") if base is None else _service_at(base)

    @property
    def usage(self) -> Usage:
        """The tokens, requests and cost of all calls of this function so far."""
        source = self._source()
        return Usage() if source._connected is None else source._connected[1].usage

    @property
    def client(self) -> NexusFlow:
        """The client that this function embeds with.

        Raises:
            ConfigurationError: There is no key, or the stored configuration names a host that this
                process has not configured, or a service other than this process's.
        """
        source = self._source()
        if source._rebuilt:
            source._check_host()
            source._check_service()
        return source._connect(source._find_key())

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise missing(self, name)

    def __repr__(self) -> str:
        # A traceback shows a function without a configuration if the constructor failed.
        config = vars(self).get("_config", {})
        given = ", ".join(f"{name}={value!r}" for name, value in config.items())
        return f"NexusFlowEmbeddingFunction({given})"

    # -- lifecycle -----------------------------------------------------------------------------

    def __copy__(self) -> NexusFlowEmbeddingFunction:
        return self  # a function never changes, so a copy is not needed

    def __deepcopy__(self, memo: dict[int, Any]) -> NexusFlowEmbeddingFunction:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The key is not pickled: another process reads the key from its environment, as it does for
        # a collection.
        if self._rebuilt:
            return NexusFlowEmbeddingFunction.build_from_config, (self.get_config(),)
        settings: dict[str, Any] = {**self._config, **self._options}
        settings |= dict.fromkeys(_NOT_PICKLED)
        settings.pop("service", None)
        return _made_again, (settings,)

    # -- internal ------------------------------------------------------------------------------

    def _source(self) -> NexusFlowEmbeddingFunction:
        if not self._rebuilt:
            return self
        return _made_here.get(_identity(self._config)) or self

    def _uncached(self) -> NexusFlowEmbeddingFunction:
        """Return a copy of this function that has no cache but shares its budget and usage."""
        client, source = self.client, self._source()
        other = type(self).__new__(type(self))
        vars(other).update(vars(self), _rebuilt=False)
        other._api_key = source._api_key
        other._connected = (
            None if source._connected is None else source._connected[0],
            client._uncached(),
        )
        return other

    def _find_key(self) -> ApiKey | FunctionKey:
        variable = self._config["api_key_env_var"]
        if self._api_key is not None or os.environ.get(variable) or not self._rebuilt:
            return self._api_key or key_in_environment(variable)
        several = _identity(self._config) in _made_here
        raise ConfigurationError(
            f"no API key: this embedding function was rebuilt from what a collection stores, which"
            f" is never a key; set the environment variable {variable} or open the collection"
            f" with embedding_function=NexusFlowEmbeddingFunction(api_key=...)"
            f"{' (this process made several, with different keys)' if several else ''}"
        )

    def _check_host(self) -> None:
        base = self._config.get("api_base")
        if base is None:
            return
        scheme, host, _ = origin = _origin(base)
        known = {_origin(DEFAULT_BASE_URL), _origin(os.environ.get("NEXUSFLOW_BASE_URL") or "")}
        if not (origin in known or origin in _named_here or is_loopback(host)):
            raise ConfigurationError(
                f"this collection's stored configuration points at {scheme}://{host[:80]},"
                " which"
                " this process has not configured, so nothing was sent; if the host is yours, set"
                " NEXUSFLOW_BASE_URL or open the collection with"
                " embedding_function=NexusFlowEmbeddingFunction(api_base=...)"
            )
        self._options["allow_http"] = _named_here.get(origin, False)

    def _check_service(self) -> None:
        stored = self._config.get("service")
        if stored is None:
            return
        here = _service_at(resolve_base_url(allow_http=True))
        if stored != here:
            raise ConfigurationError(
                f"the vectors of this collection come from {stored}, and this process uses {here},"
                " so nothing was sent: their vectors are not comparable; set NEXUSFLOW_BASE_URL to"
                " the address of the first service, or, if both are the same service at a new"
                " address or the collection is still empty, call"
                " open_collection(..., address_changed=True) once"
            )

    def _connect(self, key: ApiKey | FunctionKey | None) -> NexusFlow:
        # The usual way takes no lock: an error of a signal handler could leave it taken.
        if (client := self._client_for(key)) is not None:
            return client
        with _lock.mutex:
            if (client := self._client_for(key)) is not None:
                return client
            found = isinstance(key, ApiKey) and self._api_key is None
            variable = self._config["api_key_env_var"]
            client = NexusFlow(
                EnvironmentKey(variable, cast(ApiKey, key)) if found else key,
                base_url=self._config.get("api_base"),
                model=self.model_name,
                dimensions=self.dimensions,
                query_instruction=self._config.get("query_instruction"),
                document_instruction=self._config.get("document_instruction"),
                extra_body=self._config.get("extra_body"),
                default_query=self._config.get("default_query"),
                **self._options,
            )
            if self._connected is not None:  # keep the budget when the key changes
                client._succeed(self._connected[1])
            self._connected = (key, client)
            return client

    def _client_for(self, key: ApiKey | FunctionKey | None) -> NexusFlow | None:
        if self._connected is None:
            return None
        known, client = self._connected
        return client if key is None or (known is not None and known == key) else None

    def _remember(self) -> None:
        if (base := self._config.get("api_base")) is not None:
            _named_here[_origin(base)] = bool(self._options["allow_http"])
        identity = _identity(self._config)
        with _lock.mutex:
            other = _made_here.get(identity, self)
            if other is None or (self._api_key is None and other._api_key is not None):
                return
            keys = {f._api_key for f in (self, other) if f._api_key is not None}
            _made_here[identity] = self if len(keys) < 2 else None


def _made_again(settings: dict[str, Any]) -> NexusFlowEmbeddingFunction:
    return NexusFlowEmbeddingFunction(**settings)


def _identity(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _identified(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that vectors must share to be comparable."""
    known, base = _checked(config), config.get("api_base")
    service = None if base is None else _service_at(resolve_base_url(base, allow_http=True))
    return {
        "model_name": known["model_name"],
        **{name: known.get(name) for name in ("dimensions", *COMPARED)},
        "service": known.get("service", service),
    }


def _service_at(base_url: str) -> str:
    """Return the origin of a checked base URL, or ``localhost`` for this machine.

    A port on this machine is left out, because local servers get a new port at every start.
    """
    scheme, host, port = _origin(base_url)
    if is_loopback(host):
        return "localhost"
    return f"{scheme}://{in_url(host)}" + ("" if port == _PORTS[scheme] else f":{port}")


def _origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port; return empty values if ``url`` is not a base URL."""
    try:
        parts = urlsplit(resolve_base_url(url, allow_http=True))
    except ConfigurationError:
        return "", "", None
    return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme]


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with all defaults filled in and every setting checked."""
    if not isinstance(config, Mapping):
        raise ConfigurationError("the configuration is not a JSON object")
    given = {name: value for name, value in config.items() if value is not None}
    if unknown := sorted(str(name)[:40] for name in given if name not in _STORED):
        raise ConfigurationError(
            f"the configuration holds {', '.join(map(repr, unknown))}, which this version of"
            " nexusflow-integrations does not know"
        )
    given = {"model_name": DEFAULT_MODEL, "api_key_env_var": KEY_VARIABLE} | given
    variable = given["api_key_env_var"]
    if not isinstance(variable, str) or not _KEY_VARIABLES.fullmatch(variable):
        # Do not show the value: it may be the key itself.
        raise ConfigurationError(
            "api_key_env_var must be the name of an environment variable NEXUSFLOW_..., in capital"
            " letters (and not the key itself)"
        )
    service = given.get("service", "")
    if not isinstance(service, str) or len(service) > _LONGEST_SERVICE:
        raise ConfigurationError("service must be the origin of an endpoint")
    base = given.get("api_base")
    with named(_NAMES):
        settings = Settings(
            base_url="" if base is None else resolve_base_url(base, allow_http=True),
            model=given["model_name"],
            dimensions=given.get("dimensions"),
            query_instruction=given.get("query_instruction"),
            document_instruction=given.get("document_instruction"),
            extra_body=Fields("extra_body", given.get("extra_body"), taken=OURS),
            default_query=Fields("default_query", given.get("default_query"), flat=True),
        )
    plain = {
        "model_name": settings.model,
        "dimensions": settings.dimensions,
        "query_instruction": settings.query_instruction,
        "document_instruction": settings.document_instruction or None,
        "extra_body": settings.extra_body.value or None,
        "default_query": settings.default_query.value or None,
    }
    known = {name: plain.get(name, value) for name, value in given.items()}  # as JSON stores it
    return {name: value for name, value in known.items() if value is not None}


def _listed(documents: Documents) -> Documents:
    if isinstance(documents, str):
        raise InvalidInputError(
            "expected a list of texts, not one string: write [text]; for a LangChain vector store,"
            " use nexusflow_integrations.langchain.NexusFlowEmbeddings"
        )
    return documents


def _rows(vectors: EmbeddingArray | EmbeddingList) -> Embeddings:
    # Return views of one array: Chroma accepts float32 rows without copying them.
    return cast(Embeddings, list(np.asarray(vectors)))
