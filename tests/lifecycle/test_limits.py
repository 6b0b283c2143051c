"""The limits of an account hold as long as the client that gave them exists."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.server import FaultServer

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import APITimeoutError

from .scene import client_of, lane_of, run, until

ABSURD = 1e-9
"""Requests a minute: the second one would leave in two thousand years."""
SOON = 30.0
"""Seconds in which a call that waits for nothing has ended, however busy the machine is."""


def spend(client: NexusFlow) -> None:
    """Use up what an absurd limit lets through."""
    client.embed("the only one")
    with pytest.raises(APITimeoutError, match="deadline"):
        client.embed("one too many")


@pytest.mark.parametrize("end", ["closed", "collected", "in use"])
@pytest.mark.parametrize("limit", [None, 60_000.0])
@pytest.mark.parametrize("cached", [False, True])
def test_an_absurd_limit_of_one_client_stops_no_later_one(
    server: FaultServer, end: str, limit: float | None, cached: bool, tmp_path: Path
) -> None:
    if end == "in use" and limit is None:
        pytest.skip("who gives no limit keeps to those of the clients in use")
    options: dict[str, Any] = {"cache": tmp_path / "cache"} if cached else {}
    slow = client_of(server, requests_per_minute=ABSURD, deadline=0.5, **options)
    began = time.monotonic()
    spend(slow)
    assert time.monotonic() - began < SOON
    if end == "closed":
        slow.close()
    elif end == "collected":
        del slow
        gc.collect()
    later = client_of(server, requests_per_minute=limit, deadline=SOON, **options)
    for number in range(3):
        later.embed(f"text {number}")


def test_a_call_that_waits_for_a_limit_goes_on_when_the_limit_is_gone(server: FaultServer) -> None:
    slow = client_of(server, requests_per_minute=ABSURD)
    slow.embed("the only one")
    other = client_of(server)
    waiting = threading.Thread(target=other.embed, args=("a text",))
    waiting.start()
    until(lambda: lane_of(slow).admission._waiting)
    slow.close()
    waiting.join(SOON)
    assert not waiting.is_alive()


def test_an_async_call_that_waits_for_a_limit_goes_on_when_the_limit_is_gone(
    server: FaultServer,
) -> None:
    async def work() -> None:
        slow = client_of(server, requests_per_minute=ABSURD)
        await slow.aembed("the only one")
        waiting = asyncio.ensure_future(client_of(server).aembed("a text"))
        while not lane_of(slow).admission._waiting:
            await asyncio.sleep(0.01)
        await slow.aclose()
        await asyncio.wait_for(waiting, SOON)

    asyncio.run(work())


def test_an_error_that_is_kept_keeps_no_limit(server: FaultServer) -> None:
    slow = client_of(server, requests_per_minute=ABSURD, deadline=0.5)
    slow.embed("the only one")
    try:
        slow.embed("one too many")
    except APITimeoutError as error:
        kept = error.with_traceback(None)  # whose frames hold the client
    del slow
    gc.collect()
    client_of(server, deadline=SOON).embed("a text")
    assert str(kept)


def test_limits_given_once_hold_for_copies_as_long_as_one_of_them_is_in_use(
    server: FaultServer,
) -> None:
    first = client_of(server, requests_per_minute=ABSURD, deadline=0.5)
    first.embed("the only one")
    copy = first.resized(128)
    first.close()
    with pytest.raises(APITimeoutError):
        copy.embed("one too many")
    copy.close()
    client_of(server, deadline=SOON).embed("a text")


def test_a_stream_keeps_its_limits_until_it_ends(server: FaultServer) -> None:
    client = client_of(server, requests_per_minute=1200)
    lane_limits = []
    for _ in client.embed_stream(f"text {number}" for number in range(45)):
        client.close()
        lane_limits.append(lane_of(client).given)
    assert set(lane_limits[:-1]) <= {(1200, None), (None, None)}
    until(lambda: lane_of(client).given == (None, None))


@pytest.fixture
def forked() -> Iterator[str]:
    return """
        import os, sys
        from nexusflow_integrations import NexusFlow
        KEY = "sk-air-lifecycle-0123456789abcdef"
        slow = NexusFlow(KEY, base_url=sys.argv[1], dimensions=64, requests_per_minute=1e-9)
        slow.embed("the only one")
        pid = os.fork()
        if pid == 0:
            slow.close()
            NexusFlow(KEY, base_url=sys.argv[1], dimensions=64, deadline=30).embed("a text")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            NexusFlow(KEY, base_url=sys.argv[1], dimensions=64, deadline=1).embed("another")
        except TimeoutError:
            sys.exit(code)
        sys.exit("the limit of a client in use was not kept")
    """


def test_a_child_of_a_fork_ends_the_limit_for_itself_alone(
    server: FaultServer, forked: str
) -> None:
    code, out, err = run(forked, server.base_url)
    assert code == 0, out + err
