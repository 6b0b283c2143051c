"""An ``embeddings_cache`` never gives one thing's vector to another, and saves what it should."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.storage.kvstore import SimpleKVStore

from nexusflow_integrations.errors import AuthenticationError, ConfigurationError
from nexusflow_integrations.llama_index import NexusFlowEmbedding
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


def test_what_is_missing_fills_whole_requests(
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
    [{"dimensions": 128}, {"model_name": "other"}, {"api_base": "https://other.invalid/v1"}],
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


def test_a_cache_that_is_no_key_value_store_is_refused(upstream: Any) -> None:
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
