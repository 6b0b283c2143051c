"""Fixtures: a fast server without a model, a slow one, and responses written by a test."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("langchain_core")

from langchain_core.rate_limiters import BaseRateLimiter

from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.langchain import embeddings as adapter
from nexusflow_integrations.local import LocalServer

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))  # for what tests of several folders share

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the key and tracing settings, and reset the note about tokenizing."""
    for name in list(os.environ):
        if name.startswith(("NEXUSFLOW_", "LANGSMITH_", "LANGCHAIN_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(adapter, "_noted", False)


@pytest.fixture
def make(server: LocalServer) -> Callable[..., NexusFlowEmbeddings]:
    """Make embeddings for the server, with 64 dimensions or other settings."""

    def make(**settings: Any) -> NexusFlowEmbeddings:
        told = {"api_key": server.api_key, "base_url": server.base_url, "dimensions": 64}
        return NexusFlowEmbeddings(**{**told, **settings})

    return make


@pytest.fixture
def answering(key: str) -> Callable[..., NexusFlowEmbeddings]:
    """Make embeddings whose sync and async requests are answered by a function."""

    def make(
        answer: Callable[[httpx.Request], httpx.Response], **settings: Any
    ) -> NexusFlowEmbeddings:
        async def answer_async(request: httpx.Request) -> httpx.Response:
            return answer(request)

        told: dict[str, Any] = {
            # The core's knowledge about an account must not reach the next test.
            "api_key": f"{key}-{next(_numbers)}",
            "base_url": "https://embeddings.invalid/v1",
            "max_retries": 0,
            "http_client": httpx.Client(transport=httpx.MockTransport(answer)),
            "http_async_client": httpx.AsyncClient(transport=httpx.MockTransport(answer_async)),
        }
        return NexusFlowEmbeddings(**{**told, **settings})

    return make


class Bar:
    """Records the calls of a progress bar."""

    def __init__(self, **options: Any) -> None:
        self.total = options["total"]
        self.steps: list[int] = []
        self.closed = False

    def update(self, step: int) -> None:
        self.steps.append(step)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """All progress bars that a test made, instead of tqdm's."""
    made: list[Bar] = []

    def make(**options: Any) -> Bar:
        made.append(Bar(**options))
        return made[-1]

    monkeypatch.setattr(pytest.importorskip("tqdm.auto"), "tqdm", make)
    return made


class Turns(BaseRateLimiter):
    """Never waits; records each caller and the number of requests sent before."""

    def __init__(self, server: LocalServer, pause: float) -> None:
        self.server = server
        self.pause = pause
        self.gone: list[int] = []
        self.where: list[Any] = []

    def _note(self, where: Any) -> bool:
        self.where.append(where)
        self.gone.append(self.server.stats.requests)
        return True

    def acquire(self, *, blocking: bool = True) -> bool:
        assert blocking
        time.sleep(self.pause)
        return self._note(threading.current_thread())

    async def aacquire(self, *, blocking: bool = True) -> bool:
        assert blocking
        await asyncio.sleep(self.pause)
        return self._note(asyncio.get_running_loop())


@pytest.fixture
def turns() -> Callable[..., Turns]:
    """Make a rate limiter that watches a server; ``pause`` is in seconds for each call."""

    def make(server: LocalServer, pause: float = 0.0) -> Turns:
        return Turns(server, pause)

    return make
