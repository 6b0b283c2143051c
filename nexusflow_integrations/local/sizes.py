"""A model's vectors in the eight sizes of the API.

A vector of the native size is padded with zeros to a block (a power of two). For each block of the
2048 numbers, a fixed rotation is applied to the padded vector, and the results are concatenated.
Size k is the first k of those numbers, scaled to unit length, so a client that truncates vectors
itself gets the same vectors as from the server. If k is a multiple of the block, cosines are
exactly those of the model. Below the block, cosines are estimates, with errors of about 0.04 at 256
and 0.1 at 64. Sizes above the model's native size contain no more information.

A service may work differently, so there are also independent sizes: each size below 2048 has its
own fixed order and signs of the numbers. Cosines within a size are the same, but no size is the
beginning of another.

The rotations are randomised Hadamard transforms (N. Ailon and B. Chazelle, "The fast
Johnson-Lindenstrauss transform", 2009): signs, Hadamard, signs, Hadamard. The transforms need no
matrix and no BLAS, so a row depends neither on other rows nor on the machine's libraries.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SIZES = (2048, 1536, 1024, 768, 512, 256, 128, 64)
"""The sizes of the API, largest first."""
DEFAULT_SIZE = 1024

Sizes = Literal["cut", "independent"]

_FULL = SIZES[0]
_SEED = b"nexusflow-integrations local sizes 1"


def _signs(block: int) -> NDArray[np.float32]:
    """Return fixed random signs: float32 of shape (blocks, 2, block)."""
    blocks = _FULL // block
    bits = hashlib.shake_256(_SEED + block.to_bytes(4, "big")).digest(blocks * 2 * block // 8)
    ones = np.unpackbits(np.frombuffer(bits, np.uint8)).reshape(blocks, 2, block)
    return ones.astype(np.float32) * 2 - 1


def _hadamard(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply the orthonormal Hadamard transform to rows of shape (..., block)."""
    shape, block, half = rows.shape, rows.shape[-1], 1
    while half < block:
        pairs = rows.reshape(*shape[:-1], block // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        rows = np.stack((first + second, first - second), axis=-2)
        half *= 2
    scaled: NDArray[np.float32] = rows.reshape(shape) * np.float32(block**-0.5)
    return scaled


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    unit: NDArray[np.float32] = rows / np.maximum(norms, np.finfo(np.float32).tiny)
    return unit


class Projection:
    """Projects vectors of one native size to 2048 numbers and truncates them to a size.

    Args:
        native_size: Dimensions of the model's vectors.
        block: Size of the rotations: a power of two, at least `native_size`, at most 2048.
    """

    def __init__(self, native_size: int, block: int) -> None:
        assert native_size <= block <= _FULL
        assert block & (block - 1) == 0
        self.native_size = native_size
        self.block = block
        self._signs = _signs(block)

    def spread(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project (n, native_size) to (n, 2048), float32, unit length.

        Vectors of 2048 dimensions are returned unchanged.
        """
        if self.native_size == _FULL:
            return rows
        padded = np.zeros((len(rows), 1, self.block), np.float32)
        padded[:, 0, : self.native_size] = rows
        turned = _hadamard(padded * self._signs[:, 0])
        turned = _hadamard(turned * self._signs[:, 1])
        return _unit(turned.reshape(len(rows), _FULL))

    @staticmethod
    def cut(spread: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        """Truncate (n, 2048) to (n, size), float32 little-endian, C order, unit length."""
        return np.ascontiguousarray(_unit(spread[:, :size]), "<f4")


@cache
def _own_order(size: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the order and the signs of the numbers of an independent size."""
    drawn = hashlib.shake_256(_SEED + b" independent" + size.to_bytes(4, "big")).digest(9 * size)
    order = np.frombuffer(drawn[: 8 * size], "<u8").argsort(kind="stable")
    signs = np.frombuffer(drawn[8 * size :], np.uint8) % 2 * np.float32(2) - np.float32(1)
    return order, signs


def independent(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert cut vectors, (n, size), to an independent size; those of size 2048 are unchanged."""
    size = vectors.shape[1]
    if size == _FULL:
        return vectors
    order, signs = _own_order(size)
    return np.ascontiguousarray(vectors[:, order] * signs, "<f4")
