"""The texts as they come in: checked one by one, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable

from nexusflow_integrations.errors import InvalidInputError

_INVISIBLE = "\ufeff\u200b\u2060\x00"


def check_text(text: object, index: int | None = None) -> str:
    """Return ``text`` if it can be embedded.

    Raises:
        InvalidInputError: It is not a ``str``, is blank (the API refuses empty strings), or holds
            a lone surrogate, which no encoding can carry.
    """
    # isascii() and isprintable() are fast scans in C that lone surrogates fail, and the first
    # character is nearly always a visible one, so most texts stop here.
    if isinstance(text, str) and (text.isascii() or text.isprintable()):
        first = text[:1]
        if not first.isspace() and first not in _INVISIBLE:
            return text
    if isinstance(text, str):
        if text and _encodable(text):
            if not _blank(text):
                return text
            problem = "is blank"
        elif not text:
            problem = "is blank"
        else:
            problem = "holds a lone surrogate (half a character); clean it where it was read"
    elif text is None:
        problem = "is None"
    else:
        problem = f"is not a string but {type(text).__name__}"
    where = "the text" if index is None else f"text {index}"
    raise InvalidInputError(f"{where} {problem}", index=index)


def _blank(text: str) -> bool:
    return all(char.isspace() or char in _INVISIBLE for char in text)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return ``texts`` as a list whose every item can be embedded.

    Raises:
        InvalidInputError: ``texts`` is one string or no iterable, or an item cannot be embedded;
            ``index`` says which.
    """
    if isinstance(texts, (str, bytes)):
        raise InvalidInputError(
            "a list of texts belongs here, not one string: write [text]"
            if isinstance(texts, str)
            else "a list of texts belongs here, not bytes"
        )
    try:
        items = list(texts)
    except TypeError:
        raise InvalidInputError(
            f"a list of texts belongs here, not {type(texts).__name__}"
        ) from None
    return [check_text(text, index) for index, text in enumerate(items)]
