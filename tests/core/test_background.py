"""The event loop runs in a background thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import pytest

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.call.background import (
    BackgroundLoop,
    LoopCall,
    Outcome,
    background_loop,
)
from nexusflow_integrations.errors import APIConnectionError

from .forked import in_child, needs_fork


@pytest.fixture
def loop():  # type: ignore[no-untyped-def]
    loop = BackgroundLoop()
    yield loop
    loop.close()


async def name() -> str:
    return threading.current_thread().name


def test_work_runs_in_a_daemon_thread_of_its_own(loop: BackgroundLoop) -> None:
    assert loop.submit(name()).result(60) == "nexusflow-integrations"
    assert loop._thread.daemon


class OtherLoop(asyncio.SelectorEventLoop):
    """The loop of another package, such as uvloop."""


def test_it_is_a_loop_of_the_standard_library_even_if_new_loops_are_those_of_another_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asyncio, "new_event_loop", OtherLoop)
    ours = BackgroundLoop()
    try:
        assert not isinstance(ours.loop, OtherLoop)
        assert ours.submit(name()).result(60) == "nexusflow-integrations"
    finally:
        ours.close()


def test_an_error_of_this_package_arrives_without_the_frames_of_the_loops_thread(
    loop: BackgroundLoop,
) -> None:
    async def refused() -> None:
        raise APIConnectionError("cannot connect") from ValueError("why")

    async def broken() -> None:
        raise ValueError("a bug")

    ours, others = _error_of(loop, refused()), _error_of(loop, broken())
    assert ours.__traceback__ is None
    assert isinstance(ours.__cause__, ValueError)
    assert others.__traceback__ is not None


def _error_of(loop: BackgroundLoop, work: Coroutine[Any, Any, None]) -> BaseException:
    news: SimpleQueue[Any] = SimpleQueue()
    LoopCall(loop, work, news.put).start()
    error = news.get(timeout=60).error
    assert isinstance(error, BaseException)
    return error


def test_cancelling_the_future_cancels_the_work(loop: BackgroundLoop) -> None:
    cancelled = threading.Event()
    began = threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    future = loop.submit(work())
    assert began.wait(60)
    future.cancel()
    assert cancelled.wait(60)


def test_an_error_of_the_work_is_the_futures(loop: BackgroundLoop) -> None:
    with pytest.raises(LookupError, match="no such text"):
        loop.submit(failing()).result(60)


async def failing() -> None:
    raise LookupError("no such text")


Told = SimpleQueue[Outcome[Any]]


def started(loop_call: LoopCall[Any]) -> LoopCall[Any]:
    loop_call.start()
    return loop_call


def test_a_result_is_passed_on_in_the_loop_iteration_in_which_the_work_ends(
    loop: BackgroundLoop,
) -> None:
    told: Told = SimpleQueue()
    there: SimpleQueue[int] = SimpleQueue()

    async def work() -> int:
        loop.loop.call_soon(lambda: there.put(told.qsize()))
        return 5

    started(LoopCall(loop, work(), told.put))
    assert there.get(timeout=60) == 1
    assert told.get(timeout=60).result() == 5


def test_an_error_of_the_work_is_raised_and_not_logged_by_asyncio(
    loop: BackgroundLoop, caplog: pytest.LogCaptureFixture
) -> None:
    told: Told = SimpleQueue()
    started(LoopCall(loop, failing(), told.put))
    with pytest.raises(LookupError, match="no such text"):
        told.get(timeout=60).result()
    gc.collect()
    assert not caplog.records


def test_a_raised_error_is_freed_with_its_last_reference() -> None:
    class Failure(Exception):
        pass

    outcome: Outcome[None] = Outcome(error=Failure())
    gc.disable()
    try:
        with suppress(Failure):
            outcome.result()
        assert not any(isinstance(thing, Failure) for thing in gc.get_objects())
    finally:
        gc.enable()


def test_cancelling_a_job_cancels_its_work_and_wakes_the_caller(
    loop: BackgroundLoop,
) -> None:
    told: Told = SimpleQueue()
    began = threading.Event()

    async def work() -> None:
        began.set()
        await asyncio.sleep(60)

    loop_call = started(LoopCall(loop, work(), told.put))
    assert began.wait(60)
    loop_call.cancel()
    with pytest.raises(CancelledError):
        told.get(timeout=60).result()
    loop_call.cancel()  # too late, and no harm


@pytest.mark.filterwarnings("error")
def test_a_job_cancelled_before_its_turn_leaves_no_coroutine_behind(
    loop: BackgroundLoop, recwarn: pytest.WarningsRecorder
) -> None:
    told: Told = SimpleQueue()
    busy = threading.Event()
    loop.loop.call_soon_threadsafe(busy.wait, 60)

    async def work() -> None:
        await asyncio.sleep(60)

    started(LoopCall(loop, work(), told.put)).cancel()
    busy.set()
    with pytest.raises(CancelledError):
        told.get(timeout=60).result()
    gc.collect()
    assert not list(recwarn)


def test_closing_also_ends_a_job_that_has_not_started(loop: BackgroundLoop) -> None:
    told: Told = SimpleQueue()
    busy = threading.Event()
    loop.loop.call_soon_threadsafe(busy.wait, 60)
    closing = loop.submit(loop._wind_up())
    started(LoopCall(loop, asyncio.sleep(60), told.put))
    busy.set()
    with pytest.raises(CancelledError):
        told.get(timeout=60).result()
    closing.result(60)


def test_a_job_discarded_with_its_loop_counts_as_cancelled(loop: BackgroundLoop) -> None:
    told: Told = SimpleQueue()
    loop_call = started(LoopCall(loop, asyncio.sleep(0, 5), told.put))
    assert told.get(timeout=60).result() == 5

    async def never() -> None:
        await asyncio.Future()

    loop_call._tell = told.put
    thrown_away = loop_call._do(never())

    async def begin_and_throw_away() -> None:
        thrown_away.send(None)
        thrown_away.close()

    loop.submit(begin_and_throw_away()).result(60)
    with pytest.raises(CancelledError):
        told.get(timeout=60).result()


def test_what_a_cancelled_job_held_is_freed(loop: BackgroundLoop) -> None:
    class Texts:
        pass

    async def work() -> None:
        texts = Texts()
        began.set()
        await asyncio.sleep(60)
        del texts

    told: Told = SimpleQueue()
    began = threading.Event()
    gc.disable()
    try:
        loop_call = started(LoopCall(loop, work(), told.put))
        assert began.wait(60)
        loop_call.cancel()
        told.get(timeout=60)
        loop.submit(asyncio.sleep(0)).result(60)
        assert not any(isinstance(thing, Texts) for thing in gc.get_objects())
    finally:
        gc.enable()


def test_closing_the_loop_wakes_a_thread_that_waits_for_a_job() -> None:
    loop = BackgroundLoop()
    told: Told = SimpleQueue()
    loop_call = started(LoopCall(loop, asyncio.sleep(60), told.put))
    loop.close()
    with pytest.raises(CancelledError):
        told.get(timeout=60).result()
    loop_call.cancel()


def test_closing_cancels_what_runs_then_closes_what_was_opened_then_ends_the_thread() -> None:
    loop = BackgroundLoop()
    order: list[str] = []
    began = threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            order.append("work ended")

    async def closer() -> None:
        order.append("closed")

    loop.on_close(closer)
    loop.submit(work())
    assert began.wait(60)
    loop.close()
    assert order == ["work ended", "closed"]
    assert not loop._thread.is_alive()
    assert loop.loop.is_closed()
    loop.close()


def test_the_process_has_one_loop_however_many_threads_ask_first() -> None:
    found: list[BackgroundLoop] = []
    barrier = threading.Barrier(16)

    def ask() -> None:
        barrier.wait(60)
        found.append(background_loop())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(found)) == 1
    assert len(found) == 16


def test_closing_gives_up_on_work_that_will_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = BackgroundLoop()
    released = threading.Event()
    loop.loop.call_soon_threadsafe(released.wait, 30)  # a loop that is stuck

    winding_up = []

    class Impatient:
        def __init__(self, future: object) -> None:
            self.future = future
            winding_up.append(future)

        def result(self, timeout: float) -> None:
            self.future.result(0.05)  # type: ignore[attr-defined]

    submit = loop.submit
    monkeypatch.setattr(loop, "submit", lambda work: Impatient(submit(work)))
    loop.close()
    assert not loop.loop.is_closed()
    released.set()
    winding_up[0].result(60)
    loop.loop.call_soon_threadsafe(loop.loop.stop)
    loop._thread.join(60)
    loop.loop.close()


# -- forks -----------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_loop_pauses_while_another_thread_forks(loop: BackgroundLoop) -> None:
    turns: list[int] = []

    async def turn() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    turning = loop.submit(turn())
    while not turns:
        time.sleep(0.001)
    for _ in range(3):
        forks._before()
        seen = len(turns)
        time.sleep(0.02)
        assert len(turns) == seen
        forks._in_parent()
        while len(turns) == seen:
            time.sleep(0.001)
    turning.cancel()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_work_on_the_loop_may_fork(loop: BackgroundLoop) -> None:
    async def work() -> str:
        return in_child(lambda: threading.current_thread().name)

    assert loop.submit(work()).result(60) == repr("nexusflow-integrations")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_blocked_loop_delays_a_fork_only_for_a_while(
    loop: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "PAUSE", 0.1)
    blocked, leave = threading.Event(), threading.Event()

    async def work() -> None:
        blocked.set()
        leave.wait(60)

    working = loop.submit(work())
    blocked.wait(60)
    assert in_child(lambda: background_loop() is not loop) == "True"
    leave.set()
    working.result(60)
    assert loop.submit(name()).result(60) == "nexusflow-integrations"
