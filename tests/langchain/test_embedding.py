"""Texts become lists of floats: order, batches, concurrency, event loops and bad input."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from nexusflow_integrations import errors
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]
TEXTS = [f"text number {number}" for number in range(137)]


def test_rows_are_in_the_order_of_the_texts_and_of_plain_floats(make: Make) -> None:
    embeddings = make()
    rows = embeddings.embed_documents(TEXTS)
    assert rows == [embeddings.embed_documents([text])[0] for text in TEXTS]
    assert {type(value) for value in rows[0]} == {float}
    assert {len(row) for row in rows} == {64}


async def test_async_gives_what_sync_gives(make: Make) -> None:
    embeddings = make()
    rows = await embeddings.aembed_documents(TEXTS)
    query = await embeddings.aembed_query("red panda")
    assert rows == await asyncio.to_thread(embeddings.embed_documents, TEXTS)
    assert query == await asyncio.to_thread(embeddings.embed_query, "red panda")
    assert {type(value) for value in query} == {float}


def test_no_request_holds_more_than_ten_texts(make: Make, server: LocalServer) -> None:
    make().embed_documents(TEXTS)
    assert server.stats.requests == 14
    assert sorted(server.stats.received) == sorted(TEXTS)


@pytest.mark.parametrize(("made", "called", "requests"), [(10, 4, 5), (2, 10, 2), (5, None, 4)])
def test_the_chunk_size_of_a_call_overrides_that_of_the_object(
    make: Make, server: LocalServer, made: int, called: int | None, requests: int
) -> None:
    embeddings = make(chunk_size=made)
    embeddings.embed_documents(TEXTS[:20], chunk_size=called)
    assert server.stats.requests == requests
    assert embeddings.usage.requests == requests


def test_all_chunk_sizes_share_one_budget(make: Make) -> None:
    from nexusflow_integrations import Budget

    embeddings = make(budget=Budget(tokens=60))
    embeddings.embed_documents(["one two three"])
    with pytest.raises(errors.BudgetExceededError):
        embeddings.embed_documents(["four five six " * 10], chunk_size=3)


def test_sync_calls_are_concurrent_by_themselves(make: Make, slow_server: LocalServer) -> None:
    make(base_url=slow_server.base_url).embed_documents(TEXTS)
    assert slow_server.stats.max_in_flight >= 6


async def test_async_calls_are_concurrent_by_themselves(
    make: Make, slow_server: LocalServer
) -> None:
    await make(base_url=slow_server.base_url).aembed_documents(TEXTS)
    assert slow_server.stats.max_in_flight >= 6


def test_max_concurrency_holds(make: Make, slow_server: LocalServer) -> None:
    # A key of its own: the limit is the account's, shared by all objects of the process.
    with LocalServer("hash", latency_ms=20) as server:
        embeddings = make(base_url=server.base_url, max_concurrency=2)
        embeddings.embed_documents(TEXTS)
        assert server.stats.max_in_flight == 2


def test_one_object_works_on_event_loop_after_event_loop(make: Make) -> None:
    embeddings = make()
    rows = [asyncio.run(embeddings.aembed_documents(TEXTS[:3])) for _ in range(3)]
    assert rows[0] == rows[1] == rows[2] == embeddings.embed_documents(TEXTS[:3])


async def test_a_sync_call_works_inside_a_running_event_loop(make: Make) -> None:
    assert len(make().embed_query("as in a notebook")) == 64


def test_one_object_serves_many_threads(make: Make) -> None:
    embeddings = make()
    expected = embeddings.embed_documents(TEXTS[:30])
    start = threading.Barrier(8, timeout=120)

    def call(_: int) -> list[list[float]]:
        start.wait()
        return embeddings.embed_documents(TEXTS[:30])

    with ThreadPoolExecutor(8) as pool:
        assert all(rows == expected for rows in pool.map(call, range(8)))


def test_a_duplicate_text_is_sent_once(make: Make, server: LocalServer) -> None:
    rows = make().embed_documents(["same"] * 30)
    assert server.stats.received == ("same",)
    assert rows == [rows[0]] * 30


def test_no_texts_give_no_rows_and_no_request(make: Make, server: LocalServer) -> None:
    assert make().embed_documents([]) == []
    assert asyncio.run(make(dimensions=None).aembed_documents([])) == []
    assert server.stats.requests == 0


BAD = [
    ("one string", "write \\[text\\]", None),
    (None, "not NoneType", None),
    (b"bytes", "not bytes", None),
    (["fine", None], "text 1 is None", 1),
    (["fine", "fine too", "  "], "text 2 is blank", 2),
    (["", "fine"], "text 0 is blank", 0),
    (["fine", 7], "text 1 must be a string", 1),
    (["fine", [1, 2, 3]], "text 1 must be a string, not list", 1),
    (["\ud800"], "text 0 holds a lone surrogate", 0),
]


@pytest.mark.parametrize(("texts", "says", "index"), BAD, ids=[repr(bad[0]) for bad in BAD])
async def test_bad_documents_are_refused_by_index_before_any_request(
    make: Make, server: LocalServer, texts: Any, says: str, index: int | None
) -> None:
    embeddings = make()
    with pytest.raises(errors.InvalidInputError, match=says) as sync_error:
        embeddings.embed_documents(texts)
    with pytest.raises(errors.InvalidInputError, match=says) as async_error:
        await embeddings.aembed_documents(texts)
    assert sync_error.value.index == async_error.value.index == index
    assert server.stats.requests == 0


@pytest.mark.parametrize("text", [None, "", " \n", ["a list"], 7, "\udfff"])
async def test_a_bad_query_is_refused_before_any_request(
    make: Make, server: LocalServer, text: Any
) -> None:
    embeddings = make()
    with pytest.raises(errors.InvalidInputError, match="the text"):
        embeddings.embed_query(text)
    with pytest.raises(errors.InvalidInputError, match="the text"):
        await embeddings.aembed_query(text)
    assert server.stats.requests == 0


async def test_the_query_instruction_is_prepended_to_queries_only(
    make: Make, server: LocalServer
) -> None:
    embeddings = make(query_instruction="Find: ")
    embeddings.embed_query("a panda")
    await embeddings.aembed_query("a bear")
    embeddings.embed_documents(["a cat"])
    await embeddings.aembed_documents(["a dog"])
    assert server.stats.received == ("Find: a panda", "Find: a bear", "a cat", "a dog")


def test_a_query_passes_before_documents_that_wait(make: Make, slow_server: LocalServer) -> None:
    embeddings = make(base_url=slow_server.base_url)
    texts = [f"backfill {number}" for number in range(1500)]
    with ThreadPoolExecutor(1) as pool:
        backfill = pool.submit(embeddings.embed_documents, texts)
        while slow_server.stats.texts < 100:
            assert not backfill.done()
            time.sleep(0.005)
        embeddings.embed_query("urgent")
        assert not backfill.done()
        assert len(backfill.result(timeout=300)) == 1500
    assert slow_server.stats.received.index("urgent") < 1400


def test_usage_counts_what_was_sent(make: Make, server: LocalServer) -> None:
    seen: list[Any] = []
    embeddings = make(on_usage=seen.append)
    embeddings.embed_documents(TEXTS[:25])
    embeddings.embed_query("red panda")
    assert embeddings.usage.requests == 4
    assert embeddings.usage.tokens == server.stats.tokens == sum(usage.tokens for usage in seen)
    assert embeddings.usage.cost == embeddings.usage.tokens * 0.5 / 1e6


def test_a_cache_file_answers_the_second_time(
    make: Make, server: LocalServer, tmp_path: Any
) -> None:
    first = make(cache=tmp_path / "vectors.db").embed_documents(TEXTS[:20])
    server.reset_stats()
    again = make(cache=str(tmp_path / "vectors.db"))
    assert again.embed_documents(TEXTS[:20]) == first
    assert server.stats.requests == 0
    assert again.usage.cached == 20


async def test_the_event_loop_gets_its_turn_while_many_rows_become_lists(make: Make) -> None:
    from nexusflow_integrations._core.call.results import ROWS_AT_ONCE, RowLists

    vectors = make().client.embed(["a"]).repeat(4 * ROWS_AT_ONCE, axis=0)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    assert await RowLists(len(vectors)).of(vectors) == vectors.tolist()
    ticking.cancel()
    assert ticks == 3


# -- a user's own http clients ---------------------------------------------------------------------


async def test_the_http_clients_that_are_passed_in_are_used_and_left_open(
    make: Make, server: LocalServer
) -> None:
    seen: list[str] = []

    def note(request: httpx.Request) -> None:
        seen.append("sync")

    async def note_async(request: httpx.Request) -> None:
        seen.append("async")

    with httpx.Client(event_hooks={"request": [note]}) as client:
        async with httpx.AsyncClient(event_hooks={"request": [note_async]}) as async_client:
            embeddings = make(http_client=client, http_async_client=async_client)
            assert len(await asyncio.to_thread(embeddings.embed_query, "a")) == 64
            assert len(await embeddings.aembed_query("b")) == 64
            assert seen == ["sync", "async"]
            assert not client.is_closed
            assert not async_client.is_closed


def test_a_client_of_httpx2_is_used_as_well(make: Make) -> None:
    httpx2 = pytest.importorskip("httpx2")
    with httpx2.Client() as client:
        assert len(make(http_client=client).embed_query("a")) == 64
