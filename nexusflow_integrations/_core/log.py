"""The package's logger. Errors of logging filters and logging handlers do not reach the caller.

Such an error would end the code that logs: a call whose vectors are already paid for, or a callback
on the event loop for which all calls wait.
"""

from __future__ import annotations

import logging

from nexusflow_integrations._core.signals import raised_by_signal_handler


class Log:
    """A logger that ignores errors of logging filters and logging handlers.

    Errors that a signal handler raises are not ignored.
    """

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
