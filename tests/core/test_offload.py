"""Daemon threads do work in order, deliver results on the loop, and are never joined."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from nexusflow_integrations._core.offload import Worker, offload


def test_a_worker_works_in_order_in_one_daemon_thread() -> None:
    worker = Worker("a name")
    done: list[int] = []
    threads = [
        worker.submit(lambda n=n: done.append(n) or threading.current_thread())  # type: ignore[misc]
        for n in range(100)
    ]
    (thread,) = {future.result(60) for future in threads}
    assert done == list(range(100))
    assert thread.daemon
    assert thread.name == "a name"


def test_an_error_of_the_work_is_passed_on_and_does_not_end_the_thread() -> None:
    worker = Worker("w")
    failed = worker.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(60)
    assert worker.submit(lambda: 3).result(60) == 3


def test_work_that_is_cancelled_before_its_turn_is_skipped() -> None:
    worker, free, done = Worker("w"), threading.Event(), []
    first = worker.submit(lambda: free.wait(60))
    second = worker.submit(lambda: done.append(2))
    assert second.cancel()
    free.set()
    assert first.result(60)
    assert worker.submit(lambda: 3).result(60) == 3
    assert done == []


@pytest.mark.parametrize("how", ["ended", "collected"])
def test_a_worker_that_is_no_longer_needed_ends_its_thread_after_its_work(how: str) -> None:
    worker = Worker("w")
    thread = worker.submit(threading.current_thread).result(60)
    last = worker.submit(lambda: 3)
    if how == "ended":
        worker.end()
    del worker
    gc.collect()
    assert last.result(60) == 3
    thread.join(60)
    assert not thread.is_alive()


def test_an_interpreter_does_not_wait_at_its_end_for_work_that_hangs() -> None:
    code = (
        "import time; from nexusflow_integrations._core.offload import Worker;"
        "Worker('w').submit(lambda: time.sleep(60)); print('bye')"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
    assert time.monotonic() - began < 40


async def test_the_result_of_the_work_is_passed_on_the_loop_and_never_at_once() -> None:
    worker = Worker("w")
    told: asyncio.Queue[object] = asyncio.Queue()
    free = threading.Event()
    offload(worker.submit, lambda: free.wait(60), told.put_nowait, told.put_nowait)
    offload(worker.submit, lambda: 1 / 0, told.put_nowait, told.put_nowait)
    cancelled = offload(worker.submit, lambda: 3, told.put_nowait, told.put_nowait)
    assert cancelled is not None
    assert cancelled.cancel()
    assert isinstance(await told.get(), CancelledError)
    free.set()
    assert await told.get() is True
    assert isinstance(await told.get(), ZeroDivisionError)


async def test_a_failed_submission_is_passed_on_later_too() -> None:
    def submit(_: object) -> None:
        raise RuntimeError("can't start new thread")

    told: list[object] = []
    assert offload(submit, lambda: 3, told.append, told.append) is None  # type: ignore[arg-type]
    assert told == []
    await asyncio.sleep(0)
    (error,) = told
    assert isinstance(error, RuntimeError)
