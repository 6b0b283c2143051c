"""The one door to an endpoint: who may send next, and when.

A request goes out when the window has room and the pacer allows it; queries pass before documents,
so that a search does not wait behind a backfill. Lives on one event loop, needs no lock.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from nexusflow_integrations._core.pace.pacing import FoundLimit, Pacer
from nexusflow_integrations._core.pace.window import Window

TO_COME = 4
"""Requests that wait, so that the next is there when it may leave."""


class AdmissionQueue:
    """Admits requests one by one. ``clock`` is the pacer's, in seconds."""

    def __init__(self, pacer: Pacer, window: Window, clock: Callable[[], float]) -> None:
        self.pacer = pacer
        self.window = window
        self.in_flight = 0
        self._clock = clock
        self._order = count()
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, tokens: int, *, urgent: bool = False, again: bool = False) -> None:
        """Wait until a request of about ``tokens`` may be sent, and count it as in flight.

        ``again`` is for one that gave its turn up: it goes before those that have had none.
        """
        if not self._waiting and self._admit(tokens) == 0:
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        level = (0 if urgent else 2) + (not again)
        heapq.heappush(self._waiting, (level, next(self._order), tokens, turn))
        self.pump()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # admitted and cancelled in the same moment
            raise

    def wanted(self, unsent: int) -> int:
        """Return how many requests to make ready for somebody who has ``unsent`` that wait.

        As many as could leave at once; where requests are paced, a few to come. At least one for
        whoever has none.
        """
        least = 0 if unsent else 1
        return max(least, max(self._room(), TO_COME) - max(len(self._waiting), unsent))

    @property
    def is_open(self) -> bool:
        """Whether a request would leave at once."""
        return not self._waiting and self._room() > 0

    def _room(self) -> int:
        """Return how many requests could leave at once; 0 where they are paced."""
        if isinstance(self.pacer, FoundLimit) and self.pacer.rate is None:
            return int(self.window.size) - self.in_flight
        return 0

    def leave(self) -> None:
        """Note that a request is no longer in flight."""
        self.in_flight -= 1
        if self._waiting:
            self.pump()

    def pump(self) -> None:
        """Admit whoever may go now; set a timer for the next one."""
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
                return  # no room: leave() calls again
            if wait > 0:
                self._timer = asyncio.get_running_loop().call_later(wait, self.pump)
                return
            heapq.heappop(self._waiting)
            turn.set_result(None)

    def _admit(self, tokens: int) -> float | None:
        """Admit and return 0, or return the seconds to wait, or ``None`` if there is no room."""
        if not self.window.allows(self.in_flight):
            return None
        now = self._clock()
        wait = self.pacer.wait(now)
        if wait <= 0:
            self.pacer.take(tokens, now)
            self.in_flight += 1
            return 0
        return wait
