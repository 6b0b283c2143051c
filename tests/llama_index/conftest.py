"""Fixtures: servers, a fake API, sync and async calls, and recorders of LlamaIndex events."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index_instrumentation import root_dispatcher
from llama_index_instrumentation.span import BaseSpan
from pydantic import PrivateAttr

from nexusflow_integrations.llama_index import NexusFlowEmbedding
from nexusflow_integrations.local import LocalServer

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))  # for what tests of several folders share

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def fresh_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the key from the environment, and reset LlamaIndex's global settings."""
    for name in list(os.environ):
        if name.startswith("NEXUSFLOW_"):
            monkeypatch.delenv(name)
    yield
    Settings._embed_model = Settings._callback_manager = Settings._llm = None


@pytest.fixture
def embedding(server: LocalServer) -> NexusFlowEmbedding:
    """An embedding model on the fast server, with small vectors."""
    return NexusFlowEmbedding(api_key=server.api_key, api_base=server.base_url, dimensions=64)


@pytest.fixture
def slowly(slow_server: LocalServer) -> Callable[..., NexusFlowEmbedding]:
    """Make an embedding model on the slow server, with a new pace for each test."""

    def make(**options: Any) -> NexusFlowEmbedding:
        return NexusFlowEmbedding(
            api_key=f"sk-air-{next(_numbers)}",
            api_base=slow_server.base_url,
            **{"dimensions": 64, **options},
        )

    return make


Batch = Callable[..., list[list[float]]]


@pytest.fixture(params=["sync", "async"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def batch(way: str) -> Batch:
    """The batch method, sync or async."""

    def call(embedding: BaseEmbedding, texts: list[str], **options: Any) -> list[list[float]]:
        if way == "sync":
            return embedding.get_text_embedding_batch(texts, **options)
        return asyncio.run(embedding.aget_text_embedding_batch(texts, **options))

    return call


@pytest.fixture
def single(way: str) -> Callable[[BaseEmbedding, str, str], list[float]]:
    """The method for one text of a role ("query" or "text"), sync or async."""

    def call(embedding: BaseEmbedding, role: str, text: str) -> list[float]:
        if way == "sync":
            return getattr(embedding, f"get_{role}_embedding")(text)
        return asyncio.run(getattr(embedding, f"aget_{role}_embedding")(text))

    return call


def _error(code: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": "no", "type": "some_error"}}


def _delay(said: Any) -> float:
    if isinstance(said, tuple):
        return float(said[2]) if len(said) > 2 else 0.0
    return said or 0.0


def _response(status: int, body: dict[str, Any]) -> httpx.Response:
    return httpx.Response(status, stream=httpx.ByteStream(json.dumps(body).encode()))


class Upstream:
    """A fake API behind httpx clients; ``answer`` may return errors or be slow.

    ``answer`` gets the texts of a request and returns a status and a body to answer with, or a
    number of seconds to wait before the right answer, or both, or ``None`` for the right answer.
    """

    UNAUTHORIZED = (401, _error("invalid_api_key"))
    MODERATED = (400, _error("data_inspection_failed"))

    def __init__(self) -> None:
        self.answer: Callable[[list[str]], tuple[int, dict[str, Any]] | float | None] = (
            lambda texts: None
        )
        self.requests: list[list[str]] = []
        self.finished: list[list[str]] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.size = 64
        self._lock = threading.Lock()
        self.http_client = httpx.Client(transport=httpx.MockTransport(self._handle))

    def embedding(
        self, cls: type[NexusFlowEmbedding] = NexusFlowEmbedding, **options: Any
    ) -> NexusFlowEmbedding:
        return cls(
            api_key=f"sk-air-{next(_numbers)}",
            api_base="https://upstream.invalid/v1",
            http_client=self.http_client,
            async_http_client=httpx.AsyncClient(transport=httpx.MockTransport(self._ahandle)),
            **{"dimensions": 64, "max_retries": 0, **options},
        )

    @staticmethod
    def vector_of(text: str, size: int = 64) -> list[float]:
        """Return the vector of a text, which is always the same."""
        raw = hashlib.shake_256(f"{size} {text}".encode()).digest(size)
        vector = np.frombuffer(raw, dtype=np.uint8).astype(np.float32) + np.float32(0.5)
        unit: list[float] = (vector / np.linalg.norm(vector)).tolist()
        return unit

    def _begin(self, request: httpx.Request) -> tuple[dict[str, Any], Any]:
        body = json.loads(request.content)
        body["input"] = [body["input"]] if isinstance(body["input"], str) else body["input"]
        with self._lock:
            self.requests.append(body["input"])
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        return body, self.answer(body["input"])

    def _end(self, body: dict[str, Any], said: Any) -> httpx.Response:
        with self._lock:
            self.finished.append(body["input"])
        if isinstance(said, tuple):
            return _response(*said[:2])
        size = body.get("dimensions", self.size)
        rows = [np.float32(self.vector_of(text, size)) for text in body["input"]]
        tokens = sum(map(len, body["input"]))
        data = [
            {"index": i, "embedding": base64.b64encode(row.tobytes()).decode()}
            for i, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _response(200, {"data": data, "usage": usage})

    def _handle(self, request: httpx.Request) -> httpx.Response:
        body, said = self._begin(request)
        try:
            time.sleep(_delay(said))
            return self._end(body, said)
        finally:
            with self._lock:
                self.in_flight -= 1

    async def _ahandle(self, request: httpx.Request) -> httpx.Response:
        body, said = self._begin(request)
        try:
            await asyncio.sleep(_delay(said))
            return self._end(body, said)
        finally:
            with self._lock:
                self.in_flight -= 1

    def settles(self, seconds: float = 60.0) -> bool:
        """Wait until no request is in flight."""
        until = time.monotonic() + seconds
        while self.in_flight and time.monotonic() < until:
            time.sleep(0.01)
        return not self.in_flight


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


class Events(BaseEventHandler):
    """Records every instrumentation event."""

    _seen: list[Any] = PrivateAttr(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        self._seen.append(event)

    def named(self, name: str) -> list[Any]:
        return [event for event in self._seen if event.class_name() == name]


class Spans(BaseSpanHandler[BaseSpan]):
    """Records the id of every span and of its parent."""

    _parents: dict[str, str | None] = PrivateAttr(default_factory=dict)

    def new_span(self, id_: str, bound_args: Any, **kwargs: Any) -> BaseSpan:
        self._parents[id_] = kwargs.get("parent_span_id")
        return BaseSpan(id_=id_)

    def prepare_to_exit_span(self, id_: str, bound_args: Any, **kwargs: Any) -> BaseSpan | None:
        return self.open_spans.get(id_)

    def prepare_to_drop_span(self, id_: str, bound_args: Any, **kwargs: Any) -> BaseSpan | None:
        return self.open_spans.get(id_)

    def of(self, method: str) -> list[str]:
        return [id_ for id_ in self._parents if f".{method}-" in id_]


@pytest.fixture
def events() -> Iterator[Events]:
    handler = Events()
    root_dispatcher.add_event_handler(handler)
    yield handler
    root_dispatcher.event_handlers.remove(handler)


@pytest.fixture
def spans() -> Iterator[Spans]:
    handler = Spans()
    root_dispatcher.add_span_handler(handler)
    yield handler
    root_dispatcher.span_handlers.remove(handler)


class Callbacks(BaseCallbackHandler):
    """Records every start and end of a callback event, with its payload."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.started: dict[str, Any] = {}
        self.ended: dict[str, Any] = {}

    def on_event_start(
        self,
        event_type: Any,
        payload: Any = None,
        event_id: str = "",
        parent_id: str = "",
        **_: Any,
    ) -> str:
        self.started[event_id] = payload
        return event_id

    def on_event_end(
        self, event_type: Any, payload: Any = None, event_id: str = "", **_: Any
    ) -> None:
        assert event_id not in self.ended
        self.ended[event_id] = payload

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        pass


@pytest.fixture
def callbacks() -> Callbacks:
    return Callbacks()


@pytest.fixture
def heard(callbacks: Callbacks) -> CallbackManager:
    """A callback manager with ``callbacks`` as a handler."""
    return CallbackManager([callbacks])


@pytest.fixture
def texts() -> Callable[..., list[str]]:
    """Make a number of different texts."""
    return lambda count, prefix="text": [f"{prefix} number {number}" for number in range(count)]
