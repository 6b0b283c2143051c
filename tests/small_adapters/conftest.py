"""A server that takes one key, which the environment holds and nothing else may."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nexusflow_integrations.local import LocalServer

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read as Haystack is imported
KEY = "sk-air-small-adapters-tests"


@pytest.fixture
def key() -> str:
    """The only key that the servers take."""
    return KEY


@pytest.fixture(scope="session")
def _server() -> Iterator[LocalServer]:
    with LocalServer("hash", api_key=KEY, record_texts=True) as server:
        yield server


@pytest.fixture
def server(_server: LocalServer) -> LocalServer:
    """Its counts at zero."""
    _server.reset_stats()
    return _server


@pytest.fixture
def slow_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """Takes 300 ms for every answer, so that requests which may run side by side do."""
    with LocalServer("hash", api_key=KEY, latency_ms=300) as server:
        monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, server: LocalServer) -> None:
    """What a user sets."""
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)


@pytest.fixture
def wrong_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key that the environment holds and the server refuses."""
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-another")
    return "sk-air-another"
