"""``NexusFlowTextEmbedder`` and ``NexusFlowDocumentEmbedder`` for Haystack's pipelines.

A call that fails raises an error of ``nexusflow_integrations.errors`` and returns no documents.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from nexusflow_integrations._core.checks import named, one_of, refuse, text
from nexusflow_integrations._core.models import DEFAULT_MODEL
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.redis.address import RedisAddress, address_or_path
from nexusflow_integrations._core.secret import Headers, secret_arguments
from nexusflow_integrations._core.settings import ON_TOO_LONG
from nexusflow_integrations._core.texts import check_text, rows_of
from nexusflow_integrations.client import ClientSettings, NexusFlow
from nexusflow_integrations.errors import ConfigurationError, InvalidInputError

with needed(__name__, "haystack", install="nexusflow-integrations[haystack]"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret
    from haystack.utils.auth import SecretType

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.results import EmbeddingArray

__all__ = ["NexusFlowDocumentEmbedder", "NexusFlowTextEmbedder"]

C = TypeVar("C", bound=type)


def _hiding_arguments(cls: C) -> C:
    cls.__init__ = secret_arguments(cls.__init__)  # type: ignore[misc]
    return cls


_OPTIONS = (ClientSettings.__optional_keys__ | {"dimensions"}) - {"on_refused", "on_blank"}
_KEY = Secret.from_env_var("NEXUSFLOW_API_KEY", strict=False)


@_hiding_arguments
@dataclass(eq=False)
class _Embedder:
    """The settings, named as in Haystack's own embedders.

    ``options`` holds other settings of ``NexusFlow`` (``timeout``, ``cache``, ...) as plain values,
    but not ``on_refused`` or ``on_blank``.
    """

    api_key: Secret = _KEY
    model: str = DEFAULT_MODEL
    dimensions: int | None = None
    api_base_url: str | None = None
    prefix: str = ""
    suffix: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.api_key, Secret):
            raise refuse("api_key", "a Secret of Haystack", self.api_key)
        if not isinstance(self.options, dict):
            raise refuse("options", "a dict", self.options)
        for name in self.options:
            if name not in _OPTIONS:
                raise refuse("options", "settings of NexusFlow", name)
        self.prefix, self.suffix = text("prefix", self.prefix), text("suffix", self.suffix)
        hidden: dict[str, Any] = {"default_headers": Headers, "cache": address_or_path}
        self.options = {
            name: hidden[name](value) if name in hidden else value
            for name, value in self.options.items()
        }
        if "on_too_long" in self.options:
            one_of("on_too_long", self.options["on_too_long"], ON_TOO_LONG)
        self._client(None)  # validates the settings now

    @cached_property
    def client(self) -> NexusFlow:
        """The client; the key is resolved at first use."""
        # The client itself reads NEXUSFLOW_API_KEY, also again after a 401 response.
        return self._client(None if self.api_key == _KEY else self.api_key)

    def _client(self, key: Secret | None) -> NexusFlow:
        settings: dict[str, Any] = {
            "base_url": self.api_base_url,
            "model": self.model,
            "dimensions": self.dimensions,
        }
        settings |= self.options
        with named({"base_url": "api_base_url"}):
            return NexusFlow(None if key is None else _resolved(key), **settings)

    def meta(self, vectors: Any) -> dict[str, Any]:
        """Return the model and the tokens billed, as OpenAI's embedders do."""
        tokens = vectors.usage.tokens
        return {"model": self.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    def to_dict(self) -> dict[str, Any]:
        """Return what a pipeline stores, with the name of the key's variable instead of the key.

        ``default_headers``, which may hold secrets, and the password of a Redis server are left
        out.

        Raises:
            ValueError: The key was given as a token, which Haystack does not serialize.
        """
        settings = {item.name: getattr(self, item.name) for item in fields(self)}
        settings["options"] = {
            name: str(value) if isinstance(value, RedisAddress) else value  # without its password
            for name, value in self.options.items()
            if name != "default_headers"
        }
        return default_to_dict(self, **settings)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> _Embedder:
        """Rebuild an embedder from what a pipeline stored; this needs no key."""
        return default_from_dict(cls, data)

    def __getstate__(self) -> dict[str, Any]:
        # Leave out the client, which would read another variable than that of `api_key`.
        state = {name: value for name, value in vars(self).items() if name != "client"}
        if self.api_key.type is SecretType.TOKEN:
            state["api_key"] = _KEY
        return state

    def __copy__(self) -> _Embedder:
        # A copy in the same process keeps what pickling leaves out.
        return self._twin(vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Embedder:
        return self._twin(deepcopy(vars(self), memo))

    def _twin(self, state: dict[str, Any]) -> _Embedder:
        twin = object.__new__(type(self))
        vars(twin).update(state)
        return twin


def _resolved(key: Secret) -> Any:
    """Return the key; without one, the client would take the key of another variable."""
    value = key.resolve_value()
    if value is None:
        raise ConfigurationError(
            f"no API key: set the environment variable {' or '.join(key.to_dict()['env_vars'])}"
        )
    return value


@component
class NexusFlowTextEmbedder(_Embedder):
    """Embeds one text as a query; the settings are those of ``NexusFlowDocumentEmbedder``."""

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Return ``embedding``, a list of floats, and ``meta``.

        Raises:
            NexusFlowError: The text cannot be sent, or the call failed.
        """
        return self._answer(self.client.embed(self._whole(text), role="query"))

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed like ``run``, without blocking the event loop."""
        return self._answer(await self.client.aembed(self._whole(text), role="query"))

    def _whole(self, text: str) -> str:
        return f"{self.prefix}{check_text(text)}{self.suffix}"

    def _answer(self, vector: EmbeddingArray) -> dict[str, Any]:
        return {"embedding": vector.tolist(), "meta": self.meta(vector)}


@component
@_hiding_arguments
@dataclass(eq=False)
class NexusFlowDocumentEmbedder(_Embedder):
    """Embeds any number of documents, with parallel requests.

    The settings are named as in Haystack's own embedders; ``options`` holds other settings of
    ``NexusFlow`` (``timeout``, ``cache``, ...), as plain values. The values of a document's
    ``meta_fields_to_embed`` are put before its content, separated by ``embedding_separator``.

    Raises:
        ConfigurationError: A setting is invalid.
    """

    meta_fields_to_embed: list[str] = field(default_factory=list)
    embedding_separator: str = "\n"

    def __post_init__(self) -> None:
        _Embedder.__post_init__(self)  # super() fails, because `component` has replaced the class
        wanted = self.meta_fields_to_embed
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            raise refuse("meta_fields_to_embed", "a list of names", wanted)
        self.embedding_separator = text("embedding_separator", self.embedding_separator)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return ``documents``, which are copies with embeddings in the same order, and ``meta``.

        Raises:
            InvalidInputError: A document has nothing to embed; ``index`` is its index.
            NexusFlowError: The call failed for another reason; ``finished`` holds the vectors
                that were ready.
        """
        documents = list(rows_of(documents))
        vectors = self.client.embed(map(self._text, documents))
        return self._answer(documents, vectors)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed like ``run``, without blocking the event loop."""
        documents = list(rows_of(documents))
        vectors = await self.client.aembed(map(self._text, documents))
        return self._answer(documents, vectors)

    def _text(self, document: Document) -> str:
        if not isinstance(document, Document):
            raise InvalidInputError(
                f"expected a list of Documents, not of {type(document).__name__}"
            )
        values = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [*(str(value) for value in values if value is not None), document.content or ""]
        return self.prefix + self.embedding_separator.join(parts) + self.suffix

    def _answer(self, documents: list[Document], vectors: EmbeddingArray) -> dict[str, Any]:
        pairs = zip(documents, vectors.tolist(), strict=True)
        embedded = [replace(document, embedding=vector) for document, vector in pairs]
        return {"documents": embedded, "meta": self.meta(vectors)}
