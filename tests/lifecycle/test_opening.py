"""An async call without a connection goes to the background loop, which opens one and keeps it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from faults.server import FaultServer, Wire, always, expected_vector, payload
from faults.surfaces import used_already

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.call.engine import MOST_ON_LOOPS, engine
from nexusflow_integrations._core.request import blocking
from nexusflow_integrations._core.request.blocking import Connections
from nexusflow_integrations._core.request.polled import PolledExchange
from nexusflow_integrations.errors import APITimeoutError

from .scene import KEY, SIZE, assert_right, auntil, client_of, passengers


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each request over such a connection, whether its caller's loop sent it."""
    found: list[bool] = []
    run = PolledExchange.run

    async def noting(self: Any) -> Any:
        found.append(asyncio.get_running_loop() is not engine()[0].loop)
        return await run(self)

    monkeypatch.setattr(PolledExchange, "run", noting)
    return found


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One item for each connection that was opened, which takes a while."""
    opened, found = blocking.opened_on_loop, []

    async def slowly(*arguments: Any) -> Any:
        found.append(None)
        await asyncio.sleep(0.2)
        return await opened(*arguments)

    monkeypatch.setattr(blocking, "opened_on_loop", slowly)
    return found


def connections() -> Connections:
    return engine()[1]._connections


def in_use(server: FaultServer, **options: Any) -> NexusFlow:
    client = client_of(server, **options)
    used_already(client)
    return client


async def ask(client: NexusFlow, name: str) -> None:
    assert np.array_equal(await client.aembed(name), expected_vector(name, SIZE))


async def test_later_calls_of_any_loop_use_the_connection(
    server: FaultServer, here: list[bool]
) -> None:
    client = in_use(server)
    await ask(client, "first")
    await ask(client, "second")
    await ask(client, "third")
    await asyncio.to_thread(asyncio.run, ask(client, "fourth"))
    assert here == [False, True, True, True]
    assert server.connections == 1


async def test_each_connection_gets_a_request(server: FaultServer) -> None:
    client = in_use(server)
    for turn in range(4):
        names = [f"{turn} {n}" for n in range(20)]
        assert_right(await asyncio.gather(*map(client.aembed, names)), names)
    assert server.attempts == len(server.requests) == 80


async def test_many_calls_at_once_open_only_a_few_connections(
    server: FaultServer, opening: list[None]
) -> None:
    client = in_use(server, max_concurrency=32)
    names = [f"query {n}" for n in range(100)]
    assert_right(await asyncio.gather(*map(client.aembed, names)), names)
    assert 0 < len(opening) <= MOST_ON_LOOPS
    assert server.connections <= 32 + MOST_ON_LOOPS
    assert not connections()._opening


async def test_if_the_connection_cannot_be_opened_the_background_loop_sends_over_its_own(
    server: FaultServer, here: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = in_use(server)

    tried: list[None] = []

    async def refused(*_: Any) -> Any:
        tried.append(None)
        raise ConnectionRefusedError

    with monkeypatch.context() as patch:
        patch.setattr(blocking, "opened_on_loop", refused)
        for turn in range(3):
            await ask(client, f"turn {turn}")
    assert not here
    assert server.connections == len(tried) == 1


async def test_equal_calls_are_one_request_while_the_connection_is_being_opened(
    server: FaultServer, opening: list[None]
) -> None:
    client = in_use(server)
    calls = [asyncio.create_task(client.aembed("same")) for _ in range(6)]
    await auntil(lambda: opening)
    calls += [asyncio.create_task(client.aembed("same")) for _ in range(6)]
    for row in await asyncio.gather(*calls):
        assert np.array_equal(row, expected_vector("same", SIZE))
    assert server.texts["same"] == 1
    assert len(opening) == 1


async def test_a_sync_call_gets_the_vector_of_a_call_whose_connection_is_being_opened(
    server: FaultServer, opening: list[None]
) -> None:
    client = in_use(server)
    call = asyncio.create_task(client.aembed("same"))
    await auntil(lambda: opening)
    # This blocks the loop of `call`.
    assert np.array_equal(client.embed("same"), expected_vector("same", SIZE))
    await call
    assert server.texts["same"] == 1


async def test_a_call_that_is_cancelled_meanwhile_sends_nothing(
    server: FaultServer, here: list[bool], opening: list[None]
) -> None:
    client = in_use(server)
    call = asyncio.create_task(client.aembed("cancelled"))
    await auntil(lambda: opening)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await auntil(lambda: not connections()._opening)
    await ask(client, "next")
    assert here == [False]
    assert server.texts["cancelled"] == 0


async def test_a_cancelled_request_on_the_background_loop_closes_its_connection(
    server: FaultServer, here: list[bool]
) -> None:
    client, reached = in_use(server), threading.Event()

    def wait(wire: Wire) -> None:
        reached.set()
        wire.hold(60)

    server.script = always(wait)
    call = asyncio.create_task(client.aembed("cancelled"))
    await auntil(reached.is_set)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert here == [False]
    await auntil(lambda: not server.open_connections)


async def test_a_dripping_response_is_given_up_after_the_timeout(
    server: FaultServer, here: list[bool]
) -> None:
    client = in_use(server, timeout=0.5, max_retries=0)
    server.script = always(lambda wire: wire.drip(b"HTTP/1.1 200 OK" + 99 * b"x"))
    with pytest.raises(APITimeoutError):
        await client.aembed("dripping")
    assert here == [False]
    await auntil(lambda: not server.open_connections)


async def test_another_call_waits_for_the_request_of_the_background_loop(
    server: FaultServer, here: list[bool]
) -> None:
    client, go = in_use(server), threading.Event()

    def wait(wire: Wire) -> None:
        go.wait(60)
        wire.right()

    server.script = always(wait)
    first = asyncio.create_task(client.aembed("same"))
    await auntil(lambda: here)
    second = asyncio.create_task(client.aembed("same"))
    await auntil(passengers)
    go.set()
    for row in await asyncio.gather(first, second):
        assert np.array_equal(row, expected_vector("same", SIZE))
    assert server.texts["same"] == 1


async def test_an_idle_connection_that_the_server_has_closed_is_not_used(
    server: FaultServer, here: list[bool]
) -> None:
    client, origin = in_use(server, max_retries=0), ("127.0.0.1", server.port, False)
    await ask(client, "first")
    (connection,) = connections()._idle[origin]
    await auntil(lambda: server._open)
    for end in list(server._open):
        end.shutdown(socket.SHUT_RDWR)
    await auntil(lambda: not connection.is_quiet())
    await ask(client, "second")
    assert True not in here


async def test_a_server_that_serves_one_connection_at_a_time_answers_each_call(
    here: list[bool],
) -> None:
    with OneAtATime() as server:
        client = NexusFlow(KEY, base_url=server.base_url, dimensions=SIZE, timeout=20)
        for turn in range(4):
            await ask(client, f"turn {turn}")
    assert client.usage.requests == 4
    assert here == [False, True, True]


@pytest.mark.parametrize("is_async", [True, False])
async def test_such_a_server_answers_calls_of_the_background_loop_and_of_callers_in_turn(
    is_async: bool,
) -> None:
    with OneAtATime() as server:
        client = NexusFlow(KEY, base_url=server.base_url, dimensions=SIZE, timeout=20)
        other = NexusFlow(f"{KEY}-2", base_url=server.base_url, dimensions=SIZE, timeout=20)
        for turn in range(3):
            for number in range(3):
                text = f"turn {turn}, {number}"
                row = await client.aembed(text) if is_async else client.embed(text)
                assert np.array_equal(row, expected_vector(text, SIZE))
            assert_right(client.embed(["a", "b"], progress=lambda _: None), ["a", "b"])
            await ask(other, f"other {turn}")
    assert client.usage.retries == other.usage.retries == 0


@pytest.mark.parametrize("is_async", [True, False])
async def test_calls_of_callers_and_of_the_background_loop_in_turn_keep_their_connections(
    server: FaultServer, is_async: bool
) -> None:
    client = in_use(server)
    for turn in range(8):
        text = f"query {turn}"
        row = await client.aembed(text) if is_async else await asyncio.to_thread(client.embed, text)
        assert np.array_equal(row, expected_vector(text, SIZE))
        some = [f"{turn} {n}" for n in range(2)]
        assert_right(await client.aembed(some, progress=lambda _: None), some)
    assert server.connections <= 2


def drop_idle(origin: Any) -> None:
    """As when the server has closed the idle connection."""
    connection = connections().take_idle(origin)
    assert connection is not None
    connections().drop(connection)


async def test_an_address_is_looked_up_again_although_connections_to_it_are_opened(
    server: FaultServer, here: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, origin = in_use(server), ("127.0.0.1", server.port, False)
    await ask(client, "first")
    since = connections().peers[origin].since
    for number in range(3):
        drop_idle(origin)
        await ask(client, f"text {number}")
    assert connections().peers[origin].since == since
    assert here == 4 * [False]
    monkeypatch.setattr(blocking, "CURRENT", 0.0)
    drop_idle(origin)
    await ask(client, "looked up")
    assert len(here) == 4
    await ask(client, "next")
    assert len(here) == 5
    assert connections().peers[origin].since > since


class OneAtATime(HTTPServer):
    """A server without threads, as tests often use one, that keeps connections open."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> OneAtATime:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(payload(request["input"], SIZE, request["encoding_format"])).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
