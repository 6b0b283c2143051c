"""Lets Ctrl-C stop the command wherever it arrives.

An exception that a signal raises can do harm. Inside the import system, it can leave the import
lock held, and other threads then wait forever. In ``__del__``, it is ignored. A library that
catches it can raise another error instead.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_SOON = 0.02
_PATIENCE = 2.0
"""Seconds after which Ctrl-C stops an import, too: it may be waiting for one that never ends."""

_pressed_at: float | None = None
_former_hook: Any = sys.__unraisablehook__


def install() -> None:
    """Handle Ctrl-C from now on, unless it is ignored or another handler is installed."""
    global _former_hook
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        _former_hook, sys.unraisablehook = sys.unraisablehook, _unraisable


def was_pressed() -> bool:
    """Return whether Ctrl-C was pressed: errors since then are its consequences."""
    return _pressed_at is not None


def say_stopped() -> int:
    """Say that Ctrl-C has stopped the command, and return the exit code for that."""
    print("nexusflow: stopped", file=sys.stderr)
    return 130


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _pressed_at
    now = time.monotonic()
    if _pressed_at is None:
        _pressed_at = now
    is_importing = frame is not None and frame.f_code.co_filename == _IMPORT_SYSTEM
    if is_importing and now - _pressed_at < _PATIENCE:
        _again_soon()
    else:
        signal.default_int_handler(number, frame)


def _unraisable(ignored: Any) -> None:
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        _again_soon()
    else:
        _former_hook(ignored)


def _again_soon() -> None:
    timer = threading.Timer(_SOON, _send)
    timer.daemon = True
    timer.start()


def _send() -> None:
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:  # also wakes the main thread if it waits
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
