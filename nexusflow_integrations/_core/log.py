"""The package's logger, whose methods never raise an error of a user's filter or handler.

Such an error would end whatever reports something: a call whose vectors are paid for, or the step
of the event loop for which all calls wait.
"""

from __future__ import annotations

import logging
import signal
import traceback
from functools import partial


def raised_by_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler raised ``error``.

    Like Ctrl-C, such an error (for example Celery's soft time limit) must stop the work of the
    thread. The interrupted code did not fail.
    """
    codes = set(map(_code_of, map(signal.getsignal, signal.valid_signals()))) - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _code_of(handler: object) -> object:
    while isinstance(handler, partial):
        handler = handler.func
    if not callable(handler):  # the system's default, or nothing
        return None
    return getattr(handler, "__code__", None) or getattr(handler.__call__, "__code__", None)


class Log:
    """A logger that ignores errors of filters and handlers, except errors of signal handlers."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, *args: object) -> None:
        self._log(logging.DEBUG, message, args)

    def info(self, message: str, *args: object) -> None:
        self._log(logging.INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        self._log(logging.WARNING, message, args)

    def error(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        self._log(logging.ERROR, message, args, exc_info)

    def _log(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        exc_info: BaseException | None = None,
    ) -> None:
        try:
            # A stack level of 3 is the caller of `warning`: the record names that line.
            self._logger.log(level, message, *args, exc_info=exc_info, stacklevel=3)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise


logger = Log("nexusflow_integrations")
