"""A LlamaIndex rate limiter is acquired once before each request, with its tokens."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.rate_limiter import (
    BaseRateLimiter,
    SlidingWindowRateLimiter,
    TokenBucketRateLimiter,
)
from llama_index.core.storage.kvstore import SimpleKVStore

from nexusflow_integrations.errors import APITimeoutError, AuthenticationError, LimiterError
from nexusflow_integrations.local import LocalServer

Batch = Callable[..., list[list[float]]]
Texts = Callable[..., list[str]]


class Counting(BaseRateLimiter):
    """Counts who asks, in which way, and for how many tokens."""

    def __init__(self, tokens_per_minute: float | None = None) -> None:
        self.tokens_per_minute = tokens_per_minute
        self.asked: list[tuple[str, int]] = []

    def acquire(self, num_tokens: int = 0) -> None:
        self.asked.append(("sync", num_tokens))

    async def async_acquire(self, num_tokens: int = 0) -> None:
        self.asked.append(("async", num_tokens))


def test_the_limiter_is_asked_once_per_request(
    batch: Batch, way: str, upstream: Any, texts: Texts
) -> None:
    limiter = Counting()
    batch(upstream.embedding(rate_limiter=limiter, embed_batch_size=100), texts(95))
    assert limiter.asked == [(way, 0)] * len(upstream.requests) == [(way, 0)] * 10


@pytest.mark.parametrize("role", ["query", "text"])
def test_the_limiter_is_asked_for_one_text(single: Any, way: str, role: str, upstream: Any) -> None:
    limiter = Counting()
    single(upstream.embedding(rate_limiter=limiter), role, "a text")
    assert limiter.asked == [(way, 0)]


class Patient(Counting):
    """Asked for the next request, it waits until the last one has arrived."""

    def __init__(self, upstream: Any) -> None:
        super().__init__()
        self.upstream = upstream
        self.arrived: list[int] = []

    def arrives(self) -> Iterator[float]:
        """Seconds to wait, again and again, until the requests permitted so far are there."""
        until = time.monotonic() + 60
        while len(self.upstream.requests) < len(self.arrived) and time.monotonic() < until:
            yield 0.01
        self.arrived.append(len(self.upstream.requests))

    def acquire(self, num_tokens: int = 0) -> None:
        for seconds in self.arrives():
            time.sleep(seconds)

    async def async_acquire(self, num_tokens: int = 0) -> None:
        for seconds in self.arrives():
            await asyncio.sleep(seconds)


def test_a_permitted_request_leaves_before_the_next_is_asked_for(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    limiter = Patient(upstream)
    batch(upstream.embedding(rate_limiter=limiter), texts(50))
    assert limiter.arrived == [0, 1, 2, 3, 4]


def test_the_limiter_is_not_asked_for_cached_texts(
    batch: Batch, single: Any, way: str, upstream: Any, texts: Texts
) -> None:
    limiter = Counting()
    embedding = upstream.embedding(rate_limiter=limiter, embeddings_cache=SimpleKVStore())
    batch(embedding, texts(20))
    batch(embedding, texts(40))
    batch(embedding, texts(40))
    single(embedding, "text", "text number 0")
    assert len(limiter.asked) == len(upstream.requests) == 4


def test_a_limiter_of_tokens_gets_their_number(batch: Batch, upstream: Any, texts: Texts) -> None:
    limiter = Counting(tokens_per_minute=10_000)
    embedding = upstream.embedding(rate_limiter=limiter)
    batch(embedding, ["word " * 84] * 1 + texts(9))
    ((_, tokens),) = limiter.asked
    assert 100 <= tokens <= 200


@pytest.mark.parametrize("kind", [TokenBucketRateLimiter, SlidingWindowRateLimiter])
def test_a_text_larger_than_a_minutes_tokens_does_not_wait_for_ever(
    batch: Batch, upstream: Any, kind: Any
) -> None:
    embedding = upstream.embedding(rate_limiter=kind(tokens_per_minute=50))
    assert len(batch(embedding, ["word " * 500])) == 1


def test_after_a_failure_the_limiter_is_not_asked_again(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    limiter = Counting()
    upstream.answer = lambda asked: upstream.UNAUTHORIZED
    with pytest.raises(AuthenticationError):
        batch(upstream.embedding(rate_limiter=limiter, num_workers=1), texts(100))
    assert len(limiter.asked) <= 2
    assert len(upstream.requests) == 1


def test_a_limiter_without_token_counts_works_too(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    class Plain:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1

        async def async_acquire(self) -> None:
            self.asked += 1

    limiter = Plain()
    batch(upstream.embedding(rate_limiter=limiter), texts(20))
    assert limiter.asked == 2


class Blocking(Counting):
    """Lets the first two requests pass, and none after them for a long time."""

    def _seconds(self) -> float:
        return 60.0 if len(self.asked) > 2 else 0.0

    def acquire(self, num_tokens: int = 0) -> None:
        super().acquire(num_tokens)
        time.sleep(self._seconds())

    async def async_acquire(self, num_tokens: int = 0) -> None:
        await super().async_acquire(num_tokens)
        await asyncio.sleep(self._seconds())


def test_a_deadline_holds_while_a_call_waits_for_the_limiter(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    embedding = upstream.embedding(rate_limiter=Blocking(), deadline=1.0)
    began = time.monotonic()
    with pytest.raises(APITimeoutError, match="deadline") as raised:
        batch(embedding, texts(50))
    assert time.monotonic() - began < 30
    assert sorted(raised.value.finished) == list(range(20))


def test_a_deadline_holds_while_a_query_waits_for_the_limiter(single: Any, upstream: Any) -> None:
    limiter = Blocking()
    limiter.asked = [("", 0)] * 2
    embedding = upstream.embedding(rate_limiter=limiter, deadline=0.5)
    began = time.monotonic()
    with pytest.raises(APITimeoutError, match="deadline"):
        single(embedding, "query", "q")
    assert time.monotonic() - began < 30


def test_the_limiter_is_not_asked_for_texts_in_the_cache_of_the_package(
    batch: Batch, single: Any, upstream: Any, texts: Texts, tmp_path: Path
) -> None:
    limiter = Counting()
    embedding = upstream.embedding(rate_limiter=limiter, cache=tmp_path / "vectors.sqlite")
    batch(embedding, texts(20))
    batch(embedding, texts(40))
    batch(embedding, texts(40))
    single(embedding, "text", "text number 0")
    assert len(limiter.asked) == len(upstream.requests) == 4


def test_the_limiter_is_not_asked_for_texts_that_another_call_has_in_flight(
    batch: Batch, slowly: Any, slow_server: LocalServer, texts: Texts
) -> None:
    limiter = Counting()
    embedding = slowly()
    other = embedding.model_copy()
    other.rate_limiter = limiter
    thread = threading.Thread(target=embedding.get_text_embedding_batch, args=(texts(100),))
    thread.start()
    while slow_server.stats.max_in_flight < 10:
        time.sleep(0.01)
    batch(other, texts(100))
    thread.join()
    assert limiter.asked == []
    assert slow_server.stats.requests == 10


def test_a_limiter_that_raises_loses_no_paid_vector(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    class Failing(Counting):
        def acquire(self, num_tokens: int = 0) -> None:
            super().acquire(num_tokens)
            if len(self.asked) > 3:
                raise ConnectionError("no limiter")

        async def async_acquire(self, num_tokens: int = 0) -> None:
            self.acquire(num_tokens)

    upstream.answer = lambda asked: 0.2
    with pytest.raises(LimiterError, match="ConnectionError: no limiter") as raised:
        batch(upstream.embedding(rate_limiter=Failing()), texts(100))
    assert isinstance(raised.value.__cause__, ConnectionError)
    assert sorted(raised.value.finished) == list(range(30))
    assert len(upstream.requests) == 3
