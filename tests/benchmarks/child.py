"""One measurement in its own process: takes a task as JSON, prints the figures as JSON.

    python tests/benchmarks/child.py '{"task": "documents", "contestant": "openai, async, 32", ...}'

The user's call is timed; every vector is checked afterwards. CPU
is ``getrusage`` of this whole process, all threads and the kernel's work for them included.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BEGAN = time.perf_counter()
sys.path.insert(1, str(Path(__file__).parents[2]))  # the checkout, if nothing else is installed


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def resident() -> int:
    """Bytes of memory in use now (Linux), else the peak."""
    return _status("VmRSS") or _peak_of_life()


def _peak_of_life() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    return _status("VmHWM") or _peak_of_life()


def machine_busy() -> float | None:
    """Seconds that all cores together were busy since the start of the machine."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    ticks = [int(field) for field in fields]
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


class Timed:
    """Wall and CPU seconds of a block, the memory it needed, and what else the machine did."""

    def __enter__(self) -> Timed:
        gc.collect()
        forget_peak()
        self._resident = resident()
        self._busy = machine_busy()
        self._cpu = cpu_seconds()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        gc.collect(0)  # the collection of the block's young objects is part of its cost
        wall = time.perf_counter() - self._wall
        cpu = cpu_seconds() - self._cpu
        busy = machine_busy()
        self.figures = {
            "wall": wall,
            "cpu": cpu,
            "memory": peak() - self._resident,
            "busy": None if busy is None or self._busy is None else busy - self._busy,
        }


TOUCHED = 1 << 30
"""How many bytes are used before a measurement; after 100 MB, some runs still got other pages."""
REPORTED_AFTER = 3.0
"""Seconds after which freed memory has been given back; Linux starts with it after two."""


def touch_memory() -> None:
    """Use ``TOUCHED`` bytes and free them, so that the next call gets the same pages.

    A virtual machine may give free memory back to its host. To get a page back takes about 9 us of
    CPU instead of 0.5, and only chance decides which runs have to do so. What the last process has
    freed is given back first, or the memory touched here could be given back together with it.
    """
    import numpy as np

    time.sleep(REPORTED_AFTER)
    np.ones(TOUCHED, np.uint8)


def runner(is_async: bool) -> tuple[Callable[[Any], Any], Callable[[], None]]:
    """Return a function that runs an async contestant's calls on one loop."""
    if not is_async:
        return lambda value: value, lambda: None
    loop = asyncio.new_event_loop()
    return loop.run_until_complete, loop.close


def documents(spec: dict[str, Any]) -> dict[str, Any]:
    """Embed a list of texts once, after a warm-up call (``before``)."""
    import vectors
    from contestants import BY_NAME

    contestant = BY_NAME[spec["contestant"]]
    embedder = contestant.make(spec["url"], **spec.get("settings", {}))
    wait, close = runner(contestant.is_async)
    texts = vectors.texts(spec["texts"])
    wait(embedder.documents(vectors.texts(spec.get("before", 20), first=50_000_000)))
    time.sleep(0.05)  # a background thread of the contestant may still be cleaning up
    if spec["texts"] >= 1000:  # shorter calls, of --quick and CI, are compared with wide margins
        touch_memory()
    with Timed() as timed:
        found = wait(embedder.documents(texts))
    checked = vectors.check(texts, embedder.read_all(found))
    close()
    return {**timed.figures, "checked": checked}


def query(spec: dict[str, Any]) -> dict[str, Any]:
    """Embed queries one after another; the milliseconds of each.

    Between two queries the clocks are stopped and the vector is stored as an array: keeping each
    as a list of floats would be timed with the next ones, and nobody keeps those of queries.
    """
    import numpy as np
    import vectors
    from contestants import BY_NAME

    contestant = BY_NAME[spec["contestant"]]
    embedder = contestant.make(spec["url"])
    texts = vectors.texts(spec["queries"] + 20, first=60_000_000)
    kept = np.empty((len(texts), vectors.DIMENSIONS), dtype=np.float32)
    took: list[float] = []
    aside = 0.0

    def keep(vector: Any, seconds: float) -> None:
        nonlocal aside
        began = time.process_time()
        kept[len(took)] = embedder.read(vector)
        took.append(seconds)
        aside += time.process_time() - began

    def ask(some: list[str]) -> None:
        for text in some:
            began = time.perf_counter()
            vector = embedder.query(text)
            keep(vector, time.perf_counter() - began)

    async def aask(some: list[str]) -> None:
        for text in some:
            began = time.perf_counter()
            vector = await embedder.query(text)
            keep(vector, time.perf_counter() - began)

    wait, close = runner(contestant.is_async)

    def all_of(some: list[str]) -> None:
        wait(aask(some) if contestant.is_async else ask(some))

    all_of(texts[:20])
    aside = 0.0
    with Timed() as timed:
        all_of(texts[20:])
    checked = vectors.check(texts[20:], kept[20:])
    close()
    milliseconds = np.array(took[20:]) * 1000
    return {
        **timed.figures,
        "cpu": timed.figures["cpu"] - aside,
        "p50": float(np.percentile(milliseconds, 50)),
        "p95": float(np.percentile(milliseconds, 95)),
        "checked": checked,
    }


def stream(spec: dict[str, Any]) -> dict[str, Any]:
    """Stream texts into a preallocated array."""
    import numpy as np
    import vectors

    from nexusflow_integrations import NexusFlow

    client = NexusFlow("sk-benchmark", base_url=spec["url"])
    client.embed(vectors.texts(20, first=50_000_000))
    count = spec["texts"]
    with Timed() as timed:
        array = np.empty((count, vectors.DIMENSIONS), dtype=np.float32)
        for embedded in client.embed_stream(vectors.stream(count)):
            array[embedded.index] = embedded.vector
    checked = 0
    for start in range(0, count, 1000):
        part = array[start : start + 1000]
        checked += vectors.check(vectors.texts(len(part), first=start), part)
    return {**timed.figures, "array": array.nbytes, "checked": checked}


def imports(spec: dict[str, Any]) -> dict[str, Any]:
    """Import a module after others, which are not counted."""
    import importlib

    for name in spec["after"]:
        importlib.import_module(name)
    known = len(sys.modules)
    before, cpu, wall = resident(), cpu_seconds(), time.perf_counter()
    for name in spec["modules"]:
        importlib.import_module(name)
    return {
        "wall": time.perf_counter() - wall,
        "cpu": cpu_seconds() - cpu,
        "modules": len(sys.modules) - known,
        "memory": resident() - before,
    }


def first_answer(spec: dict[str, Any]) -> dict[str, Any]:
    """From the start of the process to the vector of a first query."""
    from contestants import BY_NAME

    embedder = BY_NAME[spec["contestant"]].make(spec["url"])
    vector = embedder.query("what is the first thing?")
    wall = time.perf_counter() - _BEGAN
    cpu = cpu_seconds()
    import vectors

    return {
        "wall": wall,
        "cpu": cpu,
        "checked": vectors.check(["what is the first thing?"], [vector]),
    }


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "documents": documents,
    "query": query,
    "stream": stream,
    "imports": imports,
    "first_answer": first_answer,
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    task = TASKS.get(spec["task"])
    if task is None:  # their imports would change the figures of `imports`
        import answer_tasks
        import breakdown_tasks
        import index_tasks
        import load_tasks
        import store_tasks

        tasks = {
            **store_tasks.TASKS,
            **index_tasks.TASKS,
            **breakdown_tasks.TASKS,
            **answer_tasks.TASKS,
            **load_tasks.TASKS,
        }
        task = tasks[spec["task"]]
    print(json.dumps(task(spec)), flush=True)


if __name__ == "__main__":
    main()
