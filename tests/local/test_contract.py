"""A good request gets the documented answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from nexusflow_integrations.local.sizes import SIZES

if TYPE_CHECKING:
    from conftest import Wire


def test_a_string_is_answered_with_one_vector_of_1024_floats(wire: Wire) -> None:
    answer = wire.post(input="Red pandas climb trees.")
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"object", "data", "model", "usage"}
    assert body["object"] == "list"
    assert body["model"] == "text-embedding-v4"
    (item,) = body["data"]
    assert set(item) == {"object", "index", "embedding"}
    assert item["object"] == "embedding"
    assert item["index"] == 0
    assert len(item["embedding"]) == 1024
    assert all(type(number) is float for number in item["embedding"])


def test_a_list_is_answered_in_its_order(wire: Wire) -> None:
    texts = [f"text number {number}" for number in range(10)]
    together = wire.post(input=texts).json()["data"]
    assert [item["index"] for item in together] == list(range(10))
    for text, item in zip(texts, together, strict=True):
        assert wire.post(input=text).json()["data"][0]["embedding"] == item["embedding"]


def test_a_list_of_one_text_gets_the_same_vector_as_the_text(wire: Wire) -> None:
    assert wire.post(input=["one"]).json() == wire.post(input="one").json()


def test_base64_carries_exactly_the_floats(wire: Wire) -> None:
    texts = ["uno", "due", "tre"]
    floats = wire.post(input=texts, encoding_format="float").json()
    packed = wire.post(input=texts, encoding_format="base64").json()
    assert floats["usage"] == packed["usage"]
    for number, text in zip(floats["data"], packed["data"], strict=True):
        assert wire.unpack(text["embedding"]).tolist() == number["embedding"]


@pytest.mark.parametrize("size", SIZES)
def test_each_size_is_answered_with_unit_length(wire: Wire, size: int) -> None:
    rows = wire.embed(["a", "the quick brown fox", "敏捷的棕色狐狸"], dimensions=size)
    assert rows.shape == (3, size)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_null_options_count_as_absent(wire: Wire) -> None:
    plain = wire.post(input="x").json()
    assert wire.post(input="x", dimensions=None, encoding_format=None).json() == plain


def test_unknown_fields_are_ignored(wire: Wire) -> None:
    assert wire.post(input="x", user="me", text_type="query").status_code == 200


def test_usage_adds_up_the_tokens_of_all_texts(wire: Wire) -> None:
    assert wire.post(input="one two three").json()["usage"] == {
        "prompt_tokens": 3,
        "total_tokens": 3,
    }
    assert wire.post(input=["one two three", "你好"]).json()["usage"]["total_tokens"] == 5


def test_each_answer_has_its_own_request_id(wire: Wire) -> None:
    ids = {wire.post(input="x").headers["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/models", "/nowhere", "/health", "/"])
def test_every_answer_names_the_model_that_really_runs(wire: Wire, path: str) -> None:
    url = httpx.URL(wire.server.base_url).copy_with(path=path)
    assert wire.http.get(url).headers["X-Local-Model"] == "hash"


def test_health_names_the_model_that_runs_and_the_model_it_replaces(wire: Wire) -> None:
    url = httpx.URL(wire.server.base_url).copy_with(path="/health")
    body = httpx.get(url, trust_env=False).json()
    assert body["status"] == "ok"
    assert body["runs"] == "hash"
    assert "NOT semantic" in body["about"]
    assert body["stands_in_for"] == "text-embedding-v4"
    assert body["dimensions"] == list(SIZES)


def test_the_models_list_has_the_one_name_and_an_honest_owner(wire: Wire) -> None:
    (card,) = wire.http.get("/models").json()["data"]
    assert card["id"] == "text-embedding-v4"
    assert card["object"] == "model"
    assert "hash" in card["owned_by"]
    assert wire.http.get("/models/text-embedding-v4").json() == card
    assert wire.http.get("/models/gpt-4").json()["error"]["code"] == "model_not_found"


def test_the_largest_batch_fits_under_the_body_limit(wire: Wire) -> None:
    assert wire.post(input=["word " * 8000] * 10).status_code == 200
