"""LangChain's rate limiter is acquired before each batch is sent, in the caller's context."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError, ModelAuthenticationError, ModelError
from langchain_core.rate_limiters import BaseRateLimiter, InMemoryRateLimiter

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


def embed_query(embeddings: NexusFlowEmbeddings, mode: str) -> list[float]:
    if mode == "sync":
        return embeddings.embed_query("a query")
    return asyncio.run(embeddings.aembed_query("a query"))


def test_every_batch_waits_for_the_limiter(make: Make, turns: Turns, server: LocalServer) -> None:
    limiter = turns(server)
    expected = make().embed_documents(TEXTS)
    server.reset_stats()
    assert make(rate_limiter=limiter).embed_documents(TEXTS) == expected
    assert server.stats.requests == len(limiter.gone) == 10
    assert all(gone <= turn for turn, gone in enumerate(limiter.gone))
    assert set(limiter.where) == {threading.current_thread()}


async def test_every_batch_waits_for_the_limiter_on_the_callers_event_loop(
    make: Make, turns: Turns, server: LocalServer
) -> None:
    limiter = turns(server)
    expected = await make().aembed_documents(TEXTS)
    server.reset_stats()
    assert await make(rate_limiter=limiter).aembed_documents(TEXTS) == expected
    assert server.stats.requests == len(limiter.gone) == 10
    assert all(gone <= turn for turn, gone in enumerate(limiter.gone))
    assert set(limiter.where) == {asyncio.get_running_loop()}


async def test_a_query_waits_for_the_limiter(make: Make, turns: Turns, server: LocalServer) -> None:
    limiter = turns(server)
    embeddings = make(rate_limiter=limiter)
    embeddings.embed_query("a")
    await embeddings.aembed_query("b")
    assert limiter.gone == [0, 1]


async def test_no_texts_do_not_acquire_the_limiter(
    make: Make, turns: Turns, server: LocalServer
) -> None:
    limiter = turns(server)
    embeddings = make(rate_limiter=limiter)
    assert embeddings.embed_documents([]) == await embeddings.aembed_documents([]) == []
    assert limiter.gone == []


def test_bad_input_is_found_before_the_limiter_is_acquired(
    make: Make, turns: Turns, server: LocalServer
) -> None:
    limiter = turns(server)
    with pytest.raises(errors.InvalidInputError) as raised:
        make(rate_limiter=limiter).embed_documents([*TEXTS, ""])
    assert raised.value.index == 95
    assert limiter.gone == []


def test_the_chunk_size_of_a_call_decides_how_often_the_limiter_is_acquired(
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
def test_after_a_failure_the_limiter_is_not_acquired_again(
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
    assert seen == ["mine"]


async def test_after_a_cancellation_the_limiter_is_not_acquired_again(
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


class Scripted(BaseRateLimiter):
    """Does what the test says at each acquisition, whose number it gets, from 1."""

    def __init__(self, act: Callable[[int], float]) -> None:
        self.turns = 0
        self.act = act

    def _seconds(self) -> float:
        self.turns += 1
        return self.act(self.turns)

    def acquire(self, *, blocking: bool = True) -> bool:
        time.sleep(self._seconds())
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        await asyncio.sleep(self._seconds())
        return True


class Mine(Exception):
    """Raised in the main thread by a signal handler."""


@pytest.fixture
def alarm() -> Iterator[Callable[[], None]]:
    """Raise ``Mine`` in the main thread."""

    def raise_mine(*_: object) -> None:
        raise Mine

    before = signal.signal(signal.SIGUSR1, raise_mine)
    yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("deadline", [None, 300.0])
@pytest.mark.parametrize("waits", ["for the limiter", "for answers"])
def test_an_exception_in_the_main_thread_stops_the_call(
    alarm: Callable[[], None], waits: str, deadline: float | None
) -> None:
    def act(turn: int) -> float:
        if turn < 16:
            return 0.0
        if waits == "for the limiter":
            alarm()
            return 60.0
        threading.Timer(0.2, alarm).start()
        return 0.0

    limiter = Scripted(act)
    with LocalServer("hash") as paced:
        embeddings = NexusFlowEmbeddings(
            api_key="any",
            base_url=paced.base_url,
            dimensions=64,
            requests_per_minute=120,  # permitted requests wait in the core's own queue
            rate_limiter=limiter,
            deadline=deadline,
        )
        began = time.monotonic()
        with pytest.raises(Mine):
            embeddings.embed_documents([f"text {number}" for number in range(160)])
        assert time.monotonic() - began < 30
        sent = paced.stats.requests
        time.sleep(2.0)  # time for three or four more
        assert paced.stats.requests <= sent + 1
    assert not [thread for thread in threading.enumerate() if is_left_over(thread)]


def is_left_over(thread: threading.Thread) -> bool:
    """Tell whether the end of the process would wait for ``thread``."""
    return not thread.daemon and thread is not threading.main_thread()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_deadline_holds_while_the_limiter_is_waited_for(
    make: Make, server: LocalServer, mode: str
) -> None:
    limiter = Scripted(lambda turn: 0.0 if turn <= 2 else 60.0)
    embeddings = make(rate_limiter=limiter, deadline=1.0)
    began = time.monotonic()
    with pytest.raises(errors.APITimeoutError, match="deadline") as raised:
        embed(embeddings, TEXTS, mode)
    assert time.monotonic() - began < 30
    assert sorted(raised.value.finished) == list(range(20))
    assert server.stats.requests == 2


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_deadline_holds_for_a_query_that_waits_for_langchains_own_limiter(
    make: Make, server: LocalServer, mode: str
) -> None:
    limiter = InMemoryRateLimiter(requests_per_second=0.01)
    embeddings = make(rate_limiter=limiter, deadline=0.5)
    began = time.monotonic()
    with pytest.raises(errors.APITimeoutError, match="deadline"):
        embed_query(embeddings, mode)
    assert time.monotonic() - began < 30
    assert server.stats.requests == 0


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_cached_and_repeated_texts_do_not_acquire_the_limiter(
    make: Make, turns: Turns, server: LocalServer, tmp_path: Path, mode: str
) -> None:
    limiter = turns(server)
    embeddings = make(rate_limiter=limiter, cache=tmp_path / "vectors.sqlite")
    embed(embeddings, TEXTS[:60] * 2, mode)
    assert len(limiter.gone) == 6
    embed(embeddings, TEXTS[:65], mode)
    assert len(limiter.gone) == server.stats.requests == 7


def test_a_cached_query_does_not_acquire_the_limiter(
    make: Make, turns: Turns, server: LocalServer, tmp_path: Path
) -> None:
    limiter = turns(server)
    embeddings = make(rate_limiter=limiter, cache=tmp_path / "vectors.sqlite")
    first = embeddings.embed_query("a query")
    assert embeddings.embed_query("a query") == first
    assert asyncio.run(embeddings.aembed_query("a query")) == first
    assert len(limiter.gone) == server.stats.requests == 1


def test_texts_that_another_call_has_in_flight_do_not_acquire_the_limiter(
    make: Make, turns: Turns, slow_server: LocalServer
) -> None:
    limiter = turns(slow_server)
    other = make(base_url=slow_server.base_url)
    thread = threading.Thread(target=other.embed_documents, args=(TEXTS,))
    thread.start()
    while slow_server.stats.max_in_flight < 10:
        time.sleep(0.01)
    make(base_url=slow_server.base_url, rate_limiter=limiter).embed_documents(TEXTS)
    thread.join()
    assert limiter.gone == []
    assert slow_server.stats.requests == 10


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_call_with_a_rate_limiter_reports_its_usage_once(
    make: Make, turns: Turns, server: LocalServer, mode: str
) -> None:
    heard: list[Any] = []
    embeddings = make(rate_limiter=turns(server), on_usage=heard.append)
    embed(embeddings, [*TEXTS, *TEXTS[:5]], mode)
    assert [(usage.requests, usage.texts, usage.repeated) for usage in heard] == [(10, 100, 5)]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_limiter_that_raises_loses_nothing_that_was_paid(
    make: Make, slow_server: LocalServer, mode: str
) -> None:
    def act(turn: int) -> float:
        return 0.0 if turn < 6 else 1 / 0

    embeddings = make(base_url=slow_server.base_url, rate_limiter=Scripted(act))
    with pytest.raises(ModelError, match="the rate limiter failed: ZeroDivisionError") as raised:
        embed(embeddings, TEXTS, mode)
    error: Any = raised.value
    assert isinstance(error, errors.NexusFlowError)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert sorted(error.finished) == list(range(50))
    assert slow_server.stats.requests == 5


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_limiter_that_raises_for_a_query_is_an_error_of_both_kinds(
    make: Make, server: LocalServer, mode: str
) -> None:
    embeddings = make(rate_limiter=Scripted(lambda turn: 1 / 0))
    with pytest.raises(ModelError, match="ZeroDivisionError") as raised:
        embed_query(embeddings, mode)
    assert isinstance(raised.value, errors.NexusFlowError)
    assert server.stats.requests == 0


async def test_an_async_limiter_that_is_cancelled_from_inside_ends_the_call(make: Make) -> None:
    class Cancelled(Scripted):
        async def aacquire(self, *, blocking: bool = True) -> bool:
            raise asyncio.CancelledError

    with pytest.raises(errors.NexusFlowError, match="CancelledError"):
        await asyncio.wait_for(
            make(rate_limiter=Cancelled(lambda turn: 0.0)).aembed_documents(TEXTS), 60
        )
