"""Timeouts and deadlines hold, even if the server responds slowly."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations.errors import APITimeoutError

from .scene import KEY, assert_quiet, assert_right, client_of, hold, lane_of, run, texts, until

DRIPS = ["drips_body", "drips_head", "endless_interim", "silence", "error_drip"]


def behaviour(name: str) -> Any:
    from faults import behaviours as b

    return {
        "drips_body": b.drips_body(0.05),
        "drips_head": b.drips_head,
        "endless_interim": b.interim(103, None),
        "silence": hold,
        "error_drip": b.drips_error_body(500),
    }[name]


def embed(client: Any, of: list[str], how: str) -> Any:
    return client.embed(of) if how == "sync" else asyncio.run(client.aembed(of))


SOON = 12.0  # much less than the drips last, and than the limit that must not be the one to hold


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("name", DRIPS)
def test_a_deadline_holds_against_slow_drip_responses(server: Any, name: str, how: str) -> None:
    server.script = type(server.script)(behaviour(name))
    client = client_of(server, timeout=60.0, deadline=0.5)
    began = time.monotonic()
    with pytest.raises(APITimeoutError, match=r"deadline of 0\.5 s"):
        embed(client, ["a"], how)
    assert 0.45 <= time.monotonic() - began < SOON
    assert_quiet(client, server)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_deadline_holds_while_sizes_are_compared_and_is_named_as_it_was_given(
    server: Any, how: str, tmp_path: Path
) -> None:
    server.script = type(server.script)(hold)
    client = client_of(server, dimensions=64, cache=tmp_path / "cache", derive=True, deadline=0.5)
    began = time.monotonic()
    with pytest.raises(APITimeoutError, match=r"deadline of 0\.5 s"):
        embed(client, ["a"], how)
    assert time.monotonic() - began < SOON
    assert_quiet(client, server)


@pytest.mark.parametrize("name", DRIPS)
def test_a_timeout_holds_for_each_attempt(server: Any, name: str) -> None:
    server.script = type(server.script)(behaviour(name))
    client = client_of(server, timeout=0.3, max_retries=0)
    began = time.monotonic()
    with pytest.raises(APITimeoutError, match=r"0\.3 s"):
        client.embed(["a"])
    assert time.monotonic() - began < SOON


def test_a_deadline_holds_in_the_wait_at_the_gate_and_keeps_what_was_finished(server: Any) -> None:
    client = client_of(server, requests_per_minute=60, deadline=1.5, max_concurrency=2)
    with pytest.raises(APITimeoutError) as caught:
        client.embed(texts(200))
    finished = caught.value.finished
    assert 10 <= len(finished) < 200
    assert_right([finished[n] for n in sorted(finished)], [f"text {n}" for n in sorted(finished)])
    assert_quiet(client, server)


def test_a_deadline_holds_in_the_wait_for_a_text_that_another_call_embeds(server: Any) -> None:
    server.script = type(server.script)(hold)
    slow, quick = client_of(server, max_retries=0), client_of(server, deadline=0.3)
    import threading

    errors: list[BaseException] = []

    def first() -> None:
        try:
            slow.embed(["shared"])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=first, daemon=True)
    thread.start()
    until(lambda: server.requests)
    with pytest.raises(APITimeoutError, match="deadline"):
        quick.embed(["shared"])
    assert len(server.requests) == 1
    server.stop()
    thread.join(60)


def test_a_jump_of_the_wall_clock_neither_hangs_nor_hurries_a_call(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nexusflow_integrations._core.request import retry

    monkeypatch.setattr(retry, "BASE_FAULT", 0.2)
    monkeypatch.setattr(retry.random, "random", lambda: 0.9)
    real = time.time
    jumps = iter([0.0, 86_400.0 * 365, -86_400.0 * 365])

    def jump(wire: Any) -> None:
        offset = next(jumps, 0.0)
        monkeypatch.setattr(time, "time", lambda: real() + offset)
        wire.respond(503)

    server.script = type(server.script)(jump, lambda wire: wire.number < 3)
    client = client_of(server, deadline=120.0)
    assert_right(client.embed(["a"]), ["a"])
    monkeypatch.setattr(time, "time", real)
    assert all(gap >= 0.15 for gap in server.gaps())
    assert lane_of(client).admission.in_flight == 0


SLOW_IMPORTS = """
    import asyncio, sys, time
    import numpy as np
    from faults.server import expected_vector
    from nexusflow_integrations import NexusFlow

    class Slow:
        imported = False
        def find_spec(self, name, path=None, target=None):
            if name == "aiohttp":
                Slow.imported = True
                time.sleep(1.0)

    sys.meta_path.insert(0, Slow())
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64, deadline=0.9)
    how = sys.argv[3]
    if how == "sync":
        row = client.embed("a text")
    elif how == "async":
        row = asyncio.run(client.aembed("a text"))
    else:
        (row,) = [each.vector for each in client.embed_stream(["a text"])]
    print(Slow.imported, np.array_equal(row, expected_vector("a text", 64)))
"""


@pytest.mark.parametrize("how", ["sync", "async", "stream"])
def test_the_imports_of_a_first_call_are_over_before_its_deadline_runs(
    server: Any, how: str
) -> None:
    assert run(SLOW_IMPORTS, server.base_url, KEY, how) == (0, "True True\n", "")
