"""The channel between a call and its caller.

A call runs on the engine's event loop; its caller waits in another thread or on another event loop.
One queue carries everything to the caller: the number of finished texts, requests to run something
on the caller's side (wait for a rate limiter, handle the end of a batch), and finally the outcome.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nexusflow_integrations._core.call.background import BackgroundLoop, LoopCall
from nexusflow_integrations._core.call.waiting import next_item
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.outcome import Outcome
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations.errors import APITimeoutError, LimiterError

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.results import CallResults
    from nexusflow_integrations._core.request.batching import Batch
    from nexusflow_integrations._core.usage import Ledger
    from nexusflow_integrations._core.vectors import Vectors

T = TypeVar("T")
Progress = Callable[[int], object]

GRACE = 2.0
"""Seconds to wait for a call after its deadline, so that the call can report finished vectors."""
LAST_NOTES = 5.0
"""Seconds that an async caller's hooks for finished batches may take after the call has failed."""


@dataclass(frozen=True, slots=True)
class BatchEnd:
    """The result of a batch whose last request has ended, successfully or not.

    ``number`` identifies the batch. ``texts`` are the m texts of the batch that have a vector;
    ``vectors``, float32 of shape (m, d), has one row for each. ``ledger`` counts only the texts and
    requests of this batch.
    """

    number: int
    texts: list[str]
    vectors: Vectors
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that an adapter passes for a call; they run in the caller's thread or event loop.

    The functions of an async call return awaitables. If ``recall`` or ``permit`` raises, the call
    fails; an error of the other two is logged.

    Attributes:
        recall: Returns the vectors that already exist for a list of texts, by index in that list:
            float32 of shape (d,).
        permit: Blocks until a batch of these texts may be sent. It is called for one batch at a
            time, and not for retries.
        begun: Called with the number and the texts of each batch that may be sent.
        ended: Called when a batch has ended, unless the batch failed without a vector.
    """

    recall: Callable[[list[str]], Any] | None = None
    permit: Callable[[list[str]], Any] | None = None
    begun: Callable[[int, list[str]], Any] | None = None
    ended: Callable[[BatchEnd], Any] | None = None

    @property
    def decide(self) -> bool:
        """Whether the functions affect what is sent or when, instead of only being notified."""
        return self.recall is not None or self.permit is not None


NO_HOOKS = Hooks()


class Ask:
    """Work to do in the thread or on the event loop of the caller.

    Args:
        do: A function; for an async call, a function that returns an awaitable.
        answered: Called with the outcome, in the same thread or loop.
        given_up: Whether the outcome is no longer needed.
        awaited: Whether the call waits for the work, which may then take longer than the
            time that the call has left.
    """

    __slots__ = ("_answered", "_do", "_given_up", "awaited")

    def __init__(
        self,
        do: Callable[[], Any],
        answered: Callable[[Outcome[Any]], None],
        *,
        given_up: Callable[[], bool] = lambda: False,
        awaited: bool = False,
    ) -> None:
        self._do = do
        self._answered = answered
        self._given_up = given_up
        self.awaited = awaited

    def do(self) -> None:
        """Do the work in this thread.

        Raises:
            BaseException: Ctrl-C, or an error that a signal handler raised.
        """
        if self._given_up():
            return
        try:
            outcome = Outcome(self._do())
        except BaseException as error:
            outcome = Outcome(error=error)
            if not isinstance(error, Exception) or raised_by_signal_handler(error):
                raise
        finally:
            self._answered(outcome)

    async def ado(self) -> None:
        """Do the work on this event loop.

        Raises:
            BaseException: This task was cancelled.
        """
        if self._given_up():
            return
        try:
            outcome = Outcome(await self._do())
        except BaseException as error:
            outcome = Outcome(error=error)
            if not isinstance(error, Exception) or raised_by_signal_handler(error):
                raise
        finally:
            self._answered(outcome)


class Callback:
    """A callback of the user: its errors are logged and do not end the call.

    Only the first error is logged. Ctrl-C, ``SystemExit`` and errors of signal handlers propagate.

    Args:
        name: The name of the callback in the public API.
        function: The callback, which takes one argument; its return value is ignored.
    """

    def __init__(self, name: str, function: Callable[[Any], object]) -> None:
        self._name = name
        self._function = function
        self._logged = False

    def __call__(self, news: object) -> None:
        try:
            returned = self._function(news)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            self._log(f"raised {type(error).__name__}", error)
        else:
            if isinstance(returned, Coroutine):
                returned.close()
                self._log("returned a coroutine, which is not awaited: it must be a plain function")

    def _log(self, problem: str, error: Exception | None = None) -> None:
        if not self._logged:
            self._logged = True
            logger.error(
                "%s %s; the call continues, and further errors of this function are not logged",
                self._name,
                problem,
                exc_info=error,
            )


class Caller:
    """The connection from a call to its caller, for use on the engine's event loop.

    Args:
        tell: Puts an item into the caller's queue, from another thread.
        hooks: Functions to run in the thread or on the event loop of the caller.
        progress: Whether to report how many texts are finished.
    """

    def __init__(self, tell: Callable[[Any], object], hooks: Hooks, *, progress: bool) -> None:
        self._tell = tell
        self._hooks = hooks
        self._turn: asyncio.Lock | None = None
        self._begun_here = False
        self._warned = False
        self.on_progress: Progress | None = tell if progress else None
        self._numbers = itertools.count()
        self.recalls = hooks.recall is not None
        self.hears_of_batches = hooks is not NO_HOOKS

    def for_own_texts(self) -> Caller | None:
        """Return a caller for the engine's own texts, which uses only the rate limiter.

        Return ``None`` if there is no rate limiter.
        """
        if self._hooks.permit is None:
            return None
        return Caller(self._tell, Hooks(permit=self._hooks.permit), progress=False)

    async def recall(self, texts: list[str]) -> Mapping[int, Vectors]:
        """Return the vectors that the caller already has, by index in ``texts``."""
        if self._hooks.recall is None:
            return {}
        outcome = await self._ask(partial(self._hooks.recall, texts))
        found: Mapping[int, Vectors] = outcome.result()
        return found

    async def begin(self, batch: Batch) -> int:
        """Wait until ``batch`` may be sent; return its number.

        Raises:
            LimiterError: The caller's rate limiter failed.
        """
        texts = [item.text for item in batch]
        if self._hooks.permit is not None:
            if self._turn is None:
                self._turn = asyncio.Lock()
            async with self._turn:
                outcome = await self._ask(partial(self._hooks.permit, texts))
            if (error := outcome.error) is not None:
                name = type(error).__name__
                raise LimiterError(f"the rate limiter failed: {name}: {error}") from error
        number = next(self._numbers)
        if self._hooks.begun is not None and not (self._begun_here and number == 0):
            self._tell(Ask(partial(self._hooks.begun, number, texts), self._note))
        return number

    def end(
        self, number: int, batch: Batch, results: CallResults, ledger: Ledger, *, failed: bool
    ) -> None:
        """Report the result of ``batch``."""
        if self._hooks.ended is None:
            return
        done = [item for item in batch if results.done[item.index]]
        if done or not failed:
            vectors = results.rows_at([item.index for item in done])
            own = replace(ledger, texts=len(batch))
            end = BatchEnd(number, [item.text for item in done], vectors, own)
            self._tell(Ask(partial(self._hooks.ended, end), self._note))

    def _beginning(self, texts: Sequence[str]) -> Ask | None:
        """Return the report that the caller itself starts to send its only batch."""
        self._begun_here = True
        if self._hooks.begun is None:
            return None
        return Ask(partial(self._hooks.begun, 0, list(texts)), self._note)

    def _ending(self, texts: Sequence[str], results: CallResults, ledger: Ledger) -> Ask | None:
        """Return the report about the batch that the caller itself has sent."""
        if self._hooks.ended is None:
            return None
        vectors = results.rows_at(list(range(len(texts))))
        end = BatchEnd(0, list(texts), vectors, ledger)
        return Ask(partial(self._hooks.ended, end), self._note)

    async def _ask(self, do: Callable[[], Any]) -> Outcome[Any]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome[Any]] = loop.create_future()

        def arrived(outcome: Outcome[Any]) -> None:
            if not answer.done():
                answer.set_result(outcome)

        def answered(outcome: Outcome[Any]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(arrived, outcome)

        self._tell(Ask(do, answered, given_up=answer.done, awaited=True))
        return await answer

    def _note(self, outcome: Outcome[Any]) -> None:
        if isinstance(outcome.error, Exception) and not self._warned:
            self._warned = True
            logger.warning("ignoring an error of a callback about a batch: %r", outcome.error)


class CallingThread(Caller):
    """A caller that waits in its thread.

    Args:
        hooks: Functions to run in this thread.
        progress: Called in this thread.
        deadline: Seconds for the call. A thread that is blocked in a rate limiter or a store would
            not notice that the time is over, so with a deadline these functions run in a separate
            thread.
    """

    def __init__(
        self, hooks: Hooks, progress: Progress | None, *, deadline: float | None = None
    ) -> None:
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        super().__init__(self._news.put, hooks, progress=progress is not None)
        self._progress = None if progress is None else Callback("progress", progress)
        self._deadline = deadline

    def wait(
        self, background: BackgroundLoop, work: Coroutine[Any, Any, T], until: float = inf
    ) -> T:
        """Run ``work`` on ``background``; return its result or raise its error.

        ``until`` is when the deadline ends, in monotonic seconds, if it has begun to count.
        """
        loop_call = LoopCall(background, work, self._tell)
        waits_until = None
        if self._deadline is not None:
            waits_until = min(until, monotonic() + self._deadline) + GRACE / 2
        try:
            loop_call.start()
            while not isinstance(news := self._next(waits_until), Outcome):
                if isinstance(news, Ask):
                    self._do(news)
                elif self._progress is not None:
                    self._progress(news)
            result: T = news.result()
        except BaseException:
            loop_call.cancel()  # Ctrl-C, or an error of the caller's function `progress`
            raise
        return result

    def begin_here(self, texts: Sequence[str]) -> None:
        """Report that this thread starts to send its only batch."""
        if (ask := self._beginning(texts)) is not None:
            ask.do()

    def end_here(self, texts: Sequence[str], results: CallResults, ledger: Ledger) -> None:
        """Report the result of the batch that this thread has sent."""
        if (ask := self._ending(texts, results, ledger)) is not None:
            ask.do()

    def _next(self, until: float | None) -> Any:
        if until is None:
            return next_item(self._news)
        # Wait in two steps: if the whole process was suspended (SIGSTOP, a sleeping laptop), the
        # loop needs a moment to notice the deadline, too.
        with suppress(queue.Empty):
            return next_item(self._news, until)
        with suppress(queue.Empty):
            return next_item(self._news, monotonic() + GRACE / 2)
        return Outcome(error=_unanswered(cast("float", self._deadline)))

    def _do(self, ask: Ask) -> None:
        if ask.awaited and self._deadline is not None:
            # Use a daemon thread, so that its wait does not delay the exit of the process.
            run = partial(copy_context().run, ask.do)
            threading.Thread(target=run, name="nexusflow-limiter", daemon=True).start()
        else:
            ask.do()


class CallingTask(Caller):
    """A caller that waits on its event loop.

    Args:
        hooks: Functions whose results are awaited on the loop.
        progress: Called on the loop.
        deadline: Seconds for the call.
    """

    def __init__(
        self, hooks: Hooks, progress: Progress | None, *, deadline: float | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Any] = asyncio.Queue()
        # Not a method, which would make a cycle that keeps the result in memory.
        tell = partial(_pass_on, self._loop, self._news)
        super().__init__(tell, hooks, progress=progress is not None)
        self._progress = None if progress is None else Callback("progress", progress)
        self._deadline = deadline

    async def wait(
        self, background: BackgroundLoop, work: Coroutine[Any, Any, T], until: float = inf
    ) -> T:
        """Run ``work`` on ``background``; return its result or raise its error.

        ``until`` is when the deadline ends, in monotonic seconds, if it has begun to count.
        """
        loop_call = LoopCall(background, work, self._tell)
        asked: dict[asyncio.Task[None], bool] = {}  # each task, and whether the call waits for it

        def done(task: asyncio.Task[None]) -> None:
            del asked[task]
            if not task.cancelled() and (error := task.exception()) is not None:
                self._news.put_nowait(Outcome(error=error))  # raised by a signal handler

        timer = None
        if self._deadline is not None:
            late = Outcome[Any](error=_unanswered(self._deadline))

            def wait_on() -> None:  # wait in two steps, as in CallingThread
                nonlocal timer
                timer = self._loop.call_later(GRACE / 2, self._news.put_nowait, late)

            left = min(self._deadline, max(0.0, until - monotonic()))
            timer = self._loop.call_later(left + GRACE / 2, wait_on)
        try:
            loop_call.start()
            while not isinstance(news := await self._news.get(), Outcome):
                if isinstance(news, Ask):
                    task = self._loop.create_task(news.ado())
                    asked[task] = news.awaited
                    task.add_done_callback(done)
                elif self._progress is not None:
                    self._progress(news)
            _cancel(task for task, awaited in asked.items() if awaited)
            if asked:
                failed = news.error is not None
                await asyncio.wait(list(asked), timeout=LAST_NOTES if failed else None)
            result: T = news.result()
        except BaseException:
            loop_call.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()
            _cancel(asked)
        return result

    async def begin_here(self, texts: Sequence[str]) -> None:
        """Report that this task starts to send its only batch."""
        if (ask := self._beginning(texts)) is not None:
            await ask.ado()

    async def end_here(self, texts: Sequence[str], results: CallResults, ledger: Ledger) -> None:
        """Report the result of the batch that this task has sent."""
        if (ask := self._ending(texts, results, ledger)) is not None:
            await ask.ado()


def _pass_on(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any], news: Any) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(queue.put_nowait, news)


def _unanswered(deadline: float) -> APITimeoutError:
    return APITimeoutError(
        f"the deadline of {deadline:g} s has passed, and the event loop of this package does not"
        " answer: something blocks it"
    )


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in list(tasks):
        task.cancel()
