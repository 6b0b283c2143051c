"""The server for all contestants: valid responses with a latency, and counts; nothing else.

It must cost little, or a fast client measures the server: responses are put together from pieces
that are already serialised. ``GET /stats`` and ``GET /reset`` are the only other paths.

    python tests/benchmarks/server.py --latency-ms 150

prints one line of JSON with its port, and serves until its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import ssl
import sys
import threading
from typing import Any

import orjson
from vectors import Encoder

try:
    from uvloop import run
except ImportError:  # this costs the server a little more
    from asyncio import run


class Counts:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.requests = self.texts = self.connections = self.rejected = 0
        self.in_flight = self.max_in_flight = 0
        self.cpu_at = _cpu()

    def shown(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "texts": self.texts,
            "connections": self.connections,
            "max_in_flight": self.max_in_flight,
            "rejected": self.rejected,
            "cpu_seconds": _cpu() - self.cpu_at,
        }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


counts = Counts()
encoder = Encoder()
_TAIL = b'],"model":"text-embedding-v4","usage":{"prompt_tokens":%d,"total_tokens":%d}}'
_HEAD = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_ITEMS = [b'{"object":"embedding","index":%d,"embedding":' % place for place in range(10)]
_TOO_MANY = b'{"error":{"code":"invalid_parameter","message":"at most 10 texts","type":"x"}}'


def answer(request: bytes) -> tuple[int, list[bytes]]:
    """Return the status and the pieces of the body."""
    asked = orjson.loads(request)
    given = asked["input"]
    texts = [given] if isinstance(given, str) else given
    if not 1 <= len(texts) <= 10:
        counts.rejected += 1
        return 400, [_TOO_MANY]
    counts.texts += len(texts)
    encoding = asked.get("encoding_format") or "float"
    pieces = [b'{"object":"list","data":[']
    tokens = 0
    for place, text in enumerate(texts):
        pieces += (_ITEMS[place], encoder.embedding(text, encoding), b"},")
        tokens += len(text) // 4 + 1
    pieces[-1] = b"}"
    pieces.append(_TAIL % (tokens, tokens))
    return 200, pieces


class Wire(asyncio.Protocol):
    """One connection. HTTP/1.1 with Content-Length, which is what all contestants send."""

    latency = 0.0
    transport: Any
    buffer: bytes

    def connection_made(self, transport: Any) -> None:
        counts.connections += 1
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            stop = end + 4 + length
            if len(self.buffer) < stop:
                return
            request, self.buffer = self.buffer[end + 4 : stop], self.buffer[stop:]
            if head.startswith(b"get "):
                self._control(head)
            else:
                self._embeddings(request)

    def _embeddings(self, request: bytes) -> None:
        counts.requests += 1
        counts.in_flight += 1
        counts.max_in_flight = max(counts.max_in_flight, counts.in_flight)
        status, pieces = answer(request)
        whole = b"".join([_HEAD % (status, sum(map(len, pieces))), *pieces])
        if self.latency:
            asyncio.get_running_loop().call_later(self.latency, self._send, whole)
        else:
            self._send(whole)

    def _send(self, whole: bytes) -> None:
        counts.in_flight -= 1
        if not self.transport.is_closing():
            self.transport.write(whole)

    def _control(self, head: bytes) -> None:
        if b"/reset" in head:
            counts.reset()
        body = json.dumps(counts.shown()).encode()
        self.transport.write(_HEAD % (200, len(body)) + body)


class Control(Wire):
    """A connection that only asks for the counts, and is not counted."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        counts.connections -= 1


async def serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    Wire.latency = options.latency_ms / 1000
    server = await loop.create_server(Wire, "127.0.0.1", 0, backlog=1024, ssl=context)
    control = await loop.create_server(Control, "127.0.0.1", 0)
    ports = [s.sockets[0].getsockname()[1] for s in (server, control)]
    print(json.dumps({"port": ports[0], "control": ports[1]}), flush=True)
    ended = asyncio.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--certificate", help="PEM with chain and key: serve https")
    with contextlib.suppress(KeyboardInterrupt):
        run(serve(parser.parse_args()))
