"""A caller's own HTTP client (httpx or httpx2) is used unchanged and never closed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import APIConnectionError, APITimeoutError, NexusFlowError

from .scene import KEY, SIZE, assert_quiet, assert_right, auntil, client_of, hold, run, texts

LIBRARIES = ["httpx", "httpx2"]


@pytest.fixture(params=LIBRARIES)
def lib(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def answering(lib: Any, seen: list[Any]) -> Any:
    """A transport that answers right, without a socket."""
    from faults.server import payload

    def answer(request: Any) -> Any:
        seen.append(request)
        body = json.loads(request.content)
        return lib.Response(200, json=payload(body["input"], SIZE, body["encoding_format"]))

    return lib.MockTransport(answer)


def of(**options: Any) -> NexusFlow:
    return NexusFlow(KEY, base_url="https://mock.example/v1", dimensions=SIZE, **options)


def test_sync_calls_go_through_the_callers_client_which_stays_open(lib: Any) -> None:
    seen: list[Any] = []
    with lib.Client(transport=answering(lib, seen), headers={"X-Own": "1"}) as http:
        client = of(http_client=http)
        assert_right(client.embed(texts(35)), texts(35))
        client.close()
        del client
        assert not http.is_closed
    assert len(seen) == 4
    for request in seen:
        assert request.headers["x-own"] == "1", "it is used as it is"
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert str(request.url) == "https://mock.example/v1/embeddings"


async def test_async_calls_go_through_the_callers_client_on_the_callers_loop(lib: Any) -> None:
    threads: set[int] = set()
    seen: list[Any] = []
    transport = answering(lib, seen)

    class Noting(lib.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            threads.add(threading.get_ident())
            return await transport.handle_async_request(request)

    async with lib.AsyncClient(transport=Noting()) as http:
        client = of(async_http_client=http)
        assert_right(await client.aembed(texts(35)), texts(35))
        await client.aclose()
        assert not http.is_closed
    assert threads == {threading.get_ident()}
    assert len(seen) == 4


def test_each_client_serves_its_own_kind_of_call(lib: Any) -> None:
    seen: list[Any] = []
    with lib.Client(transport=answering(lib, seen)) as http:
        client = of(http_client=http)

        async def call() -> None:
            async with lib.AsyncClient(transport=answering(lib, async_seen)) as ahttp:
                both = of(http_client=http, async_http_client=ahttp)
                await both.aembed("b")

        async_seen: list[Any] = []
        client.embed("a")
        asyncio.run(call())
    assert (len(seen), len(async_seen)) == (1, 1)


def test_over_real_sockets_with_many_threads(lib: Any, server: Any) -> None:
    with lib.Client() as http:
        client = client_of(server, http_client=http)
        assert_right(client.embed(texts(400)), texts(400))
        assert not http.is_closed


async def test_over_real_sockets_on_an_event_loop(lib: Any, server: Any) -> None:
    async with lib.AsyncClient() as http:
        client = client_of(server, async_http_client=http)
        assert_right(await client.aembed(texts(400)), texts(400))


@pytest.mark.usefixtures("short_delays")
@pytest.mark.parametrize("how", ["sync", "async"])
def test_faults_are_retried_or_typed_errors_as_with_our_own_client(
    lib: Any, server: Any, how: str
) -> None:
    from faults import behaviours as b

    script = type(server.script)
    faults = [
        b.says(503, b.error("server_error")),
        b.resets_on_request,
        b.closes_mid_body,
        b.resets_on_accept,
    ]

    async def acall(**options: Any) -> Any:
        async with lib.AsyncClient() as http:
            return await client_of(server, async_http_client=http, **options).aembed(["a"])

    def call(**options: Any) -> Any:
        if how == "async":
            return asyncio.run(acall(**options))
        with lib.Client() as http:
            return client_of(server, http_client=http, **options).embed(["a"])

    for fault in faults:
        done = []

        def once(wire: Any, fault: Any = fault, done: Any = done) -> None:
            if done:
                wire.right()
            else:
                done.append(1)
                fault(wire)

        server.script = script(once)
        assert_right(call(), ["a"])
    server.script = script(b.resets_on_request)
    with pytest.raises(APIConnectionError):
        call(max_retries=1)


def test_redirects_are_not_followed_even_by_a_client_that_follows(lib: Any, server: Any) -> None:
    from faults.server import FaultServer

    with FaultServer() as other:
        location = [("Location", f"{other.base_url}/embeddings")]
        server.script = type(server.script)(lambda wire: wire.respond(307, b"", location))
        with lib.Client(follow_redirects=True) as http, pytest.raises(NexusFlowError, match="307"):
            client_of(server, http_client=http).embed(["a"])
        assert other.attempts == 0


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_deadline_holds_against_a_dripping_server_with_any_client(
    lib: Any, server: Any, how: str
) -> None:
    from faults.behaviours import drips_body

    server.script = type(server.script)(drips_body(0.05))

    async def acall() -> Any:
        async with lib.AsyncClient() as http:
            return await client_of(server, async_http_client=http, deadline=0.5).aembed(["a"])

    def call() -> Any:
        if how == "async":
            return asyncio.run(acall())
        return client_of(server, http_client=lib.Client(), deadline=0.5).embed(["a"])

    began = time.monotonic()
    with pytest.raises(APITimeoutError):
        call()
    assert time.monotonic() - began < 12, "half as long as the drip"


async def test_cancelling_stops_the_callers_async_client_too(lib: Any, server: Any) -> None:
    server.script = type(server.script)(hold)
    async with lib.AsyncClient() as http:
        client = client_of(server, async_http_client=http)
        task = asyncio.ensure_future(client.aembed(texts(50)))
        await auntil(lambda: len(server.requests) == 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(assert_quiet, client, server, requests=5)
        await auntil(lambda: server.open_connections == 0)


def test_an_unknown_error_of_a_client_becomes_a_typed_error(lib: Any) -> None:
    def fail(request: Any) -> Any:
        raise ZeroDivisionError(str(request.headers))

    with (
        lib.Client(transport=lib.MockTransport(fail)) as http,
        pytest.raises(APIConnectionError, match="ZeroDivisionError") as caught,
    ):
        of(http_client=http).embed("a")
    assert KEY not in str(caught.value)


def test_a_closed_client_of_the_caller_is_a_typed_error(lib: Any) -> None:
    http = lib.Client(transport=answering(lib, []))
    http.close()
    with pytest.raises(APIConnectionError):
        of(http_client=http).embed("a")


def test_a_mock_that_answers_in_gzip_is_unpacked_once(lib: Any) -> None:
    import gzip

    from faults.server import payload

    def answer(request: Any) -> Any:
        body = json.loads(request.content)
        packed = gzip.compress(json.dumps(payload(body["input"], SIZE, "float")).encode())
        return lib.Response(200, content=packed, headers={"content-encoding": "gzip"})

    with lib.Client(transport=lib.MockTransport(answer)) as http:
        assert_right(of(http_client=http).embed(["a"]), ["a"])


def test_a_loop_that_ends_before_the_request_is_sent_leaves_no_coroutine_behind() -> None:
    code = """
import asyncio, gc, httpx
from nexusflow_integrations import NexusFlow
answer = {"data": [{"index": 0, "embedding": [1.0] * 64}]}
transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
client = NexusFlow("key", dimensions=64, async_http_client=httpx.AsyncClient(transport=transport))
async def leave():
    asyncio.ensure_future(client.aembed("text"))
    await asyncio.sleep(0)
for _ in range(30):
    asyncio.run(leave())
gc.collect()
"""
    command = [sys.executable, "-W", "always::RuntimeWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "never awaited" not in done.stderr


USED_BEFORE_A_FORK = """
    import asyncio, importlib, os, signal, sys
    import numpy as np
    from faults.server import expected_vector
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations.errors import ConfigurationError

    url, key, name, how = sys.argv[1:]
    signal.alarm(100)
    lib = importlib.import_module(name)
    given = dict(base_url=url, dimensions=64)

    def check(http):
        if how == "sync":
            row = NexusFlow(key, http_client=http, **given).embed("a text")
        else:
            client = NexusFlow(key, async_http_client=http, **given)
            row = asyncio.run(client.aembed("a text"))
        assert np.array_equal(row, expected_vector("a text", 64))

    make = lib.Client if how == "sync" else lib.AsyncClient
    used, unused = make(), make()
    check(used)
    if (child := os.fork()) == 0:
        signal.alarm(60)
        check(unused)
        try:
            check(used)
        except ConfigurationError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if how == "sync":
        check(used)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("how", ["sync", "async"])
def test_the_child_of_a_fork_does_not_send_through_a_client_that_its_parent_has_used(
    lib: Any, server: Any, how: str
) -> None:
    code, out, err = run(
        USED_BEFORE_A_FORK, server.base_url, KEY, lib.__name__, how, warnings=False
    )
    assert (code, out) == (0, "0\n"), err
