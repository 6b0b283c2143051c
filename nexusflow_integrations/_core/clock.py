"""The clocks, stored where tools that freeze time in tests do not replace them.

freezegun replaces the functions of ``time`` in every module, but not the attributes of a class.
With a frozen clock, waits would never end. If another module replaces ``time`` in this module (as
the simulation does), the replacement is used.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress

if sys.version_info >= (3, 11):
    time_limit = asyncio.timeout
else:
    from async_timeout import timeout as _timeout

    time_limit = _timeout


class Real:
    """The clocks of the machine, in seconds."""

    module = time
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


def monotonic() -> float:
    """Return a time in seconds that never decreases."""
    return Real.monotonic() if time is Real.module else time.monotonic()


def keep_running(loop: asyncio.AbstractEventLoop) -> None:
    """Make ``loop`` use a clock that cannot be frozen; a loop written in C has one already."""
    with suppress(AttributeError):
        loop.time = Real.monotonic  # type: ignore[method-assign]
