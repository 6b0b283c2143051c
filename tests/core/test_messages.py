"""What an error says: each thing once, and only what happened."""

from __future__ import annotations

import logging
import pickle
from itertools import count
from typing import Any

import httpx
import pytest

from nexusflow_integrations import NexusFlow, errors

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


def test_trio_is_told_what_to_use() -> None:
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
