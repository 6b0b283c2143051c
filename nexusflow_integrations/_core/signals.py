"""Recognises errors that the program's signal handlers raise in the middle of other code."""

from __future__ import annotations

import signal
import traceback

from nexusflow_integrations._core.checks import code_of


def raised_by_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler raised ``error``.

    Like Ctrl-C, such an error (for example Celery's soft time limit) must stop the work of the
    thread. The interrupted code did not fail.
    """
    handlers = filter(callable, map(signal.getsignal, signal.valid_signals()))
    codes = set(map(code_of, handlers)) - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))
