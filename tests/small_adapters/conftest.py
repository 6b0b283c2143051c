"""Fixtures: a server that accepts one key, which only the environment has."""

from __future__ import annotations

import os

import pytest

from nexusflow_integrations.local import LocalServer

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read as Haystack is imported


@pytest.fixture
def slow_server(slow_server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> LocalServer:
    """Set the slow server in the environment."""
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", slow_server.base_url)
    return slow_server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, server: LocalServer) -> None:
    """Set the environment as a user does."""
    monkeypatch.setenv("NEXUSFLOW_API_KEY", server.api_key)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)


@pytest.fixture
def wrong_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """Set a key in the environment that the server refuses."""
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-another")
    return "sk-air-another"
