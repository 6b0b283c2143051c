"""Validates the input texts before anything is sent."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from numbers import Integral
from os import PathLike
from typing import Any, cast

from nexusflow_integrations._core.checks import attribute, has_methods
from nexusflow_integrations.errors import InvalidInputError

_INVISIBLE = "\ufeff\u200b\u2060\x00"


def check_text(text: object, index: int | None = None) -> str:
    """Return ``text`` if it can be embedded.

    Raises:
        InvalidInputError: ``text`` is not a ``str``, is blank (the API refuses empty strings), or
            contains a lone surrogate, which cannot be encoded.
    """
    # Fast path: both scans run in C and fail on lone surrogates. Most texts begin with a visible
    # character.
    if isinstance(text, str) and (text.isascii() or text.isprintable()):
        first = text[:1]
        if not first.isspace() and first not in _INVISIBLE:
            return text
    if isinstance(text, str):
        if text and is_encodable(text):
            if not is_blank(text):
                return text
            problem = "is blank"
        elif not text:
            problem = "is blank"
        else:
            problem = "holds a lone surrogate (half a character); replace it where the text is read"
    elif text is None:
        problem = "is None"
    else:
        problem = f"must be a string, not {type(text).__name__}"
        if hint := _hint(text):
            problem += f": pass {hint}"
    where = "the text" if index is None else f"text {index}"
    raise InvalidInputError(f"{where} {problem}", index=index)


def plain_id(name: Any) -> Any:
    """Return an id as a plain ``str`` or ``int`` if it is of another class with the same meaning.

    Such an id may be a member of an enum, whose ``str`` is its name, or a scalar of numpy or
    pyarrow. Anything else is returned unchanged.
    """
    if isinstance(name, str):
        return str.__str__(name)
    if isinstance(name, Integral) and not isinstance(name, bool):
        return int(name)
    if has_methods(name, "as_py"):
        return name.as_py()
    return name


def is_blank(text: str) -> bool:
    return all(char.isspace() or char in _INVISIBLE for char in text)


def is_encodable(text: str) -> bool:
    """Return whether ``text`` can be written as UTF-8: it contains no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return ``texts`` as a list, after checking every item.

    Raises:
        InvalidInputError: ``texts`` is not a list of texts, or an item cannot be embedded;
            ``index`` is its index.
    """
    return [check_text(text, index) for index, text in enumerate(rows_of(texts))]


def sort_out_blank(texts: Iterable[str]) -> tuple[list[str], dict[int, InvalidInputError]]:
    """Return ``texts`` as a list, and the errors of the blank texts, by index.

    Raises:
        InvalidInputError: As in ``check_texts``, but blank texts raise no error.
    """
    checked: list[str] = []
    blank: dict[int, InvalidInputError] = {}
    for index, text in enumerate(rows_of(texts)):
        try:
            check_text(text, index)
        except InvalidInputError as error:
            if not (isinstance(text, str) and is_blank(text)):
                raise
            blank[index] = error.with_traceback(None)  # its frames would keep the whole call
        checked.append(text)
    return checked, blank


def rows_of(texts: Any, item: str = "text") -> Iterable[Any]:
    """Return ``texts`` as an iterable of texts, such as a list, a generator or a column of a table.

    Args:
        texts: What the caller passed.
        item: What each value is, for the message.

    Raises:
        InvalidInputError: ``texts`` is not iterable, has no order, or iterating it would yield
            something else, such as the names of columns.
    """
    if type(texts) in (list, tuple):
        return cast("Iterable[Any]", texts)
    if (advice := no_rows(texts, item)) is None:
        if has_methods(texts, "to_pylist"):  # the items of a pyarrow array are not plain values
            return list(texts.to_pylist())
        try:
            return cast("Iterable[Any]", iter(texts))
        except TypeError:
            advice = type(texts).__name__
    raise InvalidInputError(f"expected a list of {item}s, not {advice}")


def no_rows(items: object, item: str = "text") -> str | None:
    """Return what ``items`` is and what to pass instead, if it does not yield values in an order.

    Iterating such an object fails, has no fixed order, or yields something else, such as letters,
    keys or the names of columns. ``None`` means that ``items`` is none of these; it may still not
    be iterable.

    Args:
        items: What the caller passed.
        item: What each value is, for the message.
    """
    kind = type(items).__name__
    if isinstance(items, str):
        return f"one string: write [{item}]"
    if isinstance(items, (bytes, bytearray, memoryview)):
        return f"{kind}: decode it"
    if isinstance(items, Mapping) or has_methods(items, "keys", "values", "__getitem__"):
        # This includes mappings that are not a `Mapping`, such as the dict of
        # `multiprocessing.Manager()`. A column of a pandas table is not refused here, because its
        # `values` is not a method.
        return f"{kind}: pass its values()"
    if isinstance(items, array):
        return f"{kind}, whose items are single letters or numbers"
    if isinstance(items, (set, frozenset)):
        return f"{kind}, which has no order: pass a list"
    if isinstance(items, PathLike):
        return f"{kind}: read the file first"
    if attribute(items, "columns") is not None:
        return f"{kind}, which yields the names of its columns: pass one column of it"
    if hint := _hint(items):
        return f"{kind}: pass a list of {item}s; the text of this object is {hint}"
    return None


def _hint(item: object) -> str:
    """Return how to get the text of an object of LangChain, LlamaIndex or pyarrow, or ""."""
    if attribute(item, "page_content") is not None:
        return "its page_content"
    if has_methods(item, "get_content"):
        return "its get_content()"
    if has_methods(item, "as_py"):
        return "its as_py()"
    return ""
