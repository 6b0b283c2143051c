"""The clocks, kept where tools that freeze time do not replace them.

freezegun replaces the functions of ``time`` in every module, but not the attributes of a class.
With a frozen clock, waits would never end. If ``time`` is replaced in this module by another
module (as the simulation does), that one is used.
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
    """Return seconds that never decrease."""
    return Real.monotonic() if time is Real.module else time.monotonic()


def keep_running(loop: asyncio.AbstractEventLoop) -> None:
    """Make ``loop`` use a clock that cannot be frozen; loops written in C have their own."""
    with suppress(AttributeError):
        loop.time = Real.monotonic  # type: ignore[method-assign]
