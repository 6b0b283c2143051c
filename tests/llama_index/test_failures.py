"""After a failure nothing more is sent, no task remains, and nothing paid for is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llama_index.core.storage.kvstore import SimpleKVStore

from nexusflow_integrations import Budget, NexusFlow
from nexusflow_integrations.errors import (
    AuthenticationError,
    BadRequestError,
    BudgetExceededError,
    RefusedTextsError,
)
from nexusflow_integrations.llama_index import NexusFlowEmbedding

Batch = Callable[..., list[list[float]]]
Texts = Callable[..., list[str]]


def _fails_at(upstream: Any, text: str, others: float | None = None) -> None:
    upstream.answer = lambda asked: (*upstream.UNAUTHORIZED, 0.05) if text in asked else others


def test_after_a_failure_nothing_more_is_sent_and_nothing_is_in_flight(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    _fails_at(upstream, "text number 25", others=0.1)
    with pytest.raises(AuthenticationError):
        batch(upstream.embedding(num_workers=4), texts(400))
    assert upstream.in_flight == 0
    sent = len(upstream.requests)
    assert sent <= 4 + 3
    assert upstream.settles()
    assert len(upstream.requests) == sent


def test_vectors_in_flight_are_kept_by_their_index_in_the_callers_list(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    _fails_at(upstream, "text number 25", others=0.1)
    with pytest.raises(AuthenticationError) as caught:
        batch(upstream.embedding(max_concurrency=4), texts(40))
    expected = [*range(20), *range(30, 40)]
    assert sorted(caught.value.finished) == expected
    for index in expected:
        right = upstream.vector_of(f"text number {index}")
        assert np.array_equal(caught.value.finished[index], np.float32(right))
        assert caught.value.finished[index].dtype == np.float32


def test_requests_that_do_not_finish_soon_after_a_failure_are_given_up(
    batch: Batch, upstream: Any, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexusflow_integrations._core.call.job.DRAIN", 0.2)
    _fails_at(upstream, "text number 5", others=1.0)
    with pytest.raises(AuthenticationError):
        batch(upstream.embedding(num_workers=2), texts(100))
    assert upstream.settles()
    assert len(upstream.requests) == 2


def test_a_refused_text_loses_none_of_the_others(batch: Batch, upstream: Any, texts: Texts) -> None:
    upstream.answer = lambda asked: upstream.MODERATED if "text number 33" in asked else None
    with pytest.raises(RefusedTextsError, match=r"1 of 60 texts \(text 33: ") as caught:
        batch(upstream.embedding(), texts(60))
    assert list(caught.value.refused) == [33]
    assert sorted(caught.value.finished) == [i for i in range(60) if i != 33]


def test_every_place_of_a_refused_text_is_named(batch: Batch, upstream: Any, texts: Texts) -> None:
    upstream.answer = lambda asked: upstream.MODERATED if "text number 3" in asked else None
    store = SimpleKVStore()
    batch(upstream.embedding(embeddings_cache=store), ["text number 0", "text number 1"])
    with pytest.raises(RefusedTextsError, match=r"2 of 20 texts \(text 3: .*; text 13: ") as caught:
        batch(upstream.embedding(embeddings_cache=store), texts(10) * 2)
    assert sorted(caught.value.refused) == [3, 13]
    assert sorted(caught.value.finished) == [i for i in range(20) if i not in (3, 13)]


def test_the_only_text_refused_raises_the_servers_own_reason(batch: Batch, upstream: Any) -> None:
    upstream.answer = lambda asked: upstream.MODERATED
    with pytest.raises(BadRequestError, match="data_inspection_failed") as caught:
        batch(upstream.embedding(), ["only"])
    assert caught.value.status_code == 400


def test_the_budget_stops_a_batch_with_what_is_finished(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    embedding = upstream.embedding(budget=Budget(tokens=500))
    with pytest.raises(BudgetExceededError) as caught:
        batch(embedding, texts(100))
    assert embedding.usage.tokens <= 500
    assert 0 < len(caught.value.finished) < 100


def test_a_rate_limiter_that_fails_stops_the_batch(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    class Failing:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1
            if self.asked > 2:
                raise RuntimeError("out of order")

        async def async_acquire(self) -> None:
            self.acquire()

    upstream.answer = lambda asked: 0.2
    with pytest.raises(RuntimeError, match="out of order"):
        batch(upstream.embedding(rate_limiter=Failing()), texts(100))
    assert upstream.settles()
    assert len(upstream.requests) <= 2


def test_a_part_of_several_requests_keeps_those_that_were_answered(
    batch: Batch, upstream: Any, texts: Texts, tmp_path: Any
) -> None:
    upstream.answer = lambda asked: (
        (*upstream.UNAUTHORIZED, 0.3) if "text number 25" in asked else None
    )
    with pytest.raises(AuthenticationError) as caught:
        batch(upstream.embedding(cache=tmp_path / "vectors.sqlite"), texts(40))
    assert sorted(caught.value.finished) == [*range(20), *range(30, 40)]
    right = upstream.vector_of("text number 35")
    assert np.array_equal(caught.value.finished[35], np.float32(right))


class Unlisted(np.ndarray):
    def tolist(self) -> Any:
        raise AssertionError("a row was converted, but nothing needs it")


def test_after_a_failure_no_lists_are_made_if_there_is_no_store(
    batch: Batch, embedding: NexusFlowEmbedding, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        error = AuthenticationError("no")
        error.finished = {0: np.ones(64, np.float32).view(Unlisted)}
        raise error

    async def afail(*_: Any, **__: Any) -> Any:
        fail()

    monkeypatch.setattr(NexusFlow, "_embed", fail)
    monkeypatch.setattr(NexusFlow, "_aembed", afail)
    with pytest.raises(AuthenticationError) as caught:
        batch(embedding, texts(3))
    assert list(caught.value.finished) == [0]
