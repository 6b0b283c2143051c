"""Many texts are sent in order, concurrently, ten in a request, and no task is left running."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from nexusflow_integrations.errors import (
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    InvalidInputError,
)
from nexusflow_integrations.llama_index import NexusFlowEmbedding
from nexusflow_integrations.local import LocalServer

Batch = Callable[..., list[list[float]]]
Texts = Callable[..., list[str]]
Make = Callable[..., NexusFlowEmbedding]


def test_vectors_are_lists_of_python_floats_in_the_order_of_the_texts(
    batch: Batch, embedding: NexusFlowEmbedding, texts: Texts
) -> None:
    found = batch(embedding, texts(95))
    assert found == embedding.client.embed(texts(95)).tolist()
    assert {type(number) for row in found for number in row} == {float}


def test_dimensions_of_a_call(
    batch: Batch, embedding: NexusFlowEmbedding, server: LocalServer
) -> None:
    embedding.embeddings_cache = SimpleKVStore()
    for size in (128, 64, 128, None):
        assert len(batch(embedding, ["a"], dimensions=size)[0]) == (size or 64)
    assert (
        (embedding.dimensions, embedding.usage.requests) == (64, server.stats.requests) == (64, 2)
    )
    with pytest.raises(ConfigurationError, match=r"^dimensions must be one of"):
        batch(embedding, ["a"], dimensions=100)


def test_order_is_kept_when_answers_overtake_each_other(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    upstream.answer = lambda asked: 0.2 if "text number 0" in asked else None
    found = batch(upstream.embedding(), texts(95))
    assert upstream.finished[-1][0] == "text number 0"
    assert found == [upstream.vector_of(text) for text in texts(95)]


def test_many_requests_are_in_flight(
    batch: Batch, slowly: Make, slow_server: LocalServer, texts: Texts
) -> None:
    batch(slowly(), texts(400))
    assert slow_server.stats.max_in_flight >= 16
    assert slow_server.stats.requests == 40


@pytest.mark.parametrize("size", [1, 7, 10, 11, 100, 2048])
def test_a_request_never_holds_more_than_ten_texts(
    batch: Batch, upstream: Any, texts: Texts, size: int
) -> None:
    batch(upstream.embedding(embed_batch_size=size), texts(64))
    assert max(map(len, upstream.requests)) == min(size, 10)
    assert sorted(chain(*upstream.requests)) == sorted(texts(64))


def test_hooks_split_at_ten_themselves(way: str, upstream: Any, texts: Texts) -> None:
    upstream.answer = lambda asked: 0.1
    embedding = upstream.embedding()
    if way == "sync":
        found = embedding._get_text_embeddings(texts(40))
    else:
        found = asyncio.run(embedding._aget_text_embeddings(texts(40)))
    assert found == [upstream.vector_of(text) for text in texts(40)]
    assert sorted(map(len, upstream.requests)) == [10] * 4
    assert upstream.max_in_flight == 4


def test_hooks_for_one_text_do_not_block_the_loop(upstream: Any) -> None:
    upstream.answer = lambda asked: 0.1
    embedding = upstream.embedding()

    async def both() -> None:
        await asyncio.gather(
            embedding._aget_text_embedding("one"), embedding._aget_query_embedding("two")
        )

    asyncio.run(both())
    assert upstream.max_in_flight == 2


@pytest.mark.parametrize("workers", [1, 4])
def test_num_workers_bounds_the_requests_in_flight(
    batch: Batch, slowly: Make, slow_server: LocalServer, texts: Texts, workers: int
) -> None:
    batch(slowly(num_workers=workers), texts(80))
    assert slow_server.stats.max_in_flight == workers


@pytest.mark.parametrize("workers", [None, 0, 100])
def test_without_a_lower_num_workers_max_concurrency_bounds_them(
    batch: Batch, slowly: Make, slow_server: LocalServer, texts: Texts, workers: int | None
) -> None:
    batch(slowly(num_workers=workers, max_concurrency=3), texts(80))
    assert slow_server.stats.max_in_flight == 3


def test_num_workers_holds_with_a_cache_file_too(
    batch: Batch, slowly: Make, slow_server: LocalServer, texts: Texts, tmp_path: Any
) -> None:
    batch(slowly(num_workers=2, cache=tmp_path / "vectors.sqlite"), texts(80))
    assert slow_server.stats.max_in_flight == 2


def test_equal_texts_are_sent_once_and_share_no_list(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    twice = texts(15) + texts(15)[::-1]
    found = batch(upstream.embedding(), twice)
    assert found == [upstream.vector_of(text) for text in twice]
    assert sorted(chain(*upstream.requests)) == sorted(texts(15))
    assert len({id(row) for row in found}) == 30


def test_no_texts_send_nothing(batch: Batch, upstream: Any, events: Any) -> None:
    assert batch(upstream.embedding(), []) == []
    assert upstream.requests == []
    assert events.named("EmbeddingStartEvent") == []


@pytest.mark.parametrize("bad", ["", " \n", None, 7, "\ud800"])
def test_a_text_that_cannot_be_sent_is_named_before_anything_is(
    batch: Batch, upstream: Any, texts: Texts, bad: Any
) -> None:
    with pytest.raises(InvalidInputError, match="text 12 ") as caught:
        batch(upstream.embedding(), [*texts(12), bad])
    assert caught.value.index == 12
    assert upstream.requests == []


def test_one_string_is_not_a_list_of_texts(batch: Batch, upstream: Any) -> None:
    with pytest.raises(InvalidInputError, match="not one string"):
        batch(upstream.embedding(), "a text")


@pytest.mark.parametrize("bad", [None, [], ["a text"], b"a text", 7, " \n", "\ud800"])
def test_a_query_or_a_text_that_is_no_text_is_refused(single: Any, upstream: Any, bad: Any) -> None:
    for role in ("query", "text"):
        with pytest.raises(InvalidInputError, match=r"^the text "):
            single(upstream.embedding(), role, bad)
    assert upstream.requests == []


@pytest.mark.parametrize("bad", ["a text", None, NodeWithScore(node=TextNode(text="a text"))])
def test_what_is_no_node_is_refused_before_anything_is_sent(
    way: str, upstream: Any, bad: Any
) -> None:
    embedding = upstream.embedding()
    for nodes, words in (
        ([TextNode(text="a text"), bad], r"^item 1 is not a LlamaIndex node"),
        (bad, "^expected a list of nodes|^item 0"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            embedding(nodes) if way == "sync" else asyncio.run(embedding.acall(nodes))
    assert upstream.requests == []


def test_nodes_may_come_from_an_iterator(way: str, upstream: Any) -> None:
    embedding = upstream.embedding()
    nodes = (TextNode(text=f"text {number}") for number in range(12))
    done = embedding(nodes) if way == "sync" else asyncio.run(embedding.acall(nodes))
    assert [node.embedding for node in done] == [
        upstream.vector_of(f"text {number}") for number in range(12)
    ]


class _Prefixed(NexusFlowEmbedding):
    """What users write who want something before each text."""

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return super()._get_text_embeddings([f"passage: {text}" for text in texts])

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await super()._aget_text_embeddings([f"passage: {text}" for text in texts])

    def _get_query_embedding(self, query: str) -> list[float]:
        return super()._get_query_embedding(f"query: {query}")

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await super()._aget_query_embedding(f"query: {query}")


def test_a_subclass_with_its_own_hooks_is_used(
    batch: Batch, single: Any, server: LocalServer, key: str, texts: Texts
) -> None:
    embedding = _Prefixed(api_key=key, api_base=server.base_url, dimensions=64)
    batch(embedding, texts(25))
    single(embedding, "query", "which?")
    received = server.stats.received
    assert sorted(received) == sorted(
        [*(f"passage: {text}" for text in texts(25)), "query: which?"]
    )


# -- progress ------------------------------------------------------------------------------------


class _Bar:
    made: list[_Bar]

    def __init__(self, total: int, desc: str) -> None:
        self.total, self.desc, self.steps, self.closed = total, desc, [0], False
        self.made.append(self)

    def update(self, count: int) -> None:
        self.steps.append(self.steps[-1] + count)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[_Bar]:
    _Bar.made = []
    monkeypatch.setattr("tqdm.auto.tqdm", _Bar)
    return _Bar.made


def test_the_progress_bar_moves_with_the_texts_and_ends_at_their_number(
    batch: Batch, upstream: Any, texts: Texts, bars: list[_Bar]
) -> None:
    moved_by: list[int] = []

    def answer(asked: list[str]) -> float:
        moved_by.append(bars[0].steps[-1])
        return 0.1

    upstream.answer = answer
    batch(upstream.embedding(num_workers=1), [*texts(40), *texts(40)], show_progress=True)
    (bar,) = bars
    assert (bar.total, bar.desc, bar.closed) == (80, "Generating embeddings", True)
    assert moved_by == sorted(moved_by)
    assert 0 < moved_by[-1] <= 60  # while requests are still to come
    assert {step % 20 for step in bar.steps} == {0}
    assert bar.steps[-1] == 80


def test_there_is_no_progress_bar_unless_asked_for(
    batch: Batch, upstream: Any, texts: Texts, bars: list[_Bar]
) -> None:
    batch(upstream.embedding(), texts(20))
    assert bars == []


def test_the_progress_bar_is_closed_after_a_failure(
    batch: Batch, upstream: Any, texts: Texts, bars: list[_Bar]
) -> None:
    upstream.answer = lambda asked: upstream.UNAUTHORIZED
    with pytest.raises(AuthenticationError):
        batch(upstream.embedding(), texts(20), show_progress=True)
    assert bars[0].closed


# -- loops, threads, time ------------------------------------------------------------------------


def test_three_event_loops_in_a_row_share_one_object(
    embedding: NexusFlowEmbedding, texts: Texts
) -> None:
    runs = [asyncio.run(embedding.aget_text_embedding_batch(texts(45))) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2] == embedding.get_text_embedding_batch(texts(45))


def test_thirty_event_loops_in_a_row_leave_no_descriptors_behind(
    embedding: NexusFlowEmbedding, texts: Texts
) -> None:
    psutil = pytest.importorskip("psutil")

    def descriptors() -> int:
        asyncio.run(embedding.aget_text_embedding_batch(texts(25)))
        count: int = psutil.Process().num_fds()
        return count

    first = [descriptors() for _ in range(3)]
    last = [descriptors() for _ in range(30)]
    assert last[-1] <= max(first) + 3


def test_it_works_on_uvloop(embedding: NexusFlowEmbedding, texts: Texts) -> None:
    uvloop = pytest.importorskip("uvloop")
    runs = [uvloop.run(embedding.aget_text_embedding_batch(texts(25))) for _ in range(2)]
    assert runs[0] == runs[1] == embedding.get_text_embedding_batch(texts(25))


def test_sync_methods_work_inside_a_running_loop(
    embedding: NexusFlowEmbedding, texts: Texts
) -> None:
    async def inside() -> Any:
        return embedding.get_text_embedding_batch(texts(45)), embedding.get_query_embedding("q")

    found, _ = asyncio.run(inside())
    assert len(found) == 45


def test_the_async_batch_does_not_block_the_loop(upstream: Any, texts: Texts) -> None:
    upstream.answer = lambda asked: 0.6
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    async def main() -> None:
        ticking = asyncio.ensure_future(tick())
        await upstream.embedding(num_workers=1).aget_text_embedding_batch(texts(20))
        ticking.cancel()

    asyncio.run(main())
    assert ticks >= 5


def test_one_object_serves_many_threads_and_loops_at_once(
    embedding: NexusFlowEmbedding, texts: Texts
) -> None:
    def work(number: int) -> bool:
        mine = texts(33, f"thread {number}")
        found = (
            embedding.get_text_embedding_batch(mine)
            if number % 2
            else asyncio.run(embedding.aget_text_embedding_batch(mine))
        )
        return found == embedding.client.embed(mine).tolist()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))


def test_a_cancelled_batch_sends_nothing_more(upstream: Any, texts: Texts) -> None:
    upstream.answer = lambda asked: 30.0

    async def main() -> None:
        embedding = upstream.embedding(num_workers=4)
        work = asyncio.ensure_future(embedding.aget_text_embedding_batch(texts(200)))
        while len(upstream.requests) < 4:
            assert not work.done()
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.sleep(0.2)
        assert upstream.in_flight == 0

    asyncio.run(main())
    assert len(upstream.requests) == 4
    assert upstream.finished == []


def test_ctrl_c_sends_nothing_more(upstream: Any, texts: Texts) -> None:
    def interrupt_at_the_fourth(asked: list[str]) -> float:
        if len(upstream.requests) == 4 and upstream.requests[3] == asked:  # one signal only
            os.kill(os.getpid(), signal.SIGINT)
        return 2.0

    upstream.answer = interrupt_at_the_fourth
    with pytest.raises(KeyboardInterrupt):
        upstream.embedding(num_workers=4).get_text_embedding_batch(texts(400))
    assert upstream.settles()
    assert len(upstream.requests) == 4


def test_the_deadline_is_for_the_whole_batch(batch: Batch, upstream: Any, texts: Texts) -> None:
    upstream.answer = lambda asked: 0.2
    with pytest.raises(APITimeoutError, match="deadline"):
        batch(upstream.embedding(num_workers=1, deadline=0.5), texts(200))
    assert len(upstream.requests) < 20
