"""Many queries at once: a fixed rate from threads, or from one event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import vectors
from child import Timed
from contestants import BY_NAME

THREADS = 32


def load(spec: dict[str, Any]) -> dict[str, Any]:
    """Send ``rate`` queries a second for ``seconds``; CPU a query, and latency from its due time.

    From ``THREADS`` threads, or on one event loop if the contestant is async.
    """
    contestant = BY_NAME[spec["contestant"]]
    embedder = contestant.make(spec["url"])
    count = int(spec["rate"] * spec["seconds"])
    texts = vectors.texts(count + 100, first=60_000_000)
    kept = np.empty((count, vectors.DIMENSIONS), dtype=np.float32)
    took = np.empty(count)
    run = _from_loop if contestant.is_async else _from_threads
    run(embedder, texts[count:], [0.0] * 100, np.empty((100, vectors.DIMENSIONS)), np.empty(100))
    due = [place / spec["rate"] for place in range(count)]
    with Timed() as timed:
        run(embedder, texts[:count], due, kept, took)
    checked = vectors.check(texts[:count], kept)
    return {
        **timed.figures,
        "p50": float(np.percentile(took, 50) * 1e3),
        "p99": float(np.percentile(took, 99) * 1e3),
        "checked": checked,
    }


def _from_threads(embedder: Any, texts: list[str], due: list[float], kept: Any, took: Any) -> None:
    places = itertools.count()
    began = time.perf_counter() + 0.05

    def work() -> None:
        while (place := next(places)) < len(texts):
            at = began + due[place]
            if (ahead := at - time.perf_counter()) > 0:
                time.sleep(ahead)
            kept[place] = embedder.read(embedder.query(texts[place]))
            took[place] = time.perf_counter() - at

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _from_loop(embedder: Any, texts: list[str], due: list[float], kept: Any, took: Any) -> None:
    loop = _LOOPS.setdefault(0, asyncio.new_event_loop())

    async def ask(place: int, at: float) -> None:
        kept[place] = embedder.read(await embedder.query(texts[place]))
        took[place] = time.perf_counter() - at

    async def every() -> None:
        began = time.perf_counter() + 0.05
        tasks = []
        for place, after in enumerate(due):
            if (ahead := began + after - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            tasks.append(asyncio.create_task(ask(place, began + after)))
        await asyncio.gather(*tasks)

    loop.run_until_complete(every())


_LOOPS: dict[int, Any] = {}

TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"load": load}
