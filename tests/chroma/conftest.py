"""One embeddings server, one real ``chroma run``, and a process that has named nothing yet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import pytest

from nexusflow_integrations import chroma as adapter
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.local import LocalServer

KEY = "sk-air-very-secret"
"""The key of ``server``, for what is outside of a test."""


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key in the environment, and nothing remembered of other tests."""
    for name in list(os.environ):
        if name.startswith("NEXUSFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(adapter, "_made_here", {})
    monkeypatch.setattr(adapter, "_named_here", {})


@pytest.fixture
def make(server: LocalServer) -> Callable[..., NexusFlowEmbeddingFunction]:
    """Make a function with the key as an argument, pointed at the server."""

    def make(**settings: Any) -> NexusFlowEmbeddingFunction:
        settings = {"api_key": KEY, "api_base": server.base_url, "dimensions": 64} | settings
        return NexusFlowEmbeddingFunction(**settings)

    return make


@pytest.fixture
def in_environment(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server and its key, named by the environment."""
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)


@pytest.fixture
def client(tmp_path: Path) -> Any:
    """A client of a database on disk."""
    return chromadb.PersistentClient(path=str(tmp_path / "db"))


@pytest.fixture
def strict() -> Iterator[None]:
    """Every warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="session")
def chroma_port(
    tmp_path_factory: pytest.TempPathFactory, hold_port: Callable[[], int]
) -> Iterator[int]:
    """The port of a real ``chroma run`` on this machine."""
    folder = tmp_path_factory.mktemp("chroma-run")
    port = hold_port()
    command = [sys.executable, "-c", "from chromadb.cli.cli import app; app()", "run"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--path", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(1500):
            if process.poll() is not None:
                pytest.fail(f"chroma run ended: {(folder / 'log').read_text()[-2000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        else:
            pytest.fail("chroma run did not open its port")
        yield port
    finally:
        process.terminate()
        process.wait(60)
