"""Sends a request from the calling thread; ``http.client`` reads the response.

The connections are separate from those of aiohttp. A connection is opened only to an address to
which aiohttp is or was recently connected, so this module needs no lookup and tries no unreachable
address. In all other cases (a first connection, a proxy), the event loop sends: ``connection`` then
returns ``None`` before anything was sent.

The timeout covers the whole exchange: before each read and write, the socket gets the time that is
left, so a server cannot extend the time by sending single bytes. There are no locks, because a
signal handler may interrupt a request at any point and send one itself. Each change of shared state
is one operation that the interpreter does not interrupt.
"""

from __future__ import annotations

import io
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import Any, cast
from weakref import WeakValueDictionary, ref

from yarl import URL

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.request.transport import (
    KEEPALIVE,
    TOO_LARGE,
    Target,
    broken_off,
    timed_out,
)
from nexusflow_integrations._core.request.wire import MAX_RESPONSE_BYTES, Answer, TransportFault
from nexusflow_integrations._core.secret import Secret

CONNECT = 2.0
"""Maximum seconds to open a connection; after that, the event loop tries all addresses."""
CURRENT = 60.0
"""Seconds for which an address is used after aiohttp has closed its connection to it."""
BUFFER = 1 << 16
"""Bytes to read at once."""

Origin = tuple[str, int, bool]
"""Host, port, and whether TLS is used."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An address to which aiohttp connected at ``since``, in monotonic seconds."""

    address: tuple[Any, ...]
    transport: ref[Any]
    since: float

    def is_current(self, now: float) -> bool:
        transport = self.transport()
        is_open = transport is not None and not transport.is_closing()
        return is_open or now - self.since < CURRENT


class NotHttp(Exception):  # noqa: N818 - it never leaves this module
    """The response is ambiguous or is not valid HTTP."""


class _Raw(io.RawIOBase):
    """Reads the bytes of a socket until a point in time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.until = 0.0
        self.has_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.has_ended:
            return 0
        self._socket.settimeout(_left(self.until))
        return self._socket.recv_into(buffer)


def _left(until: float) -> float:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Reader(io.BufferedReader):
    """A reader whose ``close`` does nothing: a response closes it, but the connection is reused."""

    def close(self) -> None:
        pass


class Connection:
    """One connection to a server."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._raw = _Raw(connection)
        self._reader = _Reader(self._raw, BUFFER)
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(connection, select.POLLIN)
        self.idle_since = 0.0

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the reader that ``HTTPResponse`` reads from."""
        return self._reader

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived: neither the connection's end nor unexpected bytes."""
        if self._poll is None:
            return not select.select([self._socket], [], [], 0)[0]
        return not self._poll.poll(0)

    def exchange(self, head: Secret, body: bytes, until: float) -> tuple[Answer | None, bool]:
        """Send a request and return its response; ``None`` if the response is too large.

        Also return whether the connection can be used again.

        Raises:
            TimeoutError: No complete response arrived before ``until``, in monotonic seconds.
            OSError: The connection broke.
            HTTPException: The connection broke, or the response is not valid HTTP.
            NotHttp: The response is ambiguous or is not valid HTTP.
        """
        self._raw.until = until
        self._write(memoryview(head.reveal().encode("ascii") % len(body) + body), until)
        while True:
            response = HTTPResponse(cast("socket.socket", self), method="POST")
            response.begin()
            if response.status >= 200 or response.status == 101:
                break  # skip interim responses
        _check(response)
        if response.length is None:
            received = response.read(MAX_RESPONSE_BYTES + 1)
            if len(received) > MAX_RESPONSE_BYTES:
                return None, False
        elif response.length > MAX_RESPONSE_BYTES:
            return None, False
        else:
            received = response.read()
        answer = Answer(response.status, response.headers, received)  # type: ignore[arg-type]
        self._raw.has_ended = True
        # This looks into the buffer without reading from the socket.
        has_more = bool(self._reader.peek(1))
        self._raw.has_ended = False
        return answer, not (response.will_close or has_more)

    def _write(self, request: memoryview, until: float) -> None:
        while request:
            self._socket.settimeout(_left(until))
            request = request[self._socket.send(request) :]

    def close(self) -> None:
        self._socket.close()


def _check(response: HTTPResponse) -> None:
    """Refuse a response that two HTTP parsers could read differently."""
    headers = response.headers
    if headers.defects:
        raise NotHttp
    lengths = headers.get_all("content-length", ())
    encodings = headers.get_all("transfer-encoding", ())
    if len(lengths) + len(encodings) > 1:
        raise NotHttp
    if any(not (length.isascii() and length.strip().isdigit()) for length in lengths):
        raise NotHttp
    if any(encoding.strip().lower() != "chunked" for encoding in encodings):
        raise NotHttp


class Connections:
    """The connections that the calling threads of one process use."""

    def __init__(self, trust: Callable[[], ssl.SSLContext | None]) -> None:
        self.peers: dict[Origin, Peer] = {}
        self._trust = trust
        self._idle: dict[Origin, deque[Connection]] = {}
        # The references are weak, because an interrupt may come before anything else refers to a
        # new connection. The keys are ids, because other threads may add connections while `close`
        # iterates, which a WeakSet does not allow.
        self._open: WeakValueDictionary[int, Connection] = WeakValueDictionary()
        self._unfit: set[Origin] = set()
        forks.in_child(self._forget)

    def _forget(self) -> None:
        self.close()
        self._idle, self.peers = {}, {}

    def close(self) -> None:
        """Close all connections, also those in use; after a fork, those of the parent stay open."""
        for found in self._open.valuerefs():
            if (connection := found()) is not None:
                self.drop(connection)

    def take(self, origin: Origin, timeout: float) -> Connection | None:
        """Return a connection to ``origin``, or ``None`` if the event loop has to send."""
        idle = self._idle.get(origin)
        if idle is None:
            if origin in self._unfit:
                return None
            idle = self._idle.setdefault(origin, deque())
        oldest = monotonic() - KEEPALIVE
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                break
            if connection.idle_since > oldest and connection.is_quiet():
                return connection
            self.drop(connection)
        return self._connect(origin, min(CONNECT, timeout / 4))

    def put_back(self, origin: Origin, connection: Connection) -> None:
        connection.idle_since = monotonic()
        idle = self._idle.get(origin)
        if idle is None:
            self.drop(connection)
        else:
            idle.append(connection)

    def drop(self, connection: Connection) -> None:
        self._open.pop(id(connection), None)
        with suppress(OSError):
            connection.close()

    def refuse(self, origin: Origin) -> None:
        """Let aiohttp send to ``origin`` from now on, because it may understand the responses."""
        self._unfit.add(origin)
        self._idle.pop(origin, None)

    def end_idle(self) -> bool:
        """Close connections that were idle for too long; return whether connections remain."""
        oldest = monotonic() - KEEPALIVE
        for idle in list(self._idle.values()):
            while idle:
                try:
                    connection = idle.popleft()
                except IndexError:
                    break  # a thread has taken the connection
                if connection.idle_since > oldest:
                    idle.appendleft(connection)
                    break
                self.drop(connection)
        return bool(self._open)

    def _connect(self, origin: Origin, timeout: float) -> Connection | None:
        host, _, with_tls = origin
        until = monotonic() + timeout
        peer = self.peers.get(origin)
        context = self._trust()
        if peer is None or context is None or not peer.is_current(monotonic()):
            return None
        raw: socket.socket | None = None
        try:
            raw = socket.create_connection(peer.address[:2], timeout)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if with_tls:
                raw.settimeout(_left(until))
                raw = secured = context.wrap_socket(
                    raw, server_hostname=host, do_handshake_on_connect=False
                )
                secured.do_handshake()
            connection = Connection(raw)
            self._open[id(connection)] = connection
        except (OSError, ValueError):
            self.peers.pop(origin, None)
            if raw is not None:
                raw.close()
            return None
        except BaseException:
            if raw is not None:
                raw.close()
            raise
        return connection


class BlockingSender:
    """Sends the requests of an account in the thread that calls ``send``."""

    def __init__(self, connections: Connections, target: Target) -> None:
        self._connections = connections
        url = URL(target.url)
        host, port = url.raw_host or "", url.port or 0
        self._origin = (host, port, url.scheme == "https")
        place = (
            url.host_subcomponent if url.is_default_port() else f"{url.host_subcomponent}:{port}"
        )
        lines = [f"POST {url.raw_path_qs} HTTP/1.1", f"Host: {place}"]
        lines += [f"{name}: {value}" for name, value in target.revealed().items()]
        self._head = Secret(
            "\r\n".join([*lines, "Content-Length: "]).replace("%", "%%") + "%d\r\n\r\n"
        )

    def connection(self, timeout: float) -> Connection | None:
        """Return a connection, or ``None`` if the event loop must send."""
        return self._connections.take(self._origin, timeout)

    def send(self, connection: Connection, body: bytes, timeout: float) -> Answer | TransportFault:
        """Return the response to ``body`` within ``timeout`` seconds.

        Raises:
            OSError, HTTPException, NotHttp: See ``Connection.exchange``; ``fault`` classifies these
                errors.
        """
        is_usable = False
        try:
            answer, is_usable = connection.exchange(self._head, body, monotonic() + timeout)
        except (NotHttp, HTTPException) as error:
            if not isinstance(error, (IncompleteRead, RemoteDisconnected)):
                self._connections.refuse(self._origin)
            raise
        finally:
            if is_usable:
                self._connections.put_back(self._origin, connection)
            else:
                self._connections.drop(connection)
        return TOO_LARGE if answer is None else answer


def fault(error: Exception, timeout: float) -> TransportFault | None:
    """Return the fault for an error of ``BlockingSender.send``; ``None`` for any other error."""
    if isinstance(error, TimeoutError):
        return timed_out(timeout)
    if isinstance(error, ssl.SSLError):
        return TransportFault("the TLS connection broke")
    if isinstance(error, (OSError, HTTPException, NotHttp, ValueError)):
        return TransportFault(broken_off(error))
    return None
