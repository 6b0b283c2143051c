"""Cancellation and Ctrl-C take effect at once: nothing more is sent and nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nexusflow_integrations._core.call.background import LoopCall, background_loop
from nexusflow_integrations._core.pace.window import START
from nexusflow_integrations._core.request import retry
from nexusflow_integrations.errors import APITimeoutError

from .scene import (
    KEY,
    assert_quiet,
    assert_right,
    auntil,
    client_of,
    hold,
    lane_of,
    popen,
    tasks,
    texts,
    until,
)


def script(behaviour: Any, applies: Any = lambda wire: True) -> Any:
    from faults.server import Script

    return Script(behaviour, applies)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)  # much less than what it was waiting for


async def test_cancelled_in_a_request_nothing_more_is_sent(server: Any) -> None:
    server.script = script(hold)
    client = client_of(server, max_concurrency=4)
    task = asyncio.ensure_future(client.aembed(texts(200)))
    await auntil(lambda: len(server.requests) == 4)
    await cancelled(task)
    await asyncio.to_thread(assert_quiet, client, server, requests=4)
    await auntil(lambda: server.open_connections == 0)
    server.script = script(lambda wire: wire.right())
    assert_right(await client.aembed(texts(30)), texts(30))


async def test_requests_in_flight_when_a_call_is_cancelled_are_in_the_clients_usage(
    server: Any,
) -> None:
    server.script = script(hold)
    client = client_of(server, max_concurrency=4)
    task = asyncio.ensure_future(client.aembed(texts(200)))
    await auntil(lambda: len(server.requests) == 4)
    await cancelled(task)
    await auntil(lambda: client.usage.requests == 4)
    stream = client.aembed_stream(texts(40))
    reading = asyncio.ensure_future(anext(stream))
    await auntil(lambda: len(server.requests) == 8)
    await cancelled(reading)
    await auntil(lambda: client.usage.requests == 8)


async def test_cancelled_while_reading_a_dripping_body(server: Any) -> None:
    from faults.behaviours import drips_body

    server.script = script(drips_body(0.05))
    client = client_of(server)
    task = asyncio.ensure_future(client.aembed(["a"]))
    await auntil(lambda: server.bytes_sent > 5)
    await cancelled(task)
    await asyncio.to_thread(assert_quiet, client, server, requests=1)


async def test_cancelled_while_a_large_body_is_being_sent(server: Any) -> None:
    from faults.server import at

    server.script = script(at("headers")(hold))  # the body is not read
    client = client_of(server, on_too_long="send")
    task = asyncio.ensure_future(client.aembed(["漢" * 8_000_00]))
    await auntil(lambda: len(server.requests) == 1)
    await cancelled(task)
    await asyncio.to_thread(assert_quiet, client, server, requests=1)


async def test_cancelled_in_the_wait_before_a_retry(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BASE_FAULT", 60.0)
    monkeypatch.setattr(retry.random, "random", lambda: 0.5)
    server.script = script(lambda wire: wire.respond(503))
    client = client_of(server)
    task = asyncio.ensure_future(client.aembed(["a"]))
    await auntil(lambda: len(server.requests) == 1 and lane_of(client).outage is not None)
    await cancelled(task)
    await asyncio.to_thread(assert_quiet, client, server, requests=1)


async def test_cancelled_in_the_wait_for_an_outage_to_end(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BASE_FAULT", 60.0)
    monkeypatch.setattr(retry.random, "random", lambda: 0.5)
    server.script = script(lambda wire: wire.respond(503))
    client = client_of(server)
    leader = asyncio.ensure_future(client.aembed(["a"]))
    await auntil(lambda: len(server.requests) == 1 and lane_of(client).outage is not None)
    follower = asyncio.ensure_future(client.aembed(["b"]))
    await auntil(lambda: len(server.requests) == 2 and lane_of(client).outage._listeners)
    await cancelled(follower)
    await cancelled(leader)
    await asyncio.to_thread(assert_quiet, client, server, requests=2)


async def test_cancelled_in_the_wait_at_the_gate(server: Any) -> None:
    server.script = script(hold)
    client = client_of(server, max_concurrency=1)
    first = asyncio.ensure_future(client.aembed(["a"]))
    await auntil(lambda: len(server.requests) == 1)
    second = asyncio.ensure_future(client.aembed(["b"]))
    await auntil(lambda: lane_of(client).admission._waiting)
    await cancelled(second)
    assert lane_of(client).admission.in_flight == 1
    await cancelled(first)
    await asyncio.to_thread(assert_quiet, client, server, requests=1)


async def test_cancelled_in_the_wait_for_the_pace(server: Any) -> None:
    client = client_of(server, requests_per_minute=6)
    await client.aembed(["a"])
    task = asyncio.ensure_future(client.aembed(["b"]))
    await auntil(lambda: lane_of(client).admission._waiting)
    await cancelled(task)
    await asyncio.to_thread(assert_quiet, client, server, requests=1)


@contextlib.contextmanager
def full_port() -> Iterator[int]:
    """A port that does not answer a connection at all."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(16):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(0.2)
            try:
                sock.connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            pytest.skip("this system accepts connections beyond the backlog")
        yield listener.getsockname()[1]


async def test_cancelled_while_connecting() -> None:
    class Silent:
        base_url = ""

    with full_port() as port:
        Silent.base_url = f"http://127.0.0.1:{port}/v1"
        client = client_of(Silent)
        task = asyncio.ensure_future(client.aembed(["a"]))
        await asyncio.sleep(0.3)
        await cancelled(task)
        await auntil(lambda: lane_of(client).admission.in_flight == 0)
        await auntil(lambda: not tasks())


async def test_a_waiting_call_takes_over_the_texts_of_a_cancelled_one(server: Any) -> None:
    server.script = script(hold, lambda wire: wire.number == 0)
    client = client_of(server)
    first = asyncio.ensure_future(client.aembed(["shared"]))
    await auntil(lambda: len(server.requests) == 1)
    second = asyncio.ensure_future(client.aembed(["shared"]))
    await asyncio.sleep(0.1)
    assert len(server.requests) == 1
    await cancelled(first)
    assert_right(await asyncio.wait_for(second, 60), ["shared"])


async def test_wait_for_around_a_call_stops_it(server: Any) -> None:
    client = client_of(server)
    await client.aembed("warm")
    server.script = script(hold)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(client.aembed(texts(30)), 0.3)
    await asyncio.to_thread(assert_quiet, client, server)


async def test_a_stream_that_is_left_early_stops_reading_and_sending(server: Any) -> None:
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for text in texts(5000):
            read += 1
            yield text

    client = client_of(server, max_concurrency=2)
    stream = client.aembed_stream(source())
    async for result in stream:
        if result.index == 5:
            break
    await stream.aclose()
    seen = read
    await asyncio.to_thread(assert_quiet, client, server)
    assert read == seen < 300


def test_a_sync_stream_that_is_left_early_stops_too(server: Any) -> None:
    client = client_of(server, max_concurrency=2)
    stream = client.embed_stream(iter(texts(5000)))
    for _ in range(5):
        next(stream)
    stream.close()
    assert_quiet(client, server)
    assert len(server.requests) < 40


async def test_cancelling_one_call_does_not_affect_the_others(server: Any) -> None:
    def slow(wire: Any) -> None:
        wire.pause(0.1)
        wire.right()

    server.script = script(slow)
    client = client_of(server)
    calls = [asyncio.ensure_future(client.aembed(texts(30, f"c{n}"))) for n in range(4)]
    await auntil(lambda: len(server.requests) >= 6)
    await cancelled(calls[1])
    for n in (0, 2, 3):
        assert_right(await calls[n], texts(30, f"c{n}"))


async def test_a_budget_is_not_charged_for_a_request_that_was_never_admitted(server: Any) -> None:
    from nexusflow_integrations import Budget

    server.script = script(hold)
    client = client_of(server, max_concurrency=1, budget=Budget(tokens=100_000))
    first = asyncio.ensure_future(client.aembed(["a"]))
    await auntil(lambda: len(server.requests) == 1)
    waiting = asyncio.ensure_future(client.aembed(["long text " * 100]))
    await auntil(lambda: lane_of(client).admission._waiting)
    await cancelled(waiting)
    await cancelled(first)
    await auntil(lambda: client._guard is not None and client._guard.reserved == 0)
    assert client._guard is not None
    assert client._guard.spent < 10


# ---- Ctrl-C

CTRL_C = """
    import sys, random
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations._core.request import retry
    retry.BASE_FAULT = 60.0
    random.random = lambda: 0.5
    http_client = None
    if sys.argv[3] == "injected":
        import httpx
        http_client = httpx.Client()
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64, http_client=http_client)
    # In an outage some of the other batches may still go out, so there are none.
    texts = [f"t {n}" for n in range(160 if sys.argv[3] == "sleep" else 300)]
    print("ready", flush=True)
    try:
        if sys.argv[3] == "stream":
            for _ in client.embed_stream(texts):
                pass
        elif sys.argv[3] == "progress":
            client.embed(texts, progress=lambda n: None)
        else:
            client.embed(texts)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("where", ["request", "sleep", "stream", "progress", "injected"])
def test_ctrl_c_ends_a_sync_call_at_once_and_the_process_quietly(server: Any, where: str) -> None:
    window = START

    def refuse(wire: Any) -> None:
        while len(server.requests) < window:  # an outage keeps back what has not gone out yet
            wire.pause(0.01)
        wire.respond(503)

    server.script = script(refuse if where == "sleep" else hold)
    process = popen(CTRL_C, server.base_url, KEY, where)
    try:
        assert process.stdout.readline() == "ready\n"
        until(lambda: len(server.requests) >= window)
        until(lambda: where != "sleep" or server.in_flight == 0)
        time.sleep(0.3)  # some of the other batches may go out before the outage is seen
        until(lambda: not server.has_unread())
        sent = len(server.requests)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)  # much less than what it was waiting for
    finally:
        process.kill()
        process.wait()
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    assert len(server.requests) == sent


def test_our_own_timeout_is_not_a_cancellation(server: Any) -> None:
    server.script = script(hold)
    client = client_of(server, timeout=0.2, max_retries=0)
    with pytest.raises(APITimeoutError):
        client.embed(["a"])
    assert_quiet(client, server)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of threads are POSIX")
def test_ctrl_c_that_another_thread_receives_ends_a_call_at_once(server: Any) -> None:
    server.script = script(hold)
    client = client_of(server)

    def interrupt() -> None:
        until(lambda: server.requests)
        os.kill(os.getpid(), signal.SIGINT)  # goes to a thread that does not block it

    thread = threading.Thread(target=interrupt)
    thread.start()
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            client.embed(texts(30))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
    assert time.monotonic() - began < 30  # the server holds the request for two minutes
    thread.join()
    assert_quiet(client, server)


@pytest.mark.parametrize("kind", ["embed", "embed_stream"])
def test_ctrl_c_while_a_call_is_handed_to_the_event_loop_cancels_it(
    server: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    client = client_of(server, max_concurrency=2)
    client.embed("warm")
    server.script = script(hold)
    start = LoopCall.start

    def interrupted(self: Any) -> None:
        start(self)
        until(lambda: server.attempts > 1)  # the loop was faster than this thread
        raise KeyboardInterrupt

    monkeypatch.setattr(LoopCall, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.embed(texts(400)) if kind == "embed" else next(client.embed_stream(texts(400)))
    monkeypatch.undo()
    assert_quiet(client, server)
    assert len(server.requests) < 20


def test_work_that_never_began_is_closed() -> None:
    work = asyncio.sleep(60)
    LoopCall(background_loop(), work, lambda _: None).cancel()
    background_loop().submit(asyncio.sleep(0)).result(60)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
