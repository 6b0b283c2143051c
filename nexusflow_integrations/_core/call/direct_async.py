"""Async calls that need only one request, driven by the event loop of their caller.

As in ``direct``, this saves two switches between threads. But the caller may block its loop, even
with a call that waits for the result of this one. So if another call begins to wait, for a text or
for a place in the window, the background loop drives the request, too.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from nexusflow_integrations._core.call.direct import DirectCall, ResultsHere
from nexusflow_integrations._core.request.exchange import Reply
from nexusflow_integrations._core.request.polled import PolledExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusflow_integrations._core.call.results import CallResults
    from nexusflow_integrations._core.request.blocking import Connection
    from nexusflow_integrations._core.request.exchange import Send
    from nexusflow_integrations._core.request.wire import Answer, TransportFault


REACHED = 4
"""Iterations of the background loop after which a call that was handed to it has joined."""


class AsyncDirectCall(DirectCall):
    """A call with only one batch, driven by the event loop on which it was made."""

    _results: _ResultsOnLoop

    def _new_results(self) -> _ResultsOnLoop:
        return _ResultsOnLoop(len(self._texts), self._later)

    async def run_here(self) -> CallResults | None:
        """Send and return the results; ``None`` if the background loop must continue the call.

        Raises:
            BaseException: The task was cancelled, or a signal handler raised an error.
        """
        exchange = None
        try:
            texts = self._call.texts
            if self._coalescer.is_announced(texts, self._call.thread) or not self._is_admitted():
                return None
            step = self._first_step()
            if step is None:
                return None
            connection = self._sender.idle_connection()
            if connection is None:
                self._call.opens_connection = True  # for later calls: see ``opening``
                return None
            exchange = self._exchange(connection, step)
            return await exchange.run()
        finally:
            if exchange is not None:
                exchange.abandon()
            if not self.has_ended:
                self.end()

    def _release_texts(self) -> None:
        if self._results.is_expected:
            # The calls that expect a vector are on their way to the background loop.
            self._later(partial(self._release_after, REACHED))
            self._results.has_ended = True  # only now, because a signal handler may come before
        else:
            super()._release_texts()

    def _release_after(self, iterations: int) -> None:
        if iterations:
            asyncio.get_running_loop().call_soon(self._release_after, iterations - 1)
        else:
            super()._release_texts()
            self._results.wake_all()

    def _exchange(self, connection: Connection, step: Send) -> PolledExchange[CallResults | None]:
        clock = self._endpoint.clock
        sent_at = clock()
        step.admitted = True

        def use(outcome: Answer | TransportFault) -> CallResults | None:
            results = None
            try:
                results = self._take(step, Reply(outcome, sent_at, clock()))
            finally:
                # Until the caller's task goes on, another one of its loop may want the vectors.
                if results is None:
                    self.end()
                else:
                    self._hand_over()
            return results

        exchange = self._sender.polled(connection, step.body, step.timeout, use)
        self._results.begin(exchange)
        return exchange


class _ResultsOnLoop(ResultsHere):
    """Results for which another call may wait, even one that blocks the loop of this call."""

    def __init__(self, count: int, later: Callable[[Callable[[], object]], None]) -> None:
        super().__init__(count)
        self._later = later
        # Weak, because the coalescer holds this object: a task that is never continued, because its
        # loop was closed, must be collected with its exchange.
        self._exchange: Callable[[], PolledExchange[Any] | None] = lambda: None
        self._has_waiter = False
        self.has_ended = False

    def begin(self, exchange: PolledExchange[Any]) -> None:
        self._exchange = ref(exchange)
        if self._has_waiter:
            self._later(exchange.also_poll)

    def may_be_awaited_by(self, other: CallResults) -> bool:
        # A sync call in the thread that is sending or receiving right now is one of a signal
        # handler. An async call is not: no second loop can run in the thread of this one.
        exchange = self._exchange()
        user = self.thread if exchange is None else exchange.user
        return other.is_of_loop or self.has_ended or user != other.thread

    def record_waiter(self) -> None:
        self._has_waiter = True
        exchange = self._exchange()
        if exchange is not None:
            exchange.also_poll()
