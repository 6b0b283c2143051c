"""Calls that need only one request, driven by the calling thread.

For a query that does not have to wait, the event loop would only add two switches between threads.
So the calling thread steps through the same ``exchange`` itself and sends its request with
``BlockingSender``. It reads or changes the state that it shares with the loop only by single
operations that the interpreter does not interrupt. So there is no lock that could be held when a
signal handler runs or the process forks.

This module handles only the usual outcome: valid vectors. For any other outcome, the loop runs the
exchange from the start, with the reply that has arrived instead of a first request. So retries,
refusals, limits and errors are decided in one place.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.request.batching import item_of
from nexusflow_integrations._core.request.endpoint import NeedsLoop, SeenFromThread
from nexusflow_integrations._core.request.exchange import (
    Call,
    Reply,
    Send,
    Step,
    Steps,
    exchange,
)
from nexusflow_integrations._core.request.wire import Answer
from nexusflow_integrations.errors import NexusFlowError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusflow_integrations._core.call.coalescing import Coalescer
    from nexusflow_integrations._core.request.blocking import BlockingSender
    from nexusflow_integrations._core.request.endpoint import EndpointState


LARGEST = 1 << 16
"""Maximum bytes of a body.

The socket's buffers hold several times as much. So the thread can send the whole body even if the
server does not read it, and then receive a refusal that the server sends without reading.
"""


def fits(call: Call) -> bool:
    """Return whether ``call`` needs only one request, and no store, budget or user's client."""
    settings, texts = call.settings, call.texts
    return (
        len(texts) <= settings.batch_size
        and call.key is not None
        and call.cache is None
        and call.guard is None
        and not call.unsent
        and call.http_client is None
        and call.client_loop is None
        and settings.on_too_long in ("error", "send")
        and (len(texts) == 1 or len(set(texts)) == len(texts))
    )


class ResultsHere(CallResults):
    """Results that a calling thread fills; the loop then wakes the calls that wait for a text."""

    def _wake(self, index: int) -> None:
        pass

    def wake_all(self) -> None:
        for index in list(self.waiting):
            super()._wake(index)


class DirectCall:
    """A call with only one batch, driven by the calling thread.

    Args:
        call: A call for which ``fits`` is true.
        endpoint: The endpoint, which the client already uses.
        coalescer: The texts in flight.
        sender: Sends the request.
        later: Calls a function on the event loop.

    Attributes:
        has_ended: Whether ``end`` has done everything.
    """

    def __init__(
        self,
        call: Call,
        endpoint: EndpointState,
        coalescer: Coalescer,
        sender: BlockingSender,
        later: Callable[[Callable[[], object]], None],
    ) -> None:
        self._call = call
        self._endpoint = endpoint
        self._coalescer = coalescer
        self._sender = sender
        self._later = later
        self._texts = list(enumerate(call.texts))
        self._results = ResultsHere(len(call.texts))
        self._results.thread = call.thread
        self._request = object()
        self._steps: Steps | None = None
        self.has_ended = False

    def run(self) -> CallResults | None:
        """Send and return the results; ``None`` if the event loop must continue the call.

        Raises:
            BaseException: Ctrl-C, or what a signal handler raised.
        """
        call, endpoint = self._call, self._endpoint
        if not self._may_go():
            return None
        call.endpoint = SeenFromThread(endpoint)  # type: ignore[assignment]
        call.sink = self._results
        call.ledger.texts += len(self._texts)
        if call.settings.deadline:
            call.until = endpoint.clock() + call.settings.deadline
        steps = exchange([item_of(index, text) for index, text in self._texts], call)
        self._steps = steps
        try:
            step = next(steps)
            if self._is_done(steps, step):
                return self._results
        except (NeedsLoop, NexusFlowError):
            pass
        finally:
            steps.close()
        return None

    def _is_done(self, steps: Steps, step: Step) -> bool:
        """Carry out the first step; return whether it was the only step."""
        call, clock = self._call, self._endpoint.clock
        if not isinstance(step, Send) or len(step.body) > LARGEST:
            return False
        until = clock() + step.timeout
        connection = self._sender.connection(step.timeout)
        if connection is None:
            return False
        step.admitted = True
        sent_at = clock()
        outcome = self._sender.send(connection, step.body, until - sent_at)
        reply = Reply(outcome, sent_at, clock())
        call.sent = (step, reply)
        if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
            try:
                steps.send(reply)
            except StopIteration:
                call.sent = None
                return True
        return False

    def _may_go(self) -> bool:
        return (
            self._endpoint.outage is None
            and asyncio._get_running_loop() is None  # a socket must not block an event loop
            and self._endpoint.admission.try_enter(self._request)
            and self._coalescer.enter(self._texts, self._results)
        )

    def end(self) -> None:
        """Remove the call from the tables that all calls share.

        If a signal handler raises an error here, this must be called again.
        """
        if self._steps is not None:
            # Close again, because closing counts the request and Ctrl-C may have prevented it.
            self._steps.close()
        self._coalescer.exit(self._texts, self._results)
        self._results.part()
        if self._results.waiting:
            self._later(self._results.wake_all)
        if self._endpoint.admission.exit(self._request):
            self._later(self._endpoint.admission.pump)
        self.has_ended = True
