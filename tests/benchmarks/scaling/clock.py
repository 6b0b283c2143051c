"""An event loop whose clock stops while callbacks run, and jumps to the next timer.

Whatever is written for asyncio then runs as discrete events: seconds of it in the time that its own
work takes, and the same way every time. Nothing outside the process is waited for.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from typing import Any


class _Leap(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("all wait for each other")
        self.now += max(0.0, timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The loop. Its timers fire up to ``late`` seconds late, as those of a process do; ``elapse``
    is for what happens elsewhere, on time."""

    def __init__(self, late: float = 0.0, seed: int = 0) -> None:
        self._leap = _Leap()
        self._late = late
        self._chance = random.Random(seed)
        super().__init__(self._leap)

    def time(self) -> float:
        return self._leap.now

    def call_at(self, when: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        return super().call_at(when + self._late * self._chance.random(), *args, **kwargs)

    async def elapse(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        over = self.create_future()
        timer = super().call_at(self.time() + seconds, _set, over)
        try:
            await over
        finally:
            timer.cancel()

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        return self.call_soon(*args, **kwargs)  # there are no other threads and no sockets


def _set(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
