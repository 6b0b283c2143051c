"""The interface of a model, and the models by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_MODEL = "minilm-use-gated"

MODELS: dict[str, str] = {
    "minilm-use-gated": "MiniLM int8 combined with the multilingual USE, gated by script; "
    "English and 15 more languages",
    "use": "Universal Sentence Encoder multilingual v3; 16 languages, numpy only",
    "minilm": "all-MiniLM-L6-v2 int8; English only",
    "hash": "hashed words, NOT semantic; for tests and benchmarks",
}
"""A one-line description of each model, by name."""

_HOMES = {
    "minilm-use-gated": ("gated", "GatedEncoder"),
    "use": ("use", "UseEncoder"),
    "minilm": ("minilm", "MiniLMEncoder"),
    "hash": ("hashing", "HashEncoder"),
}


class Encoder(Protocol):
    """A model that turns texts into vectors of its native size.

    `check` is fast and may be called at any time. `load` is slow; the other methods may be called
    only after `load`. Encoding is deterministic: a text's vector does not depend on the other
    texts.
    """

    name: str
    """The name of the model, as the server reports it."""
    native_size: int
    """Dimensions of a vector of `encode`."""
    block: int
    """Size of the projection's orthogonal blocks: a power of two, at least `native_size`."""
    instant: bool
    """Whether encoding is so fast that it runs on the event loop."""

    def check(self) -> None:
        """Check that all packages and model files are installed, in the expected version.

        Raises:
            ImportError: A package is missing; the message says how to install it.
            nexusflow_integrations.local.model_files.ModelFileError: A model file is missing or does
                not have the expected content.
        """

    def load(self) -> None:
        """Load the model into memory, which takes up to a few seconds."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count tokens with the model's own tokenizer, before truncation; one int per text."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts: float32 of shape (n, native_size), rows of unit length."""


def load_encoder(model: str = DEFAULT_MODEL, *, threads: int = 1) -> Encoder:
    """Create, check and load an encoder by name, for use without a server.

    Args:
        model: One of `MODELS`.
        threads: CPU threads of the model.

    Raises:
        ValueError: The model is unknown.
        ImportError: A package that the model needs is missing.
    """
    encoder = make_encoder(model, threads=threads)
    encoder.check()
    encoder.load()
    return encoder


def make_encoder(model: str, *, threads: int = 1) -> Encoder:
    """Create an encoder by name; do not check or load it."""
    try:
        module, name = _HOMES[model]
    except (KeyError, TypeError):
        raise ValueError(f"No model named {model!r}. Available: {', '.join(MODELS)}.") from None
    encoder: Encoder = getattr(importlib.import_module(f".{module}", __package__), name)(
        threads=threads
    )
    return encoder
