"""A signal handler may embed and read a client's usage, whatever it interrupts."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from .scene import KEY, run

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")

SCRIPT = """
    import itertools, signal, sys, time
    from nexusflow_integrations import NexusFlow

    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64)
    handled, seen = 0, 0
    def handler(*_):
        global handled, seen
        handled += 1
        usage = client.usage
        assert usage.requests >= seen and usage.tokens >= usage.requests
        seen = usage.requests
        client.estimate(["a text"])
        if sys.argv[3] == "embeds":
            client.embed("in a handler")
        signal.setitimer(signal.ITIMER_REAL, next(waits))
    client.embed("warm")
    client.estimate(["a text"])
    signal.signal(signal.SIGALRM, handler)
    waits = itertools.cycle(n * 0.00017 for n in range(1, 12))
    signal.setitimer(signal.ITIMER_REAL, next(waits))
    calls = 1
    end = time.monotonic() + 60
    while handled < 300 and time.monotonic() < end:
        client.embed("a text")
        calls += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    embedded = handled if sys.argv[3] == "embeds" else 0
    print(handled >= 300, client.usage.requests == calls + embedded)
"""


@pytest.mark.parametrize("handler", ["reads", "embeds"])
def test_a_handler_reads_the_usage_of_a_client_whose_call_it_interrupts(
    server: Any, handler: str
) -> None:
    assert run(SCRIPT, server.base_url, KEY, handler, seconds=100) == (0, "True True\n", "")
