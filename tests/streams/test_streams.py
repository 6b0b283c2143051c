"""Streams over real sockets are bounded, in the chosen order, and lose nothing in a failure."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from nexusflow_integrations import Budget, NexusFlow
from nexusflow_integrations._core.call.streaming import Embedded
from nexusflow_integrations.errors import (
    AuthenticationError,
    BudgetExceededError,
    InvalidInputError,
    NotFoundError,
)
from nexusflow_integrations.local import LocalServer

Stream = Callable[..., list[Embedded]]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(model="hash", latency_ms=5) as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> NexusFlow:
    return NexusFlow(server.api_key, base_url=server.base_url, dimensions=64)


def _sync(client: NexusFlow, texts: Iterator[str], *, ordered: bool = True) -> list[Embedded]:
    return list(client.embed_stream(texts, ordered=ordered))


def _async(client: NexusFlow, texts: Iterator[str], *, ordered: bool = True) -> list[Embedded]:
    async def collect() -> list[Embedded]:
        return [item async for item in client.aembed_stream(texts, ordered=ordered)]

    return asyncio.run(collect())


both = pytest.mark.parametrize("stream", [_sync, _async])


@both
def test_a_stream_yields_what_one_call_returns_in_order(client: NexusFlow, stream: Stream) -> None:
    texts = [f"text {number}" for number in range(333)]
    expected = client.embed(texts)
    found = stream(client, iter(texts))
    assert [item.index for item in found] == list(range(333))
    assert np.array_equal(np.stack([item.vector for item in found]), expected)


@both
def test_as_finished_every_text_comes_once(client: NexusFlow, stream: Stream) -> None:
    found = stream(client, (f"text {number}" for number in range(333)), ordered=False)
    assert sorted(item.index for item in found) == list(range(333))
    expected = client.embed([f"text {number}" for number in range(333)])
    assert all(np.array_equal(item.vector, expected[item.index]) for item in found)


@both
def test_a_text_that_cannot_be_sent_is_a_result_and_no_end(
    client: NexusFlow, stream: Stream
) -> None:
    texts = ["fine", "", None, "also fine"]
    found = stream(client, iter(texts))
    assert [item.error is None for item in found] == [True, False, False, True]
    assert all(isinstance(item.error, InvalidInputError) for item in found[1:3])
    assert [item.error.index for item in found[1:3]] == [1, 2]


@both
def test_an_empty_stream_yields_nothing(client: NexusFlow, stream: Stream) -> None:
    assert stream(client, iter(())) == []


def test_no_more_is_read_than_two_windows_ahead(server: LocalServer) -> None:
    client = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64, max_concurrency=4)
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for number in range(100_000):
            read += 1
            yield f"text {number}"

    stream = client.embed_stream(texts())
    ahead = 0
    for item in stream:
        ahead = max(ahead, read - item.index)
        if item.index == 2000:
            break
    stream.close()
    assert ahead <= 2 * 4 * 10 + 40  # two windows of requests, and the chunk that is yielded
    assert read < 2500


async def test_an_async_iterable_is_read(client: NexusFlow) -> None:
    async def texts() -> AsyncIterator[str]:
        for number in range(50):
            await asyncio.sleep(0)
            yield f"text {number}"

    assert [item.index async for item in client.aembed_stream(texts())] == list(range(50))


def test_one_string_is_refused(client: NexusFlow) -> None:
    with pytest.raises(InvalidInputError, match="not one string"):
        next(client.embed_stream("a text"))


def test_usage_counts_a_stream(client: NexusFlow) -> None:
    _sync(client, (f"text {number}" for number in range(100)))
    assert client.usage.texts == 100
    assert client.usage.requests == 10


def _answer(size: int) -> httpx.Response:
    rows = [{"index": place, "embedding": [1.0] * 64} for place in range(size)]
    return httpx.Response(200, json={"data": rows})


@both
def test_finished_vectors_of_other_chunks_survive_a_failure(stream: Stream) -> None:
    paid = 0

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal paid
        texts = json.loads(request.content)["input"]
        if "text 0" in texts:
            return httpx.Response(401, json={"error": {"message": "no"}})
        paid += len(texts)
        return _answer(len(texts))

    def others_are_ready() -> bool:
        return paid == 190 or time.monotonic() > gives_up

    async def late(request: httpx.Request) -> httpx.Response:
        if b'"text 0"' in request.content:
            while not others_are_ready():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)  # until the last of them has been taken in, too
        return handle(request)

    def slow(request: httpx.Request) -> httpx.Response:
        if b'"text 0"' in request.content:
            while not others_are_ready():
                time.sleep(0.01)
            time.sleep(0.3)
        return handle(request)

    gives_up = time.monotonic() + 60

    client = NexusFlow(
        "key",
        dimensions=64,
        http_client=httpx.Client(transport=httpx.MockTransport(slow)),
        async_http_client=httpx.AsyncClient(transport=httpx.MockTransport(late)),
    )
    with pytest.raises(AuthenticationError) as raised:
        stream(client, (f"text {number}" for number in range(200)))
    assert paid == 190  # more than the chunk that failed
    assert len(raised.value.finished) == paid
    assert 0 not in raised.value.finished


def test_a_mocked_httpx_client_whose_answers_are_read_already_works() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return _answer(len(json.loads(request.content)["input"]))

    client = NexusFlow(
        "key",
        dimensions=64,
        http_client=httpx.Client(transport=httpx.MockTransport(handle)),
        async_http_client=httpx.AsyncClient(transport=httpx.MockTransport(handle)),
    )
    assert client.embed(["one", "two"]).shape == (2, 64)
    assert asyncio.run(client.aembed(["one", "two"])).shape == (2, 64)


async def test_a_result_does_not_wait_for_a_source_that_waits_for_results(
    client: NexusFlow,
) -> None:
    yielded = asyncio.Event()

    async def texts() -> AsyncIterator[str]:
        for number in range(40):
            yield f"text {number}"
        await asyncio.wait_for(yielded.wait(), 30)
        yield "the last"

    count = 0
    async for _ in client.aembed_stream(texts()):
        count += 1
        yielded.set()
    assert count == 41


def test_ready_results_go_out_before_a_slow_source_is_read_on(client: NexusFlow) -> None:
    out: list[int] = []
    when_read: list[int] = []

    def texts() -> Iterator[str]:
        for number in range(200):
            if number % 40 == 0 and number:
                time.sleep(0.3)
                when_read.append(len(out))
            yield f"slow {number}"

    out.extend(item.index for item in client.embed_stream(texts()))
    assert out == list(range(200))
    assert max(when_read) > 0


@both
def test_a_stream_that_fails_leaves_no_exception_unretrieved(
    stream: Stream, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = NexusFlow(server.api_key, base_url=server.base_url, model="no-such", dimensions=64)
    with pytest.raises(NotFoundError):
        stream(client, (f"text {number}" for number in range(400)), ordered=False)
    gc.collect()
    assert "never retrieved" not in caplog.text


@both
def test_a_stream_ends_with_the_error_that_ended_it(stream: Stream, tmp_path: Path) -> None:
    with LocalServer(model="hash", latency_ms=30) as slow:
        for attempt in range(5):
            client = NexusFlow(
                slow.api_key,
                base_url=slow.base_url,
                dimensions=64,
                budget=Budget(tokens=500),
                cache=tmp_path / f"{attempt}.sqlite3",
            )
            with pytest.raises(BudgetExceededError) as raised:
                stream(client, (f"text number {attempt} {number}" for number in range(500)))
            assert raised.value.finished


@both
def test_a_stream_of_nothing_that_can_be_sent_sends_nothing(stream: Stream) -> None:
    nobody = NexusFlow("sk-air-unused", base_url="http://127.0.0.1:9/v1")
    found = stream(nobody, iter([" ", "\ud800", ""]))
    assert [item.index for item in found] == [0, 1, 2]
    assert all(isinstance(item.error, InvalidInputError) for item in found)
    assert (nobody.usage.requests, nobody.usage.texts) == (0, 0)


def test_a_client_is_a_function_from_texts_to_vectors(client: NexusFlow) -> None:
    texts = ["one", "two"]
    assert np.array_equal(client(texts), client.embed(texts))
    assert np.array_equal(client("one"), client.embed("one"))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("is_sync", [True, False])
def test_an_error_of_the_source_comes_after_the_results_of_what_was_sent(
    server: LocalServer, client: NexusFlow, is_sync: bool, ordered: bool
) -> None:
    def broken() -> Iterator[str]:
        yield from (f"text {number}" for number in range(1000))
        raise OSError("the file is gone")

    found: list[Embedded] = []

    def collect() -> None:
        for item in client.embed_stream(broken(), ordered=ordered):
            found.append(item)  # noqa: PERF402 - keep the items that come before the error

    async def acollect() -> None:
        async for item in client.aembed_stream(broken(), ordered=ordered):
            found.append(item)  # noqa: PERF401 - as above

    before = server.stats.texts
    with pytest.raises(OSError, match="the file is gone"):
        collect() if is_sync else asyncio.run(acollect())
    assert len(found) == server.stats.texts - before >= 600
    assert len({item.index for item in found}) == len(found)
    assert not any(item.error for item in found)
