"""Detects texts with more tokens than the model accepts, and splits them, by estimated tokens.

The estimate is used even if the model's tokenizer is installed, so that a text always has the same
pieces and the same vector in a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from nexusflow_integrations._core.request.batching import Batch, Item, item_of
from nexusflow_integrations._core.request.tokens import estimate_tokens
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.texts import check_text
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import APIStatusError, InvalidInputError

CLEARLY = 1.4
"""A text is clearly too long if its estimate, which may err, exceeds the limit by this factor."""
PIECE = 0.8
"""Maximum estimated tokens of a piece, as a share of the limit."""
SHORTEST = 32
"""A text with fewer characters is never too long, even if the server refuses it as too long."""
_WINDOW = 200
"""Number of characters before a cut that are searched for a blank."""


def check_lengths(texts: Sequence[str], settings: Settings, *, single: bool = False) -> None:
    """Refuse texts that are clearly too long, if ``settings`` require it.

    Raises:
        InvalidInputError: A text is too long; ``index`` is its index.
    """
    limit = longest(settings)
    if max(map(len, texts), default=0) > limit:
        for index, text in enumerate(texts):
            if len(text) > limit:
                check_length(text, settings, None if single else index)


def sort_out_long(
    texts: Sequence[str], settings: Settings, left_out: dict[int, InvalidInputError]
) -> None:
    """Add the errors of texts that are clearly too long to ``left_out``, by index."""
    limit = longest(settings)
    for index, text in enumerate(texts):
        if len(text) > limit and index not in left_out:
            try:
                check_length(text, settings, index)
            except InvalidInputError as error:
                left_out[index] = error


def longest(settings: Settings) -> float:
    """Return the number of characters up to which no text can be too long."""
    limit = settings.token_limit
    checked = limit is not None and settings.on_too_long in ("error", "collect")
    return cast("int", limit) if checked else float("inf")


def check_length(text: str, settings: Settings, index: int | None = None) -> None:
    """Refuse ``text`` if it is clearly too long."""
    tokens, limit = estimate_tokens(text), settings.token_limit
    if limit is not None and tokens > CLEARLY * limit:
        where = "the text" if index is None else f"text {index}"
        raise InvalidInputError(
            f"{where} is too long: it has about {tokens:,} tokens, and {settings.model} accepts"
            f" {limit:,}; shorten it, or set on_too_long='split', 'truncate' or 'send'",
            index=index,
        )


def check_document(text: object, settings: Settings) -> str:
    """Return ``text`` if it can be sent as a document.

    Raises:
        InvalidInputError: The text cannot be sent, or is clearly too long and ``settings`` make
            that an error.
    """
    checked = check_text(text)
    whole = settings.instruction("document") + checked
    if len(whole) > longest(settings):
        check_length(whole, settings)
    return checked


def is_cut(text: str, settings: Settings) -> bool:
    """Return whether ``text`` is to be split or truncated."""
    limit = settings.token_limit
    return (
        limit is not None
        and settings.on_too_long in ("split", "truncate")
        and len(text) > limit
        and estimate_tokens(text) > limit
    )


def pieces_of(item: Item, most: float) -> list[Item]:
    """Return pieces of at most about ``most`` tokens, all with the index of ``item``.

    Together, the pieces make up the text, except for blank pieces, which cannot be sent.
    """
    texts = _cut(item.text, max(1.0, most))
    return [item_of(item.index, text) for text in texts if text.strip()]


def _cut(text: str, most: float) -> list[str]:
    if len(text) < 2 or estimate_tokens(text) <= most:
        return [text]
    place = _place(text, len(text) // 2)
    return _cut(text[:place], most) + _cut(text[place:], most)


def _place(text: str, place: int) -> int:
    """Return the end of a word shortly before ``place``; if there is none, return ``place``."""
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
    """Collects the vectors of a text's pieces; the result is their mean, weighted by tokens."""

    def __init__(self) -> None:
        self._sum: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
        self.error: APIStatusError | None = None

    def rows(self, batch: Batch, vectors: Vectors) -> None:
        weights = np.array([item.tokens for item in batch], dtype=np.float64)
        part = (vectors.astype(np.float64) * weights[:, None]).sum(axis=0)
        self._sum = part if self._sum is None else self._sum + part

    def refused(self, item: Item, error: APIStatusError) -> None:
        self.error = self.error or error

    def is_refused(self, item: Item) -> bool:
        return self.error is not None

    def vector(self) -> Vectors:
        """Return the mean, scaled to unit length: float32 of shape (1, d)."""
        assert self._sum is not None
        length = float(np.sqrt((self._sum * self._sum).sum()))
        return (self._sum / (length or 1.0)).astype(np.float32)[None]
