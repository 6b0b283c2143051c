"""What is known of each model: its sizes, its limits and its price, in one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """Facts of one model, as its documentation gives them.

    Attributes:
        sizes: Sizes of its vectors; empty where they are not known, and then any is asked for.
        batch_size: Texts a request at most.
        max_tokens: Tokens a text at most; ``None`` where that is not known.
        per_million_tokens: List price of a million tokens; ``None`` where that is not known.
        currency: Currency of the price.
    """

    sizes: tuple[int, ...] = ()
    batch_size: int = 10
    max_tokens: int | None = None
    per_million_tokens: float | None = None
    currency: str = "CNY"


DEFAULT_MODEL = "text-embedding-v4"
MODELS = {
    # Sizes and price: the API page. Limits: the documentation of the model behind the API.
    DEFAULT_MODEL: Model(
        sizes=(2048, 1536, 1024, 768, 512, 256, 128, 64),
        batch_size=10,
        max_tokens=8192,
        per_million_tokens=0.5,
    ),
}
_UNKNOWN = Model()
_MOST = 2048
"""Texts a request to a model of which nothing is known, whatever was wanted."""


def model_named(name: object) -> Model:
    """Return what is known of the model ``name``; a model that is not in the table is allowed."""
    return MODELS.get(name, _UNKNOWN) if isinstance(name, str) else _UNKNOWN


def texts_a_request(name: object, wanted: int | None) -> int:
    """Return ``wanted``, but no more than the model is known to take; its most for ``None``."""
    known = model_named(name)
    if wanted is None:
        return known.batch_size
    return min(wanted, _MOST if known is _UNKNOWN else known.batch_size)
