"""The throughput of a Redis server: send times and texts per second, compared with the cache file.

    python tests/benchmarks/redis_rates.py [--seconds 3]

Starts a ``redis-server`` of its own. Every figure is the best of three rounds; workers are
processes that start together, and their rates are added up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nexusflow_integrations._core.cache.cache import Store, store_at
from nexusflow_integrations._core.call.engine import limits_kept_in
from nexusflow_integrations._core.redis.address import address_or_path

GROUP = 320
"""Texts in flight by default: 32 requests of 10."""
SIZE = 1024
Step = Callable[[int], int]


def send_times(store: Store, who: int, at_once: int) -> Step:
    """Reserve send times of one account."""
    limits = limits_kept_in(store, b"account", 6e7, None)

    def step(_: int) -> int:
        return len(limits.lease(at_once, 10))

    return step


def new_texts(store: Store, who: int, at_once: int) -> Step:
    """Claim new texts, and store their vectors in groups."""
    keyer = store.keyer(base_url="https://a.example/v1", model="m", dimensions=SIZE)
    vector = np.random.default_rng(who).standard_normal(SIZE).astype(np.float32)

    def step(number: int) -> int:
        keys = [keyer(f"{who} {number} {one}") for one in range(at_once)]
        mine = store.claim(keys, SIZE).mine
        store.put([(key, vector) for key in mine])
        return len(mine)

    return step


def known_texts(store: Store, who: int, at_once: int) -> Step:
    """Find texts whose vectors are stored."""
    new_texts(store, 0, at_once)(0)
    keyer = store.keyer(base_url="https://a.example/v1", model="m", dimensions=SIZE)
    keys = [keyer(f"0 0 {one}") for one in range(at_once)]

    def step(_: int) -> int:
        return len(store.claim(keys, SIZE).hits)

    return step


def work(place: str, task: Any, who: int, at_once: int, seconds: float, start: Any) -> float:
    store = store_at(address_or_path(place))
    step = task(store, who + 1000 * os.getpid(), at_once)
    step(0)  # connects and imports
    start.wait()
    began, done, number = time.perf_counter(), 0, 0
    while (passed := time.perf_counter() - began) < seconds:
        number += 1
        done += step(number)
    store.close()
    return done / passed


def measure(place: str, task: Any, workers: int, at_once: int, seconds: float) -> float:
    """Return the total units per second of ``workers``."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(workers) as pool:
        start = manager.Barrier(workers)
        rates = [
            pool.apply_async(work, (place, task, who, at_once, seconds, start))
            for who in range(workers)
        ]
        return sum(rate.get(120) for rate in rates)


@contextmanager
def redis() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "s"
        server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not socket.exists():
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    print(f"{'':34}{'workers':>8}{'redis':>12}{'file':>12}   a second")
    for name, task, at_once in (
        ("send times, one at a time", send_times, 1),
        ("send times, 32 at a time", send_times, 32),
        ("new texts, claimed and put", new_texts, GROUP),
        ("known texts, found", known_texts, GROUP),
    ):
        for workers in (1, 4):
            best = {"redis": 0.0, "file": 0.0}
            for _ in range(3):
                with redis() as url, tempfile.TemporaryDirectory() as folder:
                    places = {"redis": url, "file": str(Path(folder) / "cache.db")}
                    for kind, place in places.items():
                        rate = measure(place, task, workers, at_once, seconds)
                        best[kind] = max(best[kind], rate)
            print(f"{name:34}{workers:8}{best['redis']:12,.0f}{best['file']:12,.0f}", flush=True)


if __name__ == "__main__":
    main()
