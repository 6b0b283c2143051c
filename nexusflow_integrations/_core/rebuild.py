"""An error made again from what it holds: from a pickle, or as a framework's kind of error too."""

from __future__ import annotations

from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


def rebuild(cls: type[E], args: tuple[Any, ...], state: dict[str, Any]) -> E:
    """Return a ``cls`` with these ``args`` and attributes, without calling its constructor."""
    # Exceptions unpickle by cls(*args), which keyword-only arguments break.
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error
