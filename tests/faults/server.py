"""A server that answers embeddings requests correctly, or with the faults of a script.

Raw sockets, one thread a connection, so that everything below HTTP can be thrown: resets, drips,
broken framing, smuggled bytes. It is bounded (connections, bytes, life time) and stops at once,
also in the middle of a drip.

A *behaviour* is a function of the `Wire`: it writes what it likes and returns (the connection is
kept) or ends the connection (`wire.reset()`, `wire.fin()`). A *script* says when a behaviour
applies; where it does not, the right answer is given. The right vector of a text is
`expected_vector(text, dimensions)`, so a test recognises the vector of each text.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

DEFAULT_DIMENSIONS = 1024
MAX_HEAD = 256 * 1024
MAX_BODY = 32 * 1024 * 1024

Stage = Literal["connect", "headers", "request"]
Behaviour = Callable[["Wire"], None]


@functools.lru_cache(maxsize=4096)
def expected_vector(text: str, dimensions: int = DEFAULT_DIMENSIONS) -> npt.NDArray[np.float32]:
    """Return the vector of `text`: float32, unit length, different for each text and size."""
    seed = f"{dimensions}\0{text}".encode("utf-8", "surrogatepass")
    raw = np.frombuffer(hashlib.shake_256(seed).digest(dimensions * 2), dtype="<i2")
    vector = raw.astype(np.float64) + 0.5  # the half keeps every element from being zero
    unit = (vector / np.linalg.norm(vector)).astype(np.float32)
    unit.setflags(write=False)
    return unit


def embedded(text: str, dimensions: int, encoding: str) -> str | list[float]:
    """The vector of a text as a response contains it."""
    vector = expected_vector(text, dimensions)
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(x) for x in vector]


def payload(texts: Sequence[str], dimensions: int, encoding: str) -> dict[str, Any]:
    """The right response body."""
    tokens = sum(len(text) for text in texts)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": embedded(text, dimensions, encoding)}
            for i, text in enumerate(texts)
        ],
        "model": "text-embedding-v4",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def readable(seconds: float, *sockets: socket.socket) -> list[socket.socket]:
    """Wait until one of ``sockets`` can be read, with any number of files open."""
    poll = select.poll()
    for sock in sockets:
        poll.register(sock, select.POLLIN)
    ready = {number for number, _ in poll.poll(max(0.0, seconds) * 1000)}
    return [sock for sock in sockets if sock.fileno() in ready]


@dataclass
class Request:
    """One request as it came over the wire; logged when its headers are complete."""

    number: int
    connection: int
    at: float
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    json: Any = None
    texts: tuple[str, ...] = ()
    answered_at: float | None = None

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)

    @property
    def dimensions(self) -> int | None:
        value = self.json.get("dimensions") if isinstance(self.json, dict) else None
        return value if isinstance(value, int) else None

    @property
    def encoding(self) -> str:
        return self.json.get("encoding_format", "float") if isinstance(self.json, dict) else "float"


class Ended(Exception):
    """Raised to end the thread of a connection that is over. It is not an error."""


class Wire:
    """One connection, as a behaviour sees it."""

    def __init__(self, server: FaultServer, sock: socket.socket, connection: int) -> None:
        self.server = server
        self.sock = sock
        self.connection = connection
        self.request: Request | None = None
        self._buffer = b""

    @property
    def number(self) -> int:
        """Of the request, or of the connection before its first request."""
        return self.connection if self.request is None else self.request.number

    @property
    def texts(self) -> tuple[str, ...]:
        return () if self.request is None else self.request.texts

    # writing

    def send(self, data: bytes) -> None:
        self.server._spend(len(data))
        if self.request is not None:  # before, so that no gap is ever measured as too short
            self.request.answered_at = time.monotonic()
        self.sock.sendall(data)

    def pause(self, seconds: float) -> None:
        if readable(seconds, self.server._stopped):
            raise Ended

    def drip(self, data: bytes, size: int = 1, every: float = 0.05) -> None:
        for at in range(0, len(data), size):
            self.send(data[at : at + size])
            self.pause(every)

    def respond(
        self,
        status: int,
        body: bytes | str | dict[str, Any] | list[Any] = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        content_type: str | None = "application/json",
        reason: str = "Because",
        length: int | str | None = None,
        version: str = "HTTP/1.1",
    ) -> None:
        """A whole response; `length` replaces the true Content-Length."""
        data = encode(body)
        lines = [f"{version} {status} {reason}", f"X-Request-ID: req-{self.number}"]
        if content_type is not None:
            lines.append(f"Content-Type: {content_type}")
        if status != 204:
            lines.append(f"Content-Length: {len(data) if length is None else length}")
        lines += [f"{name}: {value}" for name, value in headers]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + data)

    def right(self, **options: Any) -> None:
        self.respond(200, self.right_body(), **options)

    def right_body(
        self, encoding: str | None = None, dimensions: int | None = None
    ) -> dict[str, Any]:
        assert self.request is not None
        return payload(
            self.texts,
            dimensions or self.request.dimensions or self.server.dimensions,
            encoding or self.request.encoding,
        )

    # ending

    def reset(self) -> NoReturn:
        """RST: the peer's next read or write fails with ECONNRESET."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        raise Ended

    def fin(self) -> NoReturn:
        """Send FIN and never RST: what the peer still sends is read and dropped."""
        # The file descriptor's own shutdown: TLS sends no close_notify.
        socket.socket.shutdown(self.sock, socket.SHUT_WR)
        self.hold(5.0)
        raise Ended

    def hold(self, seconds: float = 120.0) -> None:
        """Send nothing until the peer closes, and drop what it sends."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ready = readable(left, self.sock, self.server._stopped)
            if self.server._stopped in ready:
                raise Ended
            if not ready or not self.sock.recv(65536):
                return

    # reading

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)

    def read_head(self) -> Request | None:
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > MAX_HEAD or not self._more():
                return None
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]
        return self.server._log(self, method, target, headers)

    def read_body(self) -> None:
        request = self.request
        assert request is not None
        if "chunked" in (request.header("transfer-encoding") or ""):
            request.body = self._read_chunks()
        else:
            request.body = self._read_exactly(int(request.header("content-length") or 0))
        try:
            request.json = json.loads(request.body)
        except ValueError:
            request.json = None
        if isinstance(request.json, dict):
            texts = request.json.get("input", [])
            request.texts = (texts,) if isinstance(texts, str) else tuple(texts)
        self.server._count(request)

    def _read_exactly(self, length: int) -> bytes:
        assert length <= MAX_BODY
        parts = [self._buffer]
        have = len(self._buffer)
        while have < length:
            data = self.sock.recv(min(1 << 20, length - have))
            if not data:
                raise Ended
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._buffer = whole[length:]
        return whole[:length]

    def _read_chunks(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._buffer:
                if not self._more():
                    raise Ended
            line, self._buffer = self._buffer.split(b"\r\n", 1)
            size = int(line.split(b";")[0], 16)
            body += self._read_exactly(size)
            self._read_exactly(2)
            if size == 0:
                return body


def encode(body: bytes | str | dict[str, Any] | list[Any]) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    return json.dumps(body, ensure_ascii=False).encode()


def right(wire: Wire) -> None:
    wire.right()


def at(stage: Stage) -> Callable[[Behaviour], Behaviour]:
    """Let a behaviour act earlier: on the new connection, or before the body is read."""

    def mark(behaviour: Behaviour) -> Behaviour:
        behaviour.stage = stage  # type: ignore[attr-defined]
        return behaviour

    return mark


@dataclass(frozen=True)
class Script:
    """When a behaviour applies. Otherwise the response is right."""

    behaviour: Behaviour = right
    applies: Callable[[Wire], bool] = field(default=lambda wire: True)

    @property
    def stage(self) -> Stage:
        return getattr(self.behaviour, "stage", "request")


def always(behaviour: Behaviour) -> Script:
    return Script(behaviour)


def first(n: int, behaviour: Behaviour) -> Script:
    """For the first n requests (or connections, if the behaviour acts on connecting)."""
    return Script(behaviour, lambda wire: wire.number < n)


def once(behaviour: Behaviour) -> Script:
    return first(1, behaviour)


def marked(marker: str, behaviour: Behaviour) -> Script:
    """Only where a text contains the marker."""
    return Script(behaviour, lambda wire: any(marker in text for text in wire.texts))


def larger_than(n: int, behaviour: Behaviour) -> Script:
    """Only where a request holds more than n texts."""
    return Script(behaviour, lambda wire: len(wire.texts) > n)


class FaultServer:
    """On a free loopback port from construction on; used as a context manager.

    `script` may be replaced while it runs. `elsewhere` is another server's URL, for behaviours that
    point there. An exception inside a behaviour (a mistake in a test) is raised on leaving.
    """

    def __init__(
        self,
        script: Script | Behaviour = right,
        *,
        tls: ssl.SSLContext | None = None,
        elsewhere: str = "",
        dimensions: int = DEFAULT_DIMENSIONS,
        max_connections: int = 512,
        max_bytes: int = 256 * 1024 * 1024,
        lifetime: float = 300.0,
        receive_buffer: int | None = None,
    ) -> None:
        self.script = script if isinstance(script, Script) else Script(script)
        self.tls = tls
        self.elsewhere = elsewhere
        self.dimensions = dimensions
        self.max_connections = max_connections
        self.max_bytes = max_bytes
        self.lifetime = lifetime

        self.requests: list[Request] = []
        self.texts: Counter[str] = Counter()
        self.connections = 0
        self.bytes_sent = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.cut_short = False  # a cap of this server was reached
        self.mistakes: list[BaseException] = []

        self.lock = threading.Lock()  # also for behaviours with state
        self._asked: set[int] = set()  # connections on which a request was begun
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._stopped, self._stop = socket.socketpair()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(256)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="fault-server", daemon=True)
        self._acceptor.start()

    # what a test asks

    @property
    def base_url(self) -> str:
        return self.url_for("127.0.0.1")

    def url_for(self, host: str) -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}/v1"

    @property
    def attempts(self) -> int:
        """Requests begun, and connections on which none was."""
        with self.lock:
            return len(self.requests) + self.connections - len(self._asked)

    @property
    def open_connections(self) -> int:
        with self.lock:
            return len(self._open)

    def has_unread(self) -> bool:
        """Whether a peer has connected or sent something that no thread has read yet."""
        with self.lock:
            return bool(readable(0, self._listener)) or any(map(_has_data, self._open))

    def gaps(self) -> list[float]:
        """Seconds from each answer's last bytes, or its end without any, to the next request."""
        with self.lock:
            log = list(self.requests)
        return [b.at - (a.answered_at or a.at) for a, b in itertools.pairwise(log)]

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if kind is None and self.mistakes:
            raise AssertionError("a behaviour is broken") from self.mistakes[0]

    def stop(self) -> None:
        self._stop.close()  # makes _stopped readable, for ever
        self._acceptor.join(60)
        with self.lock:
            sockets, threads = list(self._open), list(self._threads)
        for sock in sockets:
            _hang_up(sock)
        for thread in threads:
            thread.join(60)
        self._stopped.close()

    # what the wire asks

    def _spend(self, size: int) -> None:
        with self.lock:
            self.bytes_sent += size
            if self.bytes_sent > self.max_bytes:
                self.cut_short = True
                raise Ended

    def _log(self, wire: Wire, method: str, target: str, headers: list[tuple[str, str]]) -> Request:
        with self.lock:
            self._asked.add(wire.connection)
            request = Request(
                len(self.requests), wire.connection, time.monotonic(), method, target, headers
            )
            self.requests.append(request)
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        return request

    def _count(self, request: Request) -> None:
        with self.lock:
            self.texts.update(request.texts)

    # threads

    def _accept(self) -> None:
        until = time.monotonic() + self.lifetime
        with self._listener:
            while (left := until - time.monotonic()) > 0:
                ready = readable(left, self._listener, self._stopped)
                if self._stopped in ready:
                    return
                if not ready:
                    break
                sock, _ = self._listener.accept()
                with self.lock:
                    if len(self._open) >= self.max_connections:
                        self.cut_short = True
                        sock.close()
                        continue
                    number = self.connections
                    self.connections += 1
                    self._open.add(sock)
                    thread = threading.Thread(
                        target=self._serve, args=(sock, number), name="fault-wire", daemon=True
                    )
                    self._threads.add(thread)
                thread.start()
        with self.lock:
            self.cut_short = True
            sockets = list(self._open)
        for sock in sockets:
            _hang_up(sock)

    def _serve(self, sock: socket.socket, number: int) -> None:
        wire = Wire(self, sock, number)
        try:
            self._converse(wire)
        except (Ended, OSError):
            pass
        except Exception as mistake:
            self.mistakes.append(mistake)
        finally:
            with self.lock:
                self._open.discard(sock)
                self._threads.discard(threading.current_thread())
            wire.sock.close()
            sock.close()

    def _converse(self, wire: Wire) -> None:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stage("connect", wire)
        if self.tls is not None:
            raw = wire.sock
            wire.sock = self.tls.wrap_socket(
                raw, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
            )
            with self.lock:  # the wrapper took the file descriptor over
                self._open.discard(raw)
                self._open.add(wire.sock)
            try:
                assert isinstance(wire.sock, ssl.SSLSocket)
                wire.sock.do_handshake()
                self._exchange(wire)
            finally:
                with self.lock:
                    self._open.discard(wire.sock)
        else:
            self._exchange(wire)

    def _exchange(self, wire: Wire) -> None:
        while True:
            wire.request = wire.read_head()
            if wire.request is None:
                return
            try:
                if not self._stage("headers", wire):
                    wire.read_body()
                    if not self._stage("request", wire):
                        wire.right()
            finally:
                with self.lock:
                    self.in_flight -= 1
                    if wire.request.answered_at is None:
                        wire.request.answered_at = time.monotonic()

    def _stage(self, stage: Stage, wire: Wire) -> bool:
        script = self.script
        if script.stage != stage or not script.applies(wire):
            return False
        script.behaviour(wire)
        return True


def _has_data(sock: socket.socket) -> bool:
    try:  # below TLS, too
        return bool(socket.socket.recv(sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _hang_up(sock: socket.socket) -> None:
    """Wake the thread that reads or writes it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
