"""The embedding works with models that the service does not list."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from llama_index.core.storage.kvstore import SimpleKVStore

from nexusflow_integrations._core.models import MODELS, Model
from nexusflow_integrations.errors import InvalidInputError, NotFoundError
from nexusflow_integrations.llama_index import NexusFlowEmbedding
from nexusflow_integrations.local import LocalServer

_accounts = itertools.count()
TEXTS = [f"text {number}" for number in range(40)]


def answered(asked: list[int], **given: Any) -> NexusFlowEmbedding:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(len(body["input"]))
        row = [1.0] * body["dimensions"]
        rows = [{"index": place, "embedding": row} for place in range(len(body["input"]))]
        return httpx.Response(200, json={"data": rows, "usage": {"total_tokens": 9}})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    return NexusFlowEmbedding(api_key=f"sk-air-models-{next(_accounts)}", http_client=http, **given)


@pytest.mark.parametrize(
    ("model", "given", "sent"),
    [
        ("another", {}, [10, 10, 10, 10]),
        ("another", {"embed_batch_size": 40}, [40]),
        ("successor", {}, [20, 20]),
        ("successor", {"embed_batch_size": 1000}, [20, 20]),
        ("successor", {"embed_batch_size": 10}, [10, 10, 10, 10]),
        ("text-embedding-v4", {"embed_batch_size": 1000}, [10, 10, 10, 10]),
    ],
)
def test_as_many_texts_are_sent_as_the_model_is_known_to_take(
    model: str, given: dict[str, Any], sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "successor", Model(sizes=(256,), batch_size=20))
    asked: list[int] = []
    made: Callable[..., NexusFlowEmbedding] = answered
    model_given: dict[str, Any] = {"model_name": model, "dimensions": 256, **given}
    assert len(made(asked, **model_given).get_text_embedding_batch(TEXTS)) == 40
    assert sorted(asked) == sorted(sent)


def test_a_model_that_is_not_in_the_table_may_have_vectors_of_any_size() -> None:
    made = answered([], model="another", dimensions=2560)
    assert len(made.get_query_embedding("a text")) == 2560
    assert made.usage.cost != made.usage.cost  # NaN: the price is unknown


LONG = "panda " * 12_000


def test_a_text_that_is_too_long_is_an_error_or_split(embedding: NexusFlowEmbedding) -> None:
    with pytest.raises(InvalidInputError, match="text 1 is too long"):
        embedding.get_text_embedding_batch(["a", LONG])
    embedding.on_too_long = "split"
    store = embedding.embeddings_cache = SimpleKVStore()
    one, two = embedding.get_text_embedding_batch([f"{LONG} red", f"{LONG} blue"])
    assert one != two
    assert embedding.usage.split == 2
    sent = embedding.usage.requests
    assert embedding.get_text_embedding_batch([f"{LONG} red", "a"])[0] == one
    embedding.on_too_long = "truncate"
    assert embedding.get_text_embedding_batch([f"{LONG} red"])[0] != one
    assert embedding.get_text_embedding("a")
    assert embedding.usage.requests == sent + 3
    assert store is embedding.embeddings_cache


@pytest.mark.parametrize(
    ("given", "seconds"), [(None, 60.0), (httpx.Timeout(30, connect=5), 30.0), ((3.0, 9.0), 9.0)]
)
def test_a_timeout_may_be_written_as_httpx_has_it(given: Any, seconds: float) -> None:
    assert NexusFlowEmbedding(timeout=given).client.settings.timeout == seconds


def test_the_address_of_the_endpoint_itself_is_understood(server: LocalServer) -> None:
    told: dict[str, Any] = {"api_key": server.api_key, "dimensions": 64}
    made = NexusFlowEmbedding(api_base=f"{server.base_url}/embeddings", **told)
    assert made.api_base == server.base_url
    assert len(made.get_query_embedding("a")) == 64
    address = server.base_url.removesuffix("/v1")
    with pytest.raises(NotFoundError, match=rf"try {address}/v1$"):
        NexusFlowEmbedding(api_base=address, **told).get_query_embedding("a")
