"""The actor, tested without a cluster, saves its state and takes over from a previous actor."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("ray.exceptions")

from nexusflow_integrations import ray as ours
from nexusflow_integrations._core.usage import Budget
from nexusflow_integrations.ray import RESTART_PAUSE, ClusterLimits, _Coordinator

pytestmark = pytest.mark.ray


class Store:
    """Ray's control store, as far as the actor uses it."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.puts = 0

    def _internal_kv_get(self, key: str, namespace: str) -> str | None:
        return self.rows.get(key)

    def _internal_kv_put(self, key: str, value: str, namespace: str) -> None:
        self.puts += 1
        self.rows[key] = value

    def _internal_kv_del(self, key: str, namespace: str) -> None:
        self.rows.pop(key, None)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(ours, "internal_kv", store)
    return store


def coordinator(tokens: int | None = 10_000, requests: float | None = 600) -> _Coordinator:
    return _Coordinator("nexusflow/test", (requests, None, tokens))


def test_an_actor_that_takes_over_grants_nothing_that_was_granted_before() -> None:
    first = coordinator()
    granted = [first.draw("a", number, 100, 700, 0, 0)[0] for number in range(1, 6)]
    _, left, pending = coordinator().draw("a", 1, 0, 0, 5_000, 0)
    assert left <= 10_000 - sum(granted)
    assert left >= 10_000 - sum(granted) - 10_000 // 200
    assert not pending


def test_few_grants_wait_for_the_store(store: Store) -> None:
    actor = coordinator(10_000_000)
    for number in range(1, 1_001):
        actor.draw("a", number, 100, 100, 0, 0)
    assert store.puts < 20


def test_when_all_tokens_are_returned_the_store_knows_exactly_what_was_spent() -> None:
    actor = coordinator()
    actor.draw("a", 1, 100, 700, 0, 0)
    actor.draw("a", 2, 0, 0, 650, 0)
    assert coordinator().state()[3] == 50


def test_a_draw_that_ray_repeats_is_done_once() -> None:
    actor = coordinator()
    assert actor.draw("a", 1, 100, 700, 0, 0) == actor.draw("a", 1, 100, 700, 0, 0)
    assert actor.state()[3] == 700
    actor.draw("a", 2, 0, 0, 600, 0)
    actor.draw("a", 2, 0, 0, 600, 0)
    assert actor.state()[3] == 100


def test_the_tokens_spent_are_kept_until_stop_is_called() -> None:
    actor = coordinator()
    actor.draw("a", 1, 100, 700, 0, 0)
    assert coordinator().state()[3] >= 700
    actor.forget()
    assert coordinator().state()[3] == 0


def test_only_an_actor_that_takes_over_waits_before_its_first_send_time() -> None:
    assert coordinator().lease("a", 1, 10, 0.0, 0.0, 0.0)[0] == [0.0]
    waits, _ = coordinator().lease("a", 1, 10, 0.0, 0.0, 0.0)
    assert 0 < waits[0] <= RESTART_PAUSE


def test_send_times_that_a_worker_holds_from_before_are_not_given_twice() -> None:
    coordinator()
    second = coordinator()
    assert second.lease("a", 1, 10, 0.0, 0.0, 30.0)[0][0] > 29
    assert second.lease("b", 1, 10, 0.0, 0.0, 0.0)[0][0] > 29


def test_the_workers_that_asked_recently_are_counted() -> None:
    actor = coordinator()
    assert [actor.lease(name, 1, 10, 0.0, 0.0, 0.0)[1] for name in "abab"] == [1, 2, 2, 2]


def test_two_clients_of_a_process_are_not_granted_the_same_tokens_though_one_overtakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = coordinator()
    limits = ClusterLimits(budget=Budget(tokens=10_000))
    under_way, overtaken = threading.Event(), threading.Event()

    def ask(method: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        if not under_way.is_set():
            under_way.set()
            overtaken.wait(60)
        return getattr(actor, method)(*arguments)

    monkeypatch.setattr(limits, "_ask", ask)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:  # as each has its own
        slow = one.submit(limits.draw, 100, 700, 0, 0)
        assert under_way.wait(60)
        fast = other.submit(limits.draw, 100, 500, 0, 0).result(60)
        overtaken.set()
        assert (slow.result(60).tokens, fast.tokens) == (700, 500)
        assert actor.state()[3] == 1_200
        other.submit(limits.draw, 0, 0, 500, 0).result(60)
        one.submit(limits.draw, 0, 0, 700, 0).result(60)
    assert actor.state()[3] == 0


def test_the_child_of_a_fork_asks_under_a_name_of_its_own_from_the_first_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = ClusterLimits(budget=Budget(tokens=10_000))
    names: list[str] = []
    answers = {"draw": (0, 0, False), "lease": ([0.0], 1)}

    def ask(method: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        names.append(f"{method} {arguments[0]}")
        return answers[method]

    monkeypatch.setattr(ClusterLimits, "_ask", lambda _, *call: ask(*call))
    limits.draw(100, 700, 0, 0)
    limits.draw(100, 700, 0, 0)
    limits._forget()
    limits.draw(100, 700, 0, 0)
    limits.lease(1, 10)
    limits._forget()
    limits.lease(1, 10)
    assert names[0] == names[1] != names[2]
    assert names[3] != names[4]
