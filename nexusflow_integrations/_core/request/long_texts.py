"""Texts that have more tokens than the model takes: found by an estimate, cut by a rule.

The estimate, not the model's own tokenizer, decides and cuts everywhere, so that a text has the
same pieces, and the same vector in a cache, whatever is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nexusflow_integrations._core.request.batching import Batch, Item, item_of
from nexusflow_integrations._core.request.tokens import estimate_tokens
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.texts import check_text
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import APIStatusError, InvalidInputError

CLEARLY = 1.4
"""Times the limit above which an estimate, which is off by more for odd texts, is an error."""
PIECE = 0.8
"""Part of the limit that a piece has at most, by the estimate."""
SHORTEST = 32
"""Characters of a text below which a refusal for its length is believed to mean something else."""
_WINDOW = 200
"""Characters before a cut among which a blank is looked for."""


def check_lengths(texts: Sequence[str], settings: Settings, *, single: bool = False) -> None:
    """Refuse texts that are clearly too long, if that is what ``settings`` say.

    Raises:
        InvalidInputError: One is; ``index`` says which.
    """
    limit = longest(settings)
    if max(map(len, texts), default=0) > limit:
        for index, text in enumerate(texts):
            if len(text) > limit:
                check_length(text, settings, None if single else index)


def longest(settings: Settings) -> float:
    """Return the characters up to which no text can be too long, if too long is an error."""
    limit = settings.token_limit
    return limit if limit is not None and settings.on_too_long == "error" else float("inf")


def check_length(text: str, settings: Settings, index: int | None = None) -> None:
    """Refuse ``text`` if it is clearly too long."""
    tokens, limit = estimate_tokens(text), settings.token_limit
    if limit is not None and tokens > CLEARLY * limit:
        where = "the text" if index is None else f"text {index}"
        raise InvalidInputError(
            f"{where} is too long: it has about {tokens:,} tokens, and {settings.model} takes"
            f" {limit:,}; cut it, or say on_too_long='split', 'truncate' or 'send'",
            index=index,
        )


def check_document(text: object, settings: Settings) -> str:
    """Return ``text`` if it can be sent as a document.

    Raises:
        InvalidInputError: It cannot, or is clearly too long, and that is an error.
    """
    checked = check_text(text)
    whole = settings.instruction("document") + checked
    if len(whole) > longest(settings):
        check_length(whole, settings)
    return checked


def is_cut(text: str, settings: Settings) -> bool:
    """Whether ``text`` is not sent as it is, but split or truncated."""
    limit = settings.token_limit
    return (
        limit is not None
        and settings.on_too_long in ("split", "truncate")
        and len(text) > limit
        and estimate_tokens(text) > limit
    )


def pieces_of(item: Item, most: float) -> list[Item]:
    """Return pieces of about ``most`` tokens or less, all with the index of ``item``.

    Joined together they are the text, apart from pieces of blanks, which cannot be sent.
    """
    texts = _cut(item.text, max(1.0, most))
    return [item_of(item.index, text) for text in texts if text.strip()]


def _cut(text: str, most: float) -> list[str]:
    if len(text) < 2 or estimate_tokens(text) <= most:
        return [text]
    place = _place(text, len(text) // 2)
    return _cut(text[:place], most) + _cut(text[place:], most)


def _place(text: str, place: int) -> int:
    """Return ``place``, or better the end of a word not far before it."""
    near = text[max(1, place - _WINDOW) : place]
    words = near.rstrip()
    if words and len(words) < len(near):
        return place - len(near) + len(words)
    blank = max(near.rfind(" "), near.rfind("\n"))
    return place if blank < 1 else place - len(near) + blank


def truncated(item: Item, most: float) -> Item:
    """Return the beginning of ``item`` that has about ``most`` tokens."""
    text, tokens = item.text, item.tokens
    while tokens > most and len(text) > 1:
        text = text[: max(1, min(len(text) - 1, int(len(text) * most / tokens)))]
        tokens = estimate_tokens(text)
    return Item(item.index, text, tokens)


class Pieces:
    """Where the vectors of a text's pieces go: the mean, weighted by their tokens, in the end."""

    def __init__(self) -> None:
        self._sum: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
        self.error: APIStatusError | None = None

    def rows(self, batch: Batch, vectors: Vectors) -> None:
        weights = np.array([item.tokens for item in batch], dtype=np.float64)
        part = (vectors.astype(np.float64) * weights[:, None]).sum(axis=0)
        self._sum = part if self._sum is None else self._sum + part

    def refused(self, item: Item, error: APIStatusError) -> None:
        self.error = self.error or error

    def vector(self) -> Vectors:
        """Return the mean of unit length: float32 of shape (1, d)."""
        assert self._sum is not None
        length = float(np.sqrt((self._sum * self._sum).sum()))
        return (self._sum / (length or 1.0)).astype(np.float32)[None]
