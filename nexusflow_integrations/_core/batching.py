"""Which texts travel together: in order, at most so many, so many bytes, so many tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from nexusflow_integrations._core.tokens import estimate_tokens

MAX_BODY_BYTES = 900_000
"""Stay clear of request body limits near 1 MiB."""
MAX_BATCH_TOKENS = 81_920
"""Ten texts of the model's 8,192 tokens."""
_PER_TEXT_BYTES = 1  # the comma
_ENVELOPE_BYTES = 256


@dataclass(slots=True)  # frozen would be three times slower to make, and there is one for each text
class Item:
    """One text, ready to be put into a body.

    ``index`` is its place in the caller's list, ``encoded`` its JSON string, ``tokens`` estimated.
    """

    index: int
    encoded: bytes
    tokens: int


Batch = Sequence[Item]


def max_tokens(tokens_per_minute: float | None) -> float:
    """Return the most tokens of a request under a limit, if there is one.

    Limits that hold per second refuse a request of more tokens than a second may bring.
    """
    return min(MAX_BATCH_TOKENS, (tokens_per_minute or float("inf")) / 60)


def encode_item(index: int, text: str) -> Item:
    """Encode ``text`` once; planning, the body and the byte limit all use the result."""
    return Item(index, orjson.dumps(text), estimate_tokens(text))


def plan_batches(
    items: Iterable[Item],
    *,
    max_texts: int,
    max_bytes: int = MAX_BODY_BYTES,
    max_tokens: float = MAX_BATCH_TOKENS,
) -> Iterator[list[Item]]:
    """Cut ``items`` into batches, lazily and in order.

    No batch passes a limit, except that a text which alone is over one travels alone. Joined
    together the batches are the items.
    """
    batch: list[Item] = []
    size = _ENVELOPE_BYTES
    tokens = 0
    for item in items:
        item_size = len(item.encoded) + _PER_TEXT_BYTES
        if batch and (
            len(batch) >= max_texts
            or size + item_size > max_bytes
            or tokens + item.tokens > max_tokens
        ):
            yield batch
            batch, size, tokens = [], _ENVELOPE_BYTES, 0
        batch.append(item)
        size += item_size
        tokens += item.tokens
    if batch:
        yield batch


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Cut a batch of two or more in the middle."""
    middle = (len(batch) + 1) // 2
    return batch[:middle], batch[middle:]
