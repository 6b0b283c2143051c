"""Text that must not be seen: the API key, header values, addresses with a password.

An error may be shown with the local variables of its frames (Sentry, ``pytest -l``, rich), so what
is secret is held as a ``Secret`` everywhere but in the expression that sends it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeVar

from nexusflow_integrations._core.checks import refuse
from nexusflow_integrations.errors import ConfigurationError, NexusFlowError

_MARK = "**********"
_SHORTEST = 8
"""Characters below which a value that a server repeats is not taken for the secret."""


E = TypeVar("E", bound=BaseException)
P = ParamSpec("P")
T = TypeVar("T")


def without_frames(error: E) -> E:
    """Return ``error`` without the frames that it came through, which may hold what is secret.

    Its context goes as well. What was named as its cause stays, without frames if it is ours.
    """
    if isinstance(error.__cause__, NexusFlowError):
        without_frames(error.__cause__)
    error.__context__ = None
    return error.with_traceback(None)


def secret_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Have errors leave ``function`` without its frames, in which its arguments stand."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (NexusFlowError, TypeError, ValueError) as error:
            raise without_frames(error) from error.__cause__
        finally:
            del args, kwargs

    return called


class Secret:
    """Text that shows itself only to ``reveal()``; it is neither printed nor pickled."""

    __slots__ = ("_value",)

    mark: ClassVar[str] = "***"
    """What stands in its place in a text."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def redact(self, text: str) -> str:
        """Return ``text`` with ``mark`` in the place of the secret, should it hold it."""
        return text.replace(self._value, self.mark) if self._value else text

    def without_part(self, text: str) -> str:
        """Return ``text``, which was cut, without the part of the secret that it may end with."""
        for length in range(len(self._value) - 1, 0, -1):
            if text.endswith(self._value[:length]):
                return text[:-length]
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{_MARK}')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a secret is never pickled")


class ApiKey(Secret):
    """The API key."""

    __slots__ = ()

    mark = "[API key]"

    def bearer(self) -> Secret:
        """Return the value of the ``Authorization`` header."""
        return Secret(f"Bearer {self._value}")

    def fingerprint(self) -> str:
        """Return a SHA-256 that stands for the key, as 64 hexadecimal digits."""
        return hashlib.sha256(self._value.encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("the API key is never pickled")


_FORBIDDEN = frozenset(
    {"authorization", "content-length", "content-encoding", "transfer-encoding", "host"}
    | {"expect", "upgrade", "trailer"}
)
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Headers:
    """Headers of the user's: names, which are shown, and values, which may be secret and are not.

    Not a ``Mapping``: whoever prints variables looks into those. A pickle holds the values, which
    another process needs for its requests.

    Raises:
        ConfigurationError: ``given`` is no mapping of text to text that can stand in a request. The
            message holds no value.
    """

    __slots__ = ("_values",)

    @secret_arguments
    def __init__(self, given: Mapping[str, str] | Headers | None = None) -> None:
        if isinstance(given, Headers):
            self._values = given._values
            return
        self._values = {}
        if given is None:
            return
        try:
            pairs = list(given.items()) if isinstance(given, Mapping) else None
        except Exception:  # noqa: BLE001 - a mapping of the user's own
            pairs = None
        if pairs is None:
            raise refuse("default_headers", "a dict of names and values or None", given)
        for name, value in pairs:
            if not isinstance(name, str) or not isinstance(value, str):
                raise ConfigurationError("default_headers must map text to text")
            name, value = str.__str__(name), str.__str__(value).strip(" \t")
            if name.lower() in _FORBIDDEN:
                raise ConfigurationError(f"default_headers may not set {name}")
            if not _NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
                raise ConfigurationError(
                    f"default_headers: {name[:60]!a} cannot stand in a request; a name is letters,"
                    " digits and hyphens, a value is ASCII text of one line"
                )
            self._values[name] = Secret(value)

    def items(self) -> Iterator[tuple[str, Secret]]:
        yield from self._values.items()

    def reveal(self) -> dict[str, str]:
        return {name: value.reveal() for name, value in self._values.items()}

    def secrets(self) -> list[Secret]:
        """Return the values that are long enough to be told from any word."""
        return [value for value in self._values.values() if len(value.reveal()) >= _SHORTEST]

    def __bool__(self) -> bool:
        return bool(self._values)

    def __repr__(self) -> str:
        return f"Headers({', '.join(map(repr, getattr(self, '_values', ())))})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Mapping):
            return self.reveal() == dict(other)
        return isinstance(other, Headers) and other._values == self._values

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __copy__(self) -> Headers:
        return self

    def __deepcopy__(self, memo: object) -> Headers:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Headers, (self.reveal(),)
