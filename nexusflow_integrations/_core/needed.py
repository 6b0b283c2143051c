"""Error messages for missing packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(what: str, *modules: str, install: str, least: str = "") -> Iterator[None]:
    """Explain an import error in the block: which package is missing and how to install it.

    Args:
        what: The feature that needs the package.
        modules: Top-level names of the modules that may be missing. The error for any other module
            is raised unchanged, because it means a broken installation.
        install: The argument for ``pip install``.
        least: The lowest version that has everything that the block imports.

    Raises:
        ImportError: One of ``modules`` is missing.
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
