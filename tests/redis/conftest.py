"""Fixtures: stores on a real server, and a proxy that can break their connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from nexusflow_integrations._core.cache.in_redis import RedisStore
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations.local import LocalServer


class Proxy:
    """Forwards bytes between clients and a server, and records what clients send.

    Attributes:
        said: All that clients sent.
        drop_after: Answers after which a connection is cut, the last one before it is passed on;
            ``None`` for never.
        cut: How many were.
    """

    def __init__(self, port: int) -> None:
        self.said = bytearray()
        self.drop_after: int | None = None
        self.cut = 0
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for work in (self._listen, self._answer):
                    threading.Thread(target=work, args=(client, server), daemon=True).start()

    def _listen(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                self.said += data
                server.sendall(data)
        _end(server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        answers = 0
        with suppress(OSError):
            while data := server.recv(65536):
                answers += 1
                if self.drop_after is not None and answers > self.drop_after:
                    self.cut += 1
                    break
                client.sendall(data)
        _end(client)
        _end(server)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(redis_server: Any) -> Iterator[Proxy]:
    made = Proxy(redis_server.port)
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """The embeddings API."""
    with LocalServer("hash", latency_ms=5, record_texts=True) as running:
        yield running


@pytest.fixture
def store_on() -> Iterator[Callable[..., RedisStore]]:
    """Make stores, and close them after the test."""
    stores: list[RedisStore] = []

    def make(url: str, **options: Any) -> RedisStore:
        stores.append(RedisStore(RedisAddress(url), **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(redis_server: Any, store_on: Callable[..., RedisStore]) -> RedisStore:
    return store_on(redis_server.url)
