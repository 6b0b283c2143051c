"""The simulated workers use their clock, reach the expected results, and appear on the page."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from .cases import figures
from .clock import SimulatedLoop
from .fleet import Scene, simulate
from .tables import tables

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "images" / "scaling" / "results.json"
QUOTA = Scene(1, 1_800, seconds=15, warm=5)


def test_a_day_on_the_simulated_clock_takes_no_time_and_keeps_its_order() -> None:
    loop, seen = SimulatedLoop(), []

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((seconds, loop.time()))

    async def both() -> None:
        await asyncio.gather(sleep(86_400), sleep(1))

    loop.run_until_complete(both())
    loop.close()
    assert [seconds for seconds, _ in seen] == [1, 86_400]
    assert [at for _, at in seen] == pytest.approx([1, 86_400])


def test_a_simulation_in_which_all_wait_for_each_other_ends_with_an_error() -> None:
    loop = SimulatedLoop()
    with pytest.raises(RuntimeError, match="wait for each other"):
        loop.run_until_complete(loop.create_future())
    loop.close()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    scene = replace(QUOTA, workers=3, seconds=5)
    assert simulate(scene) == simulate(scene)
    assert simulate(scene).waits != simulate(replace(scene, seed=2)).waits


@pytest.mark.parametrize("workers", [1, 4, 40])
@pytest.mark.parametrize("limit", ["requests", "tokens"])
def test_a_shared_quota_is_used_up_and_hardly_ever_refused(workers: int, limit: str) -> None:
    requests = 3_000 if limit == "requests" else None
    tokens = 3_000 * 3225 if limit == "tokens" else None
    scene = Scene(workers, requests, tokens, seconds=8, warm=4)
    found = figures(scene, simulate(scene))
    assert 0.95 < found["used"] <= 1.01
    assert found["refused"] < 0.02
    assert found["failed"] == 0


@pytest.mark.parametrize("workers", [2, 4])
def test_the_unused_part_of_a_lease_is_used_by_other_workers(workers: int) -> None:
    scene = Scene(workers, 1_200, seconds=20, warm=5, pause=0.5)
    found = figures(scene, simulate(scene))
    assert 0.97 < found["used"] <= 1.01
    assert found["refused"] < 0.01


def test_workers_that_share_nothing_are_refused() -> None:
    scene = replace(QUOTA, workers=4, shared=False)
    assert figures(scene, simulate(scene))["refused"] > 0.1


def test_the_requests_in_flight_limit_one_worker_under_a_high_quota() -> None:
    scene = Scene(1, 600_000, seconds=10, warm=2, spread=0.0, in_flight=8)
    found = figures(scene, simulate(scene))
    assert found["used"] < 0.2
    assert found["texts_per_second"] == pytest.approx(8 * 10 / 0.15, rel=0.05)


def test_a_slow_coordinator_limits_the_throughput() -> None:
    scene = Scene(50, None, 100 * 60 * 3225, seconds=10, service=0.1)
    found = figures(scene, simulate(scene))
    assert found["used"] < 0.8
    assert found["coordinator_busy"] > 0.9
    assert found["reply_p99"] > 1


def test_lost_workers_cost_less_than_two_seconds_of_the_quota_and_what_they_had_in_flight() -> None:
    scene = replace(QUOTA, workers=8, lost=(10.0, 4))
    found = simulate(scene)
    assert figures(scene, found)["used"] > 0.99 - 2 / scene.seconds
    assert 0 < found.lost <= 4 * 32 * 10
    assert found.failed == 0


@pytest.mark.parametrize("seconds", [2.0, 30.0])
def test_a_restarted_coordinator_costs_time_but_no_batch(seconds: float) -> None:
    scene = replace(QUOTA, workers=4, down=(8.0, seconds), seconds=45)
    found = simulate(scene)
    assert found.failed == 0
    assert found.refused < 0.02 * found.sent
    assert found.admitted_at[7] == pytest.approx(30, abs=2)
    assert found.admitted_at[48] == pytest.approx(30, abs=2)


def test_faults_are_sent_again_until_there_are_vectors() -> None:
    scene = replace(QUOTA, workers=4, faults=0.05)
    found = simulate(scene)
    assert found.faults > 0
    assert found.failed == 0
    assert figures(scene, found)["used"] > 0.95


def test_the_model_is_within_a_twentieth_of_every_real_run_that_was_written_down() -> None:
    rows = json.loads(RESULTS.read_text())["cases"]["measured"]["rows"]
    assert len(rows) >= 6
    assert all(abs(row["off"]) < 0.05 for row in rows)


def test_the_page_shows_the_results_that_are_beside_it(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    for name, table in tables(json.loads(RESULTS.read_text()), tmp_path).items():
        assert f"<!-- begin {name} -->\n{table}<!-- end {name} -->" in page, name


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "most_refused"), [(10.0, 0.05), (44.0, 0.03)])
def test_an_unknown_quota_is_used_from_the_first_seconds_on(
    seconds: float, most_refused: float
) -> None:
    scenes = [
        Scene(1, 600, seconds=seconds, warm=0.0, known=False, spread=0.1, seed=seed)
        for seed in range(8)
    ]
    found = [simulate(scene) for scene in scenes]
    assert min(run.admitted for run in found) >= 0.8 * 10 * seconds
    assert sum(run.refused for run in found) < most_refused * sum(run.sent for run in found)


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_service_that_accepts_few_requests_at_once_is_kept_busy(at_once: int) -> None:
    scene = Scene(1, seconds=5.0, warm=0.0, known=False, concurrency=at_once, spread=0.1)
    found = simulate(scene)
    assert found.good >= at_once * 5.0 / 0.15 / 1.3
    assert found.failed == 0
