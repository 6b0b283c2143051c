"""The cases to simulate, and the runs of real processes for comparison."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from nexusflow_integrations import Price
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.pace.in_file import SharedPacer

from .fleet import TEXTS, Found, Scene, simulate
from .runs import run_processes

Data = dict[str, Any]

COORDINATORS = {"file": 0.06e-3, "Redis": 0.077e-3, "Ray actor": 0.68e-3}
"""Seconds of work for a call; measured on the machine of the first runs, one call at a time for
Redis and the file, pipelined for the actor."""
STUDENT = {3: 4.303, 5: 2.776}
"""95 %, two-sided, by the number of runs."""
QUOTAS = {1_800: (10.0, 60.0), 60_000: (4.0, 5.0), 300_000: (3.0, 2.0)}
"""Requests a minute, and the seconds to simulate before and while counting: 1,800 requests or more
are counted."""


def figures(scene: Scene, found: Found) -> Data:
    """Return the results of one run as shares, rates and seconds."""
    used = []
    if scene.requests_per_minute is not None:
        used.append(found.admitted / (scene.requests_per_minute / 60 * scene.seconds))
    if scene.tokens_per_minute is not None:
        used.append(found.tokens / (scene.tokens_per_minute / 60 * scene.seconds))
    replies = found.replies or [0.0]
    return {
        "used": max(used),
        "refused": found.refused / max(1, found.sent),
        "texts_per_second": found.good * TEXTS / scene.seconds,
        "tokens_per_second": found.tokens / scene.seconds,
        "calls_per_second": found.calls / scene.seconds,
        "coordinator_busy": found.busy / scene.seconds,
        "reply_p50": float(np.percentile(replies, 50)),
        "reply_p99": float(np.percentile(replies, 99)),
        "failed": found.failed,
        "requests": found.sent,
    }


def repeated(scene: Scene, times: int = 3) -> Data:
    """The mean of runs with different seeds, and half the width of its 95 % interval."""
    runs = [figures(one, simulate(one)) for one in (replace(scene, seed=n) for n in range(times))]
    out: Data = {"runs": times}
    for name in runs[0]:
        values = [run[name] for run in runs]
        out[name] = statistics.mean(values)
        out[f"{name}_within"] = STUDENT[times] * statistics.stdev(values) / math.sqrt(times)
    return out


def of_workers(quick: bool) -> Data:
    """One quota with more and more workers."""
    counts = [1, 4, 32, 1000] if quick else [1, 2, 4, 10, 30, 100, 1000]
    rows = []
    for quota, (warm, seconds) in QUOTAS.items():
        for workers in counts:
            scene = Scene(
                workers,
                quota,
                # The leases of a thousand workers take some seconds to grow.
                warm=max(warm, workers / 125),
                seconds=seconds / (2 if quick else 1),
            )
            rows.append({"quota": quota, "workers": workers, **repeated(scene)})
    return {"rows": rows, "scene": asdict(Scene(0))}


def of_coordinators(quick: bool) -> Data:
    """A hundred workers, with quotas up to the limit of the coordinator."""
    rows = []
    for kind, work in COORDINATORS.items():
        for per_second in (100, 1000) if quick else (30, 100, 300, 1000, 3000):
            for limit in ("requests", "tokens"):
                scene = Scene(
                    100,
                    requests_per_minute=per_second * 60 if limit == "requests" else None,
                    # On average, a request costs 7.5 % more than estimated.
                    tokens_per_minute=per_second * 60 * 3225 if limit == "tokens" else None,
                    warm=4.0,
                    seconds=max(2.0, min(20.0, 3000 / per_second)),
                    service=work,
                    trip=0.0 if kind == "file" else Scene.trip,
                )
                found = figures(scene, simulate(scene))
                rows.append({"kind": kind, "limit": limit, "per_second": per_second, **found})
    return {"rows": rows}


def of_losses(quick: bool) -> Data:
    """Half of the workers lost at once; the coordinator unavailable and restarted without state."""
    at, rows = 20.0, []
    scenes = {
        "8 of 16 workers lost": Scene(16, 1_800, lost=(at, 8), seconds=50),
        "8 of 16 workers lost, higher quota": Scene(16, 18_000, lost=(at, 8), seconds=30),
        "coordinator away for 2 s, 4 workers": Scene(4, 1_800, down=(at, 2), seconds=50),
        "coordinator away for 2 s, 100 workers": Scene(100, 1_800, down=(at, 2), seconds=50),
        "coordinator away for 30 s, 16 workers": Scene(16, 1_800, down=(at, 30), seconds=70),
        "coordinator away for 30 s, 16 workers, higher quota": Scene(
            16, 18_000, down=(at, 30), seconds=60
        ),
        "coordinator away for 30 s, 100 workers": Scene(100, 1_800, down=(at, 30), seconds=70),
    }
    for name, scene in scenes.items():
        found = simulate(scene)
        assert scene.requests_per_minute is not None
        per_second = scene.requests_per_minute / 60
        end = int(scene.warm + scene.seconds)
        used = [found.admitted_at[second] / per_second for second in range(end)]
        refused = [found.refused_at[second] / per_second for second in range(end)]
        after = slice(int(at), end)
        rows.append(
            {
                "name": name,
                "quota": scene.requests_per_minute,
                "used_by_second": used,
                "refused_by_second": refused,
                "seconds_lost": sum(0.99 - share for share in used[after]),
                "refused": sum(refused[after]) * per_second,
                "refused_share": sum(refused[after]) / (sum(refused[after]) + sum(used[after])),
                "texts_again": found.lost,
                "failed": found.failed,
            }
        )
    return {"rows": rows, "at": at}


def of_faults(quick: bool) -> Data:
    """A service that answers some requests with 503."""
    rows = [
        {"faults": faults, **repeated(Scene(16, 18_000, faults=faults, warm=4.0, seconds=8.0))}
        for faults in (0.0, 0.01, 0.05, 0.2)
    ]
    return {"rows": rows}


def of_alone(quick: bool) -> Data:
    """Workers that share nothing, each with the whole limit."""
    rows = [
        {"workers": workers, **repeated(Scene(workers, 1_800, seconds=60, shared=False))}
        for workers in (1, 2, 4, 16)
    ]
    return {"rows": rows}


CORPUS = 1_000_000_000
"""Texts."""


def of_corpus(quick: bool) -> Data:
    """A billion texts at three quotas, extrapolated from a short steady state."""
    price = Price()
    rows = []
    stretches = ((1_800, 4, 5, 200), (60_000, 16, 3, 5), (300_000, 64, 2, 2))
    for quota, workers, warm, seconds in stretches:
        scene = Scene(workers, quota, warm=warm, seconds=seconds / (3 if quick else 1), faults=0.01)
        found = repeated(scene, 5)
        rate, within = found["texts_per_second"], found["texts_per_second_within"]
        a_text = found["tokens_per_second"] / rate
        rows.append(
            {
                "quota": quota,
                "workers": workers,
                "simulated": scene.seconds * found["runs"],
                **found,
                "days": CORPUS / rate / 86_400,
                "days_within": CORPUS / rate / 86_400 * within / rate,
                "cost": CORPUS * a_text * price.per_million_tokens / 1e6,
                "cost_a_day": found["tokens_per_second"] * 86_400 * price.per_million_tokens / 1e6,
                "tokens_a_day": found["tokens_per_second"] * 86_400,
            }
        )
    return {"rows": rows, "texts": CORPUS, "currency": price.currency}


def of_measured(quick: bool) -> Data:
    """The same scenes with real processes and a real server, and simulated."""
    latency, words = 0.1, 30
    work = file_work()
    rows = []
    scenes: list[tuple[float | None, float | None]] = [
        (600, None),
        (1_800, None),
        (None, 600_000),
    ]
    for requests, tokens in scenes:
        for processes in (1, 2) if quick else (1, 2, 4):
            real = run_processes(
                processes,
                requests_per_minute=requests,
                tokens_per_minute=tokens,
                latency=latency,
                words=words,
                seconds=6 if quick else 12,
            )
            scene = Scene(
                processes,
                requests,
                tokens,
                warm=5.0,
                seconds=60.0,
                latency=latency,
                spread=0.0,
                tokens=words,
                service=work,
                trip=0.0,
            )
            model = repeated(scene)
            rows.append(
                {
                    "processes": processes,
                    "requests_per_minute": requests,
                    "tokens_per_minute": tokens,
                    "real": real,
                    "model": model,
                    "off": model["used"] / real["used"] - 1,
                }
            )
    return {"rows": rows, "file_work": work}


def file_work(calls: int = 2_000) -> float:
    """Measure the seconds of one reservation in the cache file."""
    with tempfile.TemporaryDirectory() as folder:
        store = VectorStore(Path(folder) / "cache.sqlite3")
        pacer = SharedPacer(store, b"account", requests_per_minute=1e9, tokens_per_minute=None)
        pacer.lease(1, 1)
        began = time.perf_counter()
        for _ in range(calls):
            pacer.lease(1, 1)
        spent = time.perf_counter() - began
        store.close()
    return spent / calls


Case = Callable[[bool], Data]
CASES: dict[str, Case] = {
    "measured": of_measured,
    "workers": of_workers,
    "coordinators": of_coordinators,
    "losses": of_losses,
    "faults": of_faults,
    "alone": of_alone,
    "corpus": of_corpus,
}


def chunks(
    counts: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
) -> Iterator[Data]:
    """The time for numbers of chunks of 300 tokens at 1,800 requests per minute."""
    for count in counts:
        tokens, requests = count * 300, count / TEXTS
        yield {
            "chunks": count,
            "tokens": tokens,
            "cost": Price().of(tokens),
            "requests": requests,
            "seconds": requests / (1_800 / 60 * 0.99),
        }
