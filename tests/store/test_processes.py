"""Real processes on one cache file may race, be killed and fork."""

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
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.cache.cache import Store, store_at
from nexusflow_integrations._core.cache.file import BUSY_SECONDS
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.redis.address import address_or_path
from nexusflow_integrations._core.unavailable import StoreUnavailable

Make = Callable[..., VectorStore]
Work = Callable[..., "subprocess.Popen[str]"]
Outcome = Callable[..., Any]

both = pytest.mark.parametrize("kept_in", ["file", "redis"])
"""Marks tests that run with a file and with a server."""

_spec = importlib.util.spec_from_file_location("workers", Path(__file__).parent / "workers.py")
assert _spec is not None
assert _spec.loader is not None
workers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(workers)


def noted(log: Path, what: str) -> list[bytes]:
    """Return the keys in a log, but one whose line a kill has cut off."""
    file = Path(f"{log}.{what}")
    lines = file.read_text().split() if file.exists() else []
    whole = len(workers.key_of(0).hex())
    return [bytes.fromhex(line) for line in lines if len(line) == whole]


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


@pytest.mark.slow
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


@pytest.mark.slow
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
def test_texts_in_flight_when_a_process_was_killed_are_counted_as_repaid(
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
        signal.alarm(60)
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

    def child() -> object:
        hits = store.claim(keys[:1], 8).hits
        store.renew(keys[1:2])
        store.release(keys[1:2])
        store.put([(keys[4], vector())])
        busy = store.claim(keys[1:3], 8).busy
        mine = store.claim(keys[3:4], 8).mine
        store.close()
        return list(hits) == keys[:1], busy == keys[1:3], len(mine)

    assert in_child(child) == repr((True, True, 1))
    assert store_on(clock=time.time).claim(keys[1:3], 8).busy == keys[1:3]
    assert store.claim([keys[0], keys[3], keys[4]], 8).mine == keys[3:4]
    store.put([(keys[3], vector())])
    store.close()
    check_integrity(path)
    assert store.present(keys) == {keys[0], keys[3], keys[4]}


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_writes_leaves_children_that_read_and_write_at_once(
    store_on: Make, path: Path, keys: list[bytes], vector: Callable[..., np.ndarray]
) -> None:
    store = store_on(clock=time.time)
    store.put([(keys[0], vector())])
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            store.claim(keys[1:6], 8)
            store.put([(key, vector()) for key in keys[1:6]])

    def child() -> object:
        began = time.monotonic()
        found = list(store.claim(keys[:1], 8).hits) == keys[:1]
        store.put([(keys[6], vector())])
        with closing(store_on(path, clock=time.time)) as another:
            found &= list(another.claim(keys[:1], 8).hits) == keys[:1]
        return found, time.monotonic() - began < BUSY_SECONDS

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert [in_child(child) for _ in range(15)] == [repr((True, True))] * 15
    finally:
        ended.set()
        thread.join(60)
    store.close()
    check_integrity(path)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_goes_on_writing_when_its_parent_closes_the_file(
    store_on: Make, path: Path, keys: list[bytes], vector: Callable[..., np.ndarray]
) -> None:
    store = store_on(clock=time.time)
    store.put([(keys[0], vector())])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        store.put([(keys[1], vector())])
        os.write(writing, b"1")
        time.sleep(0.3)  # meanwhile the parent closes it, as the last one that it knows of
        store.put([(keys[2], vector())])
        os._exit(0)
    os.read(reading, 1)
    store.close()
    assert os.waitpid(child, 0)[1] == 0
    for end in (reading, writing):
        os.close(end)
    check_integrity(path)
    assert store_on(clock=time.time).present(keys) == set(keys[:3])


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_does_not_wait_for_a_store_that_hangs_and_the_child_leaves_the_file_alone(
    store_on: Make,
    path: Path,
    keys: list[bytes],
    vector: Callable[..., np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forks, "PAUSE", 0.1)
    store = store_on(clock=time.time)
    store.open()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store._lock.mutex:
            entered.set()
            leave.wait(60)

    def child() -> object:
        said = []
        for each in (store, store_on(path.parent / "." / path.name)):
            with pytest.raises(StoreUnavailable, match="forked"):
                each.present(keys)
            said.append(each._db)
        with closing(store_on(path.with_name("another"))) as another:
            said.append(another.present(keys))
        return said

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    try:
        assert in_child(child) == repr([None, None, set()])
    finally:
        leave.set()
        thread.join(60)
    store.put([(keys[0], vector())])
    assert in_child(lambda: store.claim(keys[:1], 8).mine) == "[]"


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_signal_handler_that_forks_amid_a_write_does_not_break_the_write(
    store_on: Make, keys: list[bytes], vector: Callable[..., np.ndarray]
) -> None:
    store = store_on(clock=time.time)
    said: list[object] = []

    def handler(*_: object) -> None:
        said.append(in_child(lambda: store.present(keys)))

    former = signal.signal(signal.SIGUSR1, handler)
    try:
        with store.transaction() as db:
            signal.raise_signal(signal.SIGUSR1)
            db.execute("INSERT INTO vector VALUES(?, ?)", (keys[0], vector().tobytes()))
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert store.present(keys) == {keys[0]}
    assert "StoreUnavailable" in str(said[0])


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_keeps_the_claims_of_the_parent(store_on: Make, keys: list[bytes]) -> None:
    store = store_on(clock=time.time, claim_seconds=600)
    assert store.claim(keys[:2], 8).mine == keys[:2]
    assert in_child(lambda: store.claim(keys[:2], 8).busy == keys[:2]) == "True"
    store.renew(keys[:1])
    store.release(keys[:2])
    assert store.claim(keys[:2], 8).mine == keys[:2]
