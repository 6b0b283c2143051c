"""The event loop of the process, in its own thread, for sync and async calls of all clients.

Calls from any thread or event loop are submitted to this loop, except some that need only one
request (``direct``). So one connection pool, one pacer and one table of texts in flight serve all
calls without a lock. The pool outlives a caller's event loop, such as the one that ``asyncio.run``
creates. A sync call works inside a running event loop, as in Jupyter. Ctrl-C cancels requests in
flight, which a thread that is blocked in a socket could not do.

The loop's thread does not survive ``fork``. A child starts a new loop and never touches the old
one, whose sockets belong to the parent. If a signal handler forks while the interrupted thread
waits for a call, the child ends that call with an error.
"""

from __future__ import annotations

import asyncio
import atexit
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.call.waiting import next_item
from nexusflow_integrations._core.clock import keep_running, monotonic
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.outcome import Outcome
from nexusflow_integrations.errors import APIConnectionError, NexusFlowError

T = TypeVar("T")


LONGEST_PAUSE = 5.0
"""Seconds after which the loop resumes even if nobody has reported the end of the fork."""
CLOSING = 1.5
"""Maximum seconds that the process waits at exit for everything to be cancelled and closed."""


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop of the standard library, whichever policy the process has set.

    A web server may set the policy of uvloop, whose TLS transports cannot be referenced weakly.
    """
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop()
    return asyncio.SelectorEventLoop()


class BackgroundLoop:
    """An event loop that runs in its own daemon thread."""

    def __init__(self) -> None:
        try:
            self.loop = _new_loop()
        except OSError as error:  # for example, no file descriptors are left
            raise APIConnectionError(
                f"no event loop could be opened: {error.strerror or error}"
            ) from None
        keep_running(self.loop)
        self._closers: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.calls: set[LoopCall[Any]] = set()
        self._thread = threading.Thread(
            target=self._run, name="nexusflow-integrations", daemon=True
        )
        self._thread.start()
        forks.around(self._pause)

    def _pause(self, until: float) -> Callable[[], None] | None:
        """Pause the loop's thread while the process forks.

        Otherwise the thread may hold locks during the fork, such as those of logging or of a TLS
        library.
        """
        if threading.get_ident() == self._thread.ident:
            return None
        paused: SimpleQueue[None] = SimpleQueue()
        resumed: SimpleQueue[None] = SimpleQueue()

        def pause() -> None:
            paused.put(None)
            with suppress(Empty):
                resumed.get(timeout=LONGEST_PAUSE)

        try:
            self.loop.call_soon_threadsafe(pause)
        except RuntimeError:  # the loop has ended
            return None
        with suppress(Empty):
            next_item(paused, until)
        return partial(resumed.put, None)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
            except BaseException as error:  # noqa: BLE001, PERF203 - a user's SystemExit
                # The error ends the call that raised it; the loop must keep running for all other
                # calls.
                logger.debug("the event loop continues after %s", type(error).__name__)
            else:
                return

    def submit(self, work: Coroutine[Any, Any, T]) -> Submitted[T]:
        """Start ``work`` on the loop."""
        return Submitted(self, work)

    def give_up(self) -> None:
        """In the child of a fork, end everything that the child's thread may wait for."""
        for call in list(self.calls):
            call.give_up()

    def call_soon(self, work: Callable[[], object]) -> None:
        """Call ``work`` on the loop, from any thread; do nothing if the loop has ended."""
        if self not in _inherited:
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(work)

    def on_close(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await ``closer`` on the loop before it ends."""
        self._closers.append(closer)

    def close(self) -> None:
        """Cancel running tasks, close what was opened, and end the thread."""
        if self.loop.is_closed():
            return
        until = monotonic() + CLOSING
        try:
            self.submit(self._wind_up()).result(CLOSING)
        except (TimeoutError, RuntimeError):
            return  # at exit, leave a stuck loop to the operating system
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(max(0.1, until - monotonic()))
        if not self._thread.is_alive():
            self.loop.close()

    async def _wind_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        # Let all tasks start: a task that has not started cannot report its cancellation.
        await asyncio.sleep(0)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for closer in self._closers:
            await closer()
        await self.loop.shutdown_asyncgens()


class LoopCall(Generic[T]):
    """Work on ``background`` that reports its outcome on that loop as soon as it ends.

    A waiting thread gets the outcome sooner through a queue than through a future, whose locks,
    callbacks and extra iteration of the loop take a tenth of a query's time. And a future would let
    a signal handler of that thread block this loop: see ``waiting``.
    """

    def __init__(
        self,
        background: BackgroundLoop,
        work: Coroutine[Any, Any, T],
        tell: Callable[[Outcome[T]], object],
    ) -> None:
        self._background = background
        self._loop = background.loop
        self._work: Coroutine[Any, Any, T] | None = work
        self._tell = tell
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the work.

        Ctrl-C may end this at any point. So the caller must call ``cancel`` after any error.

        Raises:
            APIConnectionError: The loop belongs to the parent of this process.
        """
        if self._background in _inherited:
            self._drop()
            raise _forked()
        self._background.calls.add(self)
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self._work is not None:
            work, self._work = self._work, None
            self._task = self._loop.create_task(self._do(work))

    def _drop(self) -> None:
        """Close the work if it has not begun, and forget this call."""
        if self._work is not None:
            work, self._work = self._work, None
            work.close()
            self._background.calls.discard(self)

    async def _do(self, work: Coroutine[Any, Any, T]) -> None:
        try:
            outcome = Outcome(await work)
        except (asyncio.CancelledError, GeneratorExit):  # GeneratorExit: the loop was discarded
            self._tell(Outcome(error=CancelledError()))
            raise
        except BaseException as error:  # noqa: BLE001 - a user's SystemExit ends only its call
            if isinstance(error, NexusFlowError):
                # Its message says what is wrong. The frames of this thread would only lengthen the
                # traceback that the caller sees. Those of a cause are kept.
                error.__traceback__ = None
            self._tell(Outcome(error=error))
        else:
            self._tell(outcome)
        finally:
            # Break a cycle: an error holds this frame, and the task may hold the error.
            self._task = None
            self._background.calls.discard(self)
            del self._tell

    def cancel(self) -> None:
        """Cancel the work. Any thread may call this."""
        if self._background in _inherited:
            return
        try:
            self._loop.call_soon_threadsafe(self._stop)
        except RuntimeError:  # the loop has ended
            self._drop()

    def give_up(self) -> None:
        """Report an error as the outcome: this process is a child without the loop's thread."""
        with suppress(RuntimeError):  # the caller's event loop has ended
            self._tell(Outcome(error=_forked()))

    def _stop(self) -> None:
        self._drop()
        if self._task is not None:
            # Cancel in the loop's next iteration, when the task has certainly started.
            self._loop.call_soon(self._task.cancel)


class Submitted(Generic[T]):
    """Work on ``background``, for whose outcome one thread may wait."""

    def __init__(self, background: BackgroundLoop, work: Coroutine[Any, Any, T]) -> None:
        self._news: SimpleQueue[Outcome[T]] = SimpleQueue()
        self._call = LoopCall(background, work, self._news.put)
        try:
            self._call.start()
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel the work. Any thread may call this."""
        self._call.cancel()

    def result(self, timeout: float = float("inf")) -> T:
        """Return the result or raise the error; Ctrl-C cancels the work.

        Raises:
            TimeoutError: The work has not ended within ``timeout`` seconds, and goes on.
        """
        try:
            return next_item(self._news, monotonic() + timeout).result()
        except Empty:
            raise TimeoutError from None
        except BaseException:
            self.cancel()
            raise


class Signal:
    """Wakes one waiter on the running event loop when something ends there or in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self, _: object) -> None:
        """Wake the waiter. Any thread may call this."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Wait until ``set`` has been called since the last wait."""
        await self._event.wait()
        self._event.clear()


def _forked() -> APIConnectionError:
    return APIConnectionError(
        "a signal handler has forked this process in the middle of this call, which only the parent"
        " can finish; further calls of this process are not affected"
    )


_lock = forks.Lock()
_current: BackgroundLoop | None = None
_inherited: list[BackgroundLoop] = []


def background_loop() -> BackgroundLoop:
    """Return the event loop of the process; the first call starts it."""
    global _current
    if _current is None:
        with _lock.mutex:
            if _current is None:
                made = BackgroundLoop()
                if _current is None:
                    _current = made
                else:  # a call in a signal handler has started a loop
                    made.close()
    return _current


def _close_at_exit() -> None:
    global _current
    loop, _current = _current, None
    if loop is not None:
        loop.close()


def _forget_after_fork() -> None:
    global _current
    former, _current = _current, None
    if former is not None:
        # Keep the loop for ever: closing it would close descriptors that the parent's epoll shares.
        _inherited.append(former)
        former.give_up()


atexit.register(_close_at_exit)
forks.in_child(_forget_after_fork)
