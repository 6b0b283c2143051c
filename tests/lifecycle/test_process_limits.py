"""A client needs few file descriptors and little memory, and neither grows with use."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from .scene import KEY, assert_right, client_of, run, texts, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc of Linux")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_file_descriptors_stay_flat_over_thirty_event_loops(server: Any) -> None:
    client = client_of(server)
    asyncio.run(client.aembed(texts(20)))
    before = descriptors()
    for n in range(30):
        asyncio.run(client.aembed(texts(12, f"loop {n}")))
    until(lambda: descriptors() <= before + 4)


def test_file_descriptors_stay_flat_over_a_hundred_clients_and_faults(
    server: Any, short_delays: None
) -> None:
    def shaky(wire: Any) -> None:
        if wire.number % 5 == 0:
            wire.reset()
        wire.right()

    client_of(server).embed(texts(20))
    server.script = type(server.script)(shaky)
    before = descriptors()
    for n in range(100):
        client_of(server).embed(f"t{n}")
    until(lambda: descriptors() <= before + 4)


EXHAUSTED = """
    import os, resource, sys
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations.errors import NexusFlowError
    from nexusflow_integrations._core.request import retry
    retry.BASE_FAULT = 0.01
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64, max_retries=2)
    import aiohttp, numpy  # these do not bear being imported again after half of it
    if sys.argv[3] == "loop":
        from nexusflow_integrations._core.call.engine import engine
        engine()
    if sys.argv[3] == "warm":
        client.embed("warm")
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        rows = client.embed([f"t {n}" for n in range(100)])
    except NexusFlowError as error:
        print(type(error).__name__)
    else:
        print("right" if len(rows) == 100 else "wrong")
    for fd in held:
        os.close(fd)
    print(len(client.embed([f"u {n}" for n in range(100)])), flush=True)
"""


@pytest.mark.parametrize("state", ["cold", "loop", "warm"])
def test_without_file_descriptors_it_is_a_typed_error_and_works_again_after(
    server: Any, state: str
) -> None:
    code, out, err = run(EXHAUSTED, server.base_url, KEY, state)
    assert code == 0, err
    if state != "cold":  # there, asyncio itself leaves half of an event loop behind
        assert err == ""
    first, second = out.splitlines()
    assert first in ("APIConnectionError", "right")
    assert second == "100"


BOMBED = """
    import resource, sys
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations.errors import NexusFlowError
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64, max_retries=0)
    client.embed("warm")
    with open("/proc/self/statm") as pages:
        used = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
    try:
        client.embed("bomb")
    except NexusFlowError as error:
        print(type(error).__name__)
    print(len(client.embed(["after"])))
"""


@pytest.mark.parametrize("bomb", ["gzip_bomb", "gzip_bomb_in_error", "endless_body", "digits"])
def test_a_decompression_bomb_is_a_typed_error_within_200_mb(server: Any, bomb: str) -> None:
    from faults import behaviours as b

    behaviour = {
        "gzip_bomb": b.gzip_bomb,
        "gzip_bomb_in_error": b.gzip_bomb_in_error,
        "endless_body": b.endless_body,
        "digits": lambda wire: wire.respond(200, b'{"data":[' + b"9" * 15_000_000 + b"]}"),
    }[bomb]
    server.script = type(server.script)(behaviour, lambda wire: wire.texts == ("bomb",))
    code, out, err = run(BOMBED, server.base_url, KEY)
    assert (code, err) == (0, ""), err
    first, second = out.splitlines()
    assert first in ("InvalidResponseError", "APIConnectionError", "BadRequestError")
    assert second == "1"


def rss() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_a_short_soak_is_right_in_every_vector_with_memory_and_descriptors_flat(
    server: Any, short_delays: None
) -> None:
    """2,000 texts three times over, 5 % of the answers at fault in eight ways."""
    from faults import behaviours as b

    faults = [
        b.says(503, b.error("server_error")),
        b.says(500, b.error("server_error")),
        b.says(429, b.error("rate_limit_exceeded"), [("retry-after-ms", "20")]),
        b.resets_on_request,
        b.closes_mid_body,
        b.replaced(lambda body: (body["data"].pop() and None) or body),
        b.html(502, "Bad Gateway"),
        b.replaced(lambda body: body["data"].reverse() or body),  # odd, but right
    ]

    def shaky(wire: Any) -> None:
        if wire.number % 20 == 7:
            faults[wire.number // 20 % len(faults)](wire)
        else:
            wire.right()

    server.script = type(server.script)(shaky)
    client = client_of(server, max_retries=20)

    def round_(n: int) -> None:
        mine = texts(2000, f"soak {n}")
        assert_right(client.embed(mine), mine)

    round_(0)
    memory, files = rss(), descriptors()
    for n in range(1, 3):
        round_(n)
    assert client.usage.retries >= 15, "there were faults"
    assert client.usage.requests <= 1.15 * 600
    assert rss() - memory < 60, "the server in this process remembers the requests"
    until(lambda: descriptors() <= files + 24)


def test_a_missing_certificate_file_is_a_typed_error_that_names_the_variable() -> None:
    code, out, err = run(
        """
        import sys
        from nexusflow_integrations import NexusFlow
        from nexusflow_integrations.errors import NexusFlowError
        try:
            NexusFlow(sys.argv[1], base_url="https://127.0.0.1:9/v1").embed("a")
        except NexusFlowError as error:
            print("SSL_CERT_FILE" in str(error), sys.argv[1] in str(error))
        """,
        KEY,
        env={"SSL_CERT_FILE": "/nowhere/ca.pem"},
    )
    assert (code, out, err) == (0, "True False\n", "")
