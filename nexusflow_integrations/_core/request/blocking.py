"""Sends a request from the calling thread, and reads the response with aiohttp's parser.

With the same parser, it accepts the same responses as the event loop, within the same limits.

The connections are separate from those of the event loop. A connection is opened only to an
address to which the event loop is or was recently connected, so this module needs no lookup and
tries no unreachable address. In all other cases (a first connection, a proxy), the event loop
sends: ``connection`` then returns ``None`` before anything was sent.

The timeout covers the whole exchange: before each read and write, the socket gets the time that is
left, so a server cannot extend the time by sending single bytes. There are no locks, because a
signal handler may interrupt a request at any point and send one itself. Each change of shared state
is one operation that the interpreter does not interrupt.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary, ref

import aiohttp
from yarl import URL

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.request.message import (
    Head,
    NotHttp,
    Origin,
    Response,
    fault,
    origin_of,
    parser_works,
)
from nexusflow_integrations._core.request.transport import KEEPALIVE, TOO_LARGE, Target
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations._core.signals import raised_by_signal_handler

CONNECT = 2.0
"""Maximum seconds to open a connection; after that, the event loop tries all addresses."""
CURRENT = 60.0
"""Seconds for which an address is used after the event loop's connection to it was closed."""
BUFFER = 1 << 16
"""Bytes to read at once."""
LONGEST = 2e6
"""Maximum seconds for one wait: poll() takes a 32-bit number of milliseconds."""


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


class Connection:
    """One connection to a server."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(connection, select.POLLIN)
        self.idle_since = 0.0

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived: neither the connection's end nor unexpected bytes."""
        if self._poll is None:
            return not select.select([self._socket], [], [], 0)[0]
        return not self._poll.poll(0)

    def exchange(self, head: Head, body: bytes, until: float) -> tuple[Answer | None, bool]:
        """Send a request and return its response; ``None`` if the response is too large.

        Also return whether the connection can be used again.

        Raises:
            TimeoutError: No complete response arrived before ``until``, in monotonic seconds.
            OSError: The connection broke.
            ClientError, NotHttp: See ``Response.feed``.
        """
        self._write(memoryview(head.with_body(body)), until)
        response = Response()
        while True:
            self._socket.settimeout(_left(until))
            if response.feed(self._socket.recv(BUFFER)):
                break
        if response.is_too_large:
            return None, False
        return response.answer(), response.is_reusable

    def _write(self, request: memoryview, until: float) -> None:
        while request:
            self._socket.settimeout(_left(until))
            request = request[self._socket.send(request) :]

    def close(self) -> None:
        self._socket.close()


def _left(until: float) -> float:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, LONGEST)


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
        if idle is None:  # this process is the child of a fork that came meanwhile
            self.drop(connection)
        else:
            idle.append(connection)

    def drop(self, connection: Connection) -> None:
        self._open.pop(id(connection), None)
        with suppress(OSError):
            connection.close()

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
        peer = self.peers.get(origin)
        context = self._trust()
        if peer is None or context is None or not peer.is_current(monotonic()):
            return None
        if not parser_works():
            return None
        process = os.getpid()
        raw: socket.socket | None = None
        connection: Connection | None = None
        try:
            raw = _opened(origin, peer.address, context, timeout)
            made = Connection(raw)
            self._open[id(made)] = made
            # If a signal handler has forked meanwhile and this is the child, the connection
            # belongs to the parent.
            if os.getpid() == process:
                connection = made
        except (OSError, ValueError) as error:
            self.peers.pop(origin, None)
            if raised_by_signal_handler(error):
                raise
        finally:
            if connection is None and raw is not None:
                raw.close()
        return connection


def _opened(
    origin: Origin, address: tuple[Any, ...], context: ssl.SSLContext, timeout: float
) -> socket.socket:
    host, _, with_tls = origin
    until = monotonic() + timeout
    raw = socket.create_connection(address[:2], min(timeout, LONGEST))
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if with_tls:
            raw.settimeout(_left(until))
            raw = secured = context.wrap_socket(
                raw, server_hostname=host, do_handshake_on_connect=False
            )
            secured.do_handshake()
    except BaseException:
        raw.close()
        raise
    return raw


class BlockingSender:
    """Sends the requests of an account in the thread that calls ``send``."""

    def __init__(self, connections: Connections, target: Target) -> None:
        self._connections = connections
        self._origin = origin_of(URL(target.url))
        self._head = Head(target)

    def connection(self, timeout: float) -> Connection | None:
        """Return a connection, or ``None`` if the event loop must send."""
        return self._connections.take(self._origin, timeout)

    def send(self, connection: Connection, body: bytes, timeout: float) -> Answer | TransportFault:
        """Return the response to ``body``, or the fault, within ``timeout`` seconds.

        Raises:
            BaseException: Ctrl-C, or what a signal handler raised.
        """
        is_usable = False
        try:
            answer, is_usable = connection.exchange(self._head, body, monotonic() + timeout)
        except (OSError, ValueError, aiohttp.ClientError, NotHttp) as error:
            if raised_by_signal_handler(error):
                raise
            return fault(error, timeout)
        finally:
            if is_usable:
                self._connections.put_back(self._origin, connection)
            else:
                self._connections.drop(connection)
        return TOO_LARGE if answer is None else answer
