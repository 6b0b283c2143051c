"""Collections work over HTTP with a real ``chroma run``, and with its sync and async clients."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

import chromadb
import httpx
import numpy as np
import pytest
from chromadb.errors import NotFoundError

from nexusflow_integrations import errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import (
    Added,
    aadd_documents,
    add_documents,
    aopen_collection,
    open_collection,
)
from nexusflow_integrations.local import LocalServer

from .conftest import KEY
from .test_add_documents import numbered
from .test_embedding_function import Make, answering


@pytest.fixture
def http(chroma_port: int) -> Any:
    return chromadb.HttpClient(host="127.0.0.1", port=chroma_port)


@pytest.fixture
async def async_http(chroma_port: int) -> Any:
    return await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)


@pytest.fixture
def name() -> str:
    """A collection that no other test has."""
    return f"docs-{uuid4()}"


def test_a_collection_lives_on_a_server(http: Any, name: str, make: Make, strict: None) -> None:
    collection = open_collection(http, name, make())
    collection.add(ids=["1", "2"], documents=["red pandas", "blue whales"])
    collection.upsert(ids=["2"], documents=["blue birds"])
    collection.update(ids=["2"], documents=["blue whales"])
    again = http.get_collection(name)
    assert again.configuration_json["embedding_function"]["config"] == make().get_config()
    assert again.query(query_texts=["blue whales"], n_results=1)["ids"] == [["2"]]
    found = again.get(ids=["1"], include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(found, make()(["red pandas"]), atol=1e-6)


@pytest.mark.parametrize("create", [True, False])
async def test_a_server_that_is_not_reached_is_a_collection_error(
    http: Any, async_http: Any, name: str, make: Make, monkeypatch: pytest.MonkeyPatch, create: bool
) -> None:
    def lost(**fields: Any) -> Any:
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")

    for client in (http, async_http):
        method = "get_or_create_collection" if create else "get_collection"
        monkeypatch.setattr(client, method, lost)
    with pytest.raises(errors.CollectionError, match="disconnected") as caught:
        open_collection(http, name, make())
    assert isinstance(caught.value.__cause__, httpx.RemoteProtocolError)
    with pytest.raises(errors.CollectionError, match="disconnected"):
        await aopen_collection(async_http, name, make())


def test_documents_are_added_to_a_server(
    http: Any, name: str, make: Make, server: LocalServer
) -> None:
    collection = open_collection(http, name, make())
    assert add_documents(collection, **numbered(700)) == Added(700, 0)
    server.reset_stats()
    assert add_documents(collection, **numbered(720)) == Added(20, 700)
    assert server.stats.texts == 20
    with pytest.raises(errors.ConfigurationError, match="dimensions"):
        open_collection(http, name, make(dimensions=128))


async def test_the_async_functions_do_the_same(
    async_http: Any, name: str, make: Make, server: LocalServer, strict: None
) -> None:
    with pytest.raises(NotFoundError):
        await aopen_collection(async_http, name, make(), create=False)
    collection = await aopen_collection(async_http, name, make(), metadata={"about": "animals"})
    assert collection.metadata == {"about": "animals"}
    counts: list[int] = []
    added = await aadd_documents(
        collection, **numbered(700), metadatas=[{"n": n} for n in range(700)]
    )
    assert added == Added(700, 0)
    server.reset_stats()
    added = await aadd_documents(collection, **numbered(730), progress=counts.append)
    assert added == Added(30, 700)
    assert sum(counts) == 730
    assert server.stats.texts == 30

    again = await aopen_collection(async_http, name)
    vectors = await make().aembed_query(["document 7"])
    found = await again.query(query_embeddings=vectors, n_results=1)
    assert (found["ids"], found["metadatas"]) == ([["id7"]], [[{"n": 7}]])
    with pytest.raises(errors.ConfigurationError, match="model_name"):
        await aopen_collection(async_http, name, make(model_name="another-model"))
    again = await aopen_collection(async_http, name, make(), verify=True)
    other = await async_http.create_collection(f"{name}-other", embedding_function=None)
    vectors = await make().aembed(["document 7"])
    await other.add(ids=["id7"], documents=["document 7"], embeddings=vectors)
    with pytest.raises(errors.ConfigurationError, match="adopt=True"):
        await aopen_collection(async_http, other.name, make())
    await aopen_collection(async_http, other.name, make(), adopt=True)
    assert await (await aopen_collection(async_http, other.name)).count() == 1
    first = (await again.get(limit=1))["ids"]
    await again.update(ids=first, embeddings=[[0.125] * 64])
    with pytest.raises(errors.ConfigurationError, match="differently"):
        await aopen_collection(async_http, name, make(), verify=True)


async def test_async_adding_keeps_what_was_paid_for(async_http: Any, name: str) -> None:
    answered = 0

    def expire(request: Any) -> Any:
        nonlocal answered
        answered += len(request["input"])
        return 200 if answered <= 20 else (401, {"error": {"code": "invalid_api_key"}})

    function = answering(status=expire, max_concurrency=1)
    collection = await aopen_collection(async_http, name, function)
    with pytest.raises(errors.AuthenticationError) as caught:
        await aadd_documents(collection, **numbered(40))
    assert await collection.count() == 20
    assert sorted(caught.value.finished) == list(range(20))


async def test_cancelling_async_adding_keeps_what_is_ready(
    async_http: Any, name: str, make: Make
) -> None:
    collection = await aopen_collection(async_http, name, make())
    adding = asyncio.ensure_future(
        aadd_documents(
            collection,
            **numbered(2000),
            slice_size=100,
            progress=lambda count: adding.cancel(),
        )
    )
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert 100 <= await collection.count() < 2000


async def test_three_event_loops_in_a_row(chroma_port: int, make: Make, name: str) -> None:
    def in_a_loop_of_its_own(start: int) -> None:
        async def work() -> None:
            client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)
            collection = await aopen_collection(client, name, function)
            await aadd_documents(collection, **numbered(20, start=start))

        asyncio.run(work())

    function = make()
    for start in (0, 20, 40):
        await asyncio.to_thread(in_a_loop_of_its_own, start)
    client = chromadb.HttpClient(host="127.0.0.1", port=chroma_port)
    assert client.get_collection(name).count() == 60


class Ticks:
    """Counts how often the event loop came round, and its longest pause in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> Ticks:
        self._task = asyncio.ensure_future(self._tick())
        await asyncio.sleep(0)
        return self

    async def _tick(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            self.longest, last = max(self.longest, now - last), now

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)
        self._task.cancel()


async def test_embedding_first_does_not_block_the_loop_as_chroma_does(
    async_http: Any, name: str
) -> None:
    latency = 2.0
    with LocalServer("hash", latency_ms=latency * 1000) as distant:
        function = NexusFlowEmbeddingFunction(KEY, api_base=distant.base_url, dimensions=64)
        collection = await aopen_collection(async_http, name, function)
        await collection.add(ids=["1"], embeddings=[[1.0] * 64], documents=["red pandas"])
        async with Ticks() as blocked:
            await collection.query(query_texts=["pandas"])
        async with Ticks() as free:
            vectors = await function.aembed_query(["pandas"])
            await collection.query(query_embeddings=vectors)
    assert free.longest < 0.9 * latency < blocked.longest
