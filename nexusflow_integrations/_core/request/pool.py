"""The connections of the event loop, and the two default ways to send a request over them.

aiohttp looks up names, connects, and does the TLS handshake. It trusts the same certificates as
httpx (including ``SSL_CERT_FILE``) and uses the proxy that the usual environment variables name.
``LoopSender`` takes over its open connections. ``AiohttpSender`` leaves the whole request to
aiohttp: for proxies, and if another tool (vcrpy, a tracer) observes aiohttp's requests.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import aiohttp
import certifi
from multidict import CIMultiDict
from yarl import URL

from nexusflow_integrations._core.clock import monotonic, time_limit
from nexusflow_integrations._core.hosts import in_url
from nexusflow_integrations._core.offload import in_thread
from nexusflow_integrations._core.request.message import (
    Head,
    NotHttp,
    Origin,
    fault,
    origin_of,
    parser_works,
)
from nexusflow_integrations._core.request.nonblocking import LoopConnection
from nexusflow_integrations._core.request.transport import (
    KEEPALIVE,
    NOT_HTTP,
    TOO_LARGE,
    Target,
    broken_off,
    certificate_fault,
    timed_out,
)
from nexusflow_integrations._core.request.wire import MAX_RESPONSE_BYTES, Answer, TransportFault
from nexusflow_integrations._core.secret import Secret
from nexusflow_integrations.errors import APIConnectionError

if TYPE_CHECKING:
    from nexusflow_integrations._core.request.blocking import BlockingSender


class Pool:
    """The connections of the process: one aiohttp session on the background loop.

    Args:
        connected: Called with the URL and the transport of each new connection, except those to a
            proxy.
    """

    def __init__(self, connected: Callable[[Any, Any], object] = lambda *_: None) -> None:
        self._connected = connected
        self.trust: ssl.SSLContext | None = None
        self._session: Any = None
        self._used: WeakSet[Any] = WeakSet()
        self._open: set[LoopConnection] = set()
        self._idle: dict[Origin, deque[LoopConnection]] = {}

    def session(self) -> Any:
        """Return the session; the first call opens it."""
        if self._session is None:
            try:
                self.trust = _trust()
                self._session = _open_session(self.trust, self._used, self._connected)
            except OSError as error:
                raise APIConnectionError(
                    "the trusted certificates could not be read (see SSL_CERT_FILE):"
                    f" {error.strerror or error}"
                ) from None
        return self._session

    @property
    def is_observed(self) -> bool:
        """Whether another tool records, replays or traces the requests of aiohttp sessions.

        Such tools replace ``ClientSession._request`` or add a trace configuration, so only requests
        that are left to aiohttp reach them.
        """
        request = aiohttp.ClientSession._request
        # A wrapper copies the attributes of what it wraps, but not its type or its globals.
        is_original = type(request) is FunctionType and request.__globals__ is vars(aiohttp.client)
        session = self._session
        return not is_original or (session is not None and bool(session.trace_configs))

    def take(self, origin: Origin) -> LoopConnection | None:
        """Return an idle connection to ``origin``, if there is one."""
        idle = self._idle.get(origin)
        oldest = monotonic() - KEEPALIVE
        while idle:
            connection = idle.pop()
            if connection.is_free and connection.idle_since > oldest:
                return connection
            self.drop(connection)
        return None

    async def connect(self, url: URL, timeout: float) -> LoopConnection | None:
        """Open a connection, or return ``None`` if the installed aiohttp cannot open it this way.

        Raises:
            TimeoutError: The connection was not open after ``timeout`` seconds.
            ClientError, OSError: The connection could not be opened.
        """
        if not parser_works():
            return None
        session = self.session()
        # aiohttp does not promise these arguments.
        try:
            request = aiohttp.ClientRequest(
                "POST", url, loop=asyncio.get_running_loop(), session=session
            )
            # The connector of aiohttp 3.10 leaves ``ClientTimeout.connect`` to its caller.
            async with time_limit(timeout):
                opened = await session.connector.connect(
                    request, traces=[], timeout=aiohttp.ClientTimeout()
                )
        except (AttributeError, TypeError):
            return None
        if opened.protocol is None or opened.protocol.should_close:  # the server sent something
            opened.close()
            raise aiohttp.ServerDisconnectedError
        self._used.add(opened.transport)
        self._connected(url, opened.transport)
        connection = LoopConnection(opened)
        self._open.add(connection)
        return connection

    def put_back(self, origin: Origin, connection: LoopConnection) -> None:
        connection.idle_since = monotonic()
        self._idle.setdefault(origin, deque()).append(connection)

    def drop(self, connection: LoopConnection) -> None:
        self._open.discard(connection)
        connection.close()

    def end_idle(self) -> None:
        """Close connections that were idle for too long."""
        oldest = monotonic() - KEEPALIVE
        for origin, idle in list(self._idle.items()):
            while idle and idle[0].idle_since <= oldest:
                self.drop(idle.popleft())
            if not idle:
                del self._idle[origin]

    def end_one(self, origin: Origin) -> bool:
        """Close an idle connection to ``origin``; return whether there was one."""
        if (connection := self.take(origin)) is None:
            return False
        self.drop(connection)
        return True

    async def close(self) -> None:
        self._idle.clear()
        for connection in list(self._open):
            self.drop(connection)
        if self._session is not None:
            await self._session.close()
            self._session = None
        for transport in list(self._used):
            transport.abort()  # closing a TLS connection would wait for the peer
        await asyncio.sleep(0)


class LoopSender:
    """Sends over connections of ``pool`` that it takes over from aiohttp, without a proxy.

    If none is idle, it uses one that ``callers`` left idle, before it opens another one.

    Raises:
        ValueError: The URL is not valid.
    """

    def __init__(self, pool: Pool, target: Target, callers: BlockingSender | None = None) -> None:
        pool.session()  # this reads the trusted certificates
        self._pool = pool
        self._url = URL(target.url)
        self._origin = origin_of(self._url)
        self._head = Head(target)
        self._aiohttp = AiohttpSender(pool, target)
        self._callers = callers

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        if self._pool.is_observed:
            return await self._aiohttp.send(body, timeout)
        left = timeout
        connection = self._pool.take(self._origin)
        if connection is None:
            callers = self._callers
            if callers is not None and (spare := callers.spare_connection()) is not None:
                return await callers.send_on_loop(spare, body, timeout)
            began = monotonic()
            try:
                connection = await self._pool.connect(self._url, timeout)
            except asyncio.TimeoutError:
                return timed_out(timeout)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                return _aiohttp_fault(error)
            if connection is None:
                return await self._aiohttp.send(body, timeout)
            left -= monotonic() - began
            if left <= 0:
                self._pool.drop(connection)
                return timed_out(timeout)
        is_free = False
        try:
            response = await connection.exchange(self._head, body, left)
            if response is None:
                return timed_out(timeout)
            if response.is_too_large:
                return TOO_LARGE
            is_free = response.is_reusable and connection.is_free
            return response.answer()
        except (OSError, ValueError, aiohttp.ClientError, NotHttp) as error:
            return fault(error, timeout)
        finally:
            if is_free:
                self._pool.put_back(self._origin, connection)
            else:
                self._pool.drop(connection)


class AiohttpSender:
    """Sends through aiohttp's session, and through ``proxy`` if there is one."""

    def __init__(self, pool: Pool, target: Target, proxy: Secret | None = None) -> None:
        self._session = pool.session()
        self._url = target.url
        # Otherwise aiohttp would make such a mapping for every request.
        self._headers: Any = CIMultiDict(target.headers)
        self._timeout = aiohttp.ClientTimeout()
        self._proxy = proxy

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        if self._timeout.total != timeout:
            self._timeout = aiohttp.ClientTimeout(total=timeout, ceil_threshold=1e9)
        try:
            response = await self._session.post(
                self._url,
                data=body,
                headers=self._headers,
                proxy=None if self._proxy is None else self._proxy.reveal(),
                allow_redirects=False,
                timeout=self._timeout,
            )
            # `async with` would wait at its end, without a timeout, until the request is written.
            try:
                received = await _read(response)
            finally:
                if not response.closed:  # a response that was read to the end is closed
                    response.close()
            if received is None:
                return TOO_LARGE
            return Answer(response.status, response.headers, received)
        except asyncio.TimeoutError:
            return timed_out(timeout)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _aiohttp_fault(error, None if self._proxy is None else URL(self._url).raw_host)


async def _read(response: Any) -> bytes | None:
    """Return the body, or ``None`` if it is larger than ``MAX_RESPONSE_BYTES``."""
    length = response.content_length
    if length is not None:
        if length > MAX_RESPONSE_BYTES:
            return None
        body: bytes = await response.read()
        return body
    parts = bytearray()
    async for part in response.content.iter_any():
        parts += part
        if len(parts) > MAX_RESPONSE_BYTES:
            return None
    return bytes(parts)


def _aiohttp_fault(error: Exception, behind_proxy: str | None = None) -> TransportFault:
    """Return what ``error`` means; ``behind_proxy`` is the server's host if a proxy is used."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return TransportFault(
            f"the proxy answered the connection attempt with status {error.status}",
            retryable=error.status >= 500,
            maybe_billed=False,
        )
    proxy = None
    if isinstance(error, aiohttp.ClientProxyConnectionError) or (
        isinstance(error, aiohttp.ClientConnectorError) and behind_proxy not in (None, error.host)
    ):
        proxy = f"the proxy {in_url(error.host)}:{error.port}"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return certificate_fault(error.certificate_error, proxy)
    if isinstance(error, aiohttp.ClientSSLError):
        return certificate_fault(error, proxy)
    if isinstance(error, aiohttp.ClientResponseError):
        return NOT_HTTP
    if isinstance(error, aiohttp.InvalidURL):
        return TransportFault("the URL is not valid", retryable=False, maybe_billed=False)
    if isinstance(error, aiohttp.ClientConnectorError):
        why = error.os_error.strerror or str(error.os_error)
        if error.os_error.errno and "Connect call failed" in why:  # asyncio's words for any reason
            why = os.strerror(error.os_error.errno)
        return TransportFault(f"cannot connect to {proxy or error.host}: {why}", maybe_billed=False)
    if isinstance(error, ssl.SSLError):
        return TransportFault("the TLS connection broke")
    return TransportFault(broken_off(error))


def _open_session(
    trust: ssl.SSLContext, used: WeakSet[Any], connected: Callable[[Any, Any], object]
) -> Any:
    class Request(aiohttp.ClientRequest):
        async def send(self, conn: Any) -> aiohttp.ClientResponse:
            headers: Any = self.headers
            # If bytes arrived on an idle connection, they would be read as the response to this
            # request, which would get the vectors of another request.
            if conn.protocol is not None and conn.protocol.should_close:
                raise aiohttp.ServerDisconnectedError
            if conn.transport is not None and conn.transport not in used:
                used.add(conn.transport)
                if self.proxy is None:
                    connected(self.url, conn.transport)
            secrets = [item for item in headers.items() if isinstance(item[1], Secret)]
            for name, secret in secrets:
                headers[name] = secret.reveal()
            try:
                return await super().send(conn)  # this writes the headers without suspending
            finally:
                headers.update(secrets)

    # The admission queue limits the requests in flight, so the pool needs no limit.
    connector = aiohttp.TCPConnector(
        limit=0,
        keepalive_timeout=KEEPALIVE,
        ssl=trust,
        resolver=aiohttp.ThreadedResolver(cast("asyncio.AbstractEventLoop", _NameService())),
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        request_class=Request,
        auto_decompress=False,
        # `trust_env` would cost two thread switches per request and take credentials from ~/.netrc.
        # Instead, ``proxy_for`` reads the proxy variables, once per call.
        trust_env=False,
    )


class _NameService:
    """The DNS lookups of an event loop, each in a daemon thread.

    The loop's executor is not used, because the interpreter joins the executor's threads at exit,
    and a lookup takes tens of seconds if the name server does not answer.
    """

    async def getaddrinfo(self, host: str, port: int, **options: int) -> Any:
        return await self._look_up(partial(socket.getaddrinfo, host, port, **options))

    async def getnameinfo(self, address: Any, flags: int = 0) -> Any:
        return await self._look_up(partial(socket.getnameinfo, address, flags))

    async def _look_up(self, work: Callable[[], Any]) -> Any:
        try:
            return await in_thread("nexusflow-names", work)
        except RuntimeError as error:  # no further thread can be started
            raise OSError(f"the name cannot be looked up: {error}") from None


def _trust() -> ssl.SSLContext:
    """Return the SSL context that httpx would use, without importing httpx, which is slow."""
    if file := os.environ.get("SSL_CERT_FILE"):
        return ssl.create_default_context(cafile=file)
    if folder := os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context(capath=folder)
    return ssl.create_default_context(cafile=certifi.where())
