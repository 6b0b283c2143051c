"""Calls sent from the caller's thread behave like those sent on the event loop.

The fault table tests them with every fault, as ``core_direct``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from faults.behaviours import right_after
from faults.server import FaultServer, Wire, always, expected_vector, marked, once, payload
from faults.surfaces import used_already

from nexusflow_integrations import Budget, NexusFlow
from nexusflow_integrations._core.call.caller import BatchEnd, Hooks
from nexusflow_integrations._core.call.coalescing import Coalescer
from nexusflow_integrations._core.call.direct import DirectCall, fits
from nexusflow_integrations._core.call.engine import Engine, engine
from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.pace.admission import AdmissionQueue
from nexusflow_integrations._core.request import blocking
from nexusflow_integrations._core.request.blocking import (
    BlockingSender,
    Connection,
    Connections,
    Peer,
)
from nexusflow_integrations._core.request.exchange import Call
from nexusflow_integrations._core.request.pool import AiohttpSender, LoopSender
from nexusflow_integrations._core.request.wire import Answer
from nexusflow_integrations._core.usage import BudgetGuard, Ledger

from .scene import KEY, SIZE, assert_right, client_of, lane_of, passengers, run, until


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who sent each request, in order."""
    found: list[str] = []
    here, loop, aiohttp = BlockingSender.send, LoopSender.send, AiohttpSender.send

    def send_here(self: Any, *arguments: Any) -> Any:
        found.append("thread")
        return here(self, *arguments)

    async def send_on_loop(self: Any, *arguments: Any) -> Any:
        found.append("loop")
        return await loop(self, *arguments)

    async def leave_to_aiohttp(self: Any, *arguments: Any) -> Any:
        found.append("aiohttp")
        return await aiohttp(self, *arguments)

    monkeypatch.setattr(BlockingSender, "send", send_here)
    monkeypatch.setattr(LoopSender, "send", send_on_loop)
    monkeypatch.setattr(AiohttpSender, "send", leave_to_aiohttp)
    return found


def in_use(server: FaultServer, **options: Any) -> NexusFlow:
    client = client_of(server, **options)
    used_already(client)
    return client


def test_only_a_first_call_and_calls_of_several_requests_go_through_the_loop(
    server: FaultServer, senders: list[str]
) -> None:
    client = client_of(server)
    for name in ("first", "second", "third"):
        assert np.array_equal(client.embed(name), expected_vector(name, SIZE))
    assert senders == ["loop", "thread", "thread"]
    ten = [f"text {n}" for n in range(10)]
    assert_right(client.embed(ten), ten)
    assert senders[3:] == ["thread"]
    eleven = [f"another {n}" for n in range(11)]
    assert_right(client.embed(eleven), eleven)
    assert senders[4:] == ["loop", "loop"]
    assert server.connections <= 4  # two of each way
    assert client.usage.requests == 6
    assert client.usage.texts == 24


class Heard:
    """Hooks that record their calls."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, list[str]]] = []
        self.ended: list[BatchEnd] = []
        self.hooks = Hooks(begun=lambda *what: self.begun.append(what), ended=self.ended.append)


def test_hooks_that_only_hear_of_a_request_leave_it_to_the_calling_thread(
    server: FaultServer, senders: list[str]
) -> None:
    client, heard = in_use(server), Heard()
    senders.clear()
    row = client._embed("heard of", role="query", hooks=heard.hooks)
    assert senders == ["thread"]
    assert heard.begun == [(0, ["heard of"])]
    (end,) = heard.ended
    assert (end.number, end.texts, end.ledger.requests) == (0, ["heard of"], 1)
    assert np.array_equal(end.vectors, [row])
    assert np.array_equal(row, expected_vector("heard of", SIZE))


def test_hooks_that_decide_leave_a_request_to_the_loop(
    server: FaultServer, senders: list[str]
) -> None:
    client = in_use(server)
    senders.clear()
    client._embed("permitted", hooks=Hooks(permit=lambda _: None))
    client._embed("asked for", hooks=Hooks(recall=lambda _: {}))
    assert senders == ["loop", "loop"]


@pytest.mark.usefixtures("short_delays")
def test_a_request_that_the_loop_repeats_is_reported_once(
    server: FaultServer, senders: list[str]
) -> None:
    client, heard = in_use(server), Heard()
    senders.clear()
    server.script = once(lambda wire: wire.reset())
    row = client._embed("again", hooks=heard.hooks)
    assert senders == ["thread", "loop"]
    assert heard.begun == [(0, ["again"])]
    assert [(end.number, end.texts, end.ledger.requests) for end in heard.ended] == [
        (0, ["again"], 2)
    ]
    assert np.array_equal(row, expected_vector("again", SIZE))


def test_a_hook_that_raises_is_logged_and_loses_no_vector(
    server: FaultServer, senders: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    client = in_use(server)
    senders.clear()
    row = client._embed("kept", hooks=Hooks(begun=fail, ended=fail))
    assert senders == ["thread"]
    assert np.array_equal(row, expected_vector("kept", SIZE))
    assert caplog.text.count("ZeroDivisionError") == 1


def test_a_hook_may_embed_the_same_text(server: FaultServer) -> None:
    client = in_use(server, deadline=30)
    within: list[Any] = []
    hooks = Hooks(
        begun=lambda *_: within.append(client.embed("nested")),
        ended=lambda _: within.append(client.embed("nested")),
    )
    for row in (client._embed("nested", hooks=hooks), *within):
        assert np.array_equal(row, expected_vector("nested", SIZE))
    assert len(within) == 2


def _call(**options: Any) -> Call:
    client = NexusFlow(KEY, **options.pop("settings", {}))
    given: dict[str, Any] = {
        "texts": ["a text"],
        "settings": client.settings,
        "key": client._key.key,
        "keys": client._key,
        "ledger": Ledger(),
    }
    return Call(**{**given, **options})


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, True),
        ({"texts": ["a", "b"]}, True),
        ({"texts": ["a", "a"]}, False),
        ({"texts": [f"{n}" for n in range(11)]}, False),
        ({"key": None}, False),
        ({"cache": "vectors.db"}, False),
        ({"guard": BudgetGuard(1000)}, False),
        ({"http_client": object()}, False),
        ({"client_loop": object()}, True),
        ({"client_loop": object(), "async_http_client": object()}, False),
        ({"settings": {"on_too_long": "split"}}, False),
        ({"settings": {"on_too_long": "send"}}, True),
    ],
)
def test_calls_that_the_calling_thread_may_send(options: dict[str, Any], wanted: bool) -> None:
    assert fits(_call(**options)) is wanted


def test_a_query_on_a_thread_with_a_running_loop_does_not_block_in_a_socket(
    server: FaultServer, senders: list[str]
) -> None:
    import asyncio

    client = in_use(server)

    async def ask() -> Any:
        return client.embed("in a notebook")

    assert np.array_equal(asyncio.run(ask()), expected_vector("in a notebook", SIZE))
    assert senders == ["loop"]


def test_a_given_limit_leaves_calls_to_the_loop(server: FaultServer, senders: list[str]) -> None:
    client = in_use(server, requests_per_minute=6000)
    client.embed("at a pace")
    client.embed("at a pace, again")
    assert senders == ["loop", "loop"]


def test_threads_and_loop_together_stay_within_the_window(server: FaultServer) -> None:
    client = in_use(server, max_concurrency=3)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(12):
                if number < 2:
                    some = [f"bulk {number} {turn} {n}" for n in range(30)]
                    assert_right(client.embed(some), some)
                else:
                    name = f"query {number} {turn}"
                    assert np.array_equal(client.embed(name), expected_vector(name, SIZE))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert not any(thread.is_alive() for thread in threads)
    assert not failed
    assert server.max_in_flight <= 3
    until(lambda: lane_of(client).admission.in_flight == 0)
    assert not lane_of(client).admission.threads
    assert client.usage.requests == len(server.requests) == 2 * 12 * 3 + 6 * 12


def test_the_place_of_a_thread_is_taken_at_once_by_a_request_that_waits(
    server: FaultServer,
) -> None:
    go_on = {"held": threading.Event(), "bulk 0": threading.Event()}

    def when_told(wire: Wire) -> None:
        if wire.texts[0] in go_on:
            assert go_on[wire.texts[0]].wait(120)
        wire.right()

    server.script = always(when_told)
    client = in_use(server, max_concurrency=2)
    some = [f"bulk {n}" for n in range(20)]
    threads = [threading.Thread(target=client.embed, args=(what,)) for what in ("held", some)]
    threads[0].start()
    until(lambda: lane_of(client).admission.threads)
    threads[1].start()
    until(lambda: lane_of(client).admission._waiting)
    until(lambda: server.in_flight == 2)
    go_on["held"].set()
    until(lambda: server.texts["bulk 10"])
    go_on["bulk 0"].set()
    for thread in threads:
        thread.join(120)
    assert server.max_in_flight == 2


def test_a_text_that_a_thread_is_sending_is_not_sent_by_others(server: FaultServer) -> None:
    go_on = threading.Event()

    def when_told(wire: Wire) -> None:
        assert go_on.wait(120)
        wire.right()

    server.script = always(when_told)
    client = in_use(server)
    found: list[Any] = []

    def ask() -> None:
        found.append(client.embed("the same question"))

    first = threading.Thread(target=ask)
    first.start()
    until(lambda: server.in_flight)
    others = [threading.Thread(target=ask) for _ in range(3)]
    for thread in others:
        thread.start()
    until(lambda: _waiting() == 3)
    go_on.set()
    for thread in [first, *others]:
        thread.join(120)
    assert len(found) == 4
    for row in found:
        assert np.array_equal(row, expected_vector("the same question", SIZE))
    assert server.texts["the same question"] == 1
    assert client.usage.cached == 3


def _waiting() -> int:
    """How many calls on the loop wait for a text that a thread is sending."""
    from nexusflow_integrations._core.call.engine import engine

    background, running = engine()

    async def count() -> int:
        return sum(
            len(waiters)
            for coalescer in running._coalescers.values()
            for carrier, _ in list(coalescer._of_threads.values())
            for waiters in carrier.waiting.values()
        )

    found: int = background.submit(count()).result(60)
    return found


@pytest.mark.usefixtures("short_delays")
def test_a_text_whose_sender_fails_is_sent_by_the_call_that_waited(server: FaultServer) -> None:
    go_on = threading.Event()

    def fail_when_told(wire: Wire) -> None:
        if wire.number == 0:
            assert go_on.wait(120)
            wire.reset()
        else:
            until(passengers)  # a call that joins only after the end would have to send, too
            wire.right()

    server.script = always(fail_when_told)
    client, found = in_use(server), []
    threads = [threading.Thread(target=lambda: found.append(client.embed("why?")))]
    threads[0].start()
    until(lambda: server.in_flight)
    threads.append(threading.Thread(target=lambda: found.append(client.embed("why?"))))
    threads[1].start()
    until(lambda: _waiting() == 1)
    go_on.set()
    for thread in threads:
        thread.join(120)
    assert len(found) == 2
    for row in found:
        assert np.array_equal(row, expected_vector("why?", SIZE))
    assert server.texts["why?"] == 2
    assert client.usage.requests == 2


SIGNALS = """
    import signal, sys, threading, time, traceback
    import numpy as np
    from faults.server import expected_vector
    from faults.surfaces import used_already
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations._core.call.engine import engine

    class Enough(Exception):
        pass

    raised = {"KeyboardInterrupt": KeyboardInterrupt, "TimeoutError": TimeoutError,
              "Enough": Enough}[sys.argv[3]]

    def handler(*_):
        raise raised

    class Handler:
        def __call__(self, *_):
            raise raised

    signal.signal(signal.SIGUSR1, Handler() if sys.argv[4] == "object" else handler)
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64, timeout=100)
    used_already(client)
    endpoint = next(iter(engine()[1]._endpoints.values()))

    def interrupt():
        while not endpoint.admission.threads:
            time.sleep(0.001)
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        client.embed("held")
    except raised as error:
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        print(sys.argv[2] in "".join(shown.format()))
    print(client.usage.texts, client.usage.requests)
    print(len(endpoint.admission.threads), endpoint.admission.in_flight)
    print(np.array_equal(client.embed("after"), expected_vector("after", 64)))
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
@pytest.mark.parametrize(
    ("raised", "handler"),
    [
        ("KeyboardInterrupt", "function"),
        ("TimeoutError", "function"),
        ("Enough", "function"),
        ("TimeoutError", "object"),
    ],
)
def test_an_error_of_a_signal_handler_ends_the_call_and_is_not_a_fault(
    server: FaultServer, raised: str, handler: str
) -> None:
    server.script = once(lambda wire: wire.hold())
    done = run(SIGNALS, server.base_url, KEY, raised, handler, seconds=100)
    assert done == (0, "False\n1 1\n0 0\nTrue\n", "")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("raised", [TimeoutError, ConnectionError, ValueError])
def test_an_error_of_a_signal_handler_ends_a_call_that_opens_a_connection(
    raised: type[Exception],
) -> None:
    def interrupt(*_: object) -> None:
        raise raised("enough")

    silent = socket.create_server(("127.0.0.1", 0))  # it accepts, and never begins TLS
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    connections = Connections(lambda: trust)
    address = silent.getsockname()
    origin = ("localhost", address[1], True)
    connections.peers[origin] = Peer(address, lambda: None, float("inf"))  # type: ignore[arg-type]
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(raised, match="enough"):
            connections.take(origin, 60.0)
    finally:
        signal.signal(signal.SIGALRM, before)
        silent.close()


def test_a_connection_that_nothing_refers_to_is_closed_without_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = Connection(
            ("127.0.0.1", 1, False), socket.create_connection(listener.getsockname())
        )
        theirs, _ = listener.accept()
    with theirs, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        del connection  # as if Ctrl-C came right after it was opened
        assert theirs.recv(1) == b""
    assert not found


def test_an_interrupt_at_any_line_leaves_no_text_and_no_request_behind(
    server: FaultServer,
) -> None:
    client = in_use(server)
    coalescers = engine()[1]._coalescers
    files = {
        sys.modules[kind.__module__].__file__
        for kind in (DirectCall, Coalescer, CallResults, AdmissionQueue, Engine)
    }
    errors: list[BaseException] = []  # an error that is kept keeps the frames of its call

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
            client.embed("interrupted")
        except KeyboardInterrupt as error:
            errors.append(error)
        finally:
            sys.settrace(former)
        return left < 0

    moments = 0
    left_behind: list[int] = []

    def interrupt_everywhere() -> None:
        nonlocal moments
        while interrupted_at(moments):
            texts = any(coalescer._of_threads for coalescer in coalescers.values())
            if texts or lane_of(client).admission.threads:
                left_behind.append(moments)
            moments += 1

    # In a thread of its own: an error that a trace function raises in an except block may stay the
    # thread's current error for ever, and then be the context of all its later errors.
    thread = threading.Thread(target=interrupt_everywhere)
    thread.start()
    thread.join()
    assert not left_behind
    assert moments == len(errors) > 50


FORKS = """
    import os, signal, sys
    import numpy as np
    from faults.server import expected_vector
    from nexusflow_integrations import NexusFlow

    signal.alarm(200)
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64)

    def ask(name):
        for n in range(3):
            text = f"{name} {n}"
            assert np.array_equal(client.embed(text), expected_vector(text, 64)), text

    ask("before")
    for child in range(3):
        if not (pid := os.fork()):
            code = 3
            try:
                ask(f"child {child}")
                code = 0
            finally:
                os._exit(code)
        ask(f"parent {child}")
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_parent_and_children_of_a_fork_never_share_a_connection(server: FaultServer) -> None:
    assert run(FORKS, server.base_url, KEY) == (0, "0\n0\n0\n", "")
    users: dict[int, set[str]] = {}
    for request in server.requests:
        for text in request.texts:
            name = " ".join(text.split()[:2]) if text.startswith("child") else "parent"
            users.setdefault(request.connection, set()).add(name)
    assert all(len(names) == 1 for names in users.values())


FORKING_HANDLER = """
    import os, signal, sys, threading, time
    import numpy as np
    from faults.server import expected_vector
    from faults.surfaces import used_already
    from nexusflow_integrations import NexusFlow, errors
    from nexusflow_integrations._core.call.engine import engine

    child = None

    def handler(*_):
        global child
        child = os.fork()
        signal.alarm(100)

    signal.signal(signal.SIGUSR1, handler)
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64, timeout=50)
    used_already(client)
    endpoint = next(iter(engine()[1]._endpoints.values()))

    def interrupt():
        while not endpoint.admission.threads:
            time.sleep(0.001)
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        outcome = np.array_equal(client.embed("held"), expected_vector("held", 64))
    except errors.APIConnectionError as error:
        outcome = "signal handler" in str(error)
    again = np.array_equal(client.embed("after"), expected_vector("after", 64))
    if not child:
        os._exit(0 if outcome and again else 3)
    print(outcome, again, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_signal_handler_that_forks_leaves_no_child_hanging(server: FaultServer) -> None:
    server.script = marked("held", right_after(2.0))
    done = run(FORKING_HANDLER, server.base_url, KEY, seconds=150)
    assert done == (0, "True True 0\n", "")


FORK_WHILE_CONNECTING = """
    import os, socket, sys
    import numpy as np
    from faults.server import expected_vector
    from faults.surfaces import used_already
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations.errors import APIConnectionError

    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64, max_retries=0)
    used_already(client)
    connect = socket.create_connection
    children = []

    def connect_and_fork(*arguments):  # as a signal handler would
        made = connect(*arguments)
        if not children:
            children.append(os.fork())
        return made

    socket.create_connection = connect_and_fork
    outcomes = []
    for text in "abc":
        try:
            outcomes.append(np.array_equal(client.embed(text), expected_vector(text, 64)))
        except APIConnectionError as error:
            outcomes.append("signal handler" in str(error) and "refused")
    if not children[0]:
        os._exit(0 if outcomes == ["refused", True, True] else 3)
    print(outcomes, os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_a_thread_connects_leaves_the_connection_to_the_parent(
    server: FaultServer,
) -> None:
    done = run(FORK_WHILE_CONNECTING, server.base_url, KEY, seconds=100)
    assert done == (0, "[True, True, True] 0\n", "")


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = asked["input"]
        texts = [given] if isinstance(given, str) else given
        body = json.dumps(payload(texts, SIZE, "base64")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_client_with_one_request_in_flight_uses_one_connection() -> None:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = NexusFlow(
            KEY,
            base_url=f"http://127.0.0.1:{server.server_port}/v1",
            dimensions=SIZE,
            max_concurrency=1,
            max_retries=0,
            query_timeout=5,
        )
        many = [f"text {number}" for number in range(25)]
        for _ in range(3):
            assert_right([client.embed("why?", role="query")], ["why?"])
        assert_right(client.embed(many), many)
        assert_right([client.embed("why?", role="query")], ["why?"])
        server.shutdown()


def test_a_connection_to_a_proxy_is_not_taken_for_one_to_the_service(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, senders: list[str]
) -> None:
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == "api.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with FaultServer(dimensions=SIZE) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        url = f"http://api.example:{server.port}/v1"
        client = NexusFlow(KEY, base_url=url, allow_http=True, dimensions=SIZE)
        client.embed("through the proxy")
        monkeypatch.delenv("http_proxy")
        client.embed("directly")
        client.embed("again")
        assert len(proxy.requests) == 1
    assert senders == ["aiohttp", "loop", "thread"]


class Link:
    """A socket, or a connection, that is never read."""

    def __init__(self, *_: Any) -> None:
        pass

    def setsockopt(self, *_: int) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_network_error_is_a_fault_whatever_lies_between_the_socket_and_the_client(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, senders: list[str]
) -> None:
    connect = socket.create_connection

    class Wrapped(socket.socket):  # as libraries that record or limit traffic do
        def recv(self, *arguments: Any) -> bytes:
            return super().recv(*arguments)

    def connect_through(*arguments: Any) -> socket.socket:
        with connect(*arguments) as made:
            return Wrapped(fileno=made.detach())

    monkeypatch.setattr(socket, "create_connection", connect_through)
    server.script = once(lambda wire: wire.reset())
    client = in_use(server)
    assert_right([client.embed("a text")], ["a text"])
    assert senders == ["thread", "loop"]
    assert client.usage.retries == 1


def test_a_request_is_not_sent_again_after_an_error_that_is_no_network_error(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = in_use(server)

    def fails(*_: object) -> bool:
        raise AttributeError("a mistake of this package")

    monkeypatch.setattr(blocking.Response, "feed", fails)
    monkeypatch.setattr(blocking, "parser_works", lambda: True)
    with pytest.raises(AttributeError, match="a mistake"):
        client.embed("a text")
    until(lambda: server.attempts == 1)


def test_connections_can_be_closed_while_threads_open_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "create_connection", Link)
    monkeypatch.setattr(blocking, "Connection", Link)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    connections = Connections(lambda: trust)
    origin = ("127.0.0.1", 80, False)
    connections.peers[origin] = Peer(origin[:2], lambda: None, float("inf"))  # type: ignore[arg-type]
    has_ended = threading.Event()
    opened: list[Any] = []

    def opens() -> None:
        while not has_ended.is_set() and len(opened) < 50_000:
            opened.append(connections.take(origin, 1.0))

    threads = [threading.Thread(target=opens) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(300):
            connections.close()
    finally:
        sys.setswitchinterval(interval)
        has_ended.set()
        for thread in threads:
            thread.join()
    assert None not in opened
    connections.close()
    assert not connections.end_idle()


def test_a_budget_is_kept_by_the_loop(server: FaultServer, senders: list[str]) -> None:
    client = in_use(server, budget=Budget(tokens=1000))
    client.embed("within the budget")
    assert senders == ["loop"]


def test_time_to_connect_is_part_of_the_timeout(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = in_use(server, timeout=30.0)
    connection, send = BlockingSender.connection, BlockingSender.send
    left: list[float] = []

    def slow_connection(self: Any, timeout: float) -> Any:
        time.sleep(0.2)
        return connection(self, timeout)

    def noting_send(self: Any, found: Any, body: bytes, timeout: float) -> Any:
        left.append(timeout)
        return send(self, found, body, timeout)

    monkeypatch.setattr(BlockingSender, "connection", slow_connection)
    monkeypatch.setattr(BlockingSender, "send", noting_send)
    assert np.array_equal(client.embed("a text"), expected_vector("a text", SIZE))
    assert len(left) == 1
    assert left[0] <= 29.8


def test_a_threads_reply_is_used_although_base64_was_refused_in_the_meantime(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = in_use(server)
    endpoints = [
        endpoint
        for (base_url, *_), endpoint in engine()[1]._endpoints.items()
        if base_url == client.settings.base_url
    ]

    def refused(*_: Any) -> Answer:
        for endpoint in endpoints:
            endpoint.base64_refused = True
        return Answer(429, {"retry-after": "0.3"}, b"{}")

    monkeypatch.setattr(BlockingSender, "send", refused)
    before, began = client.usage, time.monotonic()
    assert np.array_equal(client.embed("a text"), expected_vector("a text", SIZE))
    assert time.monotonic() - began >= 0.3
    sent = client.usage - before
    assert (sent.requests, sent.retries) == (2, 1)
