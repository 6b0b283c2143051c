"""Fork safety: pauses other threads before a fork, and resets locks and state in the child.

Only the forking thread survives in the child. In the child, a lock that another thread held is
never released, and that thread's imports and other work never finish.

So a fork first waits for work that must not be interrupted: at most ``IMPORTS`` seconds for imports
and ``PAUSE`` seconds for everything else. In the child, locks are replaced, and objects drop the
work that belongs to the parent.
"""

from __future__ import annotations

# Both modules take their own locks before a fork, and our threads may need those locks to pause.
# Handlers run in reverse order of registration, so these imports make the modules' handlers run
# after ours.
import concurrent.futures.thread  # noqa: F401
import itertools
import logging  # noqa: F401
import os
import threading
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, Generic, TypeVar

from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations.errors import ConfigurationError

IMPORTS = 10.0
"""Maximum seconds that a fork waits for imports."""
PAUSE = 3.0
"""Maximum seconds that a fork waits for the event loop and the stores together."""

Resume = Callable[[], object]

F = TypeVar("F", bound=Callable[..., object])


def _method_of(function: Callable[..., object], owner: weakref.ref[object]) -> Callable[[], Any]:
    # WeakMethod is not used, because its callback raises an error if function and object are
    # freed at the same time, as they are when Python exits.
    def find() -> Any:
        one = owner()
        return None if one is None else MethodType(function, one)

    return find


class _Hooks(Generic[F]):
    """Registered functions, in order; methods are dropped when their object is collected."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._finders: dict[int, Callable[[], F | None]] = {}

    def add(self, function: F) -> None:
        number = next(self._numbers)
        if isinstance(function, MethodType):
            forget = lambda _: self._finders.pop(number, None)  # noqa: E731
            self._finders[number] = _method_of(
                function.__func__, weakref.ref(function.__self__, forget)
            )
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
    """Call ``pause`` before every fork, in the forking thread.

    ``pause`` gets the monotonic time until which it may wait, and returns a function that ends the
    pause; only the parent calls that function. A method is stored as a weak reference.
    """
    _pauses.add(pause)


def in_child(reset: Callable[[], object]) -> None:
    """Call ``reset`` in the child of every fork, before ``fork`` returns there.

    A method is stored as a weak reference.
    """
    _resets.add(reset)


class Lock:
    """A re-entrant lock that is always free in the child of a fork: ``with lock.mutex: ...``.

    ``with`` takes and releases the mutex in C, where no signal handler runs. So an error that a
    handler raises cannot leave the mutex taken. After a call of ``mutex.acquire``, it can.
    """

    def __init__(self) -> None:
        self._renew()
        in_child(self._renew)

    def _renew(self) -> None:
        self.mutex: Any = threading.RLock()

    @property
    def is_held(self) -> bool:
        """Whether this thread holds the lock."""
        return bool(self.mutex._is_owned())


class _Importing(Lock):
    """Delays forks while a thread imports: ``with importing(): import ...``."""

    def __init__(self) -> None:
        super().__init__()
        self.was_cut = False

    def __call__(self) -> Any:
        """Return the mutex to hold.

        Raises:
            ConfigurationError: The import cannot succeed: this process was forked while another
                thread was importing, or a signal handler has interrupted the import.
        """
        if self.was_cut:
            raise ConfigurationError(
                "this process was forked while another thread was importing modules that a call"
                " needs; make a first call before forking, or start processes with spawn"
            )
        if self.is_held:
            raise ConfigurationError(
                "this call, in a signal handler, interrupted imports that it needs; make a"
                " first call before the handler can run"
            )
        return self.mutex


importing = _Importing()


class _Fork:
    """A fork in progress."""

    def __init__(self) -> None:
        self.cuts_imports = False
        self.resumes: list[Resume] = []


_local = threading.local()


def _forks() -> list[_Fork]:
    # There is more than one fork if a signal handler forks while the interrupted thread is about to
    # fork.
    forks: list[_Fork] = _local.__dict__.setdefault("forks", [])
    return forks


def _before() -> None:
    fork = _Fork()
    _forks().append(fork)
    mutex = importing.mutex
    if mutex.acquire(timeout=IMPORTS):
        fork.resumes.append(mutex.release)
    else:
        fork.cuts_imports = True
    until = monotonic() + PAUSE
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
