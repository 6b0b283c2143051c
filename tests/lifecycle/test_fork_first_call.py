"""After a fork at any moment of a process's first call, every child gets the right vectors."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .scene import KEY, popen

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

SCRIPT = """
    import multiprocessing, os, signal, sys, threading, time, traceback
    from concurrent.futures import ProcessPoolExecutor
    import numpy as np
    from faults.server import expected_vector
    from nexusflow_integrations import NexusFlow

    url, key, mode, cache, *moments = sys.argv[1:]
    signal.alarm(100)

    def check(client, texts):
        for row, text in zip(client.embed(texts), texts, strict=True):
            assert np.array_equal(row, expected_vector(text, 64)), text

    def made():
        return NexusFlow(key, base_url=url, dimensions=64, cache=cache or None, deadline=60)

    shared = made()

    def child(name):
        started = time.monotonic()
        check(shared, [f"{name} {n}" for n in range(12)])
        check(made(), ["known"] if cache else ["another client's"])
        assert time.monotonic() - started < 30, "it waited"
        return os.getpid()

    def fork_at(moment, failed):
        time.sleep(float(moment))
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                child(moment)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if status := os.waitpid(pid, 0)[1]:
            failed.append((moment, os.waitstatus_to_exitcode(status)))

    def pool_at(moment, failed):
        time.sleep(float(moment))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            pool.map_async(child, [f"{moment} {n}" for n in range(4)], 1).get(60)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            list(pool.map(child, [f"{moment} {n}" for n in "abc"], timeout=60))

    failed, errors = [], []

    def run(work, *arguments):
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(repr(error))

    # As where a server loads an application that embeds, and then forks its workers.
    threads = [threading.Thread(target=run, args=(check, shared, ["the first", "call"]))]
    work = pool_at if mode == "pool" else fork_at
    threads += [threading.Thread(target=run, args=(work, each, failed)) for each in moments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(failed, errors)
"""

KNOWN = """
    import sys
    from nexusflow_integrations import NexusFlow
    NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64, cache=sys.argv[3]).embed(["known"])
"""


def outcomes(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    found = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=110)
        finally:
            process.kill()
        found.append((process.returncode, out.strip(), err))
    return found


@pytest.mark.parametrize(
    "mode",
    [
        "plain",
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("with a cache file", "pool")),
    ],
)
def test_a_fork_at_any_moment_of_the_first_call_leaves_children_that_embed(
    server: Any, tmp_path: Path, mode: str
) -> None:
    path = str(tmp_path / "cache.db") if mode == "with a cache file" else ""
    if path:
        assert outcomes([popen(KNOWN, server.base_url, KEY, path)])[0][0] == 0
    # The first call lasts a second or so, most of it imports.
    moments = random.Random(mode).sample(range(1500), 15 if mode != "pool" else 3)
    groups = [moments[start::3] for start in range(3)]
    found = outcomes(
        [
            popen(SCRIPT, server.base_url, KEY, mode, path, *[str(n / 1000) for n in group])
            for group in groups
        ]
    )
    assert found == [(0, "[] []", "")] * 3
    if path:
        assert server.texts["known"] == 1, "what is in the cache is not paid for again"
