"""Async calls sent on the caller's loop behave like those sent on the background loop.

The fault table tests them with every fault, as ``core_async_direct``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from faults.server import FaultServer, Wire, always, expected_vector, once
from faults.surfaces import connect_at_once, used_already

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.call.caller import (
    NO_HOOKS,
    BatchEnd,
    CallingTask,
    CallingThread,
    Hooks,
)
from nexusflow_integrations._core.call.coalescing import Coalescer
from nexusflow_integrations._core.call.direct import DirectCall
from nexusflow_integrations._core.call.direct_async import AsyncDirectCall
from nexusflow_integrations._core.call.engine import MOST_ON_LOOPS, Engine, engine
from nexusflow_integrations._core.pace.admission import AdmissionQueue
from nexusflow_integrations._core.request import blocking, polled
from nexusflow_integrations._core.request import exchange as exchange_module
from nexusflow_integrations._core.request.blocking import BlockingSender, Connection
from nexusflow_integrations._core.request.polled import PolledExchange
from nexusflow_integrations._core.request.pool import LoopSender
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations.errors import APITimeoutError, AuthenticationError

from .scene import (
    KEY,
    SIZE,
    assert_right,
    auntil,
    client_of,
    lane_of,
    run,
    texts,
    until,
)


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who sent each request, in order."""
    found: list[str] = []
    here, loop = PolledExchange.run, LoopSender.send

    async def send_here(self: Any) -> Any:
        if asyncio.get_running_loop() is not engine()[0].loop:
            found.append("caller")
        return await here(self)

    async def send_on_loop(self: Any, *arguments: Any) -> Any:
        found.append("background")
        return await loop(self, *arguments)

    monkeypatch.setattr(PolledExchange, "run", send_here)
    monkeypatch.setattr(LoopSender, "send", send_on_loop)
    return found


@pytest.fixture(autouse=True)
def connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open a missing connection at once; ``test_opening`` tests what really happens."""
    monkeypatch.setattr(BlockingSender, "idle_connection", connect_at_once)


def in_use(server: FaultServer, **options: Any) -> NexusFlow:
    client = client_of(server, **options)
    used_already(client)
    return client


def held(server: FaultServer) -> threading.Event:
    """Let the server wait for the event that is returned before it answers a request."""
    go_on = threading.Event()

    def when_told(wire: Wire) -> None:
        assert go_on.wait(120)
        wire.right()

    server.script = always(when_told)
    return go_on


def in_flight_of() -> list[Any]:
    """The results of the calls that are sent here."""
    coalescers = engine()[1]._coalescers.values()
    return [results for each in coalescers for results, _ in each._of_threads.values()]


def nothing_in_flight(client: NexusFlow) -> bool:
    queue = lane_of(client).admission
    return not (queue.threads or queue.in_flight or in_flight_of())


async def test_a_call_of_one_request_is_sent_on_the_callers_loop(
    server: FaultServer, senders: list[str]
) -> None:
    client = client_of(server)
    for name in ("first", "second", "third"):
        assert np.array_equal(await client.aembed(name), expected_vector(name, SIZE))
    assert senders == ["background", "caller", "caller"]
    ten = texts(10)
    assert_right(await client.aembed(ten), ten)
    assert senders[3:] == ["caller"]
    eleven = texts(11, "another")
    assert_right(await client.aembed(eleven), eleven)
    assert senders[4:] == ["background", "background"]
    assert (client.usage.requests, client.usage.texts) == (6, 24)
    until(lambda: nothing_in_flight(client))


def test_loops_and_threads_use_the_same_connection_in_turn(
    server: FaultServer, senders: list[str]
) -> None:
    client = in_use(server)
    for turn in range(3):
        for name in (f"thread {turn}", f"loop {turn}"):
            ask = asyncio.run(client.aembed(name)) if name[0] == "l" else client.embed(name)
            assert np.array_equal(ask, expected_vector(name, SIZE))
    assert senders == ["caller"] * 3
    assert server.connections == 1


async def test_concurrent_calls_stay_within_the_window(server: FaultServer) -> None:
    client = in_use(server, max_concurrency=3)
    names = [f"query {n}" for n in range(60)]
    bulk = [texts(30, f"bulk {n}") for n in range(3)]
    rows = await asyncio.gather(*map(client.aembed, names), *map(client.aembed, bulk))
    assert_right(rows[:60], names)
    for found, of in zip(rows[60:], bulk, strict=True):
        assert_right(found, of)
    assert server.max_in_flight <= 3
    await auntil(lambda: nothing_in_flight(client))
    assert client.usage.requests == len(server.requests) == 69


async def test_of_many_calls_at_once_the_background_loop_sends_most(
    server: FaultServer, senders: list[str]
) -> None:
    client, go_on = in_use(server), held(server)
    names = [f"call {n}" for n in range(60)]
    tasks = [asyncio.create_task(client.aembed(name)) for name in names]
    await auntil(lambda: len(senders) > MOST_ON_LOOPS)
    assert senders.count("caller") == MOST_ON_LOOPS
    go_on.set()
    assert_right(await asyncio.gather(*tasks), names)


async def test_a_call_leaves_no_reference_cycle(server: FaultServer) -> None:
    client = in_use(server)
    await client.aembed("first")
    gc.collect()
    gc.disable()
    try:
        for n in range(10):
            await client.aembed(f"call {n}")
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = [type(item).__name__ for item in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert "PolledExchange" not in found
    assert "AsyncDirectCall" not in found


async def test_a_text_that_is_in_flight_is_sent_once(server: FaultServer) -> None:
    client, go_on = in_use(server), held(server)
    tasks = [asyncio.create_task(client.aembed("the same")) for _ in range(4)]
    await auntil(lambda: server.in_flight)
    threads = [asyncio.to_thread(client.embed, "the same") for _ in range(2)]
    rest = asyncio.gather(*tasks, *threads)
    await asyncio.sleep(0.1)
    go_on.set()
    for row in await rest:
        assert np.array_equal(row, expected_vector("the same", SIZE))
    assert server.texts["the same"] == 1
    assert client.usage.cached == 5


def blocking_calls(client: NexusFlow) -> dict[str, Callable[[str], Any]]:
    """Ways in which a coroutine may block its loop with a call for a text."""

    def in_a_thread(work: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()

    return {
        "sync call": client.embed,
        "sync call in a thread": lambda text: in_a_thread(lambda: client.embed(text)),
        "asyncio.run in a thread": lambda text: in_a_thread(
            lambda: asyncio.run(client.aembed(text))
        ),
    }


@pytest.mark.parametrize("way", ["sync call", "sync call in a thread", "asyncio.run in a thread"])
@pytest.mark.parametrize("dripping", [False, True])
async def test_a_call_that_blocks_the_loop_gets_a_text_that_this_loop_is_sending(
    server: FaultServer, way: str, dripping: bool
) -> None:
    client, name = in_use(server), "asked for twice"
    go_on = threading.Event()

    def when_told(wire: Wire) -> None:
        assert go_on.wait(120)
        if dripping:
            body = json.dumps(wire.right_body()).encode()
            wire.drip(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), 10, 0.01)
            wire.drip(body, 100, 0.01)
        else:
            wire.right()

    server.script = always(when_told)
    task = asyncio.create_task(client.aembed(name))
    await auntil(lambda: server.in_flight)
    threading.Timer(0.2, go_on.set).start()
    row = blocking_calls(client)[way](name)
    assert np.array_equal(row, expected_vector(name, SIZE))
    assert not task.done()
    until(lambda: not lane_of(client).admission.threads)
    assert np.array_equal(await task, row)
    assert server.texts[name] == 1
    assert np.array_equal(await client.aembed("after"), expected_vector("after", SIZE))


@pytest.mark.usefixtures("short_delays")
async def test_a_call_that_blocks_the_loop_sends_a_text_whose_sender_fails(
    server: FaultServer,
) -> None:
    client, name = in_use(server), "asked for twice"
    go_on = threading.Event()

    def fail_when_told(wire: Wire) -> None:
        assert go_on.wait(120)
        wire.reset()

    server.script = once(fail_when_told)
    task = asyncio.create_task(client.aembed(name))
    await auntil(lambda: server.in_flight)
    threading.Timer(0.1, go_on.set).start()
    row = client.embed(name)
    assert np.array_equal(row, expected_vector(name, SIZE))
    assert np.array_equal(await task, row)


@pytest.mark.usefixtures("short_delays")
async def test_a_call_that_blocks_the_loop_does_not_wait_longer_than_the_timeout(
    server: FaultServer,
) -> None:
    client, name = in_use(server, timeout=1.0), "asked for twice"
    server.script = once(lambda wire: wire.hold())
    task = asyncio.create_task(client.aembed(name))
    await auntil(lambda: server.in_flight)
    row = client.embed(name)
    assert np.array_equal(row, expected_vector(name, SIZE))
    assert np.array_equal(await task, row)


async def test_a_blocked_loop_leaves_room_for_other_calls(server: FaultServer) -> None:
    client, go_on = in_use(server, max_concurrency=4), threading.Event()

    def when_told(wire: Wire) -> None:
        if wire.texts[0].startswith("held"):
            assert go_on.wait(120)
        wire.right()

    server.script = always(when_told)
    tasks = [asyncio.create_task(client.aembed(f"held {n}")) for n in range(8)]
    await auntil(lambda: server.in_flight >= 3)
    threading.Timer(0.3, go_on.set).start()
    some = texts(40)
    assert_right(client.embed(some), some)
    assert_right(await asyncio.gather(*tasks), [f"held {n}" for n in range(8)])
    assert server.max_in_flight <= 4


async def test_a_cancelled_call_leaves_nothing_in_flight(server: FaultServer) -> None:
    client, go_on = in_use(server), held(server)
    task = asyncio.create_task(client.aembed("given up"))
    await auntil(lambda: server.in_flight)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    until(lambda: nothing_in_flight(client))
    assert (client.usage.texts, client.usage.requests) == (1, 1)
    go_on.set()
    assert np.array_equal(await client.aembed("given up"), expected_vector("given up", SIZE))
    assert server.connections == 2


async def test_a_call_is_cancelled_while_the_other_loop_decodes_its_response(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoding = exchange_module.decode_response, threading.Event()

    def slowly(*arguments: Any, **more: Any) -> Any:
        decoding.set()
        time.sleep(0.5)
        return decode(*arguments, **more)

    client, go_on = in_use(server), held(server)
    task = asyncio.create_task(client.aembed("same"))
    await auntil(lambda: server.in_flight)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(client.embed, "same")
        await auntil(lambda: in_flight_of()[0]._exchange()._second is not None)
        monkeypatch.setattr(exchange_module, "decode_response", slowly)
        go_on.set()
        assert decoding.wait(60)  # this blocks the task's loop
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert np.array_equal(other.result(60), expected_vector("same", SIZE))
    until(lambda: nothing_in_flight(client))
    assert (client.usage.requests, client.usage.tokens) == (1, len("same"))
    assert server.texts["same"] == 1


async def test_a_call_that_waits_for_a_cancelled_one_sends_the_text(server: FaultServer) -> None:
    client, go_on = in_use(server), held(server)
    first = asyncio.create_task(client.aembed("why?"))
    await auntil(lambda: server.in_flight)
    second = asyncio.create_task(client.aembed("why?"))
    await asyncio.sleep(0.1)
    first.cancel()
    go_on.set()
    assert np.array_equal(await second, expected_vector("why?", SIZE))
    with pytest.raises(asyncio.CancelledError):
        await first


def test_a_loop_that_ends_in_the_middle_of_a_call_leaves_nothing_in_flight(
    server: FaultServer,
) -> None:
    client, go_on = in_use(server), held(server)
    loop = asyncio.new_event_loop()
    task = loop.create_task(client.aembed("never awaited"))
    loop.run_until_complete(auntil(lambda: server.in_flight))
    loop.set_exception_handler(lambda *_: None)  # it reports that the task was destroyed
    loop.close()
    del task
    gc.collect()
    until(lambda: nothing_in_flight(client))
    go_on.set()
    row = asyncio.run(client.aembed("another"))
    assert np.array_equal(row, expected_vector("another", SIZE))


def test_a_text_of_a_closed_loop_reaches_the_call_that_waits_for_it(server: FaultServer) -> None:
    client, go_on = in_use(server), held(server)
    loop = asyncio.new_event_loop()
    task = loop.create_task(client.aembed("shared"))
    loop.run_until_complete(auntil(lambda: server.in_flight))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(client.embed("shared")))
    thread.start()
    time.sleep(0.2)
    loop.set_exception_handler(lambda *_: None)
    loop.close()
    go_on.set()
    thread.join(60)
    assert np.array_equal(found[0], expected_vector("shared", SIZE))
    assert server.texts["shared"] == 1
    del task
    gc.collect()
    until(lambda: nothing_in_flight(client))


@pytest.mark.usefixtures("short_delays")
async def test_a_response_after_a_blocked_loop_is_not_a_timeout(server: FaultServer) -> None:
    client = in_use(server, timeout=0.5, max_retries=0)
    task = asyncio.create_task(client.aembed("slow loop"))
    await auntil(lambda: server.requests)
    time.sleep(1.0)
    assert np.array_equal(await task, expected_vector("slow loop", SIZE))


async def test_the_deadline_holds_however_slowly_the_response_arrives(server: FaultServer) -> None:
    client = in_use(server, deadline=1.0)
    server.script = always(lambda wire: wire.drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000))
    began = time.monotonic()
    with pytest.raises(APITimeoutError, match="deadline of 1 s"):
        await client.aembed("dripping")
    assert time.monotonic() - began < 20
    await auntil(lambda: nothing_in_flight(client))


class Heard:
    """Hooks that record their calls."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, list[str]]] = []
        self.ended: list[BatchEnd] = []

        async def begun(*what: Any) -> None:
            self.begun.append(what)

        async def ended(end: BatchEnd) -> None:
            self.ended.append(end)

        self.hooks = Hooks(begun=begun, ended=ended)


async def test_hooks_that_only_hear_of_a_request_are_awaited(
    server: FaultServer, senders: list[str]
) -> None:
    client, heard = in_use(server), Heard()
    row = await client._aembed("heard of", role="query", hooks=heard.hooks)
    assert senders == ["caller"]
    assert heard.begun == [(0, ["heard of"])]
    (end,) = heard.ended
    assert (end.number, end.texts, end.ledger.requests) == (0, ["heard of"], 1)
    assert np.array_equal(end.vectors, [row])


async def test_hooks_that_decide_leave_a_request_to_the_background_loop(
    server: FaultServer, senders: list[str]
) -> None:
    async def permit(_: list[str]) -> None:
        pass

    await in_use(server)._aembed("permitted", hooks=Hooks(permit=permit))
    assert senders == ["background"]


@pytest.mark.usefixtures("short_delays")
async def test_a_request_that_the_background_loop_repeats_is_reported_once(
    server: FaultServer, senders: list[str]
) -> None:
    client, heard = in_use(server), Heard()
    server.script = once(lambda wire: wire.reset())
    row = await client._aembed("again", hooks=heard.hooks)
    assert senders == ["caller", "background"]
    assert heard.begun == [(0, ["again"])]
    assert [(end.number, end.texts, end.ledger.requests) for end in heard.ended] == [
        (0, ["again"], 2)
    ]
    assert np.array_equal(row, expected_vector("again", SIZE))
    assert (client.usage.texts, client.usage.requests) == (1, 2)


def test_a_signal_handler_at_any_line_can_embed_the_text_that_its_thread_is_sending(
    server: FaultServer,
) -> None:
    client, file = in_use(server), sys.modules[PolledExchange.__module__].__file__
    lines: set[int] = set()

    def embed_at_one_more_line(name: str) -> bool:
        found = False

        def at_line(frame: Any, event: str, _: Any) -> Any:
            nonlocal found
            if event == "line" and not found and frame.f_lineno not in lines:
                found = True
                lines.add(frame.f_lineno)
                sys.settrace(None)
                assert np.array_equal(client.embed(name), expected_vector(name, SIZE))
            return at_line

        sys.settrace(lambda frame, *_: at_line if frame.f_code.co_filename == file else None)
        try:
            row = asyncio.run(client.aembed(name))
        finally:
            sys.settrace(None)
        assert np.array_equal(row, expected_vector(name, SIZE))
        return found

    def embed_everywhere() -> None:
        while embed_at_one_more_line(f"after {len(lines)} lines"):
            pass

    # A daemon, so that a deadlock fails only this test.
    thread = threading.Thread(target=embed_everywhere, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), max(lines)
    assert len(lines) > 50
    until(lambda: nothing_in_flight(client))


class OtherLoop(asyncio.SelectorEventLoop):
    """A loop that cannot poll sockets, like the default loop of Windows."""

    add_reader = asyncio.AbstractEventLoop.add_reader


def test_a_loop_that_cannot_poll_leaves_calls_to_the_background_loop(
    server: FaultServer, senders: list[str]
) -> None:
    client, loop = in_use(server), OtherLoop()
    # The loop itself polls the socket by which other threads wake it.
    loop._add_reader(loop._ssock.fileno(), loop._read_from_self)  # type: ignore[attr-defined]
    row = loop.run_until_complete(client.aembed("elsewhere"))
    loop.close()
    assert np.array_equal(row, expected_vector("elsewhere", SIZE))
    assert senders == ["background"]
    assert server.connections == 1


async def test_the_timeout_holds_although_a_tool_has_frozen_the_clock_of_the_loop(
    server: FaultServer,
) -> None:
    freezegun = pytest.importorskip("freezegun")
    client = in_use(server, timeout=0.5, max_retries=0)
    await client.aembed("before")
    server.script = always(lambda wire: wire.hold())
    with freezegun.freeze_time("2020-01-01"), pytest.raises(APITimeoutError):
        await client.aembed("frozen")


def test_uvloop_polls_the_sockets(server: FaultServer, senders: list[str]) -> None:
    uvloop = pytest.importorskip("uvloop")
    client = in_use(server)
    for turn in range(3):
        row = uvloop.run(client.aembed(f"turn {turn}"))
        assert np.array_equal(row, expected_vector(f"turn {turn}", SIZE))
    assert senders == ["caller"] * 3
    assert server.connections == 1


def test_requests_and_responses_of_any_size_pass_through_tls(
    senders: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    code = """
        import asyncio, sys
        import numpy as np
        from faults.server import expected_vector
        from faults.surfaces import connect_at_once, used_already
        from nexusflow_integrations import NexusFlow
        from nexusflow_integrations._core.request.blocking import BlockingSender
        from nexusflow_integrations._core.request.pool import LoopSender

        async def main():
            client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=2048)
            used_already(client)
            LoopSender.send = None  # every request must be sent here
            BlockingSender.idle_connection = connect_at_once
            for turn in range(3):
                texts = [f"{turn} {n} " + "x" * 6000 for n in range(10)]
                rows = await client.aembed(texts)
                for row, text in zip(rows, texts, strict=True):
                    assert np.array_equal(row, expected_vector(text, 2048))

        asyncio.run(main())
        print("right")
    """
    with FaultServer(tls=context) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert run(code, server.base_url, KEY) == (0, "right\n", "")
        assert server.connections == 1


def test_an_interrupt_at_any_line_leaves_no_text_and_no_request_behind(
    server: FaultServer,
) -> None:
    client = in_use(server)
    files = {
        sys.modules[kind.__module__].__file__
        for kind in (AsyncDirectCall, DirectCall, PolledExchange, Coalescer, AdmissionQueue, Engine)
    }

    def interrupted_at(moment: int) -> bool:
        left = moment

        def at_line(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            if event == "line":
                left -= 1
                if left == -1:
                    raise KeyboardInterrupt
            return at_line

        former = sys.gettrace()
        sys.settrace(lambda frame, *_: at_line if frame.f_code.co_filename in files else None)
        try:
            asyncio.run(client.aembed("interrupted"))
        except (KeyboardInterrupt, asyncio.CancelledError):
            pass
        finally:
            sys.settrace(former)
        return left < 0

    moments = 0
    left_behind: list[int] = []

    def interrupt_everywhere() -> None:
        nonlocal moments
        while interrupted_at(moments):
            gc.collect()
            if not nothing_in_flight(client):
                left_behind.append(moments)
            moments += 1

    thread = threading.Thread(target=interrupt_everywhere)
    thread.start()
    thread.join()
    assert not left_behind
    assert moments > 100


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and the server's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Connection(("127.0.0.1", 1, False), ours), theirs


RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def exchange_on(
    connection: Connection, request: bytes, released: list[bool], timeout: float = 60.0
) -> PolledExchange[Any]:
    return PolledExchange(
        connection, memoryview(request), timeout, lambda outcome: outcome, released.append
    )


async def test_a_request_larger_than_the_buffers_is_sent_as_the_server_reads(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, theirs = pair
    request, received, released = b"x" * 3_000_000, bytearray(), []
    exchange = exchange_on(connection, request, released)
    running = asyncio.create_task(exchange.run())
    await asyncio.sleep(0.05)
    assert not exchange.is_sent

    def read() -> None:
        while len(received) < len(request):
            received.extend(theirs.recv(1 << 16))
        theirs.sendall(RESPONSE)

    thread = threading.Thread(target=read)
    thread.start()
    answer = await running
    thread.join()
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body) == (200, b"{}")
    assert received == request
    assert released == [True]


async def test_a_response_before_the_end_of_the_request_ends_the_exchange(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, theirs = pair
    released: list[bool] = []
    theirs.sendall(RESPONSE.replace(b"200 OK", b"413 Too Large"))
    answer = await exchange_on(connection, b"x" * 3_000_000, released).run()
    assert isinstance(answer, Answer)
    assert answer.status == 413
    assert released == [False]


async def test_a_server_that_sends_without_end_does_not_block_the_loop(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, theirs = pair
    released: list[bool] = []
    hint = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000
    stopped = threading.Event()

    def flood() -> None:
        with suppress(OSError):
            while not stopped.is_set():
                theirs.sendall(hint)

    thread = threading.Thread(target=flood)
    thread.start()
    exchange = exchange_on(connection, b"x", released, timeout=1.0)
    running = asyncio.create_task(exchange.run())
    turns = 0
    while not running.done():
        await asyncio.sleep(0)
        turns += 1
    stopped.set()
    theirs.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert isinstance(running.result(), TransportFault)
    assert turns > 10
    assert released == [False]


async def test_a_response_that_takes_several_steps_to_read_is_read_after_a_blocked_loop(
    pair: tuple[Connection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, theirs = pair
    monkeypatch.setattr(polled, "BUFFER", 100)
    head = RESPONSE.replace(b"Content-Length: 2\r\n\r\n{}", b"Content-Length: 3000\r\n\r\n")
    exchange = exchange_on(connection, b"x", [], timeout=0.2)
    running = asyncio.create_task(exchange.run())
    await asyncio.sleep(0)
    theirs.sendall(head + b"y" * 3000)
    time.sleep(0.5)
    answer = await running
    assert isinstance(answer, Answer)
    assert answer.body == b"y" * 3000


def test_a_thread_that_did_not_run_reads_what_has_arrived_before_it_gives_up(
    pair: tuple[Connection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, theirs = pair
    monkeypatch.setattr(blocking, "BUFFER", 100)
    theirs.sendall(b"y" * 3000)
    long_ago = time.monotonic() - 100
    assert b"".join(connection._received(long_ago) for _ in range(30)) == b"y" * 3000
    with pytest.raises(TimeoutError):
        connection._received(long_ago)


def test_a_thread_does_not_read_without_end_after_the_timeout(
    pair: tuple[Connection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, theirs = pair
    monkeypatch.setattr(blocking, "BUFFER", 1)
    theirs.sendall(b"y" * 3000)
    long_ago = time.monotonic() - 100
    for _ in range(blocking.MOST_LATE):
        assert connection._received(long_ago) == b"y"
    with pytest.raises(TimeoutError):
        connection._received(long_ago)


async def test_two_loops_that_poll_one_exchange_end_it_once(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, theirs = pair
    background = engine()[0]
    for _ in range(200):
        released: list[bool] = []
        uses: list[Any] = []

        def use(outcome: Any, uses: list[Any] = uses) -> Any:
            uses.append(outcome)
            return outcome

        exchange: PolledExchange[Any] = PolledExchange(
            connection, memoryview(b"x"), 60.0, use, released.append
        )
        background.call_soon(exchange.also_poll)
        running = asyncio.create_task(exchange.run())
        await asyncio.sleep(0)
        for place in range(len(RESPONSE)):
            theirs.send(RESPONSE[place : place + 1])
            if place % 8 == 0:
                await asyncio.sleep(0)
        answer = await running
        assert uses == [answer]
        assert isinstance(answer, Answer)
        assert answer.body == b"{}"
        assert released == [True]
        assert theirs.recv(10) == b"x"


def descriptors_of(connection: socket.socket) -> int:
    """Count the descriptors of this socket, because earlier tests may still be closing others."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            found += os.path.sameopenfile(int(name), connection.fileno())
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no list of descriptors")
async def test_an_exchange_that_two_loops_poll_keeps_no_descriptor(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, theirs = pair
    background = engine()[0]
    for turn in range(20):
        exchange = exchange_on(connection, b"x", [])
        running = asyncio.create_task(exchange.run())
        await asyncio.sleep(0)
        background.call_soon(exchange.also_poll)
        await auntil(lambda exchange=exchange: exchange._second is not None)
        assert descriptors_of(connection.nonblocking()) == 2
        if turn % 2:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            exchange.abandon()
        else:
            theirs.sendall(RESPONSE)
            await running
    background.submit(asyncio.sleep(0.01)).result(60)
    assert descriptors_of(connection.nonblocking()) == 1


async def test_a_loop_that_is_late_does_not_read_the_next_response(
    pair: tuple[Connection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, theirs = pair
    released: list[bool] = []
    exchange, loop = exchange_on(connection, b"x", released), asyncio.get_running_loop()
    running = asyncio.create_task(exchange.run())
    await asyncio.sleep(0)
    take_turn = exchange._take_turn

    def late() -> bool:
        monkeypatch.undo()
        theirs.sendall(RESPONSE)
        exchange.step(loop)
        theirs.sendall(b"the next response")
        return take_turn()

    monkeypatch.setattr(exchange, "_take_turn", late)
    exchange.step(loop)
    assert released == [True]
    assert connection.nonblocking().recv(100) == b"the next response"
    assert (await running).body == b"{}"


def test_a_connection_is_closed_if_its_loop_was_closed_before_the_result_came(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, theirs = pair
    released: list[bool] = []
    loop, background = asyncio.new_event_loop(), engine()[0]

    async def started() -> tuple[PolledExchange[Any], asyncio.Task[Any]]:
        exchange = exchange_on(connection, b"x", released)
        running = asyncio.create_task(exchange.run())
        await asyncio.sleep(0)
        return exchange, running

    exchange, running = loop.run_until_complete(started())
    background.call_soon(exchange.also_poll)
    until(lambda: exchange._second is not None)
    theirs.sendall(RESPONSE)
    until(lambda: exchange._is_over and exchange.user is None)
    loop.set_exception_handler(lambda *_: None)
    loop.close()
    del running
    exchange.abandon()
    assert released == [False]


FORK = """
    import asyncio, os, signal, sys, threading
    import numpy as np
    from faults.server import expected_vector
    from faults.surfaces import connect_at_once, used_already
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations._core.call.engine import engine
    from nexusflow_integrations._core.request.blocking import BlockingSender

    signal.alarm(200)
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64)
    used_already(client)
    BlockingSender.idle_connection = connect_at_once

    def ask(text):
        assert np.array_equal(asyncio.run(client.aembed(text)), expected_vector(text, 64)), text

    async def main():
        task = asyncio.create_task(client.aembed("parent"))
        endpoint = next(iter(engine()[1]._endpoints.values()))
        while not endpoint.admission.threads:
            await asyncio.sleep(0.001)
        if not (pid := os.fork()):
            code = 3
            try:
                done = []
                work = lambda: (ask("parent"), ask("child"), done.append(1))
                thread = threading.Thread(target=work)
                thread.start()
                thread.join()
                code = 0 if done else 4
            finally:
                os._exit(code)
        assert np.array_equal(await task, expected_vector("parent", 64))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    asyncio.run(main())
    ask("after")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_in_the_middle_of_a_call_leaves_the_call_to_the_parent(server: FaultServer) -> None:
    def slowly(wire: Wire) -> None:
        wire.pause(0.5)
        wire.right()

    server.script = once(slowly)
    assert run(FORK, server.base_url, KEY, seconds=100) == (0, "0\n", "")
    assert server.texts["parent"] == 2


async def test_after_a_batch_another_of_its_texts_is_not_waited_for_without_end(
    server: FaultServer,
) -> None:
    client = in_use(server)
    for turn in range(20):
        go_on, (one, other) = held(server), texts(2, f"turn {turn}")
        batch = asyncio.create_task(client.aembed([one, other]))
        await auntil(lambda: lane_of(client).admission.threads)
        again = asyncio.create_task(client.aembed(one))
        await asyncio.sleep(0)
        go_on.set()
        assert_right(await batch, [one, other])
        assert_right([await asyncio.wait_for(client.aembed(other), 60)], [other])
        assert_right([await again], [one])
        assert server.texts[one] == 1


async def test_a_call_that_starts_at_any_moment_of_an_equal_call_sends_nothing(
    server: FaultServer,
) -> None:
    client = in_use(server)
    for iterations in range(40):
        name = f"after {iterations} iterations"
        first = asyncio.create_task(client.aembed(name))
        for _ in range(iterations):
            await asyncio.sleep(0)
        if first.done():
            break
        row = await client.aembed(name)
        assert_right([row, await first], [name, name])
        assert server.texts[name] == 1, name


@pytest.mark.parametrize("count", [11, 25])
async def test_a_text_of_a_larger_call_that_is_on_its_way_is_not_sent(
    server: FaultServer, count: int
) -> None:
    client = in_use(server)
    engine()[0].call_soon(lambda: time.sleep(0.3))  # it gets the larger call late
    many = ["same", *texts(count - 1)]
    rows = await asyncio.gather(client.aembed(many), client.aembed("same"))
    assert_right([*rows[0], rows[1]], [*many, "same"])
    assert server.texts["same"] == 1


def test_a_loop_that_is_stopped_keeps_no_place_in_the_window(server: FaultServer) -> None:
    client, go_on, loop = in_use(server, max_concurrency=4), held(server), asyncio.new_event_loop()
    names = texts(3)
    tasks = [loop.create_task(client.aembed(name)) for name in names]
    loop.run_until_complete(auntil(lambda: len(lane_of(client).admission.threads) == 3))
    go_on.set()
    bulk = texts(200, "bulk")
    assert_right(client.embed(bulk), bulk)
    assert not lane_of(client).admission.threads
    assert_right(loop.run_until_complete(asyncio.gather(*tasks)), names)
    loop.close()


async def test_the_error_of_a_deadline_says_that_a_request_was_in_flight(
    server: FaultServer,
) -> None:
    client = in_use(server, deadline=0.3)
    server.script = always(lambda wire: wire.hold(60))
    with pytest.raises(APITimeoutError, match="a request was in flight"):
        await client.aembed("held")


@pytest.mark.parametrize(
    ("behaviour", "error", "says"),
    [
        (lambda wire: wire.hold(60), APITimeoutError, "a request was in flight"),
        (lambda wire: refuse(wire), AuthenticationError, "401"),
    ],
)
async def test_a_deadline_does_not_hide_a_reply_if_the_background_loop_is_late(
    server: FaultServer, behaviour: Any, error: type[Exception], says: str
) -> None:
    client = in_use(server, deadline=0.5, max_retries=0)
    server.script = always(behaviour)
    task = asyncio.create_task(client.aembed("late"))
    await auntil(lambda: server.in_flight)
    engine()[0].call_soon(lambda: time.sleep(1.0))
    with pytest.raises(error, match=says):
        await task


def refuse(wire: Wire) -> None:
    time.sleep(0.2)
    wire.respond(401, b'{"error": {"message": "wrong key"}}')


@pytest.mark.parametrize("is_async", [True, False])
async def test_the_deadline_of_a_call_that_the_background_loop_continues_starts_once(
    is_async: bool,
) -> None:
    background, now = engine()[0], time.monotonic()

    async def wait() -> None:
        if is_async:
            task = CallingTask(NO_HOOKS, None, deadline=1000.0)
            await task.wait(background, asyncio.sleep(1000), until=now)
        else:
            thread = CallingThread(NO_HOOKS, None, deadline=1000.0)
            thread.wait(background, asyncio.sleep(1000), until=now)

    with pytest.raises(APITimeoutError, match="does not answer"):
        await wait()
    assert time.monotonic() - now < 500


async def test_a_response_is_read_although_the_connection_is_then_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    connection, released = Connection(("127.0.0.1", 1, False), ours), []
    running = asyncio.create_task(exchange_on(connection, b"x" * 30_000_000, released).run())
    await asyncio.sleep(0)
    theirs.recv(100)
    theirs.sendall(RESPONSE.replace(b"200 OK", b"401 Unauthorized"))
    theirs.close()  # with unread data, this resets the connection
    time.sleep(0.05)
    answer = await running
    connection.close()
    assert isinstance(answer, Answer)
    assert answer.status == 401
    assert released == [False]


def test_a_second_poll_ends_even_if_an_interrupt_prevents_its_end(
    pair: tuple[Connection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, theirs = pair
    released: list[bool] = []

    async def poll_twice() -> None:
        exchange = exchange_on(connection, b"x", released)
        running = asyncio.create_task(exchange.run())
        await asyncio.sleep(0)
        exchange.also_poll()
        second = exchange._second
        assert second is not None
        monkeypatch.setattr(second, "end_from", lambda _: None)
        theirs.sendall(RESPONSE)
        await running
        second._step()
        second._step()
        assert second._has_ended
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(second._descriptor)

    asyncio.run(poll_twice())
    assert released == [True]
