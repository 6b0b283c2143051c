"""Saying in one sentence which package is missing, and what to type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(what: str, *modules: str, install: str, least: str = "") -> Iterator[None]:
    """Turn a missing module of the block into one sentence.

    Args:
        what: What the user used.
        modules: Top-level names of the modules whose absence this explains; another missing module
            is a broken installation, and is reported as it is.
        install: What to hand to ``pip install``.
        least: The lowest version that has all that the block imports.

    Raises:
        ImportError: What was used, what is missing and what to type.
    """
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        is_absent = isinstance(error, ModuleNotFoundError)
        if missing not in modules or not (is_absent or least):
            raise
        package = missing.replace("_", "-") + (f" {least} or newer" if least else "")
        raise ImportError(
            f'{what} needs {package}: pip install "{install}"', name=error.name
        ) from None
