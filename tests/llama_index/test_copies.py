"""Dicts, pickles and copies have every field that changes vectors, but never the key."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import httpx
import pytest
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SemanticSplitterNodeParser
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import BaseModel

from nexusflow_integrations import Budget, Usage
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.llama_index import EmbedNodes, NexusFlowEmbedding
from nexusflow_integrations.local import LocalServer

Texts = Callable[..., list[str]]

FULL: dict[str, Any] = {
    "api_key": "sk-air-full",
    "api_base": "http://127.0.0.1:9/v1",
    "dimensions": 256,
    "query_instruction": "Find: ",
    "embed_batch_size": 5,
    "num_workers": 3,
    "timeout": 7.0,
    "max_retries": 1,
    "max_concurrency": 4,
    "deadline": 60.0,
    "default_headers": {"X-Team": "search"},
    "budget": Budget(tokens=10_000),
}


def test_a_dict_holds_exactly_what_changes_the_vector() -> None:
    assert NexusFlowEmbedding(**FULL).to_dict() == {
        "class_name": "NexusFlowEmbedding",
        "model_name": "text-embedding-v4",
        "api_base": "http://127.0.0.1:9/v1",
        "dimensions": 256,
        "query_instruction": "Find: ",
    }


def test_a_dict_holds_what_is_added_to_requests_where_something_is() -> None:
    added = {
        "document_instruction": "Read: ",
        "extra_body": {"a": 1},
        "default_query": {"b": "2"},
    }
    made = NexusFlowEmbedding(**FULL, **added)
    assert {name: made.to_dict()[name] for name in added} == added
    again = NexusFlowEmbedding.from_dict(made.to_dict())
    assert again.client.settings.extra_body == {"a": 1}
    assert (
        NexusFlowEmbedding(**FULL, extra_body={}).to_dict() == NexusFlowEmbedding(**FULL).to_dict()
    )


def test_a_model_inside_another_pydantic_model_is_read_again() -> None:
    class Search(BaseModel):
        model: NexusFlowEmbedding

    model = NexusFlowEmbedding(**FULL)
    written = Search(model=model).model_dump_json()
    assert Search.model_validate_json(written).model.to_dict() == model.to_dict()
    step = EmbedNodes.from_dict(EmbedNodes(embed_model=model).to_dict())
    assert step.embed_model.to_dict() == model.to_dict()
    with pytest.raises(TypeError, match="class_name"):
        NexusFlowEmbedding(class_name="OpenAIEmbedding")


def test_a_dict_and_a_json_make_an_equal_object_again() -> None:
    embedding = NexusFlowEmbedding(**FULL)
    assert NexusFlowEmbedding.from_dict(embedding.to_dict()).to_dict() == embedding.to_dict()
    assert NexusFlowEmbedding.from_json(embedding.to_json()).to_dict() == embedding.to_dict()
    assert json.loads(embedding.to_json()) == embedding.to_dict()


def test_an_object_made_from_a_dict_takes_its_key_from_the_environment(
    embedding: NexusFlowEmbedding, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = NexusFlowEmbedding.from_dict(embedding.to_dict())
    with pytest.raises(ConfigurationError, match="NEXUSFLOW_API_KEY"):
        again.get_text_embedding("a text")
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    assert again.get_text_embedding("a text") == embedding.get_text_embedding("a text")


def test_a_dict_of_a_class_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="text_type"):
        NexusFlowEmbedding.from_dict({"text_type": "query"})


# -- the hash under which an ingestion cache keeps what was embedded -------------------------------


def _hash(**changed: Any) -> str:
    return get_transformation_hash([TextNode(text="a")], NexusFlowEmbedding(**{**FULL, **changed}))


@pytest.mark.parametrize(
    "unimportant",
    [
        {"api_key": "sk-air-rotated"},
        {"timeout": 99.0},
        {"embed_batch_size": 7},
        {"num_workers": None},
        {"max_concurrency": 9},
        {"max_retries": 3},
        {"deadline": None},
        {"default_headers": None},
        {"encoding_format": "float"},
        {"embeddings_cache": SimpleKVStore()},
        {"rate_limiter": TokenBucketRateLimiter(requests_per_minute=60)},
        {"budget": None},
        {"cache": "/tmp/elsewhere.sqlite"},
        {"api_base": "http://127.0.0.1:9/v1/"},
    ],
    ids=lambda given: "-".join(given),
)
def test_the_hash_outlives_what_does_not_change_the_vector(unimportant: dict[str, Any]) -> None:
    assert _hash(**unimportant) == _hash()


@pytest.mark.parametrize(
    "important",
    [
        {"dimensions": 128},
        {"dimensions": None},
        {"model_name": "other"},
        {"api_base": "http://127.0.0.1:10/v1"},
        {"query_instruction": None},
    ],
    ids=lambda given: "-".join(given),
)
def test_the_hash_changes_with_what_changes_the_vector(important: dict[str, Any]) -> None:
    assert _hash(**important) != _hash()


def test_the_hash_of_a_splitter_that_holds_an_embedding_model_behaves_the_same() -> None:
    def hash_of(**changed: Any) -> str:
        splitter = SemanticSplitterNodeParser(
            embed_model=NexusFlowEmbedding(**{**FULL, **changed}), id_func=str
        )
        dumped = str(splitter.to_dict()["embed_model"])
        assert "sk-air" not in dumped
        return dumped

    assert hash_of(api_key="sk-air-rotated", timeout=1.0) == hash_of()
    assert hash_of(dimensions=128) != hash_of()


# -- pickles and copies ----------------------------------------------------------------------------


def test_a_pickle_keeps_every_setting_but_the_key() -> None:
    embedding = NexusFlowEmbedding(**FULL)
    again = pickle.loads(pickle.dumps(embedding))
    assert again.api_key is None
    for name in FULL.keys() - {"api_key"}:
        assert getattr(again, name) == getattr(embedding, name), name


def test_an_unpickled_object_without_a_key_says_why(embedding: NexusFlowEmbedding) -> None:
    again = pickle.loads(pickle.dumps(embedding))
    with pytest.raises(ConfigurationError, match=r"pickled without its key.*NEXUSFLOW_API_KEY"):
        again.get_text_embedding("a text")


def test_an_unpickled_object_takes_the_key_of_its_environment_or_of_its_field(
    embedding: NexusFlowEmbedding, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = pickle.loads(pickle.dumps(embedding))
    again.api_key = key
    assert len(again.get_text_embedding("a text")) == 64
    third = pickle.loads(pickle.dumps(again))
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    assert len(third.get_text_embedding("a text")) == 64


def test_pickling_takes_nothing_from_the_living_object(
    server: LocalServer, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Usage] = []
    limiter = TokenBucketRateLimiter(requests_per_minute=600)
    http_client = httpx.Client()
    embedding = NexusFlowEmbedding(
        api_key=key,
        api_base=server.base_url,
        dimensions=64,
        rate_limiter=limiter,
        http_client=http_client,
        on_usage=lambda usage: seen.append(usage),
    )
    with caplog.at_level(logging.WARNING):
        again = pickle.loads(pickle.dumps(embedding))
    assert (again.rate_limiter, again.http_client, again.on_usage) == (None, None, None)
    assert embedding.rate_limiter is limiter
    assert embedding.http_client is http_client
    assert embedding.get_text_embedding("a text")
    assert len(seen) == 1
    # LlamaIndex itself says what a worker will do without.
    assert sorted(record.getMessage().split()[-1] for record in caplog.records) == [
        "http_client",
        "on_usage",
        "rate_limiter",
    ]


def test_pickling_a_plain_object_warns_of_nothing(
    embedding: NexusFlowEmbedding, caplog: pytest.LogCaptureFixture
) -> None:
    embedding.get_text_embedding("a text")
    with caplog.at_level(logging.WARNING):
        pickle.dumps(embedding)
    assert caplog.records == []


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda e: e.model_copy(), lambda e: e.model_copy(deep=True)],
    ids=["copy", "deepcopy", "model_copy", "deep model_copy"],
)
def test_copies_work_and_share_what_cannot_be_copied(
    server: LocalServer, key: str, copied: Callable[[Any], Any]
) -> None:
    limiter = TokenBucketRateLimiter(requests_per_minute=600)
    with httpx.Client() as http_client:
        embedding = NexusFlowEmbedding(
            api_key=key,
            api_base=server.base_url,
            dimensions=64,
            rate_limiter=limiter,
            http_client=http_client,
        )
        again = copied(embedding)
        assert again is not embedding
        assert (again.rate_limiter, again.http_client) == (limiter, http_client)
        assert again.get_text_embedding("a text") == embedding.get_text_embedding("a text")
        again.dimensions = 128
        assert len(again.get_text_embedding("a text")) == 128
        assert len(embedding.get_text_embedding("a text")) == 64


def test_a_copy_with_another_size_has_that_size(embedding: NexusFlowEmbedding) -> None:
    larger = embedding.model_copy(update={"dimensions": 128})
    assert len(larger.get_text_embedding("a text")) == 128
    assert len(embedding.get_text_embedding("a text")) == 64


# -- worker processes ------------------------------------------------------------------------------


def _nodes(texts: list[str]) -> list[TextNode]:
    return [TextNode(text=text, id_=str(number)) for number, text in enumerate(texts)]


@pytest.mark.slow
def test_spawned_workers_embed_with_the_key_of_their_environment(
    server: LocalServer,
    key: str,
    embedding: NexusFlowEmbedding,
    texts: Texts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    pipeline = IngestionPipeline(transformations=[embedding], cache=IngestionCache())
    done = pipeline.run(nodes=_nodes(texts(40)), num_workers=2)
    assert sorted(server.stats.received) == sorted(texts(40))
    again = embedding.client.embed([n.get_content(MetadataMode.EMBED) for n in done]).tolist()
    assert [node.embedding for node in done] == again


def test_worker_processes_of_an_async_pipeline_embed_too(
    server: LocalServer,
    key: str,
    embedding: NexusFlowEmbedding,
    texts: Texts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    embedding.get_text_embedding("the parent is warm when it forks")
    server.reset_stats()
    pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
    done = asyncio.run(pipeline.arun(nodes=_nodes(texts(40)), num_workers=2))
    assert sorted(server.stats.received) == sorted(texts(40))
    assert {len(node.embedding) for node in done} == {64}


@pytest.mark.slow
def test_spawned_workers_without_a_key_say_how_to_give_them_one(
    embedding: NexusFlowEmbedding, texts: Texts
) -> None:
    pipeline = IngestionPipeline(transformations=[embedding])
    with pytest.raises(ConfigurationError, match="NEXUSFLOW_API_KEY for worker processes"):
        pipeline.run(nodes=_nodes(texts(4)), num_workers=2)
    assert embedding.get_text_embedding("a text")


@pytest.mark.slow
def test_workers_refuse_a_budget_that_each_would_spend(
    server: LocalServer, key: str, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    embedding = NexusFlowEmbedding(
        api_base=server.base_url, dimensions=64, budget=Budget(tokens=1000)
    )
    pipeline = IngestionPipeline(transformations=[embedding])
    with pytest.raises(ConfigurationError, match="each worker would spend the whole budget"):
        pipeline.run(nodes=_nodes(texts(4)), num_workers=2)
    assert server.stats.requests == 0
    pipeline.run(nodes=_nodes(texts(4)))
    assert embedding.usage.tokens == server.stats.tokens > 0


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"requests_per_minute": 600}, True),
        ({"tokens_per_minute": 1e6}, True),
        ({"requests_per_minute": 600, "cache": True}, False),
        ({}, False),
        ({"budget": Budget(tokens=9)}, True),
        ({"budget": Budget(tokens=9), "cache": True}, True),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
@pytest.mark.parametrize("worker", ["of multiprocessing", "a child"])
def test_a_worker_refuses_limits_that_each_worker_would_keep_for_itself(
    key: str, options: dict[str, Any], refused: bool, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = NexusFlowEmbedding(api_base="http://127.0.0.1:9/v1", **options)
    again = pickle.loads(pickle.dumps(embedding))
    again.api_key = key
    assert again.usage.requests == 0  # this process is no worker
    if worker == "a child":
        monkeypatch.setattr("os.getppid", os.getpid)
    else:
        monkeypatch.setattr("multiprocessing.parent_process", object)
    with pytest.raises(ConfigurationError, match="worker") if refused else nullcontext():
        assert again.client
    assert embedding.client  # it was never pickled


@pytest.mark.slow
def test_the_usage_of_workers_is_counted_in_the_workers(
    server: LocalServer,
    key: str,
    embedding: NexusFlowEmbedding,
    texts: Texts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    embedding.get_text_embedding("a text")
    before = embedding.usage
    pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
    asyncio.run(pipeline.arun(nodes=_nodes(texts(20)), num_workers=2))
    assert server.stats.requests > before.requests
    assert embedding.usage == before


def test_a_hash_and_a_json_schema_can_be_made() -> None:
    made = NexusFlowEmbedding(**FULL)
    assert hash(made) == hash(copy.deepcopy(made))
    assert {made: 1}[made] == 1
    properties = NexusFlowEmbedding.model_json_schema()["properties"]
    assert properties["max_retries"]["type"] == "integer"
