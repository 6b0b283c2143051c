"""The user's own fields in each request: in its body, or in the query of its URL."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlencode

from nexusflow_integrations._core.checks import refuse
from nexusflow_integrations.errors import ConfigurationError

OURS = ("model", "input", "encoding_format", "dimensions")
"""Fields of the body that have settings of their own."""
_MOST_CHARACTERS = 65_536


class Fields:
    """An immutable mapping of names to JSON values.

    Args:
        name: The name of the setting.
        given: A mapping, or ``None`` for none.
        taken: Names that may not be used.
        flat: Whether each value must be a text, a number or a boolean.

    Raises:
        ConfigurationError: They cannot be sent.
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
            written = json.dumps(
                values, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
            )
            written.encode()
        except Exception:  # noqa: BLE001 - a mapping or a value of the user's own
            raise refuse(name, wanted, given) from None
        if values is None or not all(isinstance(key, str) and key for key in values):
            raise refuse(name, wanted, given)
        if flat and not all(isinstance(value, (str, int, float)) for value in values.values()):
            raise ConfigurationError(f"{name} must map names to texts or numbers")
        for key in taken:
            if key in values:
                raise ConfigurationError(
                    f"{name} may not set {key}, which is a field of this package's own"
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
        """The names and values as the query of a URL, with its question mark; or nothing."""
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


NO_FIELDS = Fields("")
