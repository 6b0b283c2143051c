"""What each client returns for the same five bad responses."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import orjson
import vectors
from contestants import KEY, RustClient

Data = dict[str, Any]

TEXTS = 30
"""Three requests."""
BAD = 17
"""The text that the server refuses in ``refused``."""
HINT = 2
"""Seconds that a throttling server asks for."""


class _Server:
    """Answers as the API does, except for one fault; counts."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.requests = self.throttled = 0
        self._until = 0.0
        self._lock = threading.Lock()

    def answer(self, texts: list[str]) -> tuple[int, dict[str, str], Any]:
        with self._lock:
            self.requests += 1
            first = self.requests == 1
            if self.fault == "throttled":
                self._until = self._until or time.monotonic() + HINT
                if time.monotonic() < self._until:
                    self.throttled += 1
                    return 429, {"Retry-After": str(HINT)}, _error("rate_limit_exceeded")
        if self.fault == "refused" and vectors.text(BAD) in texts:
            return 400, {}, _error("data_inspection_failed")
        items: list[Data] = [
            {"object": "embedding", "index": place, "embedding": base64.b64encode(row).decode()}
            for place, row in enumerate(vectors.expected(texts))
        ]
        if self.fault == "reordered":
            items.reverse()
        elif self.fault == "missing" and first:
            items.pop()
        elif self.fault == "null" and first:
            items[3]["embedding"] = None
        usage = {"prompt_tokens": 10 * len(texts), "total_tokens": 10 * len(texts)}
        return 200, {}, {"object": "list", "data": items, "model": "m", "usage": usage}


def _error(code: str) -> Data:
    return {"error": {"code": code, "message": code, "type": "invalid_request_error"}}


FAULTS = {
    "reordered": "every answer lists its vectors in reverse, with the right `index`",
    "missing": "one answer lacks a vector",
    "null": "one answer has `null` for a vector",
    "throttled": f"429 with `Retry-After: {HINT}` for {HINT} s",
    "refused": "400 for one text of thirty",
}


@contextmanager
def _serving(fault: str) -> Iterator[tuple[_Server, str]]:
    state = _Server(fault)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, headers, answer = state.answer(orjson.loads(body)["input"])
            payload = orjson.dumps(answer)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def _ours(url: str, texts: list[str]) -> list[Any]:
    from nexusflow_integrations import NexusFlow

    with NexusFlow(KEY, base_url=url) as client:
        return list(client.embed(texts))


def _rust(url: str, texts: list[str]) -> list[Any]:
    found = []
    for item in RustClient(url).embed(texts).data:
        given = item.embedding
        if isinstance(given, str):
            given = np.frombuffer(base64.b64decode(given), dtype="<f4")
        found.append(None if given is None else np.asarray(given, dtype=np.float32))
    return found


CLIENTS: dict[str, Callable[[str, list[str]], list[Any]]] = {
    "nexusflow": _ours,
    "Rust client": _rust,
}


def _outcome(texts: list[str], embed: Callable[[], list[Any]]) -> str:
    try:
        found = embed()
    except Exception as error:
        kept = getattr(error, "finished", {})
        what = f"{type(error).__name__}"
        if not kept:
            return f"{what}; no vector"
        wanted = vectors.expected(texts)
        right = sum(np.array_equal(row, wanted[index]) for index, row in kept.items())
        return f"{what} that names the text; {right} right vectors in its `finished`"
    if len(found) != len(texts):
        return f"{len(found)} vectors for {len(texts)} texts, without an error"
    wanted = vectors.expected(texts)
    right = sum(np.array_equal(row, due) for row, due in zip(found, wanted, strict=True))
    if right == len(texts):
        return f"{right} right vectors"
    return f"{len(texts) - right} wrong vectors of {len(texts)}, without an error"


def answers(spec: Data) -> Data:
    """Return what the client ``spec["client"]`` returned for each fault, and what it sent."""
    embed = CLIENTS[spec["client"]]
    texts = vectors.texts(TEXTS)
    found = {}
    for fault in FAULTS:
        with _serving(fault) as (server, url):
            began = time.monotonic()
            outcome = _outcome(texts, lambda url=url: embed(url, texts))  # type: ignore[misc]
            found[fault] = {
                "outcome": outcome,
                "requests": server.requests,
                "throttled": server.throttled,
                "seconds": time.monotonic() - began,
            }
    return found


TASKS: dict[str, Callable[[Data], Data]] = {"answers": answers}
