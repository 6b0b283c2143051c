"""The clocks, taken once, where tools that freeze the time of a program do not reach.

freezegun replaces the functions of ``time`` in every module, but not what a class holds. Under a
clock that stands still no wait of ours would end. A module that stands in for ``time`` here (the
simulation's) is asked.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress


class Real:
    """The clocks of the machine, in seconds."""

    module = time
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


def monotonic() -> float:
    """Return seconds that only grow."""
    return Real.monotonic() if time is Real.module else time.monotonic()


def keep_running(loop: asyncio.AbstractEventLoop) -> None:
    """Have ``loop`` go by a clock that cannot be frozen; one written in C has its own."""
    with suppress(AttributeError):
        loop.time = Real.monotonic  # type: ignore[method-assign]
