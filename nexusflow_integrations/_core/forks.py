"""What a fork would break in the child, prevented or mended in one place.

Only the thread that forks lives on in the child. A lock that another thread held there is never
released, an import that it had begun never ends, and what it had under way is never finished.

So a fork waits until what must not be cut in two is done, ``IMPORTS`` seconds for imports and
``PAUSE`` seconds for all else; it goes on after that, so that nothing that hangs can hang it. In
the child locks are made anew, and objects that remember what is under way forget it.
"""

from __future__ import annotations

# Both take locks of theirs before a fork: they come first here so that they do so after our threads
# have paused, which may need these locks to get there.
import concurrent.futures.thread  # noqa: F401
import itertools
import logging  # noqa: F401
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Generic, TypeVar

from nexusflow_integrations.errors import ConfigurationError

IMPORTS = 10.0
"""Seconds that a fork waits for imports at most."""
PAUSE = 3.0
"""Seconds that a fork waits at most for the event loop and the stores, all together."""

Resume = Callable[[], object]

F = TypeVar("F", bound=Callable[..., object])


class _Hooks(Generic[F]):
    """Functions, and methods for as long as their objects live, in the order of their coming."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._finders: dict[int, Callable[[], F | None]] = {}

    def add(self, function: F) -> None:
        number = next(self._numbers)
        if isinstance(function, MethodType):
            forget = lambda _: self._finders.pop(number, None)  # noqa: E731
            self._finders[number] = weakref.WeakMethod(function, forget)
        else:
            self._finders[number] = lambda: function

    def __len__(self) -> int:
        return len(self._finders)

    def all(self) -> list[F]:
        found = [find() for find in list(self._finders.values())]
        return [function for function in found if function is not None]


_pauses: _Hooks[Callable[[float], Resume | None]] = _Hooks()
_resets: _Hooks[Callable[[], object]] = _Hooks()


def around(pause: Callable[[float], Resume | None]) -> None:
    """Have ``pause`` called before every fork, in the thread that forks.

    It gets the monotonic time until which it may wait, and returns what ends the pause, which is
    called in the parent only. A method is held weakly.
    """
    _pauses.add(pause)


def in_child(reset: Callable[[], object]) -> None:
    """Have ``reset`` called in the child of every fork, before ``fork`` returns there.

    A method is held weakly.
    """
    _resets.add(reset)


class Lock:
    """A re-entrant lock that is free in the child of a fork, whoever held it in the parent."""

    def __init__(self) -> None:
        self._renew()
        in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0

    @property
    def is_nested(self) -> bool:
        """Whether the thread that holds the lock has taken it more than once."""
        return self._depth > 1

    def acquire(self, timeout: float = -1) -> bool:
        """Take the lock; tell whether that worked within ``timeout`` seconds."""
        taken = self._lock.acquire(timeout=timeout)
        self._depth += taken
        return taken

    def release(self) -> None:
        self._depth -= 1
        try:
            self._lock.release()
        except RuntimeError:  # it was made anew: the thread forked while it held the lock
            self._depth += 1

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Importing(Lock):
    """Holds forks off while a thread imports: ``with importing: import ...``.

    Raises:
        ConfigurationError: The import cannot succeed here: this process was forked from a thread
            while another was importing, or a signal handler has interrupted the import.
    """

    def __init__(self) -> None:
        super().__init__()
        self.was_cut = False

    def __enter__(self) -> None:
        if self.was_cut:
            raise ConfigurationError(
                "this process was forked while another thread was importing what a call needs;"
                " make a first call before forking, or start processes with spawn"
            )
        super().__enter__()
        if self.is_nested:
            super().__exit__()
            raise ConfigurationError(
                "a signal handler has interrupted the imports that this call needs;"
                " make a first call before a handler may run"
            )


importing = _Importing()


class _Fork:
    """A fork that a thread is about to make."""

    def __init__(self) -> None:
        self.cuts_imports = False
        self.resumes: list[Resume] = []


_local = threading.local()


def _forks() -> list[_Fork]:
    # More than one if a signal handler forks while the thread that it interrupts is about to.
    forks: list[_Fork] = _local.__dict__.setdefault("forks", [])
    return forks


def _before() -> None:
    fork = _Fork()
    _forks().append(fork)
    if importing.acquire(timeout=IMPORTS):
        fork.resumes.append(importing.release)
    else:
        fork.cuts_imports = True
    until = time.monotonic() + PAUSE
    for pause in _pauses.all():
        if (resume := pause(until)) is not None:
            fork.resumes.append(resume)


def _in_parent() -> None:
    if forks := _forks():
        for resume in reversed(forks.pop().resumes):
            resume()


def _in_child() -> None:
    if forks := _forks():
        importing.was_cut |= forks.pop().cuts_imports
    for reset in _resets.all():
        reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
