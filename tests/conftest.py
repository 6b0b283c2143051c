"""Fixtures that several folders share: servers, ports, a clock, keys, and odd values."""

from __future__ import annotations

import contextlib
import datetime
import enum
import gc
import logging
import math
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import UserDict, UserString
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from nexusflow_integrations.local import LocalServer

TESTS = Path(__file__).parent
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))  # for what several folders import

try:
    from hypothesis import settings
except ModuleNotFoundError:  # the environment of the recipes
    pass
else:
    # As in CI: every run has the same examples, without a time limit for each.
    # ``pytest --hypothesis-profile=default`` looks for new ones.
    settings.load_profile("ci")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell makes background processes and their children ignore Ctrl-C, which some tests need.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Exclude tests and modules from later garbage collections, because they stay to the end."""
    gc.collect()
    gc.freeze()


KEY = "sk-air-very-secret"


@pytest.fixture
def key() -> str:
    """The only key that ``server`` accepts. It must never be shown."""
    return KEY


@pytest.fixture(scope="session")
def running_server() -> Iterator[LocalServer]:
    """The server, with the counts of all tests."""
    pytest.importorskip("starlette", reason="the local server needs it")
    from nexusflow_integrations.local import LocalServer

    with LocalServer("hash", api_key=KEY, record_texts=True) as server:
        yield server


def reset(server: LocalServer) -> None:
    """Reset the counts when the server has counted all requests of earlier tests."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        while connection.recv(4096):  # answered after all that was there before
            pass
    until = time.monotonic() + 60
    while server.stats.in_flight and time.monotonic() < until:
        time.sleep(0.01)
    server.reset_stats()


@pytest.fixture
def server(running_server: LocalServer) -> LocalServer:
    """A server that accepts one key, with its counts reset."""
    reset(running_server)
    return running_server


@pytest.fixture(scope="session")
def _running_slow_server() -> Iterator[LocalServer]:
    from nexusflow_integrations.local import LocalServer

    with LocalServer("hash", latency_ms=200, record_texts=True) as server:
        yield server


@pytest.fixture
def slow_server(_running_slow_server: LocalServer) -> LocalServer:
    """A server that accepts any key and responds after 200 ms, so that requests overlap."""
    reset(_running_slow_server)
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
        """Start the server, on the same port if it was started before."""
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
            # Another process took the port: choose another one, or try again.
        raise AssertionError("redis-server does not start")

    @staticmethod
    def free_port() -> int:
        """Return a port that was free a moment ago."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def signal(self, number: int) -> None:
        """Send a signal to the server: SIGSTOP makes it hang until SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    def client(self, **options: Any) -> Any:
        """A plain client of the ``redis`` package, to inspect the data."""
        import redis

        return redis.Redis(port=self.port, **options)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5) in (b"+PONG", b"-NOAU")
    except OSError:
        return False


class _Text(str):
    __slots__ = ()


class _Words(str, enum.Enum):
    QUERY = "query"


class _Numbers(enum.IntEnum):
    SIX = 6


class _Hostile:
    """Raises an error on any use."""

    def _fail(self, *_: object) -> Any:
        raise ZeroDivisionError

    __eq__ = __bool__ = __len__ = __iter__ = __repr__ = __str__ = _fail
    __float__ = __int__ = __index__ = __fspath__ = __getitem__ = _fail
    __hash__ = object.__hash__


class _HostileAttributes:
    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError


@pytest.fixture
def odd() -> Callable[[], list[Any]]:
    """Make odd values of every kind that a user or a program may pass as a setting."""
    import httpx

    def make() -> list[Any]:
        return [
            *(None, True, False, 0, -1, 1, 7, 64, 2**63, 10**400, 10**5000),
            *(1.5, 0.0, -0.5, 1e-9, 5e-324, 1e300, math.nan, math.inf, -math.inf, 1j),
            *(Decimal(1), Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal(-1)),
            *(Fraction(1, 2), _Numbers.SIX, np.int64(5), np.uint8(0), np.float32(2.5)),
            *(np.float64("nan"), np.bool_(True), np.str_("x"), np.datetime64("2030-01-01")),
            *(np.array([1]), np.array([1, 2]), np.array(5), np.zeros((2, 2))),
            *("", " ", "x", "1", "0.5", "true", "None", "raise", "float", "é", "x" * 100_000),
            *("\ud800", "a\r\nb", "a\0b", "\u202e", _Text("x"), _Words.QUERY, UserString("x")),
            *(b"x", bytearray(b"x"), memoryview(b"x"), [], ["x"], (), set(), {}, {"a": "b"}),
            *({1: 2}, {"a": 1}, {"a": "b\r\nc"}, UserDict(a="b"), range(3), iter(["x"])),
            *(object(), object, str, ValueError("x"), ..., NotImplemented, math, print, len),
            *(Path("x"), datetime.timedelta(seconds=3), datetime.date(2030, 1, 1)),
            *(_Hostile(), _Hostile, _HostileAttributes(), httpx.Client, httpx.AsyncClient),
            *(httpx.Client(), httpx.AsyncClient()),
        ]

    return make


@pytest.fixture
def refused(odd: Callable[[], list[Any]]) -> Callable[..., list[Any]]:
    """Make something with every odd value, and return the values that are accepted.

    All others must be refused in one sentence that names the setting: by a ``ConfigurationError``,
    or, if that is among ``others``, by the error that a framework has for it.
    """
    from nexusflow_integrations.errors import ConfigurationError

    def error_of(make: Callable[[Any], object], value: Any) -> Exception | None:
        try:
            make(value)
        except Exception as error:
            return error
        return None

    def check(make: Callable[[Any], object], name: str, *others: type[Exception]) -> list[Any]:
        taken = []
        for value in odd():
            error = error_of(make, value)
            said = str(error)
            if error is None:
                taken.append(value)
            elif isinstance(error, ConfigurationError):
                assert name in said
                assert len(said) < 300
                assert said.isprintable()
                assert said.isascii()
            else:
                assert isinstance(error, others), f"{name}: {type(value).__name__}: {said}"
                assert name in said
        return taken

    return check


@pytest.fixture(scope="session")
def hold_port() -> Iterator[Callable[[], int]]:
    """Reserve ports of 127.0.0.1: they are bound, so that no other process gets them.

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
    """Start servers with options, and stop them after the test."""
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
    """A server shared by all tests, and emptied for each."""
    with _shared_redis.client() as client:
        client.flushall()
    return _shared_redis


class Clock:
    """A clock in seconds since 1970 that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(store: Any) -> list[bytes]:
    """Twenty keys for the store of this folder."""
    keyer = store.keyer(base_url="https://a.example/v1", model="m", dimensions=8)
    return [keyer(f"text {number}") for number in range(20)]


@pytest.fixture
def vector() -> Callable[..., np.ndarray]:
    """Make a float32 vector that differs for each number."""

    def make(number: float = 1, size: int = 8) -> np.ndarray:
        return np.arange(number, number + size, dtype=np.float32)

    return make


@pytest.fixture(autouse=True)
def _logging_is_on() -> None:
    """Reset logging settings that earlier tests may have left, so that records can be read."""
    logging.disable(logging.NOTSET)
    logger = logging.getLogger("nexusflow_integrations")
    logger.disabled, logger.propagate = False, True
    logger.setLevel(logging.NOTSET)
