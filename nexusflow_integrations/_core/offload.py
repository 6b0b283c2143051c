"""Runs blocking work in daemon threads, which do not delay the interpreter's exit.

The standard executors join their threads at exit, no matter how long the threads block.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

Submit = Callable[[Callable[[], Any]], "Future[Any]"]
"""Runs a function in another thread, as ``Worker.submit`` and ``Executor.submit`` do."""

_Jobs = SimpleQueue["tuple[Future[Any], Callable[[], Any]] | None"]


class Worker:
    """Runs functions one after another in a daemon thread, which starts with the first function.

    The thread ends when the object is collected, or after ``end``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: _Jobs = SimpleQueue()
        self._is_started = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue ``work``. The work is skipped if the future is cancelled before it starts.

        Raises:
            RuntimeError: The interpreter is shutting down and cannot start threads.
        """
        if not self._is_started:
            threading.Thread(target=_run, args=(self._jobs,), name=self._name, daemon=True).start()
            self._is_started = True
        future: Future[T] = Future()
        self._jobs.put((future, work))
        return future

    def end(self) -> None:
        """End the thread after the work submitted so far; do not wait for it."""
        self._jobs.put(None)

    def __del__(self) -> None:
        self.end()


def _run(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        _do(*job)
        del job  # do not keep these objects alive while waiting for the next job


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():  # from now on, it cannot be cancelled
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - passed on through the future
        future.set_exception(error)
        del future  # break a cycle: the error holds this frame
    else:
        future.set_result(result)


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """Do ``work`` in a daemon thread of its own, which a cancelled task does not stop.

    Raises:
        RuntimeError: No thread could be started.
        BaseException: What ``work`` raised.
    """
    future: Future[T] = Future()
    threading.Thread(target=_do, args=(future, work), name=name, daemon=True).start()
    return await asyncio.wrap_future(future)


def offload(
    submit: Submit,
    work: Callable[[], T],
    then: Callable[[T], object],
    failed: Callable[[BaseException], object],
) -> Future[T] | None:
    """Do ``work`` in another thread, then call ``then`` or ``failed`` on the running event loop.

    Neither is called before this function has returned. Return ``None`` if the work could not be
    submitted.
    """
    loop = asyncio.get_running_loop()

    def arrived(future: Future[T]) -> None:
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            then(future.result())
        else:
            failed(error)

    def done(future: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(arrived, future)

    try:
        future = submit(work)
    except RuntimeError as error:  # the interpreter is shutting down
        loop.call_soon(failed, error)
        return None
    future.add_done_callback(done)
    return future
