"""Cuts texts into batches, in order, within limits on texts, bytes and tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import orjson

from nexusflow_integrations._core.models import model_named
from nexusflow_integrations._core.request.tokens import estimate_tokens
from nexusflow_integrations._core.settings import Settings

MAX_BODY_BYTES = 900_000
"""Maximum bytes of a request, below the common limit of 1 MiB."""
MAX_BATCH_TOKENS = 81_920
"""Maximum tokens per request for an unknown model: ten texts of 8,192."""
_PER_TEXT_BYTES = 1  # the comma
_ENVELOPE_BYTES = 256
_MOST_BYTES_A_CHARACTER = 6  # an escaped control character takes 6, UTF-8 at most 4


@dataclass(slots=True)  # not frozen: that would triple the cost of creating an item
class Item:
    """One text to embed.

    ``index`` is its position in the caller's list, ``tokens`` its estimated number of tokens.
    """

    index: int
    text: str
    tokens: int

    @property
    def encoded(self) -> bytes:
        """The text as a JSON string."""
        return orjson.dumps(self.text)


Batch = Sequence[Item]


def max_tokens(settings: Settings) -> float:
    """Return the maximum tokens of a request that the model and the limit per minute allow.

    The server applies the limit to each second, and refuses a request with more tokens than one
    second allows.
    """
    model = model_named(settings.model)
    most = model.batch_size * model.max_tokens if model.max_tokens else MAX_BATCH_TOKENS
    return min(most, (settings.tokens_per_minute or float("inf")) / 60)


def item_of(index: int, text: str) -> Item:
    """Return an ``Item`` for ``text``, with its tokens estimated."""
    return Item(index, text, estimate_tokens(text))


def plan_batches(
    items: Iterable[Item],
    *,
    max_texts: int,
    max_bytes: int = MAX_BODY_BYTES,
    max_tokens: float = MAX_BATCH_TOKENS,
) -> Iterator[Batch]:
    """Cut ``items`` into batches, lazily and in order.

    No batch exceeds a limit, except that a text which alone exceeds a limit gets its own batch. The
    batches together contain all items in order.
    """
    source = iter(items)
    rest: list[Item] = []
    while batch := rest + list(islice(source, max_texts - len(rest))):
        fitting = _fitting(batch, max_bytes, max_tokens)
        yield batch[:fitting]
        rest = batch[fitting:]


def _fitting(batch: Batch, max_bytes: int, max_tokens: float) -> int:
    """Return how many items from the start of ``batch`` fit into one request; at least 1."""
    tokens = sum([item.tokens for item in batch])
    characters = sum([len(item.text) for item in batch])
    # Usually an upper bound is enough, so the bytes are not counted.
    if tokens <= max_tokens and (
        _MOST_BYTES_A_CHARACTER * characters + 3 * len(batch) + _ENVELOPE_BYTES <= max_bytes
    ):
        return len(batch)
    size, tokens = _ENVELOPE_BYTES, 0
    for count, item in enumerate(batch):
        size += len(item.encoded) + _PER_TEXT_BYTES
        tokens += item.tokens
        if count and (size > max_bytes or tokens > max_tokens):
            return count
    return len(batch)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Split a batch of two or more items in the middle."""
    middle = (len(batch) + 1) // 2
    return batch[:middle], batch[middle:]
