"""A call that fails keeps its finished vectors and leaves no claims."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from nexusflow_integrations import Budget, NexusFlow
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations.errors import (
    AuthenticationError,
    BudgetExceededError,
    ConfigurationError,
)
from nexusflow_integrations.local import LocalServer

from .scene import until


def test_a_failed_call_leaves_no_claim_that_its_next_run_must_wait_for(tmp_path: Path) -> None:
    path = tmp_path / "vectors.sqlite3"
    texts = [f"text {number}" for number in range(120)]
    claim_seconds = VectorStore(path).claim_seconds
    with LocalServer(model="hash", latency_ms=20, api_key="right") as server:
        settings = {"base_url": server.base_url, "dimensions": 64, "cache": path}
        for _ in range(3):
            with pytest.raises(AuthenticationError):
                NexusFlow("wrong", **settings).embed(texts)
            # Given back by the store's thread, long before it would run out by itself.
            until(lambda: VectorStore(path).info().in_flight == 0, 0.8 * claim_seconds)
        assert NexusFlow("right", **settings).embed(texts).shape == (120, 64)


def test_finished_holds_the_copies_of_a_repeated_text_too() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        if "bad" in texts:
            return httpx.Response(401, json={"error": {"message": "no"}})
        rows = [{"index": place, "embedding": [1.0] * 64} for place in range(len(texts))]
        return httpx.Response(200, json={"data": rows})

    http = httpx.Client(transport=httpx.MockTransport(handle))
    client = NexusFlow("key", dimensions=64, batch_size=2, max_concurrency=1, http_client=http)
    with pytest.raises(AuthenticationError) as raised:
        client.embed(["a", "b", "a", "bad"])
    assert sorted(raised.value.finished) == [0, 1, 2]


def test_a_text_is_not_refused_because_a_request_was_too_long() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        if sum(map(len, texts)) > 100:
            message = "too many tokens in this request: maximum context length is 100"
            return httpx.Response(400, json={"error": {"message": message}})
        rows = [{"index": place, "embedding": [1.0] * 64} for place in range(len(texts))]
        return httpx.Response(200, json={"data": rows})

    http = httpx.Client(transport=httpx.MockTransport(handle))
    client = NexusFlow("key", dimensions=64, http_client=http)
    assert client.embed([f"{number}" * 60 for number in range(10)]).shape == (10, 64)


def test_nothing_embedded_with_collect_is_an_empty_list_that_knows_its_refusals() -> None:
    found = NexusFlow("key", dimensions=64).embed([], on_refused="collect")
    assert found == []
    assert found.refused == {}


def test_an_estimate_counts_the_requests_that_a_token_limit_asks_for() -> None:
    texts = ["word " * 100 for _ in range(1)] + [f"{n} " + "word " * 100 for n in range(9)]
    client = NexusFlow("key", dimensions=64, tokens_per_minute=6000)
    assert client.estimate(texts).requests == 10
    assert NexusFlow("key", dimensions=64).estimate(texts).requests == 1


def test_two_cache_files_each_remember_what_one_of_two_calls_at_once_paid(tmp_path: Path) -> None:
    texts = ["x", "y"]
    paths = [tmp_path / "one.sqlite3", tmp_path / "two.sqlite3"]
    with LocalServer(model="hash", latency_ms=100) as server:
        clients = [
            NexusFlow("key", base_url=server.base_url, dimensions=64, cache=path) for path in paths
        ]
        threads = [threading.Thread(target=client.embed, args=(texts,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        before = server.stats.texts
        rows = [client.embed(texts) for client in clients]
        assert server.stats.texts == before
        assert np.array_equal(rows[0], rows[1])


def test_a_proxy_of_another_kind_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "socks5://user:secret@127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="socks5 proxy") as raised:
        NexusFlow("key", base_url="https://example.invalid/v1", dimensions=64).embed("text")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "proxy",
    [
        "http://user:secret@",
        "http://user:secret://x@127.1:1",
        "http://user:secret@127.1:1",
        "user:secret@proxy:port",
        "http://a b:1",
    ],
)
def test_a_proxy_that_is_no_address_is_refused_and_not_shown(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(ConfigurationError, match="does not look like http://proxy") as raised:
        NexusFlow("key", base_url="https://example.invalid/v1", dimensions=64).embed("text")
    assert "secret" not in str(raised.value)


def test_a_user_agent_of_the_users_own_is_sent() -> None:
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["user-agent"])
        return httpx.Response(200, json={"data": [{"index": 0, "embedding": [1.0] * 64}]})

    http = httpx.Client(transport=httpx.MockTransport(handle))
    headers = {"user-agent": "my-application/1.0"}
    NexusFlow("key", dimensions=64, default_headers=headers, http_client=http).embed("text")
    assert seen == ["my-application/1.0"]


def test_the_error_that_ended_a_call_is_raised_also_while_its_worker_writes_the_cache(
    tmp_path: Path,
) -> None:
    with LocalServer(model="hash") as server:
        for attempt in range(30):
            client = NexusFlow(
                "key",
                base_url=server.base_url,
                dimensions=64,
                budget=Budget(tokens=60),
                cache=tmp_path / f"{attempt}.sqlite3",
            )
            with pytest.raises(BudgetExceededError):
                client.embed([f"text number {attempt} {number}" for number in range(40)])
