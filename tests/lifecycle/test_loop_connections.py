"""The event loop sends over connections that it takes over from aiohttp."""

from __future__ import annotations

import asyncio
import functools
import socket
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from faults.server import FaultServer, Wire, once

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.call.background import background_loop
from nexusflow_integrations._core.call.engine import _target, engine
from nexusflow_integrations._core.request import message, pool
from nexusflow_integrations._core.request.blocking import BlockingSender
from nexusflow_integrations._core.request.message import Response
from nexusflow_integrations._core.request.nonblocking import LoopConnection
from nexusflow_integrations._core.request.pool import KEEPALIVE, AiohttpSender, LoopSender, Pool
from nexusflow_integrations._core.request.transport import Target
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations._core.secret import ApiKey, Headers

from .scene import KEY, assert_right, auntil, client_of, texts

BODY = b'{"input":["a text"],"model":"text-embedding-v4"}'


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Who sent each request, in order."""
    found: list[type] = []

    def noting(kind: type) -> Callable[..., Any]:
        send = kind.send  # type: ignore[attr-defined]

        def noting_send(*arguments: Any) -> Any:
            found.append(kind)
            return send(*arguments)

        return noting_send

    for kind in (BlockingSender, LoopSender, AiohttpSender):
        monkeypatch.setattr(kind, "send", noting(kind))
    return found


def ask_for_all(client: NexusFlow) -> None:
    """Send two queries and a call of three batches."""
    for name in ("first", "second"):
        assert_right([client.embed(name, role="query")], [name])
    many = texts(25)
    assert_right(client.embed(many), many)


def test_the_loop_uses_a_connection_again_and_leaves_nothing_to_aiohttp(
    server: FaultServer, senders: list[type]
) -> None:
    client = client_of(server, max_concurrency=1)
    many = texts(30)
    assert_right(client.embed(many), many)
    assert senders == [LoopSender] * 3
    assert server.connections == 1


# ---- the bytes of a request


@pytest.mark.parametrize(
    "place",
    [
        "http://localhost:{port}/v1/embeddings",
        "http://LocalHost.:{port}/v1/embeddings",  # an absolute name
        "http://b\u00fccher.example:{port}/v1/embeddings",
        "http://127.0.0.1:{port}/a b/%2F/embeddings?a=1&b=\u00e9 %41+'",
    ],
)
def test_a_request_has_the_same_bytes_as_one_of_aiohttp(
    place: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: here)
    headers = Headers({"X-Name": "value"})
    target = _target(place.format(port=server.port), ApiKey(KEY), headers)

    async def run() -> None:
        for kind in (LoopSender, AiohttpSender):
            connections = Pool()
            await kind(connections, target).send(BODY, 30.0)
            await connections.close()

    asyncio.run(run())
    ours, theirs = server.requests
    assert (ours.target, ours.headers) == (theirs.target, theirs.headers)


def test_a_request_needs_no_attribute_that_older_versions_of_yarl_lack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("host_subcomponent", "host_port_subcomponent"):
        monkeypatch.delattr(message.URL, name, raising=False)
    head = message.Head(Target("http://[::1]:8080/v1/embeddings", {}))
    assert b"\r\nHost: [::1]:8080\r\n" in head.with_body(BODY)


# ---- tools that observe aiohttp's requests


def test_a_tool_that_replaces_the_requests_of_aiohttp_sees_every_request(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    request = aiohttp.ClientSession._request

    @functools.wraps(request)
    async def recorded(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(options["data"])
        return await request(self, *arguments, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "_request", recorded)
    ask_for_all(client_of(server))
    assert len(seen) == server.attempts == 5


@pytest.fixture
def trace() -> Iterator[aiohttp.TraceConfig]:
    """A trace of the process's session, as a tracer that wraps ``ClientSession`` adds it."""
    config = aiohttp.TraceConfig()
    running = engine()[1]._pool

    async def open_session() -> Any:
        return running.session()

    session = background_loop().submit(open_session()).result(10)
    session.trace_configs.append(config)
    yield config
    session.trace_configs.remove(config)


def test_a_tracer_of_aiohttp_sessions_sees_every_request(
    server: FaultServer, trace: aiohttp.TraceConfig
) -> None:
    seen = []

    async def note(_: object, __: object, about: aiohttp.TraceRequestStartParams) -> None:
        seen.append(about.url.path)

    trace.on_request_start.append(note)
    trace.freeze()
    ask_for_all(client_of(server))
    assert seen == ["/v1/embeddings"] * 5
    assert server.attempts == 5


# ---- an aiohttp that differs


def _refuses(*_: object, **__: object) -> None:
    raise TypeError("unexpected keyword argument")


def test_aiohttp_sends_if_a_connection_cannot_be_taken_over_from_it(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, senders: list[type]
) -> None:
    client = client_of(server)
    client.embed("open the session", role="query")  # now: it subclasses ClientRequest
    senders.clear()
    monkeypatch.setattr(pool.aiohttp, "ClientRequest", _refuses)
    other = client_of(server, model="another")
    many = texts(25)
    for connection in list(engine()[1]._pool._open):
        background_loop().call_soon(functools.partial(engine()[1]._pool.drop, connection))
    assert_right(other.embed(many), many)
    assert senders.count(LoopSender) == senders.count(AiohttpSender) == 3
    assert server.attempts == 4


def test_opening_a_connection_ends_in_time_even_if_this_aiohttp_does_not_limit_it(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    async def run() -> None:
        connections = Pool()
        sender = LoopSender(connections, Target(f"{server.base_url}/embeddings", {}))
        monkeypatch.setattr(connections.session().connector, "connect", hang)
        fault = await asyncio.wait_for(sender.send(BODY, 0.1), 30)
        assert isinstance(fault, TransportFault)
        assert fault.timed_out
        await connections.close()

    asyncio.run(run())


def test_aiohttp_sends_if_its_parser_cannot_be_used_alone(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, senders: list[type]
) -> None:
    monkeypatch.setattr(message, "HttpResponseParser", _refuses)
    message.parser_works.cache_clear()
    try:
        ask_for_all(client_of(server))
    finally:
        message.parser_works.cache_clear()
    assert senders.count(AiohttpSender) == server.attempts == 5


# ---- the end of a connection


async def _sent(sender: LoopSender) -> Answer:
    answer = await sender.send(BODY, 30.0)
    assert isinstance(answer, Answer)
    return answer


def test_an_idle_connection_is_closed_after_a_while(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        connections = Pool()
        sender = LoopSender(connections, Target(f"{server.base_url}/embeddings", {}))
        assert (await _sent(sender)).status == 200
        connections.end_idle()
        (connection,) = connections._open
        connection.idle_since -= KEEPALIVE + 1
        connections.end_idle()
        assert not connections._open
        assert connection._transport.is_closing()
        assert (await _sent(sender)).status == 200
        (connection,) = connections._open
        connection.idle_since -= KEEPALIVE + 1
        assert (await _sent(sender)).status == 200  # over a third connection
        assert connection._transport.is_closing()
        assert server.connections == 3
        await connections.close()
        assert not connections._open

    asyncio.run(run())


def test_an_idle_connection_on_which_the_server_sends_is_closed_at_once(
    server: FaultServer,
) -> None:
    def floods(wire: Wire) -> None:
        wire.right()
        wire.pause(0.05)
        for _ in range(1000):
            wire.send(b"HTTP/1.1 200 OK\r\n" * 1000)

    server.script = once(floods)

    async def run() -> None:
        connections = Pool()
        sender = LoopSender(connections, Target(f"{server.base_url}/embeddings", {}))
        await _sent(sender)
        (connection,) = connections._open
        await auntil(lambda: connection._transport.is_closing())
        await _sent(sender)
        assert server.connections == 2
        await connections.close()

    asyncio.run(run())


def test_a_cancelled_request_ends_its_connection(server: FaultServer) -> None:
    def stall(wire: Wire) -> None:
        wire.hold(60)

    server.script = once(stall)

    async def run() -> None:
        connections = Pool()
        sender = LoopSender(connections, Target(f"{server.base_url}/embeddings", {}))
        task = asyncio.ensure_future(sender.send(BODY, 30.0))
        await auntil(lambda: server.attempts == 1)
        (connection,) = connections._open
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not connections._open
        assert connection._transport.is_closing()
        assert (await _sent(sender)).status == 200
        await connections.close()

    asyncio.run(run())


# ---- one timer for many requests

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Opened:
    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def close(self) -> None:
        pass


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[LoopConnection, Callable[..., Any]]]:
    """Yield a connection, and a function that sends a request over it.

    The function takes the timeout of the request, and after how many seconds it is answered.
    """
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        connection = LoopConnection(Opened(transport))
        head = message.Head(Target("http://127.0.0.1/v1/embeddings", {}))

        async def ask(timeout: float, answered_after: float | None) -> Response | None:
            if answered_after is not None:
                loop.call_later(answered_after, theirs.sendall, RESPONSE)
            return await asyncio.wait_for(connection.exchange(head, BODY, timeout), 20.0)

        yield connection, ask
        connection.close()
        await asyncio.sleep(0)


async def test_the_timeout_of_an_answered_request_does_not_end_a_later_one() -> None:
    async with connected() as (_, ask):
        assert await ask(timeout=0.5, answered_after=0.0)
        assert await ask(timeout=30.0, answered_after=1.0)
        assert await ask(timeout=0.1, answered_after=None) is None


async def test_a_timeout_shorter_than_that_of_an_earlier_request_still_applies() -> None:
    async with connected() as (_, ask):
        assert await ask(timeout=3600.0, answered_after=0.0)
        assert await ask(timeout=0.1, answered_after=None) is None


async def test_a_request_over_a_closed_connection_has_a_timeout_too() -> None:
    async with connected() as (connection, ask):
        assert await ask(timeout=0.2, answered_after=0.0)
        connection.close()
        assert await ask(timeout=0.5, answered_after=None) is None


async def test_a_closed_connection_leaves_no_timer() -> None:
    async with connected() as (connection, ask):
        assert await ask(timeout=3600.0, answered_after=0.0)
        connection.close()
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        assert not [one for one in loop._scheduled if not one.cancelled()]  # type: ignore[attr-defined]


class Failing:
    """A socket whose sending fails in a way that asyncio logs."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def send(self, _: object) -> int:
        raise RuntimeError("an unexpected error")


def test_the_frames_of_an_error_that_asyncio_logs_do_not_show_the_key(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        connections = Pool()
        target = _target(f"{server.base_url}/embeddings", ApiKey(KEY), Headers())
        sender = LoopSender(connections, target)
        assert (await _sent(sender)).status == 200
        (connection,) = connections._open
        connection._transport._sock = Failing(connection._transport._sock)  # type: ignore[attr-defined]
        assert isinstance(await sender.send(BODY, 30.0), TransportFault)
        await connections.close()

    asyncio.run(run())
    (record,) = (one for one in caplog.records if one.exc_info)
    assert record.exc_info is not None
    frames = [frame for frame, _ in traceback.walk_tb(record.exc_info[2])]
    assert frames
    assert not [name for f in frames for name, value in f.f_locals.items() if KEY in repr(value)]


class Lost:
    """A TLS transport of Python 3.10 that lost its connection; the protocol is not told yet."""

    def set_protocol(self, _: object) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        raise AttributeError("'NoneType' object has no attribute 'get_write_buffer_size'")


def test_a_tls_connection_that_was_just_lost_is_not_used() -> None:
    class Opened:
        transport = Lost()

    assert not LoopConnection(Opened()).is_free
