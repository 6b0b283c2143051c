"""A call that has ended is freed at once, with its vectors, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

from nexusflow_integrations import Budget, NexusFlow, NexusFlowError
from nexusflow_integrations._core.cache.in_file import Claimed
from nexusflow_integrations._core.call.engine import engine
from nexusflow_integrations._core.call.results import CallResults

from .scene import KEY, SIZE, client_of, tasks, texts, until


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def results_in_memory() -> Iterator[Callable[[], int]]:
    """Count the results of calls in memory, while the garbage collector is off."""

    def count() -> int:
        return sum(isinstance(one, CallResults) for one in gc.get_objects())

    gc.collect()
    gc.disable()
    former = count()
    yield lambda: count() - former
    gc.enable()


def embed(client: NexusFlow) -> None:
    client.embed(texts(35))


def embed_one(client: NexusFlow) -> None:
    client.embed(texts(1)[0])


def embed_async(client: NexusFlow) -> None:
    asyncio.run(client.aembed(texts(35)))


def stream(client: NexusFlow) -> None:
    assert len([row.index for row in client.embed_stream(iter(texts(500)))]) == 500


def leave_out(client: NexusFlow) -> None:
    found = client.embed([*texts(35), " "], on_blank="collect")
    assert str(found.left_out[35])


def lists(client: NexusFlow) -> None:
    client._embed(texts(35), lists=True).tolist()


@pytest.mark.parametrize(
    ("call", "settings"),
    [
        *((call, {}) for call in (embed, embed_one, embed_async, stream, leave_out, lists)),
        (embed, {"cache": "cache.sqlite3"}),
        (stream, {"cache": "cache.sqlite3"}),
        (embed, {"budget": Budget(tokens=10_000_000)}),
        (embed, {"api_key": lambda: KEY}),
    ],
)
def test_a_call_that_has_ended_is_freed(
    call: Callable[[NexusFlow], None],
    settings: dict[str, Any],
    server: Any,
    results_in_memory: Callable[[], int],
) -> None:
    given = {"api_key": KEY, "base_url": server.base_url, "dimensions": SIZE, **settings}
    client = NexusFlow(**given)
    for _ in range(2):
        call(client)
    until(lambda: results_in_memory() == 0)


@pytest.mark.parametrize("cache", [None, "cache.sqlite3"])
def test_a_call_that_has_failed_is_freed_with_its_error(
    cache: str | None,
    server: Any,
    results_in_memory: Callable[[], int],
) -> None:
    body = {"error": {"code": "invalid_api_key", "message": "no such key"}}
    server.script = type(server.script)(lambda wire: wire.respond(401, body))
    client = client_of(server, cache=cache)
    with pytest.raises(NexusFlowError):
        client.embed(texts(35))
    until(lambda: results_in_memory() == 0)


async def fail_async(client: NexusFlow) -> None:
    with pytest.raises(NexusFlowError):
        await client.aembed(texts(35))


async def fail_async_stream(client: NexusFlow) -> None:
    with pytest.raises(NexusFlowError):
        async for _ in client.aembed_stream(texts(35)):
            pass


def fail(client: NexusFlow) -> None:
    with pytest.raises(NexusFlowError):
        client.embed(texts(35))


def fail_stream(client: NexusFlow) -> None:
    with pytest.raises(NexusFlowError):
        list(client.embed_stream(texts(35)))


@pytest.mark.parametrize("call", [fail, fail_stream, fail_async, fail_async_stream])
def test_a_client_whose_call_has_failed_is_freed_and_so_are_its_limits(
    server: Any, call: Callable[[NexusFlow], Any]
) -> None:
    body = {"error": {"code": "invalid_api_key", "message": "no such key"}}
    server.script = type(server.script)(lambda wire: wire.respond(401, body))
    client = client_of(server)
    presence = ref(client._presence)
    gc.collect()
    gc.disable()
    try:
        if (running := call(client)) is not None:
            asyncio.run(running)
        del client, running
        until(lambda: presence() is None)
    finally:
        gc.enable()


def test_vectors_from_the_cache_are_freed(server: Any) -> None:
    client = client_of(server, cache="cache.sqlite3")
    client.embed(texts(35))
    client.embed(texts(35))
    until(lambda: not tasks())
    gc.collect()
    gc.disable()
    try:
        client.embed(texts(35))
        until(lambda: not tasks())
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [one for one in gc.garbage if isinstance(one, Claimed)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_accounts_without_clients_are_forgotten(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a web application that makes a client with its own key function for each request."""
    monkeypatch.setattr("nexusflow_integrations._core.call.engine.MOST_ENDPOINTS", 20)

    def of_server(table: dict[Any, Any]) -> list[Any]:
        return [kept for name, kept in table.items() if name[0] == server.base_url]

    running = engine()[1]
    former = of_server(running._endpoints)  # an earlier server may have had the same port
    client = NexusFlow(lambda: KEY, base_url=server.base_url, dimensions=SIZE)
    client.embed("kept")
    (in_use,) = (kept for kept in of_server(running._endpoints) if kept not in former)
    for n in range(100):
        with NexusFlow(lambda: KEY, base_url=server.base_url, dimensions=SIZE) as another:
            another.embed(f"text {n}")
            assert another.embed(f"text {n} again").shape == (SIZE,)
        del another
    assert len(of_server(running._endpoints)) <= 22
    assert len(of_server(running._coalescers)) <= 22
    assert in_use in of_server(running._endpoints)
    assert client.embed("still there").shape == (SIZE,)
