"""What several folders of tests need: servers, ports, a clock, keys, the same examples."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from nexusflow_integrations.local import LocalServer

try:
    from hypothesis import settings
except ModuleNotFoundError:  # the environment of the recipes
    pass
else:
    # Everywhere as in CI: the same examples in every run, and none of them held to a time.
    # ``pytest --hypothesis-profile=default`` looks for new ones.
    settings.load_profile("ci")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it sends to the background deaf to Ctrl-C, and so all its children, which
    # some tests press it for.
    signal.signal(signal.SIGINT, signal.default_int_handler)


KEY = "sk-air-very-secret"


@pytest.fixture
def key() -> str:
    """The only key that ``server`` takes; it must show up nowhere."""
    return KEY


@pytest.fixture(scope="session")
def running_server() -> Iterator[LocalServer]:
    """The server itself, with the counts of all tests."""
    from nexusflow_integrations.local import LocalServer

    with LocalServer("hash", api_key=KEY, record_texts=True) as server:
        yield server


@pytest.fixture
def server(running_server: LocalServer) -> LocalServer:
    """A server that takes one key, its counts at zero."""
    running_server.reset_stats()
    return running_server


@pytest.fixture(scope="session")
def _running_slow_server() -> Iterator[LocalServer]:
    from nexusflow_integrations.local import LocalServer

    with LocalServer("hash", latency_ms=200, record_texts=True) as server:
        yield server


@pytest.fixture
def slow_server(_running_slow_server: LocalServer) -> LocalServer:
    """A server that takes any key and answers after 200 ms, so that requests overlap."""
    _running_slow_server.reset_stats()
    return _running_slow_server


class RedisProcess:
    """A real ``redis-server`` on 127.0.0.1 that keeps nothing on disk."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, on the same port if it was started before."""
        for _ in range(20):
            port = self.port or self.free_port()
            self._process = subprocess.Popen(
                ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                 "--appendonly", "no", "--dir", str(self._folder), *self._options],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            until = time.monotonic() + 60
            while self._process.poll() is None:
                assert time.monotonic() < until
                if _listens(port):
                    self.port = port
                    return
                time.sleep(0.01)
            # Somebody else took the port meanwhile: another one, or once more.
        raise AssertionError("redis-server does not start")

    @staticmethod
    def free_port() -> int:
        """A port that nobody listened on just now."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def client(self, **options: Any) -> Any:
        """A plain client of the ``redis`` package, to look behind the scenes."""
        import redis

        return redis.Redis(port=self.port, **options)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5) in (b"+PONG", b"-NOAU")
    except OSError:
        return False


@pytest.fixture(scope="session")
def hold_port() -> Iterator[Callable[[], int]]:
    """Give out ports of 127.0.0.1 that nobody else is given by chance: they are bound.

    Nobody listens there; a server that reuses addresses, as servers do, may begin to.
    """
    with contextlib.ExitStack() as held:

        def hold() -> int:
            sock = held.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
            return port

        yield hold


@pytest.fixture(scope="session")
def redis_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., RedisProcess]]:
    """Start servers with options of their own; all are gone in the end."""
    pytest.importorskip("redis", reason="the redis package is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server here: apt-get install redis-server")
    started: list[RedisProcess] = []

    def start(*options: str) -> RedisProcess:
        started.append(RedisProcess(tmp_path_factory.mktemp("redis"), *options))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def _shared_redis(redis_process: Callable[..., RedisProcess]) -> RedisProcess:
    return redis_process()


@pytest.fixture
def redis_server(_shared_redis: RedisProcess) -> RedisProcess:
    """A server that runs as long as the tests, emptied for this one."""
    with _shared_redis.client() as client:
        client.flushall()
    return _shared_redis


class Clock:
    """Seconds since 1970, only moving when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(store: Any) -> list[bytes]:
    """Twenty keys of one kind, of the folder's own store."""
    keyer = store.keyer(base_url="https://a.example/v1", model="m", dimensions=8)
    return [keyer(f"text {number}") for number in range(20)]


@pytest.fixture
def vector() -> Callable[..., np.ndarray]:
    """Make a float32 vector that is told from others by its number."""

    def make(number: float = 1, size: int = 8) -> np.ndarray:
        return np.arange(number, number + size, dtype=np.float32)

    return make
