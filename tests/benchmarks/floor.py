"""The lower bound: the same requests over bare sockets, with the same decoding and nothing else.

No retries, timeouts, TLS, proxies or checks: this is not a client. It reads HTTP
only as the benchmark's own server writes it.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
from pybase64 import b64decode

_IN_FLIGHT = 8
"""Enough to keep a server busy that answers immediately."""


class BareSockets:
    """Ten texts a request over a few connections, on one epoll loop."""

    def __init__(self, url: str, model: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._head = b"POST %b/embeddings HTTP/1.1\r\nHost: %b\r\nContent-Length: " % (
            parts.path.encode(),
            parts.netloc.encode(),
        )
        self._start = b'{"model":%b,"encoding_format":"base64","input":' % orjson.dumps(model)
        self._open: list[socket.socket] = []

    def arrays(self, texts: list[str]) -> Any:
        """Return a float32 array (n, d)."""
        found: Any = None
        for first, rows in self._rows(texts):
            if found is None:
                found = np.empty((len(texts), rows.shape[1]), dtype=np.float32)
            found[first : first + len(rows)] = rows
        return found

    def lists(self, texts: list[str]) -> list[list[float]]:
        """Return lists of floats."""
        found: list[Any] = [None] * len(texts)
        for first, rows in self._rows(texts):
            found[first : first + len(rows)] = rows.tolist()
        return found

    def one(self, text: str) -> bytes:
        """Return the body of the answer to one text."""
        connection = self._connections(1)[0]
        connection.setblocking(True)
        connection.sendall(self._request([text]))
        read = bytearray()
        while (body := _body(read)) is None:
            read += connection.recv(1 << 18)
        return body

    def _rows(self, texts: list[str]) -> Iterator[tuple[int, Any]]:
        firsts = iter(range(0, len(texts), 10))
        with selectors.DefaultSelector() as selector:
            for connection in self._connections(min(_IN_FLIGHT, -(-len(texts) // 10))):
                connection.setblocking(False)
                first = next(firsts)
                connection.sendall(self._request(texts[first : first + 10]))
                selector.register(connection, selectors.EVENT_READ, (first, bytearray()))
            while selector.get_map():
                for key, _ in selector.select():
                    connection = key.fileobj  # type: ignore[assignment]
                    first, read = key.data
                    read += connection.recv(1 << 18)
                    body = _body(read)
                    if body is None:
                        continue
                    following = next(firsts, None)
                    if following is None:
                        selector.unregister(connection)
                    else:
                        connection.sendall(self._request(texts[following : following + 10]))
                        selector.modify(connection, selectors.EVENT_READ, (following, bytearray()))
                    yield first, decoded(body)

    def _request(self, texts: list[str]) -> bytes:
        body = b"%b%b}" % (self._start, orjson.dumps(texts))
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)

    def _connections(self, count: int) -> list[socket.socket]:
        while len(self._open) < count:
            connection = socket.create_connection(self._address, timeout=60)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(connection)
        return self._open[:count]


def _body(read: bytearray) -> bytes | None:
    end = read.find(b"\r\n\r\n")
    if end < 0:
        return None
    start = read.find(b"content-length: ") + 16
    length = int(read[start : read.find(b"\r", start)])
    return bytes(read[end + 4 :]) if len(read) == end + 4 + length else None


def decoded(body: bytes) -> Any:
    """Return the float32 vectors (n, d) of an answer in base64."""
    items = orjson.loads(body)["data"]
    raw = b"".join([b64decode(item["embedding"], validate=True) for item in items])
    return np.frombuffer(raw, dtype="<f4").reshape(len(items), -1)
