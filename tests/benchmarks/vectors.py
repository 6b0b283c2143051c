"""The texts of all benchmarks, and the vector of each text.

A vector is a function of its text, so every vector that comes back can be checked, and cheap to
serve: 1,021 of its numbers come from a pool, already in base64, and the first three hold the CRC-32
of the text, so that no two texts share a vector (but for one in 2^32).
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

DIMENSIONS = 1024
CHARACTERS = 1100
_HEAD = 3
_POOL = 251
_WORDS = """
    retrieval embedding vector index passage query nearest neighbour cosine corpus chunk token
    sentence answer source evidence ranking recall of the and to in for with from that is by on
""".split()  # noqa: SIM905 - read as a text


def _tails() -> npt.NDArray[np.float32]:
    generator = np.random.default_rng(20261122)
    tails = generator.standard_normal((_POOL, DIMENSIONS - _HEAD)).astype(np.float32)
    unit: npt.NDArray[np.float32] = tails / np.linalg.norm(tails, axis=1, keepdims=True).astype(
        np.float32
    )
    return unit


_TAILS = _tails()


def _filler() -> str:
    picks = np.random.default_rng(7).integers(0, len(_WORDS), 4000)
    return " ".join(_WORDS[pick] for pick in picks)


_FILLER = _filler()


def text(number: int) -> str:
    """Return the text with this number: about 1,100 ASCII characters, each text different."""
    start = number * 7919 % (len(_FILLER) - CHARACTERS)
    return f"passage {number:08d}: {_FILLER[start : start + CHARACTERS - 18]}"


def texts(count: int, first: int = 0) -> list[str]:
    return [text(number) for number in range(first, first + count)]


def stream(count: int, first: int = 0) -> Iterator[str]:
    return (text(number) for number in range(first, first + count))


def _head(crc: int) -> tuple[float, float, float]:
    # 16-bit integers over a power of two are exact in float32.
    return ((crc & 0xFFFF) + 1) / 2**21, ((crc >> 16) + 1) / 2**21, 0.03125


def expected(texts: Iterable[str]) -> npt.NDArray[np.float32]:
    """Return the vectors of ``texts``, float32 of shape (n, 1024)."""
    crcs = [zlib.crc32(text.encode()) for text in texts]
    vectors = np.empty((len(crcs), DIMENSIONS), dtype=np.float32)
    vectors[:, :_HEAD] = [_head(crc) for crc in crcs]
    vectors[:, _HEAD:] = _TAILS[[crc % _POOL for crc in crcs]]
    return vectors


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def check(
    texts: Sequence[str],
    vectors: Sequence[Sequence[float]] | npt.NDArray[np.float32],
    *,
    of_length_one: bool = False,
) -> int:
    """Check every number of every vector; return how many were checked.

    ``of_length_one`` is for a place that scales vectors to length one, and so rounds them.

    Raises:
        AssertionError: A vector is missing or wrong; names the first such text.
    """
    if len(vectors) != len(texts):
        raise AssertionError(f"{len(vectors)} vectors for {len(texts)} texts")
    for start in range(0, len(texts), 1000):
        part = np.asarray(vectors[start : start + 1000], dtype=np.float32)
        wanted = expected(texts[start : start + 1000])
        if of_length_one:
            part, wanted = _unit(part), _unit(wanted)
            part = np.where(abs(part - wanted) < 1e-6, wanted, part)
        if not np.array_equal(part, wanted):
            bad = start + int(np.argmax((part != wanted).any(axis=1)))
            raise AssertionError(f"text {bad} has a vector that is not its own")
    return len(texts)


def _base64_tails() -> list[bytes]:
    return [base64.b64encode(tail.tobytes()) for tail in _TAILS]


def _float_tails() -> list[bytes]:
    return [b",".join(repr(float(x)).encode() for x in tail) for tail in _TAILS]


class Encoder:
    """Turns texts into the ``data`` of a response, for the server."""

    def __init__(self) -> None:
        self._base64 = _base64_tails()
        self._floats: list[bytes] | None = None

    def embedding(self, text: str, encoding: str) -> bytes:
        """Return the JSON value of ``embedding``."""
        crc = zlib.crc32(text.encode())
        head = _head(crc)
        if encoding == "base64":
            packed = base64.b64encode(struct.pack("<3f", *head))
            return b'"%b%b"' % (packed, self._base64[crc % _POOL])
        if self._floats is None:
            self._floats = _float_tails()
        return b"[%b,%b]" % (",".join(map(repr, head)).encode(), self._floats[crc % _POOL])
