"""With real quotas over real sockets, every request succeeds and few are refused.

The use of a limit depends on time, so ``tests/core/test_pacing.py`` tests it with a simulated
clock.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.local import LocalServer

KEY = "sk-air-local-pace"


def embed(client: NexusFlow, texts: list[str]) -> None:
    rows = client.embed(texts)
    assert len(rows) == len(texts)
    assert np.isfinite(rows).all()


def client_of(server: Any, **options: Any) -> NexusFlow:
    return NexusFlow(KEY, base_url=server.base_url, dimensions=64, **options)


def test_a_given_request_limit_is_hardly_refused() -> None:
    per_second = 40
    with LocalServer("hash", requests_per_minute=per_second * 60) as server:
        client = client_of(server, requests_per_minute=per_second * 60)
        embed(client, [f"text {n}" for n in range(1000)])
        stats = server.stats
    assert stats.ok == 100
    assert stats.statuses.get(429, 0) <= 5


def test_a_given_token_limit_binds_where_it_is_the_lower_one() -> None:
    with LocalServer("hash", tokens_per_minute=60 * 4000) as server:
        client = client_of(server, requests_per_minute=60_000, tokens_per_minute=60 * 4000)
        texts = [f"{n} " + "word " * 40 for n in range(280)]
        embed(client, texts)
        stats = server.stats
    assert stats.ok == 28
    assert stats.statuses.get(429, 0) <= 2


class CountedLimits:
    """Limits kept in this process; a fleet's have the same methods."""

    requests_per_minute = 60_000.0
    tokens_per_minute = None
    processes = 1

    def __init__(self) -> None:
        self.leased = 0
        self.threads: set[str] = set()

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        self.leased += count
        self.threads.add(threading.current_thread().name)
        return [0.0] * count

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        pass

    def throttled(self, ago: float) -> None:
        pass


def test_a_client_asks_the_pacer_it_was_given_in_a_thread_of_its_own() -> None:
    with LocalServer("hash") as server:
        limits = CountedLimits()
        client_of(server, pacer=limits).embed([f"text {n}" for n in range(100)])
        assert limits.leased >= server.stats.requests == 10
    assert all(name.startswith("nexusflow-pacer") for name in limits.threads)


def test_limits_are_set_on_the_pacer_or_on_the_client_but_not_on_both() -> None:
    with pytest.raises(ConfigurationError, match="pacer has its own limits"):
        NexusFlow(KEY, pacer=CountedLimits(), tokens_per_minute=100)


def test_an_unknown_limit_is_found() -> None:
    per_second = 40
    with LocalServer("hash", requests_per_minute=per_second * 60) as server:
        client = client_of(server, max_retries=20)
        embed(client, [f"text {n}" for n in range(2400)])
        stats = server.stats
    refused = stats.statuses.get(429, 0)
    print(f"{refused} of {stats.requests} refused")
    assert stats.ok == 240
    assert refused <= 0.3 * stats.requests, "the search is most of so short a call"


@pytest.mark.parametrize("threads", [6])
def test_many_objects_in_many_threads_share_one_pace(threads: int) -> None:
    per_second = 40
    with LocalServer("hash", requests_per_minute=per_second * 60) as server:

        def work(n: int) -> None:
            client = client_of(server, requests_per_minute=per_second * 60)
            client.embed([f"{n} {k}" for k in range(200)])

        running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(120)
        stats = server.stats
    assert stats.ok == threads * 20
    assert stats.statuses.get(429, 0) <= 6
