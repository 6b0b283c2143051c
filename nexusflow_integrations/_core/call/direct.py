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
from contextlib import suppress
from typing import TYPE_CHECKING

from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.request.batching import item_of
from nexusflow_integrations._core.request.endpoint import NeedsLoop, SeenFromThread
from nexusflow_integrations._core.request.exchange import (
    Call,
    Reply,
    Send,
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
        and (call.client_loop is None or call.async_http_client is None)
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
        later: Calls a function on the background loop.

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
        self._results = self._new_results()
        self._results.thread = call.thread
        self._request: object = self._results
        self._steps: Steps | None = None
        self.has_ended = False

    def _new_results(self) -> ResultsHere:
        return ResultsHere(len(self._texts))

    @property
    def has_texts_of_others(self) -> bool:
        """Whether another call is embedding one of the texts."""
        return self._coalescer.holds_any(self._call.texts)

    def run(self) -> CallResults | None:
        """Send and return the results; ``None`` if the background loop must continue the call.

        Raises:
            BaseException: Ctrl-C, or what a signal handler raised.
        """
        if asyncio._get_running_loop() is not None:  # a socket must not block an event loop
            return None
        if not self._is_admitted():
            return None
        step = self._first_step()
        if step is None:
            return None
        clock = self._endpoint.clock
        until = clock() + step.timeout
        connection = self._sender.connection(step.timeout)
        if connection is None:
            return None
        sent_at = clock()
        step.admitted = True
        outcome = self._sender.send(connection, step.body, until - sent_at)
        return self._take(step, Reply(outcome, sent_at, clock()))

    def _first_step(self) -> Send | None:
        """Begin the exchange; return its first request, or ``None`` if the loop must send it."""
        call, endpoint = self._call, self._endpoint
        if endpoint.outage is not None:
            return None
        if not self._coalescer.enter(self._texts, self._results):
            return None
        call.endpoint = SeenFromThread(endpoint)  # type: ignore[assignment]
        call.sink = self._results
        call.ledger.texts += len(self._texts)
        if call.settings.deadline:
            call.until = endpoint.clock() + call.settings.deadline
        self._steps = exchange([item_of(index, text) for index, text in self._texts], call)
        with suppress(NeedsLoop, NexusFlowError):
            step = next(self._steps)
            if isinstance(step, Send) and len(step.body) <= LARGEST:
                return step
        return None

    def _take(self, step: Send, reply: Reply) -> CallResults | None:
        """Return the results, or ``None`` if the reply is not the usual one."""
        assert self._steps is not None
        self._call.sent = (step, reply)
        outcome = reply.outcome
        if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
            with suppress(NeedsLoop, NexusFlowError):
                try:
                    self._steps.send(reply)
                except StopIteration:
                    self._call.sent = None
                    return self._results
        return None

    def _is_admitted(self) -> bool:
        return self._endpoint.admission.try_enter(self._request)

    def end(self) -> None:
        """Remove the call from the tables that all calls share.

        If a signal handler raises an error here, this must be called again.
        """
        if self._steps is not None:
            # Close again, because closing counts the request and Ctrl-C may have prevented it.
            self._steps.close()
        self._release_texts()
        self._results.part()
        self._hand_over()
        self.has_ended = True

    def _hand_over(self) -> None:
        """Wake the calls that wait for a text or for a place in the window."""
        if self._results.waiting:
            self._later(self._results.wake_all)
        if self._endpoint.admission.exit(self._request):
            self._later(self._endpoint.admission.pump)

    def _release_texts(self) -> None:
        self._coalescer.exit(self._texts, self._results)
