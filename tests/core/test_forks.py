"""What is made anew in the child of a fork."""

from __future__ import annotations

import gc
import threading

import pytest

from nexusflow_integrations._core import forks

from .forked import in_child, needs_fork

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def is_free(lock: forks.Lock) -> bool:
    """Tell whether another thread gets the lock at once."""
    got = threading.Event()

    def take() -> None:
        with lock:
            got.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(0.5)
    return got.is_set()


@needs_fork
def test_a_lock_that_another_thread_holds_is_free_in_the_child_and_held_in_the_parent() -> None:
    lock = forks.Lock()
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        assert in_child(lambda: is_free(lock)) == "True"
        assert not is_free(lock)
    finally:
        leave.set()
        thread.join(60)
    assert is_free(lock)


@needs_fork
def test_a_thread_that_forks_while_it_holds_a_lock_may_leave_it_on_both_sides() -> None:
    lock = forks.Lock()

    def leave_and_take() -> object:
        lock.__exit__()
        return is_free(lock)

    with lock:
        assert in_child(leave_and_take) == "True"
    assert is_free(lock)


def test_a_lock_may_be_taken_again_by_the_thread_that_holds_it() -> None:
    lock = forks.Lock()
    with lock, lock:
        assert not is_free(lock)
    assert is_free(lock)


class Account:
    """Something with work under way."""

    def __init__(self, resets: list[str]) -> None:
        self.resets = resets
        forks.in_child(self.reset)

    def reset(self) -> None:
        self.resets.append("reset")


def test_objects_are_reset_for_as_long_as_they_live() -> None:
    resets: list[str] = []
    account = Account(resets)
    known = len(forks._resets)
    forks._reset_child()
    assert resets == ["reset"]
    del account
    gc.collect()
    assert len(forks._resets) < known
    forks._reset_child()
    assert resets == ["reset"]
