"""Says how a failure ends the process: with one sentence and an exit code."""

from __future__ import annotations

import errno
import re

from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.cli.rag.corpus import CorpusError
from nexusflow_integrations.cli.rag.indexes import NoIndexError, UnusableIndexError
from nexusflow_integrations.cli.rows import InputProblemError
from nexusflow_integrations.errors import (
    AuthenticationError,
    ConfigurationError,
    NexusFlowError,
    PermissionDeniedError,
)

FAILED = 1
USAGE = 2
MISSING = 3
REFUSED = 4
PARTLY = 5

_FOR_PYTHON = "pass api_key=... or set the environment variable"
_CHROMAS_TAIL = re.compile(r" in (add|upsert|update|query)\.$")


class UsageProblem(Exception):  # noqa: N818 - only used inside the command
    """The options cannot be used together; the message is one sentence."""


_INPUT = (CorpusError, InputProblemError, NoIndexError)
"""The input is missing or cannot be read."""
_OURS = (
    CorpusError,
    InputProblemError,
    UnusableIndexError,
    UsageProblem,
)
_SPEAK_FOR_THEMSELVES = (NexusFlowError, *_OURS, StoreUnavailable, ImportError, OSError)


def explain(error: Exception) -> tuple[str, int]:
    """Return one sentence and the exit code for ``error``."""
    # The frameworks wrap errors of the embedding, sometimes several times.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (NexusFlowError, *_OURS)):
        cause = cause.__cause__ or cause.__context__
    known = cause if isinstance(cause, Exception) else error
    return _sentence(known), _code(known)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        # An error about a file names the file; without a name, it is about standard output.
        full = "standard output" if error.errno == errno.ENOSPC else None
        name = error.filename or full
        return f"{name}: {error.strerror}" if name else error.strerror
    text = _CHROMAS_TAIL.sub("", " ".join(str(error).split()))
    text = text.replace(_FOR_PYTHON, "set the environment variable")
    if isinstance(error, _SPEAK_FOR_THEMSELVES):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text[:300]} (NEXUSFLOW_DEBUG=1 shows where)"


def _code(error: Exception) -> int:
    if isinstance(error, (UsageProblem, *_INPUT, ConfigurationError)):
        return REFUSED if "no API key" in str(error) else USAGE
    if isinstance(error, (AuthenticationError, PermissionDeniedError)):
        return REFUSED
    return MISSING if isinstance(error, ImportError) else FAILED
