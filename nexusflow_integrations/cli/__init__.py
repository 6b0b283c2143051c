"""The command ``nexusflow``; `main` is its entry point.

Frameworks, models and servers are imported only when a command needs them, so ``--help`` is
instant. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a package is missing, 4 the key is missing
or refused, 5 something was left out and the rest is done, 130 stopped by Ctrl-C. If a command
fails, standard error ends in one sentence; ``NEXUSFLOW_DEBUG=1`` shows the traceback instead.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command with the process's arguments, and exit with its code."""
    try:
        for stream in (sys.stdout, sys.stderr):
            # A console that cannot show a character gets a question mark, not a crash.
            getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
        from nexusflow_integrations.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit(_say_missing())
    except KeyboardInterrupt:
        sys.exit(130)
    app()


def _say_missing() -> int:
    print(
        'nexusflow: the command needs typer and rich: pip install "nexusflow-integrations[cli]"',
        file=sys.stderr,
    )
    return 3
