"""Parses JSONL and JSON arrays whose items are objects or strings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

_LONG_NUMBER = re.compile(r"\d{19}")


class NotJsonError(Exception):
    """A text is not JSON; the message, such as ``is not JSON``, continues "line 3" or "the input".

    Attributes:
        line: The line of the text where the problem is, or ``None``.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line

    def of_array(self, instead: str) -> str:
        """Return the message with its line, and ``instead``, which says how JSONL is read."""
        if self.line is None:
            return str(self)
        return f"{self} (line {self.line}); for one object per line, {instead}"


def json_lines(
    lines: Iterable[tuple[int, str | None]],
) -> Iterator[tuple[int, Any, str | None]]:
    """Yield the number, the value and the problem of each line that is not blank.

    Args:
        lines: Numbers and texts; the text is ``None`` if the line is not UTF-8.
    """
    for number, text in lines:
        if text is None:
            yield number, None, "is not UTF-8"
        elif text.strip():
            try:
                found = load(text)
            except NotJsonError as error:
                yield number, None, str(error)
            else:
                yield number, found, problem_of(found)


def problem_of(item: object) -> str | None:
    """Return why a line or an item is not a row, or ``None``."""
    if isinstance(item, dict | str):
        return None
    return "is neither a JSON object nor a string"


def load(text: str) -> Any:
    """Parse JSON.

    Unlike orjson, keep whole numbers of more than 64 bits exactly, and read the NaN and Infinity
    that Python writes.

    Raises:
        NotJsonError: The text is not JSON, is nested too deeply, or has half a surrogate pair.
    """
    try:
        found = orjson.loads(text)
        return json.loads(text) if _LONG_NUMBER.search(text) else found
    except (ValueError, RecursionError):  # find out why, or that only orjson cannot read it
        pass
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise NotJsonError("is nested too deeply") from None
    except UnicodeEncodeError:
        raise NotJsonError("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise NotJsonError("is not JSON", error.lineno) from None
    except ValueError:  # a number with too many digits
        raise NotJsonError("is not JSON") from None
    return found
