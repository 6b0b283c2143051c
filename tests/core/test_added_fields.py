"""``extra_body`` and ``default_query`` are in each request, and change the cache key."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.fields import Fields
from nexusflow_integrations.errors import ConfigurationError

_accounts = count()
Make = Callable[..., NexusFlow]


@pytest.fixture
def requests() -> list[httpx.Request]:
    return []


@pytest.fixture
def make(requests: list[httpx.Request]) -> Make:
    def make(**settings: Any) -> NexusFlow:
        def answer(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            rows = [
                {"index": place, "embedding": [1.0] * 64}
                for place in range(len(json.loads(request.content)["input"]))
            ]
            return httpx.Response(200, json={"data": rows, "usage": {"total_tokens": 1}})

        http = httpx.Client(transport=httpx.MockTransport(answer))
        return NexusFlow(
            **{"api_key": f"sk-air-added-{next(_accounts)}", "http_client": http, **settings}
        )

    return make


def test_the_fields_of_extra_body_stand_in_the_body_of_each_request(
    make: Make, requests: list[httpx.Request]
) -> None:
    extra = {"text_type": "query", "nested": {"b": [1, None, "é"], "a": True}}
    make(extra_body=extra, dimensions=64).embed([f"text {n}" for n in range(15)])
    assert len(requests) == 2
    for request in requests:
        body = json.loads(request.content)
        texts = body.pop("input")
        assert texts
        assert body == {
            "model": "text-embedding-v4",
            "encoding_format": "base64",
            "dimensions": 64,
            **extra,
        }


def test_the_default_query_stands_in_each_url(make: Make, requests: list[httpx.Request]) -> None:
    query = {"api-version": "2026-01-01", "n": 3, "on": True, "odd": "a b&c=d/é"}
    make(default_query=query).embed("a text")
    assert requests[0].url.path == "/v1/embeddings"
    assert dict(requests[0].url.params) == {**query, "n": "3", "on": "true"}


def test_the_default_transport_sends_the_default_query(server: Any) -> None:
    client = NexusFlow(server.api_key, base_url=server.base_url, default_query={"a": "b c&d"})
    assert client.embed("a text").shape == (1024,)


def test_changing_an_argument_after_the_call_does_not_change_requests(
    make: Make, requests: list[httpx.Request]
) -> None:
    extra: dict[str, Any] = {"a": {"b": 1}}
    client = make(extra_body=extra)
    extra["a"]["b"] = 2
    client.settings.extra_body.value["a"]["b"] = 3
    client.embed("a text")
    assert json.loads(requests[0].content)["a"] == {"b": 1}


@pytest.mark.parametrize("setting", ["extra_body", "default_query"])
def test_another_value_is_another_vector_in_a_cache(
    make: Make, requests: list[httpx.Request], setting: str, tmp_path: Path
) -> None:
    cache = tmp_path / "vectors.sqlite3"
    for value in (None, {}, {"a": "1"}, {"a": "2"}, {"a": "1"}, {"b": "1"}):
        make(cache=cache, **{setting: value}).embed(["a text"])
    assert len(requests) == 4  # none twice, one twice


def test_the_order_of_names_does_not_change_the_vectors(
    make: Make, requests: list[httpx.Request], tmp_path: Path
) -> None:
    for value in ({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"d": 2, "c": 1}, "a": 1}):
        make(cache=tmp_path / "vectors.sqlite3", extra_body=value).embed(["a text"])
    assert len(requests) == 1


@pytest.mark.parametrize("name", ["model", "input", "encoding_format", "dimensions"])
def test_a_field_of_ours_is_refused(make: Make, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^extra_body may not set {name}"):
        make(extra_body={name: "x"})


@pytest.mark.parametrize(
    "value",
    [
        {"a": float("nan")},
        {"a": {1, 2}},
        {"a": b"x"},
        {1: "a"},
        {"": "a"},
        {"a": "\ud800"},
        [("a", "b")],
        "a=b",
    ],
)
@pytest.mark.parametrize("setting", ["extra_body", "default_query"])
def test_a_value_that_is_not_a_json_object_is_refused(make: Make, setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{setting} must (be|hold|have) "):
        make(**{setting: value})


def test_a_body_that_contains_itself_or_is_too_large_is_refused(make: Make) -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(ConfigurationError, match=r"^extra_body .* of 'a' contains itself"):
        make(extra_body=endless)
    with pytest.raises(ConfigurationError, match=r"^extra_body must be at most 65,536 characters"):
        make(extra_body={"a": "x" * 70_000})


def test_default_query_values_may_not_be_lists(make: Make) -> None:
    with pytest.raises(ConfigurationError, match=r"^default_query must have values that are"):
        make(default_query={"a": [1]})


def test_they_are_equal_by_value_and_survive_copies_and_pickles(make: Make) -> None:
    fields = Fields("extra_body", {"b": 1, "a": None})
    assert fields == {"a": None, "b": 1}
    assert fields == copy.deepcopy(fields) == pickle.loads(pickle.dumps(fields))
    assert hash(fields) == hash(Fields("x", {"a": None, "b": 1}))
    assert fields != Fields("extra_body")
    again = pickle.loads(pickle.dumps(make(extra_body={"a": 1})))
    assert again.settings.extra_body == {"a": 1}
