"""Clients can be closed by `close`, `aclose` or `with`, and the process can exit without them."""

from __future__ import annotations

import gc
import subprocess
import threading
import warnings
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import ConfigurationError

from .scene import KEY, assert_right, client_of, hold, popen, run, texts, until


def test_close_may_be_called_twice_and_use_after_it_is_a_clear_error(server: Any) -> None:
    with client_of(server) as client:
        assert_right(client.embed(["a"]), ["a"])
    client.close()
    for use in (
        lambda: client.embed("a"),
        lambda: client.embed([]),
        lambda: next(client.embed_stream(["a"])),
        lambda: client.estimate(["a"]),
    ):
        with pytest.raises(ConfigurationError, match="closed"):
            use()
    assert client.usage.texts == 1
    assert len(server.requests) == 1


async def test_aclose_may_be_called_twice_and_use_after_it_is_a_clear_error(server: Any) -> None:
    async with client_of(server) as client:
        assert_right(await client.aembed(["a"]), ["a"])
    await client.aclose()
    with pytest.raises(ConfigurationError, match="closed"):
        await client.aembed("a")


def test_closing_one_client_leaves_the_others_and_their_connections(server: Any) -> None:
    first, second = client_of(server), client_of(server)
    first.embed("a")
    first.close()
    assert_right(second.embed(["b"]), ["b"])
    assert server.connections == 1


def test_a_call_in_flight_outlives_the_close_of_its_client(server: Any) -> None:
    def slow(wire: Any) -> None:
        wire.pause(0.3)
        wire.right()

    server.script = type(server.script)(slow)
    client = client_of(server)
    rows: list[Any] = []
    thread = threading.Thread(target=lambda: rows.append(client.embed(texts(40))))
    thread.start()
    until(lambda: server.requests)
    client.close()
    thread.join(60)
    assert_right(rows[0], texts(40))
    with pytest.raises(ConfigurationError, match="closed"):
        client.embed("b")


def test_a_client_that_is_dropped_leaves_no_warning(server: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(5):
            client_of(server).embed(f"t{n}")
            gc.collect()
    assert server.connections == 1


def test_building_a_client_opens_nothing_and_starts_nothing() -> None:
    code, out, err = run(
        """
        import sys, threading
        from nexusflow_integrations import NexusFlow
        clients = [NexusFlow() for _ in range(1000)]
        assert threading.active_count() == 1
        heavy = {"aiohttp", "httpx", "asyncio.base_events", "numpy"} & set(sys.modules)
        print(sorted(heavy - {"numpy", "asyncio.base_events"}))
        """
    )
    assert (code, out, err) == (0, "[]\n", "")


EXIT = """
    import asyncio, sys, threading
    from nexusflow_integrations import NexusFlow
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64, timeout=120)
    how = sys.argv[3]
    if how != "in flight":
        client.embed([f"t {n}" for n in range(50)])
    if how == "async":
        asyncio.run(client.aembed("a"))
    if how == "stream left open":
        stream = client.embed_stream(f"s {n}" for n in range(500))
        next(stream)
    if how == "error":
        raise SystemExit(7)
    if how == "in flight":
        import contextlib
        def embed():
            with contextlib.suppress(BaseException):
                client.embed(["a"])
        threading.Thread(target=embed, daemon=True).start()
        sys.stdin.readline()  # until it is in flight
    if how == "deleted":
        del client
    print("bye", flush=True)
"""


@pytest.mark.parametrize("how", ["open", "async", "stream left open", "deleted"])
def test_an_interpreter_that_ends_with_an_open_client_says_nothing(server: Any, how: str) -> None:
    assert run(EXIT, server.base_url, KEY, how) == (0, "bye\n", "")


def test_an_interpreter_that_ends_with_a_request_in_flight_says_nothing(server: Any) -> None:
    server.script = type(server.script)(hold)
    process = popen(EXIT, server.base_url, KEY, "in flight", stdin=subprocess.PIPE)
    try:
        until(lambda: server.requests)
        out, err = process.communicate("now\n", timeout=60)  # half of the request's timeout
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "bye\n", "")


def test_the_exit_code_stays_the_programs_own(server: Any) -> None:
    assert run(EXIT, server.base_url, KEY, "error") == (7, "", "")


def test_no_texts_are_no_request_and_an_empty_array(server: Any) -> None:
    rows = client_of(server).embed([])
    assert rows.shape == (0, 64)
    assert rows.dtype == np.float32
    assert NexusFlow(KEY, base_url=server.base_url).embed(iter(())).shape == (0, 0)
    assert server.attempts == 0
