"""The user's own fields in each request, either in the body or in the URL's query string."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlencode

from nexusflow_integrations._core.checks import refuse, shown
from nexusflow_integrations.errors import ConfigurationError

OURS = ("model", "input", "encoding_format", "dimensions")
"""Fields of the body that users set through other settings."""
_MOST_CHARACTERS = 65_536
_PROBLEMS = {
    "JSON compliant": "is not finite",
    "Circular": "contains itself",
    "digits": "holds a number with too many digits",
}
"""Words in Python's error messages, and what each means for the value."""


class Fields:
    """An immutable mapping of names to JSON values.

    Args:
        name: The name of the setting.
        given: A mapping, or ``None`` for none.
        taken: Names that may not be used.
        flat: Whether each value must be a text, a number or a boolean.

    Raises:
        ConfigurationError: The names or values cannot be sent.
    """

    __slots__ = ("text",)

    def __init__(
        self,
        name: str,
        given: object = None,
        *,
        taken: Collection[str] = (),
        flat: bool = False,
    ) -> None:
        if isinstance(given, Fields):
            self.text: str = given.text
            return
        self.text = ""
        if given is None:
            return
        wanted = "a dict of names and JSON values or None"
        try:
            values = dict(given) if isinstance(given, Mapping) else None
        except Exception:  # noqa: BLE001 - a user's mapping may raise anything
            values = None
        if values is None:
            raise refuse(name, wanted, given, secret=True)
        for key, value in values.items():
            if not isinstance(key, str) or not key:
                raise ConfigurationError(f"{name} must have names that are text, not {shown(key)}")
            if (bad := _not_json(value)) is not None:
                raise ConfigurationError(
                    f"{name} must hold JSON values, but the value of {key[:60]!a} {bad}"
                )
        written = _written(values)
        if flat and not all(isinstance(value, (str, int, float)) for value in values.values()):
            raise ConfigurationError(f"{name} must have values that are text or numbers")
        for key in taken:
            if key in values:
                raise ConfigurationError(
                    f"{name} may not set {key}, which this package sets itself"
                )
        if len(written) > _MOST_CHARACTERS:
            raise ConfigurationError(f"{name} must be at most {_MOST_CHARACTERS:,} characters long")
        self.text = written if values else ""

    @property
    def value(self) -> dict[str, Any]:
        """The names and values, as a new ``dict``."""
        return dict(json.loads(self.text)) if self.text else {}

    @property
    def query(self) -> str:
        """The names and values as a URL's query string with its question mark, or an empty text."""
        if not self.text:
            return ""
        pairs = self.value.items()
        return "?" + urlencode(
            {key: value if isinstance(value, str) else json.dumps(value) for key, value in pairs}
        )

    def __bool__(self) -> bool:
        return bool(self.text)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Mapping):
            return self.value == other
        return isinstance(other, Fields) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Fields({getattr(self, 'text', '') or '{}'})"


def _not_json(value: object) -> str | None:
    """Return why ``value`` cannot be sent as JSON, or ``None``."""
    try:
        _written(value).encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate (half a character)"
    except ValueError as error:
        for words, problem in _PROBLEMS.items():
            if words in str(error):
                return problem
    except Exception:  # noqa: BLE001, S110 - a user's value may raise anything
        pass
    else:
        return None
    return f"cannot be written as JSON ({type(value).__name__[:60]})"


def _written(value: object) -> str:
    return json.dumps(
        value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
    )


NO_FIELDS = Fields("")
