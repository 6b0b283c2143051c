"""``NexusFlow.resized`` changes the size and keeps everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexusflow_integrations import Budget, NexusFlow
from nexusflow_integrations.errors import BudgetExceededError, ConfigurationError
from nexusflow_integrations.local import LocalServer


def test_it_has_the_key_and_the_cache_but_its_own_usage(
    nexusflow_hash_server: LocalServer, tmp_path: Path
) -> None:
    client = NexusFlow(
        "sk-air-resized",
        base_url=nexusflow_hash_server.base_url,
        dimensions=64,
        cache=tmp_path / "vectors",
    )
    client.embed("pandas")
    other = client.resized(128)
    assert other.embed("pandas").shape == (128,)
    assert client.resized(64) is client
    assert client.resized(None).resized(64).embed("pandas").usage.cached == 1
    assert other.usage.requests == client.usage.requests == 1


def test_both_sizes_spend_from_one_budget(nexusflow_hash_server: LocalServer) -> None:
    client = NexusFlow(
        "sk-air-resized", base_url=nexusflow_hash_server.base_url, budget=Budget(tokens=200)
    )
    clients = [client, client.resized(128)]

    def spend() -> None:
        for number in range(1000):
            clients[number % 2].embed(f"text number {number}")

    with pytest.raises(BudgetExceededError):
        spend()
    assert 100 < sum(each.usage.tokens for each in clients) <= 200


def test_a_size_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="dimensions"):
        NexusFlow().resized(7)
