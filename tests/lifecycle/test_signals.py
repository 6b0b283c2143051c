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


INTERRUPTED = """
    import asyncio, signal, sys, threading
    import numpy as np
    from faults.behaviours import right_after
    from faults.server import FaultServer, always, expected_vector
    from nexusflow_integrations import NexusFlow

    how, concurrency, names = sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    main = threading.main_thread().ident
    level = 0

    def calls(*_):
        global level
        if level == len(names):
            return
        name, _, count = names[level].partition(":")
        level += 1
        texts = [name, *(f"{name} {n}" for n in range(1, int(count or 1)))]
        if how == "async" and level == 2:
            rows = asyncio.run(client.aembed(texts))
        else:
            rows = client.embed(texts)
        print(np.array_equal(rows, [expected_vector(text, 64) for text in texts]))

    def interrupts(wire):
        signal.pthread_kill(main, signal.SIGUSR1)
        right_after(0.3)(wire)

    with FaultServer() as server:
        client = NexusFlow(
            sys.argv[1], base_url=server.base_url, dimensions=64, max_concurrency=concurrency
        )
        client.embed("warm")
        client.embed("warmer")
        signal.signal(signal.SIGUSR1, calls)
        server.script = always(interrupts)
        calls()
        print(server.max_in_flight <= concurrency)
"""


@pytest.mark.parametrize(
    ("how", "concurrency"), [("sync", 1), ("sync", 2), ("sync", 32), ("async", 32)]
)
@pytest.mark.parametrize(
    "names",
    [
        ["same", "same", "same"],
        ["same", "other", "same"],
        ["one", "another", "a third"],
        ["same:15", "same"],
        ["same:15", "other", "same 3"],
    ],
    ids=" ".join,
)
def test_a_handler_gets_vectors_while_the_call_that_it_interrupts_has_a_request_in_flight(
    names: list[str], how: str, concurrency: int
) -> None:
    code, out, err = run(INTERRUPTED, KEY, how, str(concurrency), *names, seconds=60)
    assert (code, set(out.split()), err) == (0, {"True"}, "")
    assert len(out.split()) >= 3  # a call that sends nothing is not interrupted
