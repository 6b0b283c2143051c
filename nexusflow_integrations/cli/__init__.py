"""The command ``nexusflow``; `main` is its entry point.

Frameworks, models and servers are imported only when a command needs them, so ``--help`` is
instant. Exit codes: 0 done, 1 failed, 2 wrong usage, or an input that is missing or cannot be read,
3 a package is missing, 4 the key is missing or refused, 5 something was left out and the rest is
done, 130 stopped by Ctrl-C. A command that fails prints one sentence to standard error, or its
traceback if ``NEXUSFLOW_DEBUG=1`` is set.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from nexusflow_integrations.cli import interrupts, plain_symbols

__all__ = ["main"]


def main() -> None:
    """Run the command with this process's arguments, then exit with the command's exit code."""
    try:
        interrupts.install()
        plain_symbols.register()
        for stream in (sys.stdout, sys.stderr):
            # Print "..." if the console cannot show an ellipsis, and "?" for other characters.
            getattr(stream, "reconfigure", lambda **_: None)(errors=plain_symbols.NAME)
        from nexusflow_integrations.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit(_say_missing())
    except KeyboardInterrupt:
        sys.exit(interrupts.say_stopped())
    code: Any = 0
    try:
        app()
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:  # before the command began, or after its end
        code = interrupts.say_stopped()
    except OSError as error:  # the help could not be printed
        if os.environ.get("NEXUSFLOW_DEBUG"):
            raise
        code = _say_unwritten(error)
    try:
        if sys.stdout is not None:  # None if the parent process closed it
            sys.stdout.flush()
    except OSError as error:
        # Otherwise Python flushes again at exit, and reports the error with its own message and
        # code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or _say_unwritten(error)
    sys.exit(code)


def _say_unwritten(error: OSError) -> int:
    if error.errno != errno.EPIPE:
        print(f"nexusflow: standard output: {error.strerror}", file=sys.stderr)
    return 1


def _say_missing() -> int:
    print(
        'nexusflow: the command needs typer and rich: pip install "nexusflow-integrations[cli]"',
        file=sys.stderr,
    )
    return 3
