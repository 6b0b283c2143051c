"""MiniLM and the multilingual USE combined in one vector, without MiniLM for non-Latin scripts.

A vector is [sqrt(g) MiniLM | sqrt(1 - g) USE], so a cosine is the weighted mean of the two
models' cosines. g is 0.65 for texts in Latin script and 0 for others, because MiniLM is trained on
English and its vectors of Chinese are noise. This has known costs. Other languages in Latin script
do slightly worse than with USE alone. An English text and its Chinese translation score about 0.5
instead of 0.8, because only their USE parts are comparable; the ranking is not affected.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from .minilm import MiniLMEncoder
from .use import UseEncoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MINILM_SHARE = 0.65
_OTHER_SCRIPT_LIMIT = 0.2
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-zªºÀ-ÖØ-öø-ʯḀ-ỿ]")


class GatedEncoder:
    """MiniLM and USE, gated by script: 896 dimensions, English and 15 more languages.

    Tokens are MiniLM's wordpieces, which split Chinese into characters.
    """

    name = "minilm-use-gated"
    native_size = MiniLMEncoder.native_size + UseEncoder.native_size
    block = 1024
    instant = False

    def __init__(self, *, threads: int = 1) -> None:
        self._minilm = MiniLMEncoder(threads=threads)
        self._use = UseEncoder(threads=threads)

    def check(self) -> None:
        """Check that the packages and model files are installed, in the expected version."""
        self._minilm.check()
        self._use.check()

    def load(self) -> None:
        """Load both models in parallel, which takes a second or two, once per process."""
        # Import numpy first: if two threads import it at once, one of them from C++, both fail.
        import_module("numpy")
        # USE loads in a thread; if that fails, the second load() below raises the error.
        other = threading.Thread(target=_quietly, args=(self._use,), daemon=True)
        other.start()
        self._minilm.load()
        other.join()
        self._use.load()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count MiniLM's wordpieces; at least one per text."""
        return self._minilm.count_tokens(texts)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts: float32 of shape (n, 896), rows of unit length."""
        import numpy as np

        rows = np.zeros((len(texts), self.native_size), np.float32)
        border = self._minilm.native_size
        rows[:, border:] = self._use.encode(texts)
        latin = [index for index, text in enumerate(texts) if in_latin_script(text)]
        if latin:
            english = self._minilm.encode([texts[index] for index in latin])
            rows[latin, :border] = english * np.float32(_MINILM_SHARE**0.5)
            rows[latin, border:] *= np.float32((1 - _MINILM_SHARE) ** 0.5)
        return rows


def in_latin_script(text: str) -> bool:
    """Return whether at most a fifth of the letters, if any, are of another script."""
    letters = len(_LETTER.findall(text))
    other = letters - len(_LATIN.findall(text))
    return other <= _OTHER_SCRIPT_LIMIT * letters


def _quietly(encoder: UseEncoder) -> None:
    try:
        encoder.load()
    except Exception:  # noqa: BLE001 - the caller's own load() raises it again
        return
