"""The admission queue of an endpoint: decides which request may be sent next, and when.

A request is sent when the window (the limit on requests in flight) has room, and the pacer (which
keeps to the rate limits) allows it. Queries go before documents, so that a search does not wait for
a bulk load. The queue runs on one event loop and needs no lock.

While nothing waits, the loop lends the free room of the window to calling threads, which may then
send without asking the loop (``try_enter``); a thread that runs an event loop sends for its tasks.
The loop takes the room back when it needs it. Both sides write before they look (the thread enters
a set, the loop reduces the room that it lends), so together they never exceed the window. They need
no lock, which might be held when a signal handler runs.

The loop keeps room for one request of its own. A thread's request may last until a signal handler
has run in the thread, and the handler may wait for a request of the loop.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Protocol, runtime_checkable

from nexusflow_integrations._core.pace.pacing import DetectedLimit, Pacer
from nexusflow_integrations._core.pace.window import Window

READY = 4
"""How many requests are prepared ahead if requests are paced, so that one is ready in time."""


@runtime_checkable
class OnCallersLoop(Protocol):
    """A request that its caller's loop drives."""

    def record_waiter(self) -> None:
        """Drive the request on the background loop, too: its caller may have blocked its loop."""


class AdmissionQueue:
    """Admits requests one by one. ``clock`` returns seconds; the pacer uses the same clock."""

    def __init__(self, pacer: Pacer, window: Window, clock: Callable[[], float]) -> None:
        self.pacer = pacer
        self.window = window
        self.in_flight = 0
        self.threads: set[object] = set()
        """The requests that calling threads have in flight."""
        self._lent = 0
        self._clock = clock
        self._order = count()
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._timer: asyncio.Handle | None = None

    async def enter(self, tokens: int, *, urgent: bool = False, again: bool = False) -> None:
        """Wait until a request of about ``tokens`` may be sent, and count it as in flight.

        Set ``again`` for a request that was admitted before but not sent: it goes before requests
        that were never admitted.
        """
        if not self._waiting and self._admit(tokens) == 0:
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        level = (0 if urgent else 2) + (not again)
        heapq.heappush(self._waiting, (level, next(self._order), tokens, turn))
        self._lent = 0
        for request in list(self.threads):
            if isinstance(request, OnCallersLoop):
                request.record_waiter()
        self.pump()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the request was admitted and cancelled at the same time
            raise

    def wanted(self, unsent: int) -> int:
        """Return how many requests to prepare for a call with ``unsent`` requests waiting.

        The number is how many could be sent now; if requests are paced, it is a few more. It is at
        least one for a call that has no request waiting.
        """
        least = 0 if unsent else 1
        return max(least, max(self._room(), READY) - max(len(self._waiting), unsent))

    @property
    def is_open(self) -> bool:
        """Whether a request would be sent without waiting."""
        return not self._waiting and self._room() > 0

    def _room(self) -> int:
        """Return how many requests could be sent now; 0 if requests are paced."""
        return self._unused() - len(self.threads)

    def _unused(self) -> int:
        """Return the room that the loop's requests leave; 0 if requests are paced."""
        if isinstance(self.pacer, DetectedLimit) and self.pacer.rate is None:
            return int(self.window.size) - self.in_flight
        return 0

    def leave(self) -> None:
        """Record that a request is no longer in flight."""
        self.in_flight -= 1
        if not self._waiting:
            self.lend()
            return
        # Pump later: the response just received may be a refusal, after which nothing should be
        # sent.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_soon(self.pump)

    def lend(self) -> None:
        """Lend the free room to calling threads; lend nothing if a request waits.

        One place is kept if the loop has no request in flight.
        """
        kept = 0 if self.in_flight else 1
        self._lent = 0 if self._waiting else max(0, self._unused() - kept)

    def lends(self, most: int) -> bool:
        """Return whether one more calling thread may send, and fewer than ``most`` are sending."""
        return len(self.threads) < min(self._lent, most)

    def try_enter(self, request: object) -> bool:
        """Count ``request`` of a calling thread as in flight, if it does not have to wait.

        The calling thread calls this. In both cases, ``exit`` must be called later.
        """
        if not self._lent:
            return False
        self.threads.add(request)
        return len(self.threads) <= self._lent

    def exit(self, request: object) -> bool:
        """Record that ``request`` is no longer in flight; this may be called again.

        Return whether a request waits, so that the loop must ``pump``.
        """
        self.threads.discard(request)
        return bool(self._waiting)

    def pump(self) -> None:
        """Admit the requests that may be sent now; set a timer for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            _, _, tokens, turn = self._waiting[0]
            if turn.done():
                heapq.heappop(self._waiting)
                continue
            wait = self._admit(tokens)
            if wait is None:
                return  # the window is full: leave() calls pump() again
            if wait > 0:
                self._timer = asyncio.get_running_loop().call_later(wait, self.pump)
                return
            heapq.heappop(self._waiting)
            turn.set_result(None)

    def _admit(self, tokens: int) -> float | None:
        """Admit and return 0, or return the seconds to wait, or ``None`` if there is no room."""
        if self._lent:
            self._lent = max(0, min(self._lent, int(self.window.size) - self.in_flight - 1))
        # The loop's only request always has room, even if the window has become smaller than the
        # number of the threads' requests.
        if self.in_flight and not self.window.allows(
            self.in_flight + max(self._lent, len(self.threads))
        ):
            return None
        now = self._clock()
        wait = self.pacer.wait(now)
        if wait <= 0:
            self.pacer.take(tokens, now)
            self.in_flight += 1
            return 0
        return wait
