"""The interfaces: each opens one client on an address and embeds lists of texts with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest

Rows = Sequence[npt.NDArray[np.float32]]
Embed = Callable[[Sequence[str]], Rows]


def _needs(framework: str, adapter: str) -> None:
    pytest.importorskip(framework)
    if find_spec(adapter) is None:
        pytest.skip(f"{adapter} does not exist yet")


def as_rows(result: Any) -> Rows:
    return [np.asarray(row, dtype=np.float32) for row in result]


@contextmanager
def on_a_loop(
    embed: Callable[[list[str]], Coroutine[Any, Any, Any]],
    close: Callable[[], Coroutine[Any, Any, Any]] | None = None,
) -> Iterator[Embed]:
    """All calls of one client on one event loop."""
    loop = asyncio.new_event_loop()
    try:
        yield lambda texts: as_rows(loop.run_until_complete(embed(list(texts))))
    finally:
        try:
            if close is not None:
                loop.run_until_complete(close())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


@contextmanager
def core(base_url: str, api_key: str, options: Mapping[str, Any]) -> Iterator[Embed]:
    from nexusflow_integrations import NexusFlow

    with NexusFlow(api_key=api_key, base_url=base_url, **options) as client:
        yield lambda texts: as_rows(client.embed(list(texts)))


@contextmanager
def core_direct(base_url: str, api_key: str, options: Mapping[str, Any]) -> Iterator[Embed]:
    """Calls of one request are sent by the calling thread, from the first one on."""
    from nexusflow_integrations import NexusFlow

    with NexusFlow(api_key=api_key, base_url=base_url, **options) as client:
        used_already(client)
        yield lambda texts: as_rows(client.embed(list(texts)))


def used_already(client: Any) -> None:
    """Create what a first call creates: the endpoint's state and its connection."""
    from urllib.parse import urlsplit
    from weakref import ref

    client._import()
    from nexusflow_integrations._core.call.engine import engine
    from nexusflow_integrations._core.clock import monotonic
    from nexusflow_integrations._core.request.blocking import Peer

    background, running = engine()

    async def first_call() -> None:
        endpoint = running._endpoint(client._settings, client._key.account)
        endpoint.begin(client._terms)
        endpoint.end(client._terms)
        running._pool.session()

    background.submit(first_call()).result(10)
    parts = urlsplit(client.base_url)
    host, port = parts.hostname or "", parts.port or 443
    address = ("127.0.0.1" if host == "localhost" else host, port)
    peer = Peer(address, ref(_CLOSED), monotonic())
    running._connections.peers[host, port, parts.scheme == "https"] = peer


class _Closed:
    def is_closing(self) -> bool:
        return True


_CLOSED = _Closed()


@contextmanager
def core_async(base_url: str, api_key: str, options: Mapping[str, Any]) -> Iterator[Embed]:
    from nexusflow_integrations import NexusFlow

    client = NexusFlow(api_key=api_key, base_url=base_url, **options)
    with on_a_loop(client.aembed, client.aclose) as embed:
        yield embed


@contextmanager
def core_async_direct(base_url: str, api_key: str, options: Mapping[str, Any]) -> Iterator[Embed]:
    """Calls of one request are sent on the caller's loop, from the first one on."""
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations._core.request.blocking import BlockingSender

    client = NexusFlow(api_key=api_key, base_url=base_url, **options)
    used_already(client)
    with (
        patch.object(BlockingSender, "idle_connection", connect_at_once),
        on_a_loop(client.aembed, client.aclose) as embed,
    ):
        yield embed


def connect_at_once(sender: Any) -> Any:
    """Stand in for ``BlockingSender.idle_connection``, so that the first call has a connection."""
    return sender.connection(60.0)


def _langchain(base_url: str, api_key: str, options: Mapping[str, Any]) -> Any:
    _needs("langchain_core", "nexusflow_integrations.langchain")
    from nexusflow_integrations.langchain import NexusFlowEmbeddings

    return NexusFlowEmbeddings(api_key=api_key, base_url=base_url, **options)


@contextmanager
def langchain(base_url: str, api_key: str, options: Mapping[str, Any]) -> Iterator[Embed]:
    embeddings = _langchain(base_url, api_key, options)
    yield lambda texts: as_rows(embeddings.embed_documents(list(texts)))


@contextmanager
def langchain_async(base_url: str, api_key: str, options: Mapping[str, Any]) -> Iterator[Embed]:
    embeddings = _langchain(base_url, api_key, options)
    with on_a_loop(embeddings.aembed_documents) as embed:
        yield embed


def _llama_index(base_url: str, api_key: str, options: Mapping[str, Any]) -> Any:
    _needs("llama_index.core", "nexusflow_integrations.llama_index")
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

    return NexusFlowEmbedding(api_key=api_key, api_base=base_url, **options)


@contextmanager
def llama_index(base_url: str, api_key: str, options: Mapping[str, Any]) -> Iterator[Embed]:
    embedding = _llama_index(base_url, api_key, options)
    yield lambda texts: as_rows(embedding.get_text_embedding_batch(list(texts)))


@contextmanager
def llama_index_async(base_url: str, api_key: str, options: Mapping[str, Any]) -> Iterator[Embed]:
    embedding = _llama_index(base_url, api_key, options)
    with on_a_loop(embedding.aget_text_embedding_batch) as embed:
        yield embed


@contextmanager
def chroma(base_url: str, api_key: str, options: Mapping[str, Any]) -> Iterator[Embed]:
    _needs("chromadb", "nexusflow_integrations.chroma")
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    function = NexusFlowEmbeddingFunction(api_key=api_key, api_base=base_url, **options)
    yield lambda texts: as_rows(function(list(texts)))


CORE = {
    "core": core,
    "core_async": core_async,
    "core_direct": core_direct,
    "core_async_direct": core_async_direct,
}
ADAPTERS = {
    "langchain": langchain,
    "langchain_async": langchain_async,
    "llama_index": llama_index,
    "llama_index_async": llama_index_async,
    "chroma": chroma,
}
SURFACES = CORE | ADAPTERS
