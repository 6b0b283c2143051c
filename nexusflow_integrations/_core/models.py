"""The table of known models: sizes, limits and prices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """The properties of a model, according to its documentation.

    Attributes:
        sizes: Sizes of the vectors; empty if unknown, in which case any size may be requested.
        batch_size: Maximum texts per request.
        max_tokens: Maximum tokens per text; ``None`` if unknown.
        per_million_tokens: List price of a million tokens; ``None`` if unknown.
        currency: Currency of the price.
    """

    sizes: tuple[int, ...] = ()
    batch_size: int = 10
    max_tokens: int | None = None
    per_million_tokens: float | None = None
    currency: str = "CNY"


DEFAULT_MODEL = "text-embedding-v4"
MODELS = {
    # Sizes and price are from the API page, limits from the documentation of the model behind the
    # API.
    DEFAULT_MODEL: Model(
        sizes=(2048, 1536, 1024, 768, 512, 256, 128, 64),
        batch_size=10,
        max_tokens=8192,
        per_million_tokens=0.5,
    ),
}
_UNKNOWN = Model()
_MOST = 2048
"""Maximum texts per request for an unknown model, even if a larger number is requested."""


def model_named(name: object) -> Model:
    """Return the properties of the model ``name``; unknown models have defaults."""
    return MODELS.get(name, _UNKNOWN) if isinstance(name, str) else _UNKNOWN


def texts_per_request(name: object, wanted: int | None) -> int:
    """Return ``wanted``, limited to the model's maximum; for ``None``, return that maximum."""
    known = model_named(name)
    if wanted is None:
        return known.batch_size
    return min(wanted, _MOST if known is _UNKNOWN else known.batch_size)
