"""Fixtures: an embeddings server, a real ``chroma run``, and an environment without settings."""

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
from chromadb import Collection
from chromadb.errors import ChromaError

from nexusflow_integrations import chroma as adapter
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.local import LocalServer

KEY = "sk-air-very-secret"
"""The key of ``server``, for code outside of tests."""


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the key from the environment, and forget the keys of earlier tests."""
    for name in list(os.environ):
        if name.startswith("NEXUSFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(adapter, "_made_here", {})
    monkeypatch.setattr(adapter, "_named_here", {})


@pytest.fixture
def make(server: LocalServer) -> Callable[..., NexusFlowEmbeddingFunction]:
    """Make an embedding function for the server, with the key as an argument."""

    def make(**settings: Any) -> NexusFlowEmbeddingFunction:
        settings = {"api_key": KEY, "api_base": server.base_url, "dimensions": 64} | settings
        return NexusFlowEmbeddingFunction(**settings)

    return make


@pytest.fixture
def in_environment(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the server and its key in the environment."""
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)


@pytest.fixture
def client(tmp_path: Path) -> Any:
    """A Chroma client with a database on disk."""
    return chromadb.PersistentClient(path=str(tmp_path / "db"))


@pytest.fixture
def strict() -> Iterator[None]:
    """Turn every warning into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit reads and documents as Chroma Cloud does (docs.trychroma.com/cloud/quotas-limits)."""
    get, upsert = Collection.get, Collection.upsert

    def read(self: Any, ids: Any = None, **fields: Any) -> Any:
        if (count := max(fields.get("limit") or 0, len(ids or ()))) > 300:
            raise ChromaError(
                "Quota exceeded: 'Limit value' exceeded quota limit for action 'Get': current usage"
                f" of {count} exceeds limit of 300"
            )
        return get(self, ids=ids, **fields)

    def write(self: Any, documents: Any = (), **fields: Any) -> None:
        if any(text and len(text.encode()) > 16_384 for text in documents):
            raise ChromaError(
                "Quota exceeded: 'Document size (bytes)' exceeded quota limit for action 'Upsert'"
            )
        upsert(self, documents=documents, **fields)

    monkeypatch.setattr(Collection, "get", read)
    monkeypatch.setattr(Collection, "upsert", write)


class ChromaRun:
    """A real ``chroma run``, which can be killed and restarted on the same folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-c", "from chromadb.cli.cli import app; app()", "run"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--path", str(self._folder)]
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(1500):
            if self._process.poll() is not None:
                pytest.fail(f"chroma run ended: {(self._folder / 'log').read_text()[-2000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        pytest.fail("chroma run did not open its port")

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)


@pytest.fixture(scope="session")
def chroma_port(
    tmp_path_factory: pytest.TempPathFactory, hold_port: Callable[[], int]
) -> Iterator[int]:
    """The port of a ``chroma run`` shared by all tests."""
    run = ChromaRun(tmp_path_factory.mktemp("chroma-run"), hold_port())
    try:
        run.start()
        yield run.port
    finally:
        run.stop()


@pytest.fixture
def chroma(tmp_path: Path, hold_port: Callable[[], int]) -> Iterator[ChromaRun]:
    """A ``chroma run`` for one test, which may kill it."""
    run = ChromaRun(tmp_path, hold_port())
    try:
        run.start()
        yield run
    finally:
        run.kill()
