"""Runs a test on an event loop whose clock jumps, so that a long wait takes no time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class TimedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds = 1000.0

    def time(self) -> float:
        return self._seconds

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._seconds = max(self._seconds, self._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


def timed(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        loop = TimedLoop()
        try:
            loop.run_until_complete(asyncio.wait_for(test(), 10_000))
            assert asyncio.all_tasks(loop) == set()
        finally:
            loop.close()

    run.__name__ = test.__name__
    return run
