"""A signal handler may embed and read a client's usage, whatever it interrupts."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterable, Callable
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.call.background import background_loop
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.shared_budget import Grant

from .scene import KEY, client_of, run, texts

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
    assert (code, set(out.split()), err) == (0, {"True"}, "")
    assert len(out.split()) >= 3  # a call that sends nothing is not interrupted


STREAM = """
    import itertools, signal, sys, time
    from nexusflow_integrations import NexusFlow

    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64)
    handled = 0
    def handler(*_):
        global handled
        handled += 1
        client.embed([f"{handled} {n}" for n in range(12)])
        signal.setitimer(signal.ITIMER_REAL, next(waits))
    client.embed("warm")
    signal.signal(signal.SIGALRM, handler)
    waits = itertools.cycle(n * 0.00017 for n in range(1, 12))
    signal.setitimer(signal.ITIMER_REAL, next(waits))
    right, end = True, time.monotonic() + 60
    while handled < 300 and time.monotonic() < end:
        texts = [f"text {n}" for n in range(15)]
        right &= sum(1 for _ in client.embed_stream(texts)) == 15
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    print(handled >= 300, right)
"""


def test_a_handler_embeds_many_texts_while_a_stream_runs(server: Any) -> None:
    assert run(STREAM, server.base_url, KEY) == (0, "True True\n", "")


async def _read(stream: AsyncIterable[object]) -> None:
    async for _ in stream:
        pass


class Tokens:
    """A shared budget that is never used up."""

    tokens = 1 << 40

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Grant:
        return Grant(wanted, self.tokens, pending=False)


MANY = texts(40)

CALLS: dict[str, Callable[[NexusFlow], object]] = {
    "embed": lambda client: client.embed(MANY),
    "a stream": lambda client: list(client.embed_stream(MANY)),
    "an unordered stream": lambda client: list(client.embed_stream(MANY, ordered=False)),
    "a stream that is left": lambda client: next(client.embed_stream(MANY)),
    "estimate": lambda client: client.estimate(MANY),
    "verify_cache": lambda client: client.verify_cache(),
    "close": lambda client: client.close(),
    "aembed": lambda client: asyncio.run(client.aembed(MANY)),
    "an async stream": lambda client: asyncio.run(_read(client.aembed_stream(MANY))),
    "aclose": lambda client: asyncio.run(client.aclose()),
    "fork": lambda _: background_loop()._pause(monotonic() + 60)(),  # type: ignore[misc]
}


@pytest.mark.parametrize("call", CALLS)
def test_a_calling_thread_takes_no_lock_for_which_the_event_loop_may_wait(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    # A signal handler that runs while the thread holds such a lock would block the loop for as
    # long as it waits for a call; if it raises, the lock would stay taken for ever.
    options = {} if call == "embed" else {"cache": tmp_path / "cache", "budget": Tokens()}
    client = client_of(server, **options)
    client.embed(texts(12, "warm"))
    plain, taken = threading.Condition.__enter__, []
    here = threading.get_ident()

    def enter(condition: threading.Condition) -> bool:
        if threading.get_ident() == here:
            taken.append(sys._getframe(1).f_code.co_name)
        return plain(condition)

    monkeypatch.setattr(threading.Condition, "__enter__", enter)
    CALLS[call](client)
    monkeypatch.undo()
    assert taken == []


@pytest.mark.parametrize("kind", [RuntimeError, TimeoutError, ConnectionError])
def test_an_error_of_a_signal_handler_during_a_first_call_s_imports_is_raised_as_it_is(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(*_: object) -> None:
        raise kind("the time is over")

    monkeypatch.setattr(
        "nexusflow_integrations._core.call.imports.import_module",
        lambda _: signal.raise_signal(signal.SIGTERM),
    )
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(kind, match="the time is over"):
            NexusFlow("sk-air-x", base_url="http://127.0.0.1:9/v1").embed("a text")
    finally:
        signal.signal(signal.SIGTERM, before)
