"""The loop in its own thread."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, wait

import pytest

from nexusflow_integrations._core.background import BackgroundLoop, background_loop


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


def test_work_that_was_cancelled_before_its_turn_never_begins(loop: BackgroundLoop) -> None:
    began = threading.Event()
    busy = threading.Event()

    async def work() -> None:
        began.set()

    loop.loop.call_soon_threadsafe(busy.wait, 60)
    future = loop.submit(work())
    future.cancel()
    busy.set()
    assert loop.submit(name()).result(60)
    assert not began.is_set()
    assert not wait([future], 60).not_done


def test_an_error_of_the_work_is_the_futures(loop: BackgroundLoop) -> None:
    async def work() -> None:
        raise LookupError("no such text")

    with pytest.raises(LookupError, match="no such text"):
        loop.submit(work()).result(60)


def test_the_answer_is_there_in_the_turn_of_the_loop_in_which_the_work_ends(
    loop: BackgroundLoop,
) -> None:
    begin = threading.Event()
    there: Future[bool] = Future()

    async def work() -> int:
        begin.wait(60)
        loop.loop.call_soon(lambda: there.set_result(future.done()))
        return 5

    future = loop.submit(work())
    begin.set()
    assert future.result(60) == 5
    assert there.result(60)


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
