"""Validation of settings.

Each function returns the setting as a plain Python value, or raises a ``ConfigurationError`` whose
message begins with the setting's name. Messages never show values of other types: a ``repr`` may
fail, be endless, or show an API key that was passed as the wrong argument.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from difflib import get_close_matches
from functools import partial
from inspect import iscoroutinefunction
from numbers import Integral, Real
from types import CodeType
from typing import Any

from nexusflow_integrations._core.counts import count
from nexusflow_integrations.errors import ConfigurationError

MAX_SECONDS = 1e8
"""Three years, in seconds: sockets, locks and event loops all accept such a timeout."""
LEAST = 1e-9
"""The smallest number that counts as above 0."""
_MAX_SHOWN = 24
_MAY_BE_KEY = re.compile(r"sk-|^\s*(?:bearer|basic|token)\b", re.IGNORECASE)
_MAX_INTEGER = 10**20


def shown(value: object, *, secret: bool = False) -> str:
    """Return what an error message may show of ``value``: never a text that may be a key.

    Args:
        value: Anything.
        secret: Whether the setting may hold a secret, so that its text is not shown.
    """
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return repr(value)
    if isinstance(value, int) and kind is int:
        return repr(value) if abs(value) < _MAX_INTEGER else "a very large number"
    if isinstance(value, str) and kind is str:
        if secret or len(value) > _MAX_SHOWN or _MAY_BE_KEY.search(value):
            return f"a text of {count(len(value), 'character')}"
        return ascii(value)
    front = "numpy." if kind.__module__ == "numpy" else ""  # its class for flags is called bool
    return f"{front}{kind.__name__[:60]}"


def refuse(name: str, wanted: str, value: object, *, secret: bool = False) -> ConfigurationError:
    """Return the error "``name`` must be ``wanted``, not ``value``"; see ``shown``."""
    return ConfigurationError(f"{name} must be {wanted}, not {shown(value, secret=secret)}")


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Rename the setting in error messages, for adapters with other field names."""
    try:
        yield
    except ConfigurationError as error:
        name, blank, rest = str(error).partition(" ")
        if names.get(name, name) == name:
            raise
        raise ConfigurationError(names[name] + blank + rest) from None


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return a whole number from ``low`` to ``high``; numpy integers are accepted."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if low <= number and (high is None or number <= high):
            return number
    upper = "up" if high is None else f"to {high:,}"
    raise refuse(name, f"a whole number from {low} {upper}", value)


def number(
    name: str,
    value: object,
    *,
    least: float = LEAST,
    most: float = math.inf,
    optional: bool = False,
) -> float:
    """Return a finite number from ``least`` to ``most``; numpy and ``Decimal`` are accepted.

    ``optional`` only changes the message.
    """
    if isinstance(value, (Real, Decimal)) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ArithmeticError, ValueError):  # a very large int, or a signalling NaN
            found = math.nan
        if least <= found <= most and found < math.inf:
            return found
    wanted = "a number above 0" if least else "a number of at least 0"
    if most < math.inf:
        wanted += f" and at most {most:,.0f}" if most >= 1 else f" and at most {most:g}"
    raise refuse(name, wanted + (" or None" if optional else ""), value)


def seconds(name: str, value: object, *, least: float = LEAST) -> float:
    """Like ``number``, but a float may be infinite."""
    if isinstance(value, float) and value == math.inf:
        return value
    return number(name, value, least=least)


def optional_number(name: str, value: object, *, most: float = math.inf) -> float | None:
    """Like ``number``, but ``None`` is allowed."""
    return None if value is None else number(name, value, most=most, optional=True)


def text(name: str, value: object, wanted: str = "text") -> str:
    """Return, as a plain ``str``, a text that can be encoded."""
    if isinstance(value, str):
        plain = str.__str__(value)
        try:
            plain.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(
                f"{name} holds a lone surrogate (half a character), which cannot be sent"
            ) from None
        return plain
    raise refuse(name, wanted, value)


def optional_text(name: str, value: object) -> str | None:
    """Like ``text``, but ``None`` is allowed."""
    return None if value is None else text(name, value, "text or None")


def word(name: str, value: object, wanted: str) -> str:
    """Return a text that is one line and not blank."""
    plain = text(name, value, wanted)
    if plain.strip() and plain.isprintable():
        return plain
    raise refuse(name, wanted, value)


def one_of(name: str, value: object, words: Sequence[str]) -> Any:
    """Return one of ``words``."""
    if isinstance(value, str) and str.__str__(value) in words:
        return str.__str__(value)
    *others, last = map(repr, words)
    raise refuse(name, f"{', '.join(others)} or {last}" if others else last, value)


def flag(name: str, value: object) -> bool:
    """Return ``True`` or ``False``."""
    if isinstance(value, bool):
        return value
    raise refuse(name, "True or False", value)


def flags(**given: object) -> None:
    """Refuse the first argument that is not ``True`` or ``False``.

    Otherwise "no" would count as true, and an empty text as false.
    """
    for name, value in given.items():
        flag(name, value)


def flag_or(name: str, value: object, word: str) -> Any:
    """Return ``True``, ``False`` or ``word``."""
    if isinstance(value, bool) or (isinstance(value, str) and str.__str__(value) == word):
        return value if isinstance(value, bool) else word
    raise refuse(name, f"True, False or {word!r}", value)


def inner_of(function: Any) -> Any:
    """Return the function in a ``functools.partial``, at any depth; any other object unchanged."""
    while isinstance(function, partial):
        function = function.func
    return function


def code_of(function: Any) -> CodeType | None:
    """Return the code that a call of ``function`` runs, if it is written in Python."""
    inner = inner_of(function)
    called = attribute(type(inner), "__call__")
    code = attribute(inner, "__code__") or attribute(called, "__code__")
    return code if isinstance(code, CodeType) else None


def function(name: str, value: object) -> Any:
    """Return a plain (not async) function, or ``None``."""
    if value is None:
        return None
    if not callable(value):
        raise refuse(name, "a function or None", value)
    if iscoroutinefunction(value) or iscoroutinefunction(attribute(value, "__call__")):
        raise ConfigurationError(f"{name} must be a plain function, not an async one")
    return value


def http_client(name: str, value: object, *, asynchronous: bool) -> Any:
    """Return an ``httpx.Client``, an ``httpx.AsyncClient`` if ``asynchronous``, or ``None``.

    Objects with the same methods are accepted too.
    """
    wanted = "httpx.AsyncClient" if asynchronous else "httpx.Client"
    if value is None:
        return None
    if isinstance(value, type) or not has_methods(value, "build_request", "send"):
        raise refuse(name, f"an {wanted} or None", value)
    kinds = {cls.__name__ for cls in type(value).__mro__}
    awaited = "AsyncClient" in kinds or iscoroutinefunction(attribute(value, "send"))
    if awaited and not asynchronous:
        raise ConfigurationError(
            f"{name} must be an {wanted}: pass an async client as async_http_client"
        )
    if asynchronous and "Client" in kinds and not awaited:
        raise ConfigurationError(f"{name} must be an {wanted}: pass a sync client as http_client")
    return value


def known_arguments(cls: type, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a ``TypeError`` for the first name not in ``known``; the value is not shown."""
    known = list(known)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise TypeError(f"{cls.__name__} has no argument {name[:60]!r}{hint}")


_SAME = [
    {"model", "model_name"},
    {"base_url", "api_base", "api_base_url", "openai_api_base"},
    {"api_key", "key", "openai_api_key"},
    {"batch_size", "chunk_size", "embed_batch_size"},
    {"dimensions", "dimension", "dims", "dim", "size", "embedding_size", "output_dimension"},
    {"max_concurrency", "num_workers", "concurrency", "max_workers"},
    {"timeout", "request_timeout"},
    {"default_headers", "headers", "extra_headers"},
    {"extra_body", "model_kwargs", "additional_kwargs"},
    {"query_instruction", "instruction", "query_prefix"},
    {"document_instruction", "text_instruction", "document_prefix"},
    {"max_retries", "retries", "num_retries"},
    {"on_too_long", "truncate", "truncation"},
]
"""Names of settings that have the same meaning in other packages."""
_OTHERS = {"mode"}
"""Names in other packages that look like one of ours but mean something else."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the question "did you mean ...?" with the closest of ``known``, or an empty text."""
    same = next((names for names in _SAME if name in names), set())
    likely = [other for other in known if other in same]
    if not likely and name not in _OTHERS:
        likely = get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {likely[0]!r}?" if likely else ""


def has_methods(value: object, *names: str) -> bool:
    """Whether ``value`` has all these methods."""
    return all(callable(attribute(value, name)) for name in names)


def attribute(value: object, name: str, default: object = None) -> Any:
    """Return an attribute of an unknown object, or ``default`` if that fails in any way."""
    try:
        return getattr(value, name, default)
    except Exception:  # noqa: BLE001 - a property may raise anything
        return default
