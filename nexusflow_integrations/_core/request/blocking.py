"""Sends a request from the calling thread, and reads the response with aiohttp's parser.

With the same parser, it accepts the same responses as the event loop, within the same limits.

The connections are separate from those of the background loop. Async calls use them, too: see
``opening``. A connection is opened only to an address to which the event loop is or was recently
connected, so this module needs no lookup and tries no unreachable address. In all other cases (a
first connection, a proxy), the event loop sends: ``connection`` then returns ``None`` before
anything was sent.

The timeout covers the whole exchange: before each read and write, the socket gets the time that is
left, so a server cannot extend the time by sending single bytes, except by ``MOST_LATE`` reads.
There are no locks, because a signal handler may interrupt a request at any point and send one
itself. Each change of shared state is one operation that the interpreter does not interrupt.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary, ref

import aiohttp
from yarl import URL

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.clock import monotonic, time_limit
from nexusflow_integrations._core.request.message import (
    Head,
    NotHttp,
    Origin,
    Response,
    fault,
    origin_of,
    parser_works,
)
from nexusflow_integrations._core.request.opening import opened_on_loop
from nexusflow_integrations._core.request.polled import BUFFER, NOT_READY, PolledExchange, can_poll
from nexusflow_integrations._core.request.transport import KEEPALIVE, TOO_LARGE, Target
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations._core.signals import raised_by_signal_handler

T = TypeVar("T")

CONNECT = 2.0
"""Maximum seconds to open a connection; after that, the event loop tries all addresses."""
CURRENT = 60.0
"""Seconds for which an address is used after the event loop has opened a connection to it, or has
closed one that a connection from here replaces."""
MOST_LATE = 64
"""Maximum reads after the timeout, of bytes that arrived while this thread did not run."""
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
    """One connection to ``origin``."""

    def __init__(self, origin: Origin, connection: socket.socket) -> None:
        self.origin = origin
        self._socket = connection
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(connection, select.POLLIN)
        self.idle_since = 0.0
        self._late = 0

    def nonblocking(self) -> socket.socket:
        """Return the socket for an exchange, set so that no operation waits."""
        self._socket.settimeout(0)
        return self._socket

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
        self._late = 0
        self._write(memoryview(head.with_body(body)), until)
        response = Response()
        while not response.feed(self._received(until)):
            pass
        if response.is_too_large:
            return None, False
        return response.answer(), response.is_reusable

    def _received(self, until: float) -> bytes:
        """Return the next bytes; after ``until``, do not wait, but return what has arrived."""
        try:
            self._socket.settimeout(_left(until))
            return self._socket.recv(BUFFER)
        except TimeoutError as error:
            self._late += 1
            if self._late > MOST_LATE or raised_by_signal_handler(error):
                raise
        self._socket.settimeout(0)
        try:
            return self._socket.recv(BUFFER)
        except NOT_READY as error:
            if raised_by_signal_handler(error):
                raise
            raise TimeoutError from None

    def _write(self, request: memoryview, until: float) -> None:
        while request:
            self._socket.settimeout(_left(until))
            request = request[self._socket.send(request) :]

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        # If an interrupt leaves the connection without an owner, its socket would give a
        # ResourceWarning.
        with suppress(AttributeError):  # the interrupt came in the constructor
            self._socket.close()


def _left(until: float) -> float:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, LONGEST)


class Connections:
    """The connections of one process over which calls that need one request are sent.

    Some servers serve only one connection at a time. So a new connection replaces an idle one of
    the background loop, which in turn uses idle connections from here.

    Args:
        trust: Returns the trusted certificates.
        end_one_later: Called in a thread before it opens a connection, to let the background loop
            close an idle one, and then call ``renew``.
    """

    def __init__(
        self,
        trust: Callable[[], ssl.SSLContext | None],
        end_one_later: Callable[[Origin], object] = lambda _: None,
    ) -> None:
        self.peers: dict[Origin, Peer] = {}
        self._trust = trust
        self._end_one_later = end_one_later
        self._idle: dict[Origin, deque[Connection]] = {}
        self._opening: list[Origin] = []  # one item for each `open`
        self._not_before: dict[Origin, float] = {}  # when `open` may try again after a failure
        # The references are weak, because an interrupt may come before anything else refers to a
        # new connection. The keys are ids, because other threads may add connections while `close`
        # iterates, which a WeakSet does not allow.
        self._open: WeakValueDictionary[int, Connection] = WeakValueDictionary()
        forks.in_child(self._forget)

    def _forget(self) -> None:
        self.close()
        self._idle, self.peers, self._opening, self._not_before = {}, {}, [], {}

    def close(self) -> None:
        """Close all connections, also those in use; after a fork, those of the parent stay open."""
        for found in self._open.valuerefs():
            if (connection := found()) is not None:
                self.drop(connection)

    async def open(
        self, origin: Origin, timeout: float, most: int, end_one: Callable[[Origin], bool]
    ) -> Connection | None:
        """Open a connection like ``connect``, on the background loop, without blocking it.

        No thread opens it: that could hold locks of the TLS library while the process forks. Also
        return ``None`` if there are ``most`` connections to ``origin``. ``end_one`` closes an idle
        connection of the background loop, and returns whether there was one.
        """
        opened = [found() for found in self._open.valuerefs()]
        count = sum(each is not None and each.origin == origin for each in opened)
        found = self._reachable(origin)
        if found is None or count + self._opening.count(origin) >= most:
            return None
        if monotonic() < self._not_before.get(origin, 0.0):
            return None
        peer, context = found
        if end_one(origin):
            self.renew(origin)
        self._opening.append(origin)
        try:
            async with time_limit(_to_connect(timeout)):
                made = Connection(origin, await opened_on_loop(origin, peer.address, context))
        except (OSError, ValueError, asyncio.TimeoutError):
            self._not_before[origin] = monotonic() + CURRENT
            return None
        finally:
            self._opening.remove(origin)
        self._open[id(made)] = made
        return made

    def take(self, origin: Origin, timeout: float) -> Connection | None:
        """Return a connection to ``origin``, or ``None`` if the event loop has to send."""
        return self.take_idle(origin) or self.connect(origin, timeout)

    def take_idle(self, origin: Origin) -> Connection | None:
        """Return a connection to ``origin`` that is open and unused, if there is one."""
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
        return None

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

    def renew(self, origin: Origin) -> None:
        """Record that the background loop had a connection to ``origin`` until now."""
        if (peer := self.peers.get(origin)) is not None:
            self.peers[origin] = replace(peer, since=monotonic())

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

    def connect(self, origin: Origin, timeout: float) -> Connection | None:
        """Open a connection, within a part of ``timeout`` seconds; ``None`` as in ``take``."""
        found = self._reachable(origin)
        if found is None:
            return None
        peer, context = found
        self._end_one_later(origin)
        process = os.getpid()
        raw: socket.socket | None = None
        connection: Connection | None = None
        try:
            raw = _opened(origin, peer.address, context, _to_connect(timeout))
            made = Connection(origin, raw)
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

    def _reachable(self, origin: Origin) -> tuple[Peer, ssl.SSLContext] | None:
        peer, context = self.peers.get(origin), self._trust()
        if peer is None or context is None or not peer.is_current(monotonic()):
            return None
        return (peer, context) if parser_works() else None


def _to_connect(timeout: float) -> float:
    return min(CONNECT, timeout / 4)


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

    async def opened(
        self, timeout: float, most: int, end_one: Callable[[Origin], bool]
    ) -> Connection | None:
        """Return an idle or a new connection, on the background loop, which is not blocked.

        Return ``None`` if no connection could be opened in a part of ``timeout`` seconds, or if
        ``most`` are open. ``end_one`` is called before a connection is opened.
        """
        found = self._connections.take_idle(self._origin)
        return found or await self._connections.open(self._origin, timeout, most, end_one)

    def idle_connection(self) -> Connection | None:
        """Return a connection that is open and unused, if there is one."""
        return self._connections.take_idle(self._origin)

    def release(self, connection: Connection, is_reusable: bool) -> None:
        """Keep a connection for the next request, or close it."""
        if is_reusable:
            self._connections.put_back(self._origin, connection)
        else:
            self._connections.drop(connection)

    def spare_connection(self) -> Connection | None:
        """Return a connection that is open and unused, if the running loop can poll it."""
        if not can_poll(asyncio.get_running_loop()):
            return None
        return self._connections.take_idle(self._origin)

    async def send_on_loop(
        self, connection: Connection, body: bytes, timeout: float, began: float | None = None
    ) -> Answer | TransportFault:
        """Send like ``send``, on the running loop, which can poll sockets."""
        exchange = self.polled(connection, body, timeout, lambda outcome: outcome, began)
        try:
            return await exchange.run()
        finally:
            exchange.abandon()

    def polled(
        self,
        connection: Connection,
        body: bytes,
        timeout: float,
        use: Callable[[Answer | TransportFault], T],
        began: float | None = None,
    ) -> PolledExchange[T]:
        """Return an exchange that will send ``body``, for the running loop: see the class."""
        request = memoryview(self._head.with_body(body))
        release = partial(self.release, connection)
        return PolledExchange(connection, request, timeout, use, release, began)

    def send(self, connection: Connection, body: bytes, timeout: float) -> Answer | TransportFault:
        """Return the response to ``body``, or the fault, within ``timeout`` seconds.

        Raises:
            BaseException: Ctrl-C, or what a signal handler raised.
        """
        is_reusable = False
        try:
            answer, is_reusable = connection.exchange(self._head, body, monotonic() + timeout)
        except (OSError, ValueError, aiohttp.ClientError, NotHttp) as error:
            if raised_by_signal_handler(error):
                raise
            return fault(error, timeout)
        finally:
            self.release(connection, is_reusable)
        return TOO_LARGE if answer is None else answer
