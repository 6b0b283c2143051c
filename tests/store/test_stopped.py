"""A suspended process or a jump of the clock costs at most the requests in flight."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations.local import LocalServer

Work = Callable[..., "subprocess.Popen[str]"]
Outcome = Callable[..., Any]

both = pytest.mark.parametrize("kept_in", ["file", "redis"])
"""Marks tests that run with a file and with a server."""

TEXTS = [f"document {number}" for number in range(300)]
BATCH = 10
PER_MINUTE = 1_200
LATENCY = 0.1
IN_FLIGHT = 3 * BATCH
"""Texts: 20 requests a second take 0.1 s each, and one may come between a look and its request."""
HOLD = 0.8
"""Seconds that a claim holds here."""


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer("hash", latency_ms=1000 * LATENCY, record_texts=True) as running:
        yield running


@pytest.fixture
def start(
    work: Work, place: str, server: LocalServer, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    """Start a process that embeds all texts."""

    def make(**options: Any) -> Any:
        return work(
            "call",
            path=place,
            base_url=server.base_url,
            api_key=server.api_key,
            texts=TEXTS,
            settings={"requests_per_minute": PER_MINUTE},
            ready=str(tmp_path / "ready"),
            claim_seconds=HOLD,
            **options,
        )

    return make


def wait_until_sent(server: LocalServer, texts: int) -> None:
    until = time.monotonic() + 120
    while server.stats.texts < texts:
        assert time.monotonic() < until
        time.sleep(0.002)


def stop(process: subprocess.Popen[str], place: str) -> None:
    """Stop a process, but not while it writes: the others would continue without a cache."""
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        if "://" in place:
            return
        db = sqlite3.connect(place, timeout=0.5, isolation_level=None)
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(process.pid, signal.SIGCONT)
        else:
            return
        finally:
            db.close()


def check(server: LocalServer, done: list[dict[str, Any]]) -> None:
    assert {tuple(one["shape"]) for one in done} == {(len(TEXTS), 1024)}
    assert len({one["checksum"] for one in done}) == 1
    twice = server.stats.duplicates
    assert set(twice.values()) <= {2}
    assert len(twice) <= IN_FLIGHT
    assert server.stats.texts == len(TEXTS) + len(twice)
    # What is said of money is what may have been lost, and no more.
    repaid = sum(one["repaid"] for one in done)
    assert len(twice) <= repaid <= IN_FLIGHT
    said = [line for one in done for line in one["logged"] if "paid for again" in line]
    assert bool(said) is (repaid > 0)


@pytest.mark.parametrize(
    ("kept_in", "stream"),
    [
        pytest.param("file", False, id="embed-file"),
        pytest.param("file", True, id="stream-file", marks=pytest.mark.slow),
        pytest.param("redis", False, id="embed-redis", marks=pytest.mark.slow),
        pytest.param("redis", True, id="stream-redis", marks=pytest.mark.slow),
    ],
)
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a signal of POSIX")
def test_a_suspended_process_pays_only_for_what_nobody_took_over(
    start: Callable[..., subprocess.Popen[str]],
    outcome: Outcome,
    server: LocalServer,
    start_together: Callable[[Path, int], None],
    tmp_path: Path,
    place: str,
    stream: bool,
) -> None:
    stopped, other = start(stream=stream), start(stream=stream)
    start_together(tmp_path / "ready", 2)
    wait_until_sent(server, 80)
    stop(stopped, place)
    time.sleep(3 * HOLD)
    os.kill(stopped.pid, signal.SIGCONT)
    check(server, [outcome(stopped), outcome(other)])


@contextmanager
def jumping(clock: Path, by: float, after: float) -> Iterator[None]:
    """Set the clock once, ``after`` seconds from now."""

    def jump() -> None:
        new = clock.with_suffix(".new")
        new.write_text(str(by))
        new.replace(clock)

    timer = threading.Timer(after, jump)
    timer.start()
    yield
    timer.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("kept_in", ["redis"])
@pytest.mark.parametrize("jump", [-60.0, 60.0])
def test_a_servers_clock_that_jumps_costs_no_more_than_what_was_being_paid(
    start: Callable[..., subprocess.Popen[str]],
    outcome: Outcome,
    server: LocalServer,
    start_together: Callable[[Path, int], None],
    tmp_path: Path,
    jump: float,
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    racers = [start(clock=str(clock)) for _ in range(2)]
    start_together(tmp_path / "ready", 2)
    wait_until_sent(server, 80)
    with jumping(clock, jump, 0.0):
        check(server, [outcome(racer) for racer in racers])
