"""A bad request gets the documented error, with the documented body, and costs nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from conftest import Wire


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Basic c2stYWly", "sk-air-local", "Bearer two words"],
)
def test_a_missing_or_malformed_key_is_a_401(wire: Wire, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    body = {"model": "text-embedding-v4", "input": "x"}
    answer = httpx.post(
        f"{wire.server.base_url}/embeddings", json=body, headers=headers, trust_env=False
    )
    error = wire.error(answer, 401)
    assert error["code"] == "invalid_api_key"


def test_any_key_is_accepted_unless_one_is_required(
    wire: Wire, wire_to: Callable[..., Wire]
) -> None:
    other = {"Authorization": "Bearer some-other-key"}
    body = {"model": "text-embedding-v4", "input": "x"}
    assert wire.http.post("/embeddings", json=body, headers=other).status_code == 200
    strict = wire_to(api_key="sk-air-the-one")
    assert strict.server.api_key == "sk-air-the-one"
    assert strict.post(input="x").status_code == 200
    error = wire.error(strict.http.post("/embeddings", json=body, headers=other), 401)
    assert error["code"] == "invalid_api_key"
    assert "some-other-key" not in error["message"]


def test_another_model_is_a_404(wire: Wire) -> None:
    error = wire.error(wire.post(model="text-embedding-3-small", input="x"), 404)
    assert error["code"] == "model_not_found"
    assert "text-embedding-3-small" in error["message"]


@pytest.mark.parametrize("path", ["/nowhere", "/embeddings/", "/chat/completions"])
def test_an_unknown_path_is_a_404(wire: Wire, path: str) -> None:
    assert wire.error(wire.http.post(path, json={}), 404)["code"] == "not_found"


def test_another_method_is_a_405_that_names_the_right_one(wire: Wire) -> None:
    answer = wire.http.get("/embeddings")
    assert wire.error(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["Allow"] == "POST"


def test_more_than_ten_texts_are_a_400_that_names_the_limit(wire: Wire) -> None:
    error = wire.error(wire.post(input=["x"] * 11), 400)
    assert error["message"].endswith(
        "batch size is invalid, it should not be larger than 10.: input.contents"
    )


@pytest.mark.parametrize("value", ["", "  \n", [], ["good", ""], ["good", "\t"]])
def test_an_empty_text_or_list_is_a_400(wire: Wire, value: Any) -> None:
    assert "input.contents" in wire.error(wire.post(input=value), 400)["message"]


@pytest.mark.parametrize(
    "value",
    [7, 1.5, True, {"text": "x"}, [1, 2, 3], [[1, 2], [3]], ["x", None], ["x", 7], [["x"]]],
)
def test_tokens_and_other_things_that_are_not_texts_are_a_400(wire: Wire, value: Any) -> None:
    error = wire.error(wire.post(input=value), 400)
    assert "contents is neither str nor list of str" in error["message"]


@pytest.mark.parametrize("value", [0, -1, 100, 1023, 4096, 1024.0, "1024", True, [1024]])
def test_an_impossible_size_is_a_400_that_lists_the_sizes(wire: Wire, value: Any) -> None:
    error = wire.error(wire.post(input="x", dimensions=value), 400)
    assert "2048, 1536, 1024, 768, 512, 256, 128, 64" in error["message"]


@pytest.mark.parametrize("value", ["binary", "", 7, ["float"]])
def test_an_unknown_encoding_format_is_a_400(wire: Wire, value: Any) -> None:
    assert (
        "encoding_format" in wire.error(wire.post(input="x", encoding_format=value), 400)["message"]
    )


@pytest.mark.parametrize("missing", ["model", "input"])
def test_a_missing_parameter_is_a_400_that_names_it(wire: Wire, missing: str) -> None:
    body = {"model": "text-embedding-v4", "input": "x"}
    del body[missing]
    assert missing in wire.error(wire.http.post("/embeddings", json=body), 400)["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'"text"', b"[]", b"null", b"\xff\xfe", b'{"model": NaN}', b'{"input": "\\ud800"}'],
)
def test_malformed_json_is_a_400(wire: Wire, body: bytes) -> None:
    wire.error(wire.http.post("/embeddings", content=body), 400)


def test_a_text_of_more_than_8192_tokens_is_a_400_that_names_the_range(wire: Wire) -> None:
    assert wire.post(input="word " * 8192).status_code == 200
    error = wire.error(wire.post(input=["short", "word " * 8193]), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["message"].endswith("Range of input length should be [1, 8192]")


def test_a_body_over_the_limit_is_a_413_and_the_connection_lives_on(
    wire_to: Callable[..., Wire],
) -> None:
    wire = wire_to(body_limit=10_000)
    assert wire.error(wire.post(input="x" * 10_000), 413)["code"] == "request_too_large"
    assert wire.error(wire.post(input="x " * 2_000_000), 413)["code"] == "request_too_large"
    assert wire.post(input="x").status_code == 200
    assert wire.server.stats.connections == 1


def test_the_body_limit_is_one_mebibyte(wire: Wire) -> None:
    def body(size: int) -> bytes:
        frame = b'{"model":"text-embedding-v4","input":["x"],"pad":""}'
        return frame[:-2] + b"p" * (size - len(frame)) + frame[-2:]

    assert wire.http.post("/embeddings", content=body(1 << 20)).status_code == 200
    wire.error(wire.http.post("/embeddings", content=body((1 << 20) + 1)), 413)


def test_a_compressed_body_is_a_415(wire: Wire) -> None:
    body = gzip.compress(json.dumps({"model": "text-embedding-v4", "input": "x"}).encode())
    answer = wire.http.post("/embeddings", content=body, headers={"Content-Encoding": "gzip"})
    wire.error(answer, 415)


def test_a_failing_model_is_a_500_and_the_server_lives_on(
    wire_to: Callable[..., Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nexusflow_integrations.local.hashing import HashEncoder

    wire = wire_to()
    with monkeypatch.context() as broken:
        broken.setattr(HashEncoder, "encode", lambda self, texts: 1 / 0)
        error = wire.error(wire.post(input="x"), 500)
        assert error["code"] == "server_error"
        assert "ZeroDivisionError" in error["message"]
    assert wire.post(input="x").status_code == 200


def test_refused_requests_are_counted_and_bill_no_texts(wire: Wire) -> None:
    wire.post(input="")
    wire.post(model="other", input="x")
    wire.http.get("/embeddings")
    stats = wire.server.stats
    assert stats.statuses == {400: 1, 404: 1, 405: 1}
    assert (stats.requests, stats.texts, stats.tokens) == (3, 0, 0)
