"""A real cluster keeps one limit and one budget, even if workers or the actor die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations import Budget, NexusFlow
from nexusflow_integrations.errors import BudgetExceededError, ConfigurationError
from nexusflow_integrations.local import LocalServer

pytest.importorskip("ray.data")
import ray

from nexusflow_integrations.ray import ClusterLimits, DriverKey, EmbedBatch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
KEY = "sk-air-of-the-ray-tests-0123456789"
OTHER = "sk-air-of-the-driver-alone-98765"
Limits = Callable[..., ClusterLimits]


class _Worker:
    """A client in a process of its own."""

    def __init__(self, base_url: str, limits: ClusterLimits, *, paced: bool, paid: bool) -> None:
        self._client = NexusFlow(
            base_url=base_url,
            dimensions=64,
            max_concurrency=8,
            pacer=limits if paced else None,
            budget=limits if paid else None,
        )

    def pid(self) -> int:
        return os.getpid()

    def embed(self, name: str, count: int) -> int:
        return len(self._client.embed([f"{name} text {n}" for n in range(count)]))

    def spend_all(self, name: str) -> str:
        number = 0
        try:
            while True:
                self.embed(f"{name} {number}", 100)
                number += 1
        except BudgetExceededError as error:
            return str(error)


def workers(count: int, *arguments: Any, paced: bool = False, paid: bool = False) -> list[Any]:
    made = ray.remote(_Worker).options(num_cpus=0.25)
    return [made.remote(*arguments, paced=paced, paid=paid) for _ in range(count)]


def wait_until(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def test_a_dataset_gets_a_column_of_vectors_and_keeps_its_other_columns(
    cluster: Path, limits: Limits, server: LocalServer
) -> None:
    shared = limits(requests_per_minute=60_000, budget=Budget(tokens=1_000_000))
    rows = [{"id": n, "text": f"text number {n}" if n % 50 else ""} for n in range(1_000)]
    dataset = ray.data.from_items(rows).map_batches(
        EmbedBatch,
        fn_constructor_kwargs={"limits": shared, "base_url": server.base_url, "dimensions": 64},
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=0.25,
        batch_size=100,
        batch_format="pyarrow",
    )
    out = {row["id"]: row for row in dataset.take_all()}
    assert sorted(out) == list(range(1_000))
    assert all(out[n]["text"] == rows[n]["text"] for n in out)
    missing = {n for n in out if out[n]["embedding"] is None}
    assert missing == {n for n in out if out[n]["embedding_error"] is not None}
    assert missing == set(range(0, 1_000, 50))
    assert {len(out[n]["embedding"]) for n in out if n not in missing} == {64}
    assert server.stats.texts == 980
    # Workers that have no more to do give back what they did not spend.
    wait_until(lambda: shared.state().granted == server.stats.tokens)


def test_a_key_from_the_driver_reaches_the_workers_and_no_log(cluster: Path) -> None:
    with LocalServer("hash", api_key=OTHER) as server:
        dataset = ray.data.from_items([{"text": "a b"}]).map_batches(
            EmbedBatch,
            fn_constructor_kwargs={
                "api_key": DriverKey(OTHER),
                "base_url": server.base_url,
                "dimensions": 64,
            },
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0.25,
        )
        assert dataset.take_all()[0]["embedding_error"] is None
        assert server.stats.ok == 1
    files = [path for path in cluster.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        assert OTHER.encode() not in content, path
        assert KEY.encode() not in content, path


@pytest.mark.parametrize("count", [1, 2, 4])
def test_workers_that_share_a_limit_are_hardly_refused(limits: Limits, count: int) -> None:
    shared = limits(requests_per_minute=1_800)
    with LocalServer("hash", api_key=KEY, requests_per_minute=1_800) as server:
        made = workers(count, server.base_url, shared, paced=True)
        done = ray.get([w.embed.remote(f"{n}", 2_000 // count) for n, w in enumerate(made)])
        assert sum(done) == 2_000
        assert server.stats.statuses.get(429, 0) <= 0.02 * server.stats.requests
    assert shared.state().workers == count


def test_a_budget_is_never_exceeded_though_a_worker_and_the_actor_are_killed(
    limits: Limits, server: LocalServer
) -> None:
    budget = 120_000
    shared = limits(budget=Budget(tokens=budget))
    made = workers(3, server.base_url, shared, paid=True)
    pids = ray.get([worker.pid.remote() for worker in made])
    ends = [worker.spend_all.remote(f"{n}") for n, worker in enumerate(made)]
    wait_until(lambda: server.stats.tokens > budget / 4)
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: server.stats.tokens > budget / 2)
    ray.kill(ray.get_actor(shared.name, shared.namespace), no_restart=False)
    for end in ends[1:]:
        assert "budget of 120,000 tokens" in ray.get(end, timeout=400)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(ends[0], timeout=60)
    assert 0.7 * budget < server.stats.tokens <= budget
    assert shared.state().restarted
    with pytest.raises(BudgetExceededError):
        NexusFlow(
            base_url=server.base_url,
            dimensions=64,
            budget=ClusterLimits(budget=Budget(tokens=budget), name=shared.name),
        ).embed([f"one more text {n}" for n in range(2_000)])
    assert server.stats.tokens <= budget


def test_sending_goes_on_when_the_actor_is_killed(limits: Limits) -> None:
    shared = limits(requests_per_minute=3_000)
    with LocalServer("hash", api_key=KEY, requests_per_minute=3_000) as server:
        made = workers(2, server.base_url, shared, paced=True)
        done = [worker.embed.remote(f"{n}", 2_000) for n, worker in enumerate(made)]
        wait_until(lambda: server.stats.ok > 50)
        ray.kill(ray.get_actor(shared.name, shared.namespace), no_restart=False)
        assert ray.get(done, timeout=400) == [2_000, 2_000]
        assert server.stats.statuses.get(429, 0) <= 0.02 * server.stats.requests
    assert shared.state().restarted


def test_an_actor_that_is_gone_for_good_is_started_by_the_next_who_asks(limits: Limits) -> None:
    shared = limits(requests_per_minute=600, budget=Budget(tokens=1_000))
    assert shared.draw(100, 100, 0, 0).tokens == 100
    ray.kill(ray.get_actor(shared.name, shared.namespace))
    assert shared.lease(1, 10)
    assert shared.draw(950, 950, 0, 0).tokens == 0


def test_limits_under_one_name_are_the_same_for_all(limits: Limits) -> None:
    shared = limits(requests_per_minute=600)
    again = ClusterLimits(requests_per_minute=600, name=shared.name)
    assert again.start() == shared
    with pytest.raises(ConfigurationError, match="has other limits"):
        ClusterLimits(requests_per_minute=60, name=shared.name).start()


def test_a_detached_actor_outlives_the_handles_of_its_job(limits: Limits) -> None:
    shared = limits(requests_per_minute=600, detached=True)
    assert shared.name in {
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)
    }
