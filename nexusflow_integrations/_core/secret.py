"""Holds secrets that must not be printed: the API key, header values, addresses with a password.

Tools such as Sentry, ``pytest -l`` and rich show the local variables of an error's frames. So a
secret is kept in a ``Secret`` and revealed only in the expression that sends it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from nexusflow_integrations._core.checks import did_you_mean, refuse, shown
from nexusflow_integrations.errors import ConfigurationError, NexusFlowError

if TYPE_CHECKING:
    from typing_extensions import Self

_MARK = "**********"
_SHORTEST = 8
"""Header values shorter than this are not redacted in server texts: they may be ordinary words."""

_UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument '(.{1,60}?)'")

E = TypeVar("E", bound=BaseException)
P = ParamSpec("P")
T = TypeVar("T")


def without_frames(error: E) -> E:
    """Return ``error`` without its context and its traceback, whose frames may hold secrets.

    An explicit cause is kept. If it is one of this package's errors, its traceback is removed, too.
    """
    if isinstance(error.__cause__, NexusFlowError):
        without_frames(error.__cause__)
    error.__context__ = None
    return error.with_traceback(None)


def secret_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Remove the frames of ``function`` from its errors, because frames hold the arguments."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - the frames of any error hold the arguments
            if isinstance(error, TypeError):
                _add_hint(error, function)
            raise without_frames(error) from error.__cause__
        finally:
            del args, kwargs

    return called


def _add_hint(error: TypeError, function: Callable[..., object]) -> None:
    """Add "did you mean ...?" to an error about an unknown argument of ``function``."""
    named = _UNKNOWN_ARGUMENT.search(str(error))
    at = error.__traceback__
    # The call itself did not raise the error.
    if named is None or at is None or at.tb_next is not None:
        return
    place = function.__qualname__.removesuffix(".__init__")
    hint = did_you_mean(named[1], list(signature(function).parameters))
    error.args = (f"{place} has no argument {named[1]!r}{hint}",)


class Secret:
    """Text that only ``reveal()`` returns; it cannot be printed or pickled."""

    __slots__ = ("_value",)

    mark: ClassVar[str] = "***"
    """The text that replaces the secret in other texts."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def redact(self, text: str) -> str:
        """Return ``text`` with the secret replaced by ``mark``."""
        return text.replace(self._value, self.mark) if self._value else text

    def without_part(self, text: str) -> str:
        """Remove the beginning of the secret if the truncated ``text`` ends with it."""
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

    def __copy__(self) -> Self:
        return self  # a secret does not change and stays in this process

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a secret cannot be pickled")


class ApiKey(Secret):
    """The API key."""

    __slots__ = ()

    mark = "[API key]"

    def bearer(self) -> Secret:
        """Return the value of the ``Authorization`` header."""
        return Secret(f"Bearer {self._value}")

    def fingerprint(self) -> str:
        """Return the SHA-256 of the key, as 64 hexadecimal digits."""
        return hashlib.sha256(self._value.encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("the API key cannot be pickled")


_FORBIDDEN = frozenset(
    {"authorization", "content-length", "content-encoding", "transfer-encoding", "host"}
    | {"expect", "upgrade", "trailer"}
)
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Headers:
    """The user's extra headers. Names are shown, but values are not, because they may be secret.

    The class is not a ``Mapping``, because debuggers print the contents of mappings. A pickle
    contains the values, because another process needs them for its requests.

    Raises:
        ConfigurationError: ``given`` is not a mapping of text to text, or a header is not valid.
            The message does not show the value.
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
        except Exception:  # noqa: BLE001 - a user's mapping may raise anything
            pairs = None
        if pairs is None:
            wanted = "a dict of names and values or None"
            raise refuse("default_headers", wanted, given, secret=True)
        for name, value in pairs:
            if not isinstance(name, str) or not isinstance(value, str):
                raise ConfigurationError("default_headers must have names and values that are text")
            name, value = str.__str__(name), str.__str__(value).strip(" \t")
            if name.lower() in _FORBIDDEN:
                raise ConfigurationError(f"default_headers may not set {name}")
            if not _NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
                raise ConfigurationError(
                    f"default_headers: {shown(name)} cannot be sent; a name consists of letters,"
                    " digits and hyphens, a value is one line of ASCII text"
                )
            self._values[name] = Secret(value)

    def items(self) -> Iterator[tuple[str, Secret]]:
        yield from self._values.items()

    def reveal(self) -> dict[str, str]:
        return {name: value.reveal() for name, value in self._values.items()}

    def secrets(self) -> list[Secret]:
        """Return the values that are too long to be ordinary words."""
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
