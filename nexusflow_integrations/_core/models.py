"""The table of known models: sizes, limits and prices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """The properties of a model, according to its documentation.

    Attributes:
        sizes: Sizes of its vectors; empty if not known, in which case any size may be requested.
        batch_size: Most texts per request.
        max_tokens: Most tokens per text; ``None`` if not known.
        per_million_tokens: List price of a million tokens; ``None`` if not known.
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
"""Maximum texts per request for an unknown model, whatever is requested."""


def model_named(name: object) -> Model:
    """Return the properties of the model ``name``, which need not be in the table."""
    return MODELS.get(name, _UNKNOWN) if isinstance(name, str) else _UNKNOWN


def texts_per_request(name: object, wanted: int | None) -> int:
    """Return ``wanted``, limited to the model's maximum if known; for ``None``, that maximum."""
    known = model_named(name)
    if wanted is None:
        return known.batch_size
    return min(wanted, _MOST if known is _UNKNOWN else known.batch_size)
