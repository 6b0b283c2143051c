"""The package's logger, whose methods never raise an error of a user's filter or handler.

Such an error would end whatever reports something: a call whose vectors are paid for, or the step
of the event loop for which all calls wait.
"""

from __future__ import annotations

import logging

from nexusflow_integrations._core.signals import raised_by_signal_handler


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
