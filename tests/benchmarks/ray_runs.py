"""Measure Ray Data workers that share one limit, and the throughput of their actor.

    python tests/benchmarks/ray_runs.py docs/images/scaling/ray_runs.json

Each run embeds a dataset on a Ray of two CPUs against a local server with a quota. The quota's use
and the share of refusals are the server's own counts, between a tenth and nine tenths of the
requests: starting workers and the last answers are not the pacer's. The actor's rate is that of
processes which do nothing but ask for leases.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import ray
import ray.data

from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.ray import ClusterLimits, EmbedBatch

REQUESTS_PER_MINUTE = 1_800
SECONDS = 40
WORKERS = (1, 2, 4)
LEASE_SIZES = (1, 12, 100)
KEY = "sk-air-of-the-ray-runs"


class Watch:
    """Records ten times a second how many requests a server has answered and refused."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._notes: list[tuple[float, int, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.1):
            stats = self._server.stats
            self._notes.append((time.monotonic(), stats.ok, stats.statuses.get(429, 0)))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def steady(self) -> dict[str, float]:
        """Requests a second, and the share of refused ones, in the middle of the run."""
        total = self._notes[-1][1]
        middle = [note for note in self._notes if 0.1 * total <= note[1] <= 0.9 * total]
        (began, ok, refused), (ended, ok_then, refused_then) = middle[0], middle[-1]
        sent = ok_then - ok + refused_then - refused
        return {
            "seconds": round(ended - began, 2),
            "quota_used": round((ok_then - ok) / (ended - began) / (REQUESTS_PER_MINUTE / 60), 4),
            "refused_share": round((refused_then - refused) / max(1, sent), 5),
        }


def dataset_run(workers: int) -> dict[str, Any]:
    texts = [f"text {n} of a run" for n in range(REQUESTS_PER_MINUTE // 60 * SECONDS * 10)]
    limits = ClusterLimits(requests_per_minute=REQUESTS_PER_MINUTE, name=f"runs-{workers}").start()
    with (
        LocalServer("hash", api_key=KEY, requests_per_minute=REQUESTS_PER_MINUTE) as server,
        Watch(server) as watch,
    ):
        ray.data.from_items([{"text": text} for text in texts], override_num_blocks=8).map_batches(
            EmbedBatch,
            fn_constructor_kwargs={
                "limits": limits,
                "base_url": server.base_url,
                "dimensions": 64,
            },
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0.25,
            batch_size=250,
            batch_format="pyarrow",
        ).materialize()
        statuses = dict(server.stats.statuses)
    state = limits.state()
    limits.stop()
    return {
        "workers": workers,
        **watch.steady(),
        "requests": sum(statuses.values()),
        "refused": statuses.get(429, 0),
        "leases": state.leases,
        "send_times_granted": state.requests,
    }


@ray.remote(num_cpus=0.25)
class _Asker:
    def __init__(self, limits: ClusterLimits) -> None:
        self._limits = limits

    def ask(self, size: int, seconds: float) -> int:
        self._limits.lease(1, 10)
        until = time.monotonic() + seconds
        count = 0
        while time.monotonic() < until:
            self._limits.lease(size, 10)
            count += 1
        return count


def actor_runs(seconds: float = 3.0) -> list[dict[str, Any]]:
    limits = ClusterLimits(requests_per_minute=6e9, name="leases").start()
    askers = [_Asker.remote(limits) for _ in range(max(WORKERS))]
    ray.get([asker.ask.remote(1, 0.2) for asker in askers])
    runs = []
    for size in LEASE_SIZES:
        for workers in WORKERS:
            asked = [asker.ask.remote(size, seconds) for asker in askers[:workers]]
            leases = sum(ray.get(asked)) / seconds
            runs.append(
                {
                    "workers": workers,
                    "requests_a_lease": size,
                    "leases_per_second": round(leases),
                    "texts_per_second": round(leases * size * 10),
                }
            )
    limits.stop()
    return runs


def main(target: str) -> None:
    os.environ["NEXUSFLOW_API_KEY"] = KEY
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=300_000_000)
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "measured": {
            "cpus": 2,
            "load_average_before": round(os.getloadavg()[0], 1),
            "ray": ray.__version__,
            "requests_per_minute": REQUESTS_PER_MINUTE,
            "texts_a_request": 10,
        },
        "actor_runs": actor_runs(),
        "dataset_runs": [],
    }
    for workers in WORKERS:
        found["dataset_runs"].append(dataset_run(workers))
        found["measured"]["load_average_after"] = round(os.getloadavg()[0], 1)
        path.write_text(json.dumps(found, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main(sys.argv[1])
