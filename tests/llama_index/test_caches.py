"""An ``embeddings_cache`` never mixes up vectors, and stores every vector that it should."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.storage.kvstore import SimpleKVStore

from nexusflow_integrations.errors import AuthenticationError, ConfigurationError
from nexusflow_integrations.llama_index import NexusFlowEmbedding
from nexusflow_integrations.llama_index.stored import keys
from nexusflow_integrations.local import LocalServer

Batch = Callable[..., list[list[float]]]
Texts = Callable[..., list[str]]


@pytest.fixture
def store() -> SimpleKVStore:
    return SimpleKVStore()


def test_a_second_batch_sends_nothing(
    batch: Batch, upstream: Any, texts: Texts, store: SimpleKVStore
) -> None:
    embedding = upstream.embedding(embeddings_cache=store)
    first = batch(embedding, texts(35))
    assert batch(embedding, texts(35)) == first
    assert len(upstream.requests) == 4


def test_missing_texts_fill_whole_requests(
    batch: Batch, upstream: Any, texts: Texts, store: SimpleKVStore
) -> None:
    embedding = upstream.embedding(embeddings_cache=store)
    batch(embedding, texts(100)[::2])
    upstream.requests.clear()
    found = batch(embedding, texts(100))
    assert found == [upstream.vector_of(text) for text in texts(100)]
    assert sorted(map(len, upstream.requests)) == [10] * 5


def test_one_text_and_many_share_the_cache(
    batch: Batch, single: Any, upstream: Any, texts: Texts, store: SimpleKVStore
) -> None:
    embedding = upstream.embedding(embeddings_cache=store)
    one = single(embedding, "text", "text number 3")
    assert batch(embedding, texts(10))[3] == one
    assert single(embedding, "text", "text number 7") == upstream.vector_of("text number 7")
    assert sorted(map(len, upstream.requests)) == [1, 9]


def test_a_text_that_only_the_server_finds_too_long_is_not_cached_for_another_policy(
    batch: Batch, upstream: Any, store: SimpleKVStore
) -> None:
    def answer(texts: list[str]) -> Any:
        if any(len(text) > 100 for text in texts):
            return 400, {"error": {"message": "Range of input length should be [1, 100]"}}
        return None

    upstream.answer = answer
    text = " ".join(f"w{number}" for number in range(60))
    rows = {
        policy: batch(upstream.embedding(embeddings_cache=store, on_too_long=policy), [text])
        for policy in ("split", "truncate")
    }
    upstream.answer = lambda _: None
    rows["send"] = batch(upstream.embedding(embeddings_cache=store, on_too_long="send"), [text])
    assert rows["send"] == [upstream.vector_of(text)]
    assert rows["split"] != rows["truncate"] != rows["send"] != rows["split"]


def test_a_query_with_an_instruction_does_not_get_the_vector_of_an_equal_document(
    batch: Batch, single: Any, upstream: Any, store: SimpleKVStore
) -> None:
    embedding = upstream.embedding(embeddings_cache=store, query_instruction="Find: ")
    (document,) = batch(embedding, ["a text"])
    query = single(embedding, "query", "a text")
    assert query == upstream.vector_of("Find: a text") != document
    assert single(embedding, "query", "a text") == query
    assert single(embedding, "text", "a text") == document
    assert len(upstream.requests) == 2


def test_a_changed_instruction_is_another_query(
    single: Any, upstream: Any, store: SimpleKVStore
) -> None:
    for instruction in ("Find: ", "Look up: "):
        embedding = upstream.embedding(embeddings_cache=store, query_instruction=instruction)
        assert single(embedding, "query", "x") == upstream.vector_of(f"{instruction}x")


@pytest.mark.parametrize(
    "other",
    [
        {"dimensions": 128},
        {"model_name": "other"},
        {"api_base": "https://other.invalid/v1"},
        {"extra_body": {"a": 1}},
        {"default_query": {"a": 1}},
    ],
    ids=lambda other: "-".join(other),
)
def test_another_size_model_or_server_does_not_get_these_vectors(
    batch: Batch, upstream: Any, store: SimpleKVStore, other: dict[str, Any]
) -> None:
    batch(upstream.embedding(embeddings_cache=store), ["a text"])
    embedding = upstream.embedding(embeddings_cache=store)
    for name, value in other.items():
        setattr(embedding, name, value)
    (found,) = batch(embedding, ["a text"])
    assert len(upstream.requests) == 2
    assert len(found) == other.get("dimensions", 64)


def test_a_vector_that_llama_index_cached_for_another_model_is_not_taken(
    single: Any, upstream: Any, store: SimpleKVStore
) -> None:
    store.put("a text", {"some-id": [1.0, 0.0]}, collection="embeddings")
    embedding = upstream.embedding(embeddings_cache=store)
    assert single(embedding, "text", "a text") == upstream.vector_of("a text")


def test_a_second_run_after_a_failure_pays_only_for_the_rest(
    batch: Batch, upstream: Any, texts: Texts, store: SimpleKVStore
) -> None:
    upstream.answer = lambda asked: (
        (*upstream.UNAUTHORIZED, 0.1) if "text number 55" in asked else None
    )
    embedding = upstream.embedding(embeddings_cache=store, num_workers=2)
    with pytest.raises(AuthenticationError) as caught:
        batch(embedding, texts(100))
    assert len(caught.value.finished) >= 50
    upstream.answer = lambda asked: None
    upstream.requests.clear()
    assert batch(embedding, texts(100)) == [upstream.vector_of(text) for text in texts(100)]
    assert sum(map(len, upstream.requests)) == 100 - len(caught.value.finished)


def test_a_cached_text_has_no_events_since_nothing_is_sent(
    batch: Batch, single: Any, upstream: Any, texts: Texts, store: SimpleKVStore, events: Any
) -> None:
    embedding = upstream.embedding(embeddings_cache=store)
    batch(embedding, texts(20))
    batch(embedding, texts(30))
    single(embedding, "text", "text number 0")
    assert len(events.named("EmbeddingStartEvent")) == len(upstream.requests) == 3
    assert len(events.named("EmbeddingEndEvent")) == 3


def test_an_object_with_a_cache_can_be_dumped(upstream: Any, store: SimpleKVStore) -> None:
    embedding = upstream.embedding(embeddings_cache=store)
    assert "embeddings_cache" not in embedding.to_json()


def test_a_cache_that_is_not_a_key_value_store_is_refused(upstream: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"embeddings_cache must be a BaseKVStore"):
        upstream.embedding(embeddings_cache={})


def test_sync_calls_use_the_sync_store_and_async_calls_the_async_one(
    batch: Batch, way: str, upstream: Any, texts: Texts
) -> None:
    used = set()

    class Watched(SimpleKVStore):
        def get(self, *args: Any, **kwargs: Any) -> Any:
            used.add(f"sync {threading.current_thread().name}")
            return super().get(*args, **kwargs)

        async def aget(self, *args: Any, **kwargs: Any) -> Any:
            used.add(f"async {threading.current_thread().name}")
            return SimpleKVStore.get(self, *args, **kwargs)

    batch(upstream.embedding(embeddings_cache=Watched()), texts(20))
    assert used == {f"{way} {threading.current_thread().name}"}


def test_the_packages_own_cache_file_serves_the_next_object(
    batch: Batch, server: LocalServer, key: str, texts: Texts, tmp_path: Any
) -> None:
    def make() -> NexusFlowEmbedding:
        return NexusFlowEmbedding(
            api_key=key,
            api_base=server.base_url,
            dimensions=64,
            cache=tmp_path / "vectors.sqlite",
        )

    batch(make(), texts(100)[::2])
    found = batch(make(), texts(100))
    assert found == make().client.embed(texts(100)).tolist()
    assert sorted(server.stats.received) == sorted(texts(100))
    assert server.stats.requests == 10


def test_derive_serves_a_size_from_larger_vectors_beside_an_embeddings_cache(
    batch: Batch, server: LocalServer, key: str, texts: Texts, tmp_path: Any, store: SimpleKVStore
) -> None:
    def make(size: int, **options: Any) -> NexusFlowEmbedding:
        settings: dict[str, Any] = {"cache": tmp_path / "vectors.sqlite", "derive": True, **options}
        return NexusFlowEmbedding(
            api_key=key, api_base=server.base_url, dimensions=size, **settings
        )

    batch(make(512), texts(30))
    server.reset_stats()
    small = make(64, embeddings_cache=store)
    expected = batch(make(64, cache=None, derive=False), texts(50))
    for _ in range(2):
        assert batch(small, texts(50)) == [pytest.approx(row, abs=1e-6) for row in expected]
    assert small.usage.derived == 50
    assert [text for text in texts(50) if server.stats.received.count(text) > 1] == texts(50)[30:]
    assert "derive" not in small.to_dict()
    assert "cache" not in small.to_dict()


# -- a store that takes its time, or fails ---------------------------------------------------------


class Slow(SimpleKVStore):
    """Takes 10 ms for everything; knows how much of it was done while requests were in flight."""

    def __init__(self, upstream: Any) -> None:
        super().__init__()
        self.upstream = upstream
        self.at_once = self.most_at_once = 0
        self.meanwhile: list[str] = []

    def _note(self, what: str) -> None:
        if self.upstream.in_flight:
            self.meanwhile.append(what)

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self._note("get")
        time.sleep(0.01)
        return super().get(*args, **kwargs)

    def put(self, *args: Any, **kwargs: Any) -> None:
        self._note("put")
        time.sleep(0.01)
        super().put(*args, **kwargs)

    async def _take_time(self, what: str) -> None:
        self._note(what)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1

    async def aget(self, *args: Any, **kwargs: Any) -> Any:
        await self._take_time("get")
        return SimpleKVStore.get(self, *args, **kwargs)

    async def aput(self, *args: Any, **kwargs: Any) -> None:
        await self._take_time("put")
        SimpleKVStore.put(self, *args, **kwargs)


def test_an_embeddings_cache_is_read_and_written_while_requests_are_in_flight(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    upstream.answer = lambda asked: 0.2
    store = Slow(upstream)
    found = batch(upstream.embedding(embeddings_cache=store, num_workers=2), texts(100))
    assert found == [upstream.vector_of(text) for text in texts(100)]
    assert store.meanwhile.count("get") >= 5
    assert store.meanwhile.count("put") >= 5
    assert upstream.max_in_flight == 2


def test_an_async_call_reads_and_writes_many_texts_at_once(upstream: Any, texts: Texts) -> None:
    store = Slow(upstream)
    embedding = upstream.embedding(embeddings_cache=store)
    first = asyncio.run(embedding.aget_text_embedding_batch(texts(300)))
    assert store.most_at_once > 10
    store.most_at_once = 0
    assert asyncio.run(embedding.aget_text_embedding_batch(texts(300))) == first
    assert 10 < store.most_at_once <= 64
    assert len(upstream.requests) == 30


class Failing(SimpleKVStore):
    """Raises in some of its methods, with an address that must not be shown."""

    def __init__(self, *methods: str) -> None:
        super().__init__()
        self.methods = methods
        self.asked = 0

    def _fail(self, method: str) -> None:
        if method in self.methods:
            self.asked += 1
            raise ConnectionError("redis://user:secret@host")

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("get")
        return super().get(*args, **kwargs)

    def put(self, *args: Any, **kwargs: Any) -> None:
        self._fail("put")
        super().put(*args, **kwargs)

    async def aget(self, *args: Any, **kwargs: Any) -> Any:
        return self.get(*args, **kwargs)

    async def aput(self, *args: Any, **kwargs: Any) -> None:
        self.put(*args, **kwargs)


@pytest.mark.parametrize("methods", [("get",), ("put",), ("get", "put")], ids="-".join)
def test_a_store_that_fails_is_logged_once_and_loses_no_vector(
    batch: Batch,
    single: Any,
    upstream: Any,
    texts: Texts,
    methods: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Failing(*methods)
    embedding = upstream.embedding(embeddings_cache=store)
    with caplog.at_level(logging.WARNING):
        found = batch(embedding, texts(300))
    assert found == [upstream.vector_of(text) for text in texts(300)]
    (record,) = caplog.records
    assert "embeddings_cache" in record.getMessage()
    assert "secret" not in caplog.text
    assert store.asked < 150  # a store that is down is not waited for again and again
    assert single(embedding, "query", "q") == upstream.vector_of("q")


def test_a_store_that_fails_for_one_text_serves_the_others(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    store = Failing()
    embedding = upstream.embedding(embeddings_cache=store)
    batch(embedding, texts(30))
    broken = keys(embedding, "document", own=False)("text number 7")
    get = store.get

    def fails_for_one(key: str, *args: Any, **kwargs: Any) -> Any:
        if key == broken:
            raise ValueError(key)
        return get(key, *args, **kwargs)

    store.get = fails_for_one  # type: ignore[method-assign]
    assert batch(embedding, texts(30)) == [upstream.vector_of(text) for text in texts(30)]
    assert upstream.requests[3:] == [["text number 7"]]


def test_a_store_that_fails_loses_nothing_that_was_finished_before_a_failure(
    batch: Batch, upstream: Any, texts: Texts
) -> None:
    upstream.answer = lambda asked: (
        (*upstream.UNAUTHORIZED, 0.3) if "text number 15" in asked else None
    )
    embedding = upstream.embedding(embeddings_cache=Failing("get", "put"), num_workers=2)
    with pytest.raises(AuthenticationError) as caught:
        batch(embedding, texts(20))
    assert sorted(caught.value.finished) == list(range(10))


@pytest.mark.parametrize(
    "value",
    [
        {"embedding": [0.5] * 63},
        {"embedding": [*[0.5] * 63, float("nan")]},
        {"embedding": [[0.5] * 64]},
        {"embedding": ["0.5x"] * 64},
        {"embedding": []},
        {"embedding": None},
        {},
        [0.5] * 64,
    ],
    ids=["short", "nan", "nested", "words", "empty", "none", "nothing", "no dict"],
)
def test_a_value_that_is_not_a_vector_of_the_right_length_counts_as_absent(
    batch: Batch, single: Any, upstream: Any, value: Any
) -> None:
    class Holding(SimpleKVStore):
        def get(self, key: str, **kwargs: Any) -> Any:
            return super().get(key, **kwargs) or value

        async def aget(self, key: str, **kwargs: Any) -> Any:
            return self.get(key, **kwargs)

    embedding = upstream.embedding(embeddings_cache=Holding())
    assert batch(embedding, ["a"]) == [upstream.vector_of("a")]
    assert single(embedding, "text", "b") == upstream.vector_of("b")
    assert batch(embedding, ["a", "b"]) == [upstream.vector_of("a"), upstream.vector_of("b")]
    assert len(upstream.requests) == 2


def test_without_dimensions_a_vector_of_another_size_than_the_others_counts_as_absent(
    batch: Batch, upstream: Any, texts: Texts, store: SimpleKVStore
) -> None:
    upstream.size = 64
    embedding = upstream.embedding(embeddings_cache=store, dimensions=None)
    batch(embedding, texts(10))
    key = keys(embedding, "document", own=False)
    store.put(key("text number 5"), {"embedding": [0.5] * 63}, collection="embeddings")
    assert batch(embedding, texts(10)) == [upstream.vector_of(text) for text in texts(10)]
    assert upstream.requests[1:] == [["text number 5"]]


def test_a_vector_that_the_caller_changes_is_not_changed_in_the_store(
    batch: Batch, upstream: Any, store: SimpleKVStore
) -> None:
    embedding = upstream.embedding(embeddings_cache=store)
    for _ in range(3):
        (found,) = batch(embedding, ["a text"])
        assert found == upstream.vector_of("a text")
        found[0] = 99.0


# -- subclasses with hooks of their own ------------------------------------------------------------


class Multiplied(NexusFlowEmbedding):
    """Every vector is the client's times a factor."""

    factor: float = 2.0

    def _times(self, row: list[float]) -> list[float]:
        return [self.factor * number for number in row]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._times(super()._get_query_embedding(query))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._times(await super()._aget_query_embedding(query))

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._times(super()._get_text_embedding(text))

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return self._times(await super()._aget_text_embedding(text))

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return list(map(self._times, super()._get_text_embeddings(texts)))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return list(map(self._times, await super()._aget_text_embeddings(texts)))


class OnlyBatches(NexusFlowEmbedding):
    """Only its batches are changed, and only in sync calls."""

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [[-number for number in row] for row in super()._get_text_embeddings(texts)]


def test_a_subclass_with_hooks_shares_its_vectors_over_all_its_paths_and_with_nobody_else(
    upstream: Any, texts: Texts, store: SimpleKVStore
) -> None:
    plain = upstream.embedding(embeddings_cache=store)
    doubled = upstream.embedding(cls=Multiplied, embeddings_cache=store)
    tripled = upstream.embedding(cls=Multiplied, embeddings_cache=store, factor=3.0)
    for _ in range(2):
        for embedding, factor in ((plain, 1.0), (doubled, 2.0), (tripled, 3.0)):
            right = [[factor * n for n in upstream.vector_of(text)] for text in texts(10)]
            assert embedding.get_text_embedding_batch(texts(10)) == right
            assert asyncio.run(embedding.aget_text_embedding_batch(texts(10))) == right
            assert embedding.get_text_embedding("text number 3") == right[3]
            assert asyncio.run(embedding.aget_text_embedding("text number 4")) == right[4]
    assert len(upstream.requests) == 3


def test_a_query_of_a_subclass_with_hooks_is_not_taken_for_a_document(
    upstream: Any, store: SimpleKVStore
) -> None:
    embedding = upstream.embedding(cls=Multiplied, embeddings_cache=store)
    document = embedding.get_text_embedding("x")
    assert embedding.get_query_embedding("x") == document
    assert len(upstream.requests) == 2
    assert asyncio.run(embedding.aget_query_embedding("x")) == document
    assert len(upstream.requests) == 2


def test_objects_of_two_sizes_with_a_hook_share_a_store_and_no_vector(
    upstream: Any, texts: Texts, store: SimpleKVStore
) -> None:
    small, large = (
        upstream.embedding(cls=OnlyBatches, embeddings_cache=store, dimensions=size)
        for size in (64, 128)
    )
    for _ in range(2):
        for embedding, size in ((small, 64), (large, 128)):
            found = embedding.get_text_embedding_batch(texts(10))
            expected = [upstream.vector_of(text, size) for text in texts(10)]
            assert found == [[-number for number in row] for row in expected]
            assert embedding.get_text_embedding("text number 1") == expected[1]
            assert asyncio.run(embedding.aget_text_embedding_batch(texts(10))) == expected


def test_a_subclass_with_hooks_does_without_a_store_that_fails(
    batch: Batch, single: Any, upstream: Any, texts: Texts
) -> None:
    doubled = upstream.embedding(cls=Multiplied, embeddings_cache=Failing("get", "put"))
    right = [[2 * number for number in upstream.vector_of(text)] for text in texts(10)]
    assert batch(doubled, texts(10)) == right
    assert single(doubled, "text", "text number 3") == right[3]


def test_a_document_instruction_is_prepended_to_documents_and_changes_keys(
    batch: Batch, upstream: Any, store: SimpleKVStore
) -> None:
    plain = upstream.embedding(embeddings_cache=store)
    told = upstream.embedding(embeddings_cache=store, document_instruction="D ")
    assert batch(plain, ["x"]) != batch(told, ["x"]) == [upstream.vector_of("D x")]
    assert told._get_text_embeddings_cached(["x"]) == batch(told, ["x"]) == batch(plain, ["D x"])
    assert told.get_query_embedding("x") == plain.get_query_embedding("x")
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("method", ["get", "put"])
@pytest.mark.parametrize("kind", [RuntimeError, TimeoutError, ConnectionError])
def test_an_error_of_a_signal_handler_is_not_taken_for_one_of_the_cache(
    upstream: Any, store: SimpleKVStore, kind: type[Exception], method: str
) -> None:
    def handler(*_: object) -> None:
        raise kind("the time is over")

    embedding = upstream.embedding(embeddings_cache=store)
    setattr(store, method, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(kind, match="the time is over"):
            embedding.get_text_embedding_batch(["a text"])
    finally:
        signal.signal(signal.SIGTERM, before)
