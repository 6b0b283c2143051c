"""Real processes on one file: they race, they are killed, they fork."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations._core.cache.cache import Store, store_at
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.redis.address import address_or_path

Make = Callable[..., VectorStore]
Work = Callable[..., "subprocess.Popen[str]"]
Outcome = Callable[..., Any]

both = pytest.mark.parametrize("kept_in", ["file", "redis"])
"""Marks what holds for a file and for a server alike."""

_spec = importlib.util.spec_from_file_location("workers", Path(__file__).parent / "workers.py")
assert _spec is not None
assert _spec.loader is not None
workers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(workers)


def noted(log: Path, what: str) -> list[bytes]:
    file = Path(f"{log}.{what}")
    return [bytes.fromhex(line) for line in file.read_text().split()] if file.exists() else []


def check_integrity(path: Path | str) -> None:
    if "://" in str(path):
        return
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def check_rows(store: Store, keys: list[bytes]) -> None:
    hits = store.claim(keys, workers.SIZE).hits
    assert set(hits) == set(keys)
    for key in keys:
        assert np.array_equal(hits[key], workers.vector_of(key))


@both
def test_processes_that_race_for_the_same_texts_pay_once_and_lose_nothing(
    tmp_path: Path, place: str, work: Work, outcome: Outcome
) -> None:
    log, count = tmp_path / "log", 600
    racers = [work("embed", path=place, count=count, log=str(log), seed=seed) for seed in range(4)]
    done = [outcome(racer) for racer in racers]
    paid = Counter(noted(log, "paid"))
    assert len(paid) == count
    assert set(paid.values()) == {1}
    assert sum(one["paid"] for one in done) == count
    assert all(one["found"] + one["paid"] == count for one in done)
    assert not any(one["wrong"] or one["repaid"] for one in done)
    check_integrity(place)
    store = store_at(address_or_path(place))
    check_rows(store, [workers.key_of(number) for number in range(count)])
    assert store.info().in_flight == 0
    store.close()


def test_processes_that_make_the_same_file_at_once_all_get_it(
    tmp_path: Path, work: Work, outcome: Outcome
) -> None:
    for trial in range(3):
        path = tmp_path / f"{trial}.db"
        started = [
            work("embed", path=str(path), count=20, log=str(path), seed=seed) for seed in range(4)
        ]
        assert all(outcome(one)["wrong"] == 0 for one in started)
        assert len(noted(path, "paid")) == 20


@both
def test_a_killed_process_loses_nothing_it_kept_and_only_repays_what_was_in_flight(
    tmp_path: Path, place: str, work: Work, outcome: Outcome
) -> None:
    log = tmp_path / "log"
    count, group, kills = 6_000, 10, 6
    options = {"path": place, "count": count, "log": str(log), "group": group}
    chance = random.Random(20)
    for kill in range(kills):
        dies = (50, chance.uniform(0, 0.1))
        process = work("embed", seed=kill, claim_seconds=0.2, dies=dies, **options)
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
        kept = noted(log, "kept")
        check_integrity(place)
        store = store_at(address_or_path(place))
        check_rows(store, kept)
        store.close()
        time.sleep(0.2)
    assert len(noted(log, "kept")) < count, "the kills came too late to show anything"
    done = outcome(work("embed", seed=99, claim_seconds=5, **options))
    assert done["wrong"] == 0
    paid = Counter(noted(log, "paid"))
    twice = sum(times - 1 for times in paid.values())
    assert len(paid) == count
    assert twice <= kills * group
    check_integrity(place)


@both
def test_what_was_in_flight_when_a_process_was_killed_is_counted_as_repaid(
    tmp_path: Path, place: str, work: Work, outcome: Outcome
) -> None:
    log = tmp_path / "log"
    options = {"path": place, "count": 200, "log": str(log), "claim_seconds": 0.3}
    process = work("embed", seed=1, group=20, pay_seconds=60, **options)
    until = time.monotonic() + 300
    while not noted(log, "paid"):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    time.sleep(0.3)
    done = outcome(work("embed", seed=2, **options))
    assert (done["paid"], done["repaid"]) == (200, 20)
    assert len(noted(log, "paid")) == 220


@both
def test_a_process_waits_for_the_claims_of_a_killed_one_and_then_takes_over(
    tmp_path: Path, place: str, work: Work, outcome: Outcome
) -> None:
    log = tmp_path / "log"
    options = {"path": place, "count": 40, "log": str(log), "claim_seconds": 1.5}
    killed = work("embed", seed=1, group=20, pay_seconds=60, **options)
    until = time.monotonic() + 300
    while not noted(log, "paid"):
        assert time.monotonic() < until
        time.sleep(0.01)
    other = work("embed", seed=2, **options)
    killed.send_signal(signal.SIGKILL)
    assert outcome(other) == {"found": 0, "paid": 40, "repaid": 20, "wrong": 0}


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def in_child(job: Callable[[], object]) -> object:
    """Run ``job`` in a fork of this process; return what it returned, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = repr(job())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return said


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_child_of_a_fork_opens_the_file_anew_and_owns_no_claim_of_its_parent(
    store_on: Make, path: Path, keys: list[bytes], vector: Callable[..., np.ndarray]
) -> None:
    store = store_on(clock=time.time, claim_seconds=600)
    store.put([(keys[0], vector())])
    store.claim(keys[1:3], 8)
    parents = store._db

    def child() -> object:
        hits = store.claim(keys[:1], 8).hits
        store.renew(keys[1:2])
        store.release(keys[1:2])
        store.put([(keys[4], vector())])
        busy = store.claim(keys[1:3], 8).busy
        mine = store.claim(keys[3:4], 8).mine
        store.close()
        return store._db is not parents, list(hits) == keys[:1], busy == keys[1:3], len(mine)

    assert in_child(child) == repr((True, True, True, 1))
    assert store._db is parents
    assert store_on(clock=time.time).claim(keys[1:3], 8).busy == keys[1:3]
    assert store.claim([keys[0], keys[3], keys[4]], 8).mine == keys[3:4]
    store.put([(keys[3], vector())])
    store.close()
    check_integrity(path)
    assert store.present(keys) == {keys[0], keys[3], keys[4]}


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_uses_the_store_leaves_the_child_free(
    store_on: Make, keys: list[bytes], vector: Callable[..., np.ndarray]
) -> None:
    store = store_on(clock=time.time)
    store.open()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store._lock:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    try:
        assert in_child(lambda: store.present(keys)) == "set()"
    finally:
        leave.set()
        thread.join(60)
    store.put([(keys[0], vector())])
    assert in_child(lambda: store.claim(keys[:1], 8).mine) == "[]"
