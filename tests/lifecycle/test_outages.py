"""A dead server gets few retries, calls survive a short outage, and queries come first."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from typing import Any

import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.request import retry
from nexusflow_integrations.errors import APIConnectionError, InternalServerError, NexusFlowError

from .scene import assert_quiet, assert_right, client_of, lane_of, texts, until


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BASE_FAULT", 0.002)
    monkeypatch.setattr(retry, "MAX_DELAY", 0.01)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_hundred_calls_to_a_dead_server_are_at_most_125_requests(server: Any, fault: str) -> None:
    from faults import behaviours as b

    server.script = type(server.script)(
        b.says(503, b.error("server_error")) if fault == "503" else b.resets_on_request
    )
    client = client_of(server)
    for n in range(100):
        with pytest.raises((InternalServerError, APIConnectionError)):
            client.embed([f"t{n}"])
    assert 100 <= server.attempts <= 125


@pytest.mark.usefixtures("quick_retries")
def test_a_hundred_calls_at_once_to_a_dead_server_are_few_more(server: Any) -> None:
    server.script = type(server.script)(lambda wire: wire.respond(503))
    client = client_of(server)
    failed = []

    def call(n: int) -> None:
        try:
            client.embed([f"t{n}"])
        except NexusFlowError:
            failed.append(n)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(failed) == 100
    assert server.attempts <= 125


@pytest.mark.usefixtures("quick_retries")
def test_a_large_call_to_a_dead_server_stops_long_before_its_last_batch(server: Any) -> None:
    server.script = type(server.script)(lambda wire: wire.respond(503))
    client = client_of(server, max_retries=3)
    with pytest.raises(InternalServerError):
        client.embed(texts(3000))
    assert server.attempts <= 60, "of 300 batches"
    assert_quiet(client, server)


def test_a_call_of_a_hundred_batches_outlives_an_outage_of_two_seconds(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With waits of any length, all six may be shorter than the outage (1 in 220 calls, simulated).
    backoff = retry.backoff
    monkeypatch.setattr(retry, "backoff", lambda number, base: backoff(number, base, uniform=0.5))
    began: list[float] = []

    def outage(wire: Any) -> None:
        if wire.number < 20:
            wire.pause(0.01)
            wire.right()
            return
        began.append(time.monotonic())
        if time.monotonic() - began[0] < 2.0:
            wire.respond(503)
        else:
            wire.right()

    server.script = type(server.script)(outage)
    client = client_of(server)
    rows = client.embed(texts(1000))
    assert_right(rows, texts(1000))
    print("requests for 100 batches:", server.attempts)
    assert server.attempts <= 150
    assert client.usage.requests == server.attempts


def test_a_terminal_error_stops_a_large_call_at_once(server: Any) -> None:
    body = {"error": {"code": "invalid_api_key", "message": "no"}}
    server.script = type(server.script)(lambda wire: wire.respond(401, body))
    client = client_of(server, max_concurrency=4)
    with pytest.raises(NexusFlowError):
        client.embed(texts(3000))
    assert server.attempts <= 8
    assert_quiet(client, server)


def test_queries_pass_before_a_backfill_that_came_first(server: Any) -> None:
    answers = threading.Semaphore(0)

    def when_told(wire: Any) -> None:
        answers.acquire(timeout=60)
        wire.right()

    server.script = type(server.script)(when_told)
    client = client_of(server, max_concurrency=1)
    backfill = threading.Thread(target=lambda: client.embed(texts(400)))
    backfill.start()
    for n in range(3):
        before = 2 * n + 1  # each round one of the backfill's and a query, and now the next
        until(lambda before=before: len(server.requests) == before)
        query = threading.Thread(
            target=client.embed, args=(f"query {n}",), kwargs={"role": "query"}
        )
        query.start()
        until(lambda: lane_of(client).admission._waiting)
        answers.release(2)  # to what was in flight, and to what passes next
        query.join(60)
        assert server.requests[before].texts == (f"query {n}",)
    answers.release(40)
    backfill.join(60)
    assert len(server.requests) == 43


def test_vectors_finished_when_a_call_fails_are_in_the_error(server: Any) -> None:
    body = {"error": {"code": "Arrearage", "message": "pay"}}
    server.script = type(server.script)(
        lambda wire: wire.respond(400, body), lambda wire: "text 155" in wire.texts
    )
    client = client_of(server, max_concurrency=4)
    with pytest.raises(NexusFlowError) as caught:
        client.embed(texts(300))
    finished = caught.value.finished
    assert 100 <= len(finished) < 300
    for index, row in finished.items():
        assert_right([row], [f"text {index}"])
    billed = sum(len(request.texts) for request in server.requests) - 10
    assert len(finished) == billed, "nothing that was paid for is lost"


def test_a_proxy_that_refuses_connections_is_named_as_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as closed:  # bound, and not listening
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{port}")
        client = NexusFlow("sk-air-test", base_url="https://service.invalid/v1", max_retries=0)
        for value in ("text", ["text"]):
            with pytest.raises(APIConnectionError) as caught:
                client.embed(value)
            refused = os.strerror(errno.ECONNREFUSED)
            assert str(caught.value) == f"cannot connect to the proxy 127.0.0.1:{port}: {refused}"


def message_with_proxy(proxy: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    client = NexusFlow("sk-air-test", base_url="https://service.invalid/v1", max_retries=0)
    with pytest.raises(APIConnectionError) as caught:
        client.embed("text")
    return str(caught.value)


@pytest.mark.parametrize("place", ["[::1]:1", "proxy.invalid:3128"])
def test_a_proxy_that_cannot_be_found_is_named_as_the_proxy(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    found = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        if host == "proxy.invalid":  # the resolver of this machine may know every name
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    said = message_with_proxy(f"http://user:secret@{place}", monkeypatch)
    assert said.startswith(f"cannot connect to the proxy {place}: ")


def test_a_proxy_that_does_not_speak_https_is_named_as_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        connection, _ = plain.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as plain:
        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        place = f"127.0.0.1:{plain.getsockname()[1]}"
        said = message_with_proxy(f"https://user:secret@{place}", monkeypatch)
        thread.join(60)
    assert said.startswith(f"the TLS handshake with the proxy {place} failed"), said


def test_a_refused_connection_is_named_in_the_systems_words() -> None:
    with socket.socket() as closed:  # bound, and not listening
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        client = NexusFlow("sk-air-test", base_url=url, allow_http=True, max_retries=0)
        with pytest.raises(APIConnectionError) as caught:
            client.embed(["text"])
    assert str(caught.value) == f"cannot connect to 127.0.0.1: {os.strerror(errno.ECONNREFUSED)}"
