"""An encoder that hashes words: very fast, not semantic.

Only texts that share words are similar; "car" and "automobile" are unrelated. The encoder is for
tests and benchmarks of clients, for which a real model would be too slow.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIZE = 2048
_OFFSETS = 1 << 16
_SEED = 20_240_607
# Each Chinese, Japanese or Thai character is a token, because these scripts do not use spaces.
_TOKEN = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
    r"|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]"
)
# The weight of the whole text's hash, which distinguishes "a b" from "b a" and gives texts without
# words a vector.
_WHOLE = 0.25


class HashEncoder:
    """Maps words to fixed random directions and adds them up; the same on every machine."""

    name = "hash"
    native_size = _SIZE
    block = _SIZE
    instant = True

    def __init__(self, *, threads: int = 1) -> None:
        del threads
        self._directions: NDArray[np.float32] | None = None

    def check(self) -> None:
        """Do nothing: there are no files."""

    def load(self) -> None:
        """Generate the fixed random table, which takes about 10 ms."""
        import numpy as np

        rng = np.random.Generator(np.random.PCG64(_SEED))
        table = rng.integers(-127, 128, _OFFSETS + _SIZE).astype(np.float32)
        self._directions = np.lib.stride_tricks.sliding_window_view(table, _SIZE)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count words, punctuation marks, and single characters of scripts without spaces."""
        return [len(_TOKEN.findall(text)) for text in texts]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts: float32 of shape (n, 2048), rows of unit length."""
        import numpy as np

        directions = self._directions
        assert directions is not None, "load() comes first"
        rows = np.empty((len(texts), _SIZE), np.float32)
        for row, text in zip(rows, texts, strict=True):
            raw = text.encode("utf-8", "surrogatepass")
            high, low = divmod(zlib.crc32(raw), _OFFSETS)
            np.add(directions[low], directions[high], out=row)
            row *= _WHOLE
            words = _TOKEN.findall(text.lower())
            if words:
                places = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
                row += directions[np.asarray(places) % _OFFSETS].sum(axis=0)
            row /= np.sqrt(np.dot(row, row))
        return rows
