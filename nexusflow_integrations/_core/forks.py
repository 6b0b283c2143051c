"""What a fork would break in the child, mended in one place.

Only the thread that forked lives on in the child. A lock that another thread held there is never
released, and what another thread had under way never ends. So locks are made anew in the child, and
objects that remember what is under way are told to forget it.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import MethodType

_numbers = itertools.count()
_resets: dict[int, Callable[[], Callable[[], object] | None]] = {}


def in_child(reset: Callable[[], object]) -> None:
    """Have ``reset`` called in the child of every fork, before ``fork`` returns there.

    A method is held weakly: it is called for as long as its object lives.
    """
    number = next(_numbers)
    if isinstance(reset, MethodType):
        _resets[number] = weakref.WeakMethod(reset, lambda _: _resets.pop(number, None))
    else:
        _resets[number] = lambda: reset


class Lock:
    """A re-entrant lock that is free in the child of a fork, whoever held it in the parent."""

    def __init__(self) -> None:
        self._renew()
        in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # it was made anew: the thread forked while it held the lock
            self._lock.release()


def _reset_child() -> None:
    for find in list(_resets.values()):
        if (reset := find()) is not None:
            reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_child)
