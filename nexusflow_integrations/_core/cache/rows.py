"""The format of a stored vector: the float32 numbers and a checksum.

The checksum, CRC-32 over key and numbers, detects bits that flip on disk or in memory. CRC-32 finds
every change of up to three bits in a row of up to 2,800 numbers, and misses one in 4 billion of all
other changes (Koopman, "32-bit cyclic redundancy codes for Internet applications", 2002). It takes
a microsecond for 1024 numbers, a fifth of the time of a hash. It includes the key, so that it also
detects a row under a wrong key, for example after damage to an index.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.vectors import Vectors

_OVER_ITSELF = 0x2144DF1C
"""The CRC-32 of any data followed by its own CRC-32."""


def packed(key: bytes, vector: Vectors) -> bytes:
    """Return the row for ``vector``, of shape (d,), under ``key``."""
    numbers = np.asarray(vector, dtype="<f4").tobytes()
    return numbers + zlib.crc32(numbers, zlib.crc32(key)).to_bytes(4, "little")


def is_whole(key: bytes, row: bytes) -> bool:
    """Return whether ``row`` is unchanged since it was packed under ``key``."""
    return zlib.crc32(row, zlib.crc32(key)) == _OVER_ITSELF and len(row) % 4 == 0


class DamageLog:
    """Logs once that rows of the cache at ``place`` are damaged."""

    def __init__(self, place: object) -> None:
        self._place = place
        self._has_said = False

    def note(self, damaged: int) -> None:
        """Report ``damaged`` rows that were just read."""
        if damaged and not self._has_said:
            self._has_said = True
            logger.warning(
                "the cache %s is damaged: %d of the vectors just read have a wrong checksum. They"
                " count as absent and are paid for again; a disk or memory may be failing",
                self._place,
                damaged,
            )


def dimensions_of(row: bytes) -> int:
    """Return the dimensions of a valid row."""
    return len(row) // 4 - 1


def unpacked(rows: Sequence[tuple[bytes, bytes]], dimensions: int) -> dict[bytes, Vectors]:
    """Return the vectors of those valid ``rows``, by key, that have ``dimensions``.

    The vectors are finite, not all zeros, and views of one read-only array.
    """
    fitting = [(key, row) for key, row in rows if dimensions_of(row) == dimensions > 0]
    if not fitting:
        return {}
    matrix = np.frombuffer(b"".join(row for _, row in fitting), dtype="<f4")
    matrix = matrix.reshape(len(fitting), -1)[:, :dimensions].astype(np.float32, copy=False)
    good = np.isfinite(matrix).all(axis=1) & matrix.any(axis=1)
    return {
        key: vector
        for (key, _), vector, is_good in zip(fitting, matrix, good.tolist(), strict=True)
        if is_good
    }
