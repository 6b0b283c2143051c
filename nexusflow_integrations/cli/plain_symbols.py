"""Symbols in place of those that the console cannot show."""

from __future__ import annotations

import codecs

_PLAIN = {
    "…": "...",
    "–": "-",
    "·": "-",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "±": "+-",
    "¥": "CNY ",
    "€": "EUR ",
    "✓": "ok",
    "✗": "FAIL",
}
NAME = "nexusflow-plain"
"""Name of the error handler, for ``errors=``."""


def register() -> None:
    """Register the error handler ``NAME`` for streams."""
    codecs.register_error(NAME, _plain)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_PLAIN.get(char, "?") for char in unknown), error.end
