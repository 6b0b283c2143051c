"""LangChain's rate limiter: once a batch, before it goes, in the caller's thread or loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError, ModelAuthenticationError
from langchain_core.rate_limiters import InMemoryRateLimiter

from nexusflow_integrations import errors
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]
Turns = Callable[..., Any]
TEXTS = [f"text number {number}" for number in range(95)]


def embed(embeddings: NexusFlowEmbeddings, texts: list[str], mode: str) -> list[list[float]]:
    if mode == "sync":
        return embeddings.embed_documents(texts)
    return asyncio.run(embeddings.aembed_documents(texts))


def test_every_batch_waits_for_its_turn(make: Make, turns: Turns, server: LocalServer) -> None:
    limiter = turns(server)
    expected = make().embed_documents(TEXTS)
    server.reset_stats()
    assert make(rate_limiter=limiter).embed_documents(TEXTS) == expected
    assert server.stats.requests == len(limiter.gone) == 10
    assert all(gone <= turn for turn, gone in enumerate(limiter.gone))
    assert set(limiter.where) == {threading.current_thread()}


async def test_every_batch_waits_for_its_turn_on_the_callers_event_loop(
    make: Make, turns: Turns, server: LocalServer
) -> None:
    limiter = turns(server)
    expected = await make().aembed_documents(TEXTS)
    server.reset_stats()
    assert await make(rate_limiter=limiter).aembed_documents(TEXTS) == expected
    assert server.stats.requests == len(limiter.gone) == 10
    assert all(gone <= turn for turn, gone in enumerate(limiter.gone))
    assert set(limiter.where) == {asyncio.get_running_loop()}


async def test_a_query_waits_for_its_turn(make: Make, turns: Turns, server: LocalServer) -> None:
    limiter = turns(server)
    embeddings = make(rate_limiter=limiter)
    embeddings.embed_query("a")
    await embeddings.aembed_query("b")
    assert limiter.gone == [0, 1]


async def test_no_texts_need_no_turn(make: Make, turns: Turns, server: LocalServer) -> None:
    limiter = turns(server)
    embeddings = make(rate_limiter=limiter)
    assert embeddings.embed_documents([]) == await embeddings.aembed_documents([]) == []
    assert limiter.gone == []


def test_bad_input_is_found_before_the_first_turn(
    make: Make, turns: Turns, server: LocalServer
) -> None:
    limiter = turns(server)
    with pytest.raises(errors.InvalidInputError) as raised:
        make(rate_limiter=limiter).embed_documents([*TEXTS, ""])
    assert raised.value.index == 95
    assert limiter.gone == []


def test_the_chunk_size_of_a_call_decides_how_many_turns(
    make: Make, turns: Turns, server: LocalServer
) -> None:
    limiter = turns(server)
    make(rate_limiter=limiter).embed_documents(TEXTS[:12], chunk_size=4)
    assert server.stats.requests == len(limiter.gone) == 3


def test_requests_still_run_side_by_side(
    make: Make, turns: Turns, slow_server: LocalServer
) -> None:
    limiter = turns(slow_server)
    make(base_url=slow_server.base_url, rate_limiter=limiter).embed_documents(TEXTS)
    assert slow_server.stats.max_in_flight >= 4


async def test_requests_still_run_side_by_side_in_async_calls(
    make: Make, turns: Turns, slow_server: LocalServer
) -> None:
    limiter = turns(slow_server)
    await make(base_url=slow_server.base_url, rate_limiter=limiter).aembed_documents(TEXTS)
    assert slow_server.stats.max_in_flight >= 4


def test_langchains_own_limiter_spreads_the_requests(make: Make, server: LocalServer) -> None:
    limiter = InMemoryRateLimiter(
        requests_per_second=20, check_every_n_seconds=0.005, max_bucket_size=1
    )
    began = time.monotonic()
    make(rate_limiter=limiter).embed_documents(TEXTS[:60])
    # Six turns are five pauses of 50 ms at least; how much longer it takes says nothing.
    assert time.monotonic() - began >= 0.25
    assert server.stats.requests == 6


def test_the_bar_moves_under_a_rate_limiter(
    make: Make, turns: Turns, server: LocalServer, bars: Any
) -> None:
    make(rate_limiter=turns(server), show_progress_bar=True).embed_documents(TEXTS)
    assert bars[0].steps == [10] * 9 + [5]


def test_usage_adds_up_under_a_rate_limiter(make: Make, turns: Turns, server: LocalServer) -> None:
    embeddings = make(rate_limiter=turns(server))
    embeddings.embed_documents(TEXTS)
    assert embeddings.usage.requests == 10
    assert embeddings.usage.tokens == server.stats.tokens


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_failure_ends_the_taking_of_turns(
    make: Make, turns: Turns, server: LocalServer, mode: str
) -> None:
    limiter = turns(server, pause=0.2)  # so that some answer arrives before the last turn
    embeddings = make(rate_limiter=limiter, api_key="sk-air-wrong")
    texts = [f"text number {number}" for number in range(1000)]
    with pytest.raises(ModelAuthenticationError):
        embed(embeddings, texts, mode)
    assert len(limiter.gone) < 50


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_refused_texts_are_named_by_their_place_in_the_whole_list(
    make: Make, turns: Turns, server: LocalServer, mode: str
) -> None:
    # The local server refuses a text of more than 8,192 tokens.
    texts = [*TEXTS[:33], "word " * 9000, *TEXTS[33:]]
    embeddings = make(rate_limiter=turns(server))
    with pytest.raises(ContextOverflowError) as raised:
        embed(embeddings, texts, mode)
    error: Any = raised.value
    assert set(error.refused) == {33}
    assert set(error.finished) == set(range(96)) - {33}
    assert error.finished[95].tolist() == make().embed_documents(TEXTS)[94]


def test_the_callers_context_reaches_a_paced_call(
    make: Make, turns: Turns, server: LocalServer
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    seen: list[str] = []
    embeddings = make(
        rate_limiter=turns(server), on_usage=lambda usage: seen.append(variable.get("nobody's"))
    )
    embeddings.embed_documents(TEXTS[:20])
    assert seen == ["mine", "mine"]


async def test_cancelling_ends_the_taking_of_turns(
    make: Make, turns: Turns, slow_server: LocalServer
) -> None:
    limiter = turns(slow_server, pause=0.01)
    embeddings = make(base_url=slow_server.base_url, rate_limiter=limiter)
    work = asyncio.ensure_future(embeddings.aembed_documents(TEXTS * 20))
    while len(limiter.gone) < 3:
        await asyncio.sleep(0.005)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    turns = len(limiter.gone)
    await asyncio.sleep(0.1)
    assert len(limiter.gone) == turns < 190


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_after_a_refused_key_what_was_not_begun_is_not_sent(mode: str) -> None:
    limiter = InMemoryRateLimiter(
        requests_per_second=10_000, check_every_n_seconds=0.001, max_bucket_size=1000
    )
    with LocalServer(model="hash", latency_ms=150, api_key="right") as guarded:
        embeddings = NexusFlowEmbeddings(
            api_key="wrong",
            base_url=guarded.base_url,
            dimensions=64,
            rate_limiter=limiter,
            max_concurrency=4,
        )
        with pytest.raises(ModelAuthenticationError):
            embed(embeddings, [f"text {number}" for number in range(1000)], mode)
        assert sum(guarded.stats.statuses.values()) < 50
