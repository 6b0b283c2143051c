"""Hooks run before a fork and in the child."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from nexusflow_integrations._core import forks
from nexusflow_integrations.errors import ConfigurationError

from .forked import in_child, needs_fork

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def is_free(lock: forks.Lock) -> bool:
    """Return whether another thread gets the lock at once."""
    got = threading.Event()

    def take() -> None:
        with lock.mutex:
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
        with lock.mutex:
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
        mutex.release()
        return is_free(lock)

    with (mutex := lock.mutex):
        assert in_child(leave_and_take) == "True"
    assert is_free(lock)


def test_a_lock_may_be_taken_again_by_the_thread_that_holds_it() -> None:
    lock = forks.Lock()
    with lock.mutex, lock.mutex:
        assert not is_free(lock)
    assert is_free(lock)


class Account:
    """An object with work in progress."""

    def __init__(self, resets: list[str]) -> None:
        self.resets = resets
        forks.in_child(self.reset)

    def reset(self) -> None:
        self.resets.append("reset")


def test_objects_are_reset_for_as_long_as_they_live() -> None:
    resets: list[str] = []
    account = Account(resets)
    known = len(forks._resets)
    forks._in_child()
    assert resets == ["reset"]
    del account
    gc.collect()
    assert len(forks._resets) < known
    forks._in_child()
    assert resets == ["reset"]


# -- what a fork waits for -------------------------------------------------------------------------


class Pausing:
    """An object that a fork pauses."""

    def __init__(self, events: list[str], name: str, seconds: float = 0.0) -> None:
        self.events, self.name, self.seconds = events, name, seconds
        forks.around(self.pause)

    def pause(self, until: float) -> forks.Resume:
        time.sleep(min(self.seconds, max(0.0, until - time.monotonic())))
        self.events.append(f"{self.name} pauses")
        return lambda: self.events.append(f"{self.name} is resumed")


@needs_fork
def test_pauses_for_a_fork_end_only_in_the_parent() -> None:
    events: list[str] = []
    pausing = [Pausing(events, "a"), Pausing(events, "b")]
    assert in_child(lambda: events) == repr(["a pauses", "b pauses"])
    assert events == ["a pauses", "b pauses", "b is resumed", "a is resumed"]
    pausing.clear()
    gc.collect()
    assert in_child(lambda: len(events)) == "4"


@needs_fork
def test_a_fork_that_fails_resumes_everything() -> None:
    events: list[str] = []
    pausing = Pausing(events, "a")
    forks._before()  # as os.fork calls them, also if there is no memory for a child
    assert not is_free(forks.importing)
    forks._in_parent()
    assert events == [f"{pausing.name} pauses", f"{pausing.name} is resumed"]
    assert is_free(forks.importing)


@needs_fork
def test_a_fork_waits_for_an_import_of_another_thread() -> None:
    importing, forked, leave = threading.Event(), threading.Event(), threading.Event()
    events: list[str] = []

    def imports() -> None:
        with forks.importing():
            importing.set()
            assert not forked.wait(0.3)
            events.append("imported")

    def waits() -> None:
        leave.wait(60)

    threads = [threading.Thread(target=imports), threading.Thread(target=waits)]
    for thread in threads:
        thread.start()
    importing.wait(60)
    assert in_child(lambda: (events, is_free(forks.importing))) == repr((["imported"], True))
    forked.set()
    leave.set()
    for thread in threads:
        thread.join(60)


@needs_fork
def test_a_fork_during_an_import_is_a_clear_error_in_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forks, "IMPORTS", 0.1)
    importing, leave = threading.Event(), threading.Event()

    def imports() -> None:
        with forks.importing():
            importing.set()
            leave.wait(60)

    def child() -> object:
        from nexusflow_integrations import NexusFlow

        with pytest.raises(ConfigurationError, match="forked") as raised:
            NexusFlow("sk-air-x", base_url="http://127.0.0.1:9/v1").embed("a text")
        return type(raised.value).__name__

    thread = threading.Thread(target=imports)
    thread.start()
    importing.wait(60)
    try:
        assert in_child(child) == repr("ConfigurationError")
    finally:
        leave.set()
        thread.join(60)
    with forks.importing():  # the parent has lost nothing
        pass


def test_a_signal_handler_that_interrupts_an_import_gets_an_error_and_the_import_continues() -> (
    None
):
    with forks.importing():
        with pytest.raises(ConfigurationError, match="signal handler"), forks.importing():
            raise AssertionError
        assert not is_free(forks.importing)
    assert is_free(forks.importing)


@needs_fork
def test_a_hanging_pause_delays_a_fork_no_longer_than_its_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forks, "PAUSE", 0.2)
    events: list[str] = []
    hanging = [Pausing(events, str(n), 60.0) for n in range(3)]
    began = time.monotonic()
    assert in_child(lambda: len(events)) == "3"
    assert time.monotonic() - began < 30
    assert len(hanging) == 3


@needs_fork
def test_threads_may_fork_at_the_same_time_and_a_signal_handler_during_a_fork() -> None:
    # In a process of its own: filelock, which other tests import, refuses forks of several threads.
    script = """
import os, signal, threading
from tests.core.forked import in_child
from tests.core.test_forks import Pausing

signal.alarm(60)
events, said = [], []
pausing = Pausing(events, "a", 0.02)
signal.signal(signal.SIGUSR1, lambda *_: said.append(in_child(lambda: "handler")))
threads = [
    *(threading.Thread(target=lambda: said.append(in_child(lambda: "thread"))) for _ in range(4)),
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1)),
]
for thread in threads:
    thread.start()
said.append(in_child(lambda: "main"))
for thread in threads:
    thread.join()
print(*sorted(said), events.count("a pauses"), events.count("a is resumed"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    said = "'handler' 'main' 'thread' 'thread' 'thread' 'thread' 6 6\n"
    assert (done.stdout, done.returncode) == (said, 0), done.stderr


@needs_fork
def test_no_other_hook_holds_a_lock_while_our_threads_pause() -> None:
    # Otherwise, one of our threads that needs the lock could not pause.
    script = """
import os, signal, threading
from nexusflow_integrations._core import forks
from nexusflow_integrations.errors import ConfigurationError
import concurrent.futures.thread, logging
signal.alarm(60)
free = []
def pause(until):
    for lock in (concurrent.futures.thread._global_shutdown_lock, logging._lock):
        taking = threading.Thread(target=lambda: free.append(lock.acquire(timeout=1)))
        taking.start()
        taking.join()
        if free[-1]:
            lock._at_fork_reinit()
forks.around(pause)
if os.fork() == 0:
    os._exit(0)
os.wait()
print(free)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[True, True]\n", "")


def test_an_error_of_a_signal_handler_leaves_no_lock_taken() -> None:
    """The handler runs before every line of the lock's Python code, and before every return."""
    plain, importing = forks.Lock(), forks._Importing()

    def take() -> None:
        with plain.mutex, importing():
            pass

    def interrupted(at: int) -> bool:
        count = 0

        def step(frame: FrameType, event: str, value: object) -> object:
            nonlocal count
            if event in ("line", "return"):
                count += 1
                if count == at:
                    raise TimeoutError("a handler's")
            return step

        def call(frame: FrameType, event: str, value: object) -> object:
            return step if frame.f_code.co_filename == forks.__file__ else None

        sys.settrace(call)
        try:
            take()
        except TimeoutError:
            return True
        finally:
            sys.settrace(None)
        return False

    steps = 0
    while interrupted(steps + 1):
        steps += 1
        assert is_free(plain)
        assert is_free(importing)
    assert steps > 5
