"""Formats amounts for readers."""

from __future__ import annotations

import re
from pathlib import Path

from nexusflow_integrations._core.counts import count

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
"""The beginning of an address; ``Path`` drops one slash, and a drive has only one letter."""


def as_typed(path: Path) -> str:
    """Return a path with both slashes if it was an address, such as ``https://a.example/b``."""
    return _SCHEME.sub(r"\1://", path.as_posix(), count=1) if is_address(path) else str(path)


def is_address(path: Path) -> bool:
    """Return whether a path is an address, such as ``https://a.example/b``."""
    return _SCHEME.match(path.as_posix()) is not None


def printable(text: str, keep: str = "") -> str:
    """Return ``text`` with escapes for control characters, which could change the terminal.

    The characters in ``keep`` are not escaped.
    """

    def escaped(found: re.Match[str]) -> str:
        char = found.group()
        return char if char in keep else ascii(char)[1:-1]

    return _CONTROL.sub(escaped, text)


def time_left(seconds: float) -> str:
    """Return ``0:07 left``, or ``1:30 h left``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02} h left"
    return f"{whole // 60}:{whole % 60:02} left"


def in_bytes(number: int) -> str:
    """Return ``1 byte``, ``2.5 MB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}"
    return count(number, "byte")
