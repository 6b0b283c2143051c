"""An error says everything once, and only what happened."""

from __future__ import annotations

import logging
import pickle
import sys
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from nexusflow_integrations import NexusFlow, errors
from nexusflow_integrations.redis import RedisLimits

_accounts = count()


def client(answer: Any, **settings: Any) -> NexusFlow:
    http = httpx.Client(transport=httpx.MockTransport(answer))
    key = f"sk-air-messages-{next(_accounts)}"
    return NexusFlow(key, http_client=http, max_retries=0, **settings)


@pytest.mark.parametrize("code", [401, "401"])
def test_a_code_that_is_the_status_is_said_once(code: Any) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": {"code": code, "message": "no such key"}})

    with pytest.raises(errors.AuthenticationError, match=r"^401: no such key") as caught:
        client(answer).embed("a")
    assert caught.value.code == "401"


def test_a_size_that_the_server_changed_was_not_asked_for() -> None:
    sizes = iter([64, 128, 128])

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"index": 0, "embedding": [1.0] * next(sizes)}]})

    made = client(answer)
    made.embed("a")
    with pytest.raises(errors.InvalidResponseError) as caught:
        made.embed("b")
    assert "the vectors have 128 dimensions, and earlier ones had 64" in str(caught.value)
    assert "asked for" not in str(caught.value)
    with pytest.raises(errors.InvalidResponseError, match="128 dimensions instead of 64"):
        client(answer, dimensions=64).embed("c")


def test_a_call_under_trio_gets_an_error_that_says_what_to_use() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        made = NexusFlow("key")
        with pytest.raises(errors.ConfigurationError, match="to_thread"):
            await made.aembed("a")
        with pytest.raises(errors.ConfigurationError, match="to_thread"):
            async for _ in made.aembed_stream(["a"]):
                pass

    trio.run(main)


def test_an_unpickled_client_says_what_it_goes_without(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = NexusFlow("sk-air-secret", on_usage=print, http_client=httpx.Client())
    pickled = pickle.dumps(made)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        again = pickle.loads(pickled)
    (record,) = caplog.records
    assert "without its http_client and on_usage" in record.message
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    with pytest.raises(errors.ConfigurationError, match="a NexusFlow is pickled without its key"):
        again.embed("a")
    caplog.clear()
    pickle.loads(pickle.dumps(NexusFlow()))
    assert caplog.records == []


def test_an_unknown_setting_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(
        TypeError, match=r"^NexusFlow has no argument 'model_name'; did you mean 'm"
    ):
        NexusFlow(model_name="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^RedisLimits has no argument 'timeot'$"):
        RedisLimits("redis://127.0.0.1:1", timeot=1)  # type: ignore[call-arg]


class Own:
    def __repr__(self) -> str:
        raise AssertionError


CYCLE: dict[str, Any] = {}
CYCLE["a"] = CYCLE


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "must be a dict of names and JSON values or None, not 5"),
        (
            {"a": Own()},
            "must hold JSON values, but the value of 'a' cannot be written as JSON (Own)",
        ),
        (
            {"a": [{1}]},
            "must hold JSON values, but the value of 'a' cannot be written as JSON (list)",
        ),
        ({"a": float("nan")}, "must hold JSON values, but the value of 'a' is not finite"),
        ({"a": CYCLE}, "must hold JSON values, but the value of 'a' contains itself"),
        pytest.param(
            {"a": 10**5000},
            "must hold JSON values, but the value of 'a' holds a number with too many digits",
            marks=pytest.mark.skipif(
                not hasattr(sys, "set_int_max_str_digits"), reason="Python writes such numbers"
            ),
        ),
        ({"a": "\ud800"}, "must hold JSON values, but the value of 'a' holds a lone surrogate"),
        ({5: "a"}, "must have names that are text, not 5"),
    ],
)
def test_a_field_that_cannot_be_sent_is_named(given: Any, said: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        NexusFlow("key", extra_body=given)
    assert str(caught.value).startswith(f"extra_body {said}")


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ("True", "cache is the text 'True': pass True or False"),
        ("false", "cache is the text 'false'"),
        ("1", "cache is the text '1'"),
        ("redis:/x", "cache starts like the URL of a Redis server, but is not one"),
        ("rediss:host", "cache starts like the URL of a Redis server, but is not one"),
        ({}, "cache must be a path, the URL of a Redis server, True, False or None, not dict"),
        (5, "cache must be a path, the URL of a Redis server, True, False or None, not 5"),
    ],
)
def test_a_value_that_is_not_a_path_creates_no_file(
    cache: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ConfigurationError) as caught:
        NexusFlow("key", cache=cache)
    assert str(caught.value).startswith(said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("embeddings", r"instead of embeddings\.create\(input=texts\), call embed\(texts\)"),
        ("embed_documents", "LangChain takes a nexusflow_integrations.langchain.NexusFlowEmbed"),
        ("get_text_embedding_batch", "LlamaIndex takes a nexusflow_integrations.llama_index.Nex"),
        ("name", "Chroma takes a nexusflow_integrations.chroma.NexusFlowEmbeddingFunction"),
        ("nonsense", "has no attribute 'nonsense'"),
    ],
)
def test_a_client_passed_to_a_framework_names_the_right_class(name: str, said: str) -> None:
    with pytest.raises(AttributeError, match=said):
        getattr(NexusFlow("key"), name)
    assert not hasattr(NexusFlow("key"), name)
