"""Serialized, pickled and copied embeddings keep everything except the key."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pydantic
import pytest
from langchain_core.load import dumpd, dumps, loads
from langchain_core.rate_limiters import InMemoryRateLimiter

from nexusflow_integrations import Budget, Price, errors
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]

pytestmark = pytest.mark.filterwarnings("ignore:.*in beta.*")


def loaded(dumped: str, **options: Any) -> Any:
    return loads(
        dumped,
        allowed_objects=[NexusFlowEmbeddings],
        valid_namespaces=["nexusflow_integrations"],
        **options,
    )


def test_dumps_and_loads_keep_everything_but_the_key(make: Make, key: str, tmp_path: Path) -> None:
    told = {
        "dimensions": 128,
        "query_instruction": "Find: ",
        "document_instruction": "Read: ",
        "extra_body": {"text_type": {"a": [1, None]}},
        "default_query": {"version": "2"},
        "chunk_size": 7,
        "max_concurrency": 3,
        "deadline": 4.5,
        "budget": Budget(tokens=1000),
        "price": Price(1.5, "EUR"),
        "cache": tmp_path / "vectors.db",
    }
    embeddings = make(**told)
    dumped = dumps(embeddings)
    assert key not in dumped
    again = loaded(dumped, secrets_map={"NEXUSFLOW_API_KEY": key})
    assert {name: getattr(again, name) for name in told} == {
        **told,
        "cache": str(told["cache"]),
    }
    assert again.embed_query("a panda") == embeddings.embed_query("a panda")


def test_the_key_is_dumped_as_the_name_of_its_variable(make: Make) -> None:
    kwargs = dumpd(make())["kwargs"]
    assert kwargs["nexusflow_api_key"] == {"lc": 1, "type": "secret", "id": ["NEXUSFLOW_API_KEY"]}
    assert "api_key" not in kwargs


def test_loads_finds_the_key_in_the_environment(
    make: Make, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumped = dumps(make())
    without = loaded(dumped)
    with pytest.raises(errors.ConfigurationError, match="NEXUSFLOW_API_KEY"):
        without.embed_query("a")
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    assert len(without.embed_query("a")) == 64
    assert len(loaded(dumped, secrets_from_env=True).embed_query("a")) == 64


def test_objects_of_one_process_are_not_dumped(make: Make) -> None:
    with httpx.Client() as client:
        embeddings = make(
            http_client=client,
            rate_limiter=InMemoryRateLimiter(),
            on_usage=print,
            default_headers={"X-Gateway-Token": "hidden-token"},
        )
        dumped = dumps(embeddings)
    assert "not_implemented" not in dumped
    assert "hidden-token" not in dumped
    assert loaded(dumped).http_client is None


def test_loads_refuses_the_class_unless_it_is_allowed(make: Make) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        loads(dumps(make()), allowed_objects="core")


def test_a_dump_is_json_that_another_version_of_the_fields_refuses(make: Make) -> None:
    dumped = json.loads(dumps(make()))
    dumped["kwargs"]["from_the_future"] = 1
    with pytest.raises(pydantic.ValidationError, match="from_the_future"):
        loaded(json.dumps(dumped))


def test_a_pickle_keeps_everything_but_the_key(
    make: Make, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with httpx.Client() as client:
        embeddings = make(http_client=client, on_usage=lambda usage: None, chunk_size=3)
        expected = embeddings.embed_query("a panda")
        embeddings.embed_documents(["a", "b"], chunk_size=1)
        pickled = pickle.dumps(embeddings)
    assert key.encode() not in pickled
    again = pickle.loads(pickled)
    assert (again.dimensions, again.chunk_size, again.http_client) == (64, 3, None)
    with pytest.raises(errors.ConfigurationError, match="NEXUSFLOW_API_KEY"):
        again.embed_query("a panda")
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    assert again.embed_query("a panda") == expected


def test_a_spawned_worker_process_embeds_with_a_pickle(
    make: Make, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    embeddings = make()
    expected = embeddings.embed_query("a panda")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(embeddings.embed_query, ("a panda",)).get(timeout=600) == expected


def test_a_deep_copy_embeds_and_shares_what_cannot_be_copied(make: Make) -> None:
    limiter = InMemoryRateLimiter(requests_per_second=1000, max_bucket_size=1000)
    with httpx.Client() as client:
        embeddings = make(http_client=client, rate_limiter=limiter)
        twin = copy.deepcopy(embeddings)
        assert twin.embed_query("a panda") == embeddings.embed_query("a panda")
    assert twin.http_client is client
    assert twin.rate_limiter is limiter
    assert twin.usage.requests == embeddings.usage.requests == 1


def test_a_deep_copy_spends_from_the_same_budget(make: Make) -> None:
    embeddings = make(budget=Budget(tokens=60))
    twin = copy.deepcopy(embeddings)
    twin.embed_query("one two three")
    with pytest.raises(errors.BudgetExceededError):
        embeddings.embed_query("four five six " * 10)


def test_a_copy_with_an_update_embeds_as_updated(make: Make, server: LocalServer) -> None:
    embeddings = make()
    assert len(embeddings.embed_query("a panda")) == 64
    assert len(embeddings.model_copy(update={"dimensions": 256}).embed_query("a panda")) == 256
    other = embeddings.model_copy(update={"api_key": "sk-air-wrong"})
    with pytest.raises(errors.AuthenticationError):
        other.embed_query("a panda")


@pytest.mark.parametrize("update", [{"dimensions": 100}, {"dimension": 128}])
def test_a_copy_with_a_wrong_update_is_refused(make: Make, update: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="dimension"):
        make().model_copy(update=update)


def test_an_object_made_without_validation_still_embeds(server: LocalServer, key: str) -> None:
    embeddings = NexusFlowEmbeddings.model_construct(
        nexusflow_api_key=pydantic.SecretStr(key), nexusflow_api_base=server.base_url, dimensions=64
    )
    assert embeddings.usage.requests == 0
    assert len(embeddings.embed_query("a panda")) == 64


def test_a_changed_copy_keeps_budget_and_usage_where_the_account_stays(make: Make) -> None:
    embeddings = make(budget=Budget(tokens=3_000))
    embeddings.embed_query("a panda")
    copied = embeddings.model_copy(update={"chunk_size": 3, "timeout": 5.0})
    assert copied.usage == embeddings.usage
    copied.embed_query("an otter")
    assert copied.usage.texts == embeddings.usage.texts == 2
    spent = embeddings.usage.tokens
    assert copied.client._guard is embeddings.client._guard
    assert copied.client._guard.spent == spent  # type: ignore[union-attr]
    for update in ({"budget": Budget(tokens=5)}, {"api_key": "sk-air-another"}):
        assert embeddings.model_copy(update=update).usage.texts == 0


def test_a_limiter_that_cannot_be_pickled_is_left_out_with_a_warning(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    limited = make(rate_limiter=InMemoryRateLimiter(requests_per_second=1_000))
    again = pickle.loads(pickle.dumps(limited))
    assert again.rate_limiter is None
    assert "is pickled without its rate_limiter, a InMemoryRateLimiter" in caplog.text
    assert limited.rate_limiter is not None


def test_a_key_that_was_not_pickled_is_explained(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = pickle.loads(pickle.dumps(make()))
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    with pytest.raises(errors.ConfigurationError, match="is pickled without its key"):
        again.embed_query("a panda")


def test_a_hash_and_a_json_schema_can_be_made(make: Make) -> None:
    made = make(extra_body={"a": [1]})
    assert hash(made) == hash(copy.deepcopy(made))
    assert {made: 1}[made] == 1
    for mode in ("validation", "serialization"):
        properties = NexusFlowEmbeddings.model_json_schema(mode=mode)["properties"]
        assert properties["max_retries"]["type"] == "integer"
