"""Chooses what embeds texts: the service if there is a key, otherwise the local server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from nexusflow_integrations._core.models import DEFAULT_MODEL
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.settings import (
    check_dimensions,
    resolve_api_key,
    resolve_base_url,
)
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import ConfigurationError


@dataclass(frozen=True)
class Endpoint:
    """What a client needs to connect.

    Attributes:
        base_url: Root of the API.
        api_key: The key.
        dimensions: The size to request, or ``None``.
        local_model: The model of the local server; ``None`` for the service.
        tuned: Settings from a file; their size is ``dimensions``.
    """

    base_url: str
    api_key: ApiKey
    dimensions: int | None = None
    local_model: str | None = None
    tuned: TunedSettings | None = None

    @property
    def vectors(self) -> dict[str, Any]:
        """The settings with which a client or an adapter gets the vectors of this endpoint."""
        found: dict[str, Any] = {"dimensions": self.dimensions}
        if self.tuned is not None:
            found["query_instruction"] = self.tuned.query_instruction
            found["document_instruction"] = self.tuned.document_instruction
        return found

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.local_model or DEFAULT_MODEL

    @property
    def lasting_url(self) -> str:
        """The service's URL, or for the local server a URL that does not depend on its port."""
        if self.local_model is None:
            return self.base_url
        return f"http://{self.local_model}{_LOCAL}"

    def http_client(self) -> httpx.Client | None:
        """Return an HTTP client that sends requests for ``lasting_url`` to the local server."""
        if self.local_model is None:
            return None
        return httpx.Client(transport=_ToPort(httpx.URL(self.base_url)), timeout=None)  # noqa: S113

    def client(self, **settings: Any) -> NexusFlow:
        """Return a client with ``settings``; the vectors that it caches do not depend on a port."""
        return NexusFlow(
            self.api_key,
            base_url=self.lasting_url,
            http_client=self.http_client(),
            allow_http=self.local_model is not None,
            **settings,
        )

    @property
    def name(self) -> str:
        """A name for the vectors, used in files, too: ``minilm-use-gated``, ``nexusflow.vip-512``.

        Vectors of endpoints with different names must not be mixed in one collection.
        """
        place = self.local_model or _without_version(self.base_url).partition("://")[2]
        plain = "".join(char if char.isalnum() or char in ".-" else "-" for char in place)
        if self.dimensions is not None:
            plain += f"-{self.dimensions}"
        if self.tuned is not None:
            plain += f"-{hashlib.sha256(repr(self.tuned).encode()).hexdigest()[:6]}"
        return plain


def same_url(one: str, two: str) -> bool:
    """Return whether two base URLs are equal, apart from a ``/v1`` at the end.

    The same server answers with and without it.
    """
    return _without_version(one) == _without_version(two)


def _without_version(base_url: str) -> str:
    return base_url.removesuffix("/v1")


_LOCAL = ".embedded.localhost/v1"


def local_model_at(base_url: str) -> str | None:
    """Return the local model whose ``lasting_url`` is ``base_url``; ``None`` for a service."""
    name = base_url.removeprefix("http://").removesuffix(_LOCAL)
    return name if base_url == f"http://{name}{_LOCAL}" else None


class _ToPort(httpx.HTTPTransport):
    def __init__(self, server: httpx.URL) -> None:
        super().__init__()
        self._server = server

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host=self._server.host, port=self._server.port)
        return super().handle_request(request)


def default_local_model() -> str:
    """Return the name of the model that the local server runs."""
    from nexusflow_integrations.local import encoder

    return encoder.DEFAULT_MODEL


def has_key() -> bool:
    """Return whether ``NEXUSFLOW_API_KEY`` is set, which selects the service."""
    return bool(os.environ.get("NEXUSFLOW_API_KEY"))


@contextmanager
def open_endpoint(
    *,
    local: bool | None = None,
    dimensions: int | None = None,
    model: str | None = None,
    tuned: TunedSettings | None = None,
) -> Iterator[Endpoint]:
    """Yield the service, or the local server, which runs until the block ends.

    Args:
        local: Whether to run the local server; ``None`` runs it only if no key is set.
        dimensions: The size to request.
        tuned: Settings from a file; their size replaces ``dimensions``.
        model: The model of the local server, one of ``nexusflow_integrations.local.MODELS``;
            the default is the one for 16 languages.

    Raises:
        ConfigurationError: A setting is invalid, or the service is selected and there is no key.
        ImportError: The local server is selected and a package that it needs is missing.
    """
    dimensions = check_dimensions(dimensions if tuned is None else tuned.dimensions)
    if local is None:
        local = not has_key()
        if local and os.environ.get("NEXUSFLOW_BASE_URL"):
            raise ConfigurationError(
                "NEXUSFLOW_BASE_URL is set but NEXUSFLOW_API_KEY is not: set the key as well, or"
                " pass --local for the local model"
            )
    if not local:
        yield Endpoint(resolve_base_url(), resolve_api_key(), dimensions, tuned=tuned)
        return
    from nexusflow_integrations.local import LocalServer

    with LocalServer(model) if model else LocalServer() as server:
        yield Endpoint(server.base_url, ApiKey(server.api_key), dimensions, server.model, tuned)
