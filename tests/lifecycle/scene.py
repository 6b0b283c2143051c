"""Shared by the tests of this folder: clients, expected vectors, subprocesses, idle checks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faults.server import FaultServer, Wire, expected_vector

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.call.engine import engine
from nexusflow_integrations._core.secret import ApiKey

KEY = "sk-air-lifecycle-0123456789abcdef"
SIZE = 64
ROOT = Path(__file__).parents[2]


def client_of(server: Any, **options: Any) -> NexusFlow:
    options.setdefault("dimensions", SIZE)
    options.setdefault("timeout", 60.0)
    return NexusFlow(KEY, base_url=server.base_url, **options)


def texts(n: int, name: str = "text") -> list[str]:
    return [f"{name} {i}" for i in range(n)]


def assert_right(rows: Any, of: Sequence[str], size: int = SIZE) -> None:
    assert len(rows) == len(of)
    for row, text in zip(rows, of, strict=True):
        assert np.array_equal(row, expected_vector(text, size)), text


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something that must become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.01)


async def auntil(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        await asyncio.sleep(0.01)


def lane_of(client: NexusFlow) -> Any:
    endpoints = engine()[1]._endpoints
    return endpoints[(client.base_url, ApiKey(KEY), client.model)]


def tasks() -> set[Any]:
    """Tasks on the background loop."""
    return asyncio.all_tasks(engine()[0].loop)


def passengers() -> int:
    """How many calls wait for a text that another call embeds."""

    async def count() -> int:
        carriers = {
            id(carrier): carrier
            for each in engine()[1]._coalescers.values()
            for carrier, _ in each._carriers.values()
        }
        return sum(len(waits) for c in carriers.values() for waits in c.waiting.values())

    found: int = engine()[0].submit(count()).result(60)
    return found


def assert_quiet(client: NexusFlow, server: FaultServer, *, requests: int | None = None) -> None:
    """Nothing is in flight, no task is left, and nothing more is sent."""
    until(lambda: lane_of(client).admission.in_flight == 0)
    until(lambda: not tasks())
    until(lambda: not server.has_unread())  # what was sent before is counted when it is read
    sent = len(server.requests) if requests is None else requests
    time.sleep(0.15)
    assert len(server.requests) == sent
    assert not lane_of(client).admission._waiting or all(
        entry[-1].done() for entry in lane_of(client).admission._waiting
    )


def hold(wire: Wire) -> None:
    """Say nothing until the peer gives up."""
    wire.hold(120.0)


def popen(
    code: str,
    *arguments: str,
    warnings: bool = True,
    before: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Start Python on ``code``, every warning an error; ``argv`` is what follows.

    ``before`` is a command that is given the one to run.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    environment.pop("NEXUSFLOW_API_KEY", None)
    environment.update(options.pop("env", {}))
    flags = ["-W", "error"] if warnings else []
    # Python's own remark about forking with threads is what the tests of forking are about.
    flags += ["-W", "ignore:This process:DeprecationWarning"] if warnings else []
    return subprocess.Popen(
        [*before, sys.executable, *flags, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def run(code: str, *arguments: str, seconds: float = 300.0, **options: Any) -> tuple[int, str, str]:
    """Run ``code`` to its end; return its exit code, output and error output."""
    process = popen(code, *arguments, **options)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it hung; so far: {out}{err}") from None
    return process.returncode, out, err
