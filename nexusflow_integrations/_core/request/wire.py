"""Encodes texts into a request body; decodes and validates the vectors of a response.

Every response is validated: rows are ordered by ``index``, their number and size are checked, and
NaN, infinity and all-zero vectors are rejected. Base64 and floats are both accepted, whichever was
requested.

Responses are decoded on the event loop that all calls of the process share. A thread would not
help, because parsing holds the GIL. Instead, `parses_fast` checks every body before it is parsed.
"""

from __future__ import annotations

import os
import zlib
from binascii import Error as Base64Error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from pybase64 import b64decode

from nexusflow_integrations._core import counts
from nexusflow_integrations._core.request.batching import Batch
from nexusflow_integrations._core.vectors import Vectors

_FLOAT32: np.dtype[np.float32] = np.dtype("<f4")

MAX_RESPONSE_BYTES = 16 * 1024 * 1024
"""Maximum bytes of a response; the largest valid one (ten vectors of 2048) is under 0.5 MB."""
MAX_VECTOR_BYTES = 256 * 1024
"""Maximum bytes of one vector: 8,192 numbers of 32 characters each."""
MAX_VECTOR_NUMBERS = 8192
MAX_NUMBERS = 1 << 20
"""Maximum numbers in one response, for any number of texts."""
MAX_CONTAINERS = 20_000
"""Maximum lists and objects in one body, because they are slow to parse; a text needs two."""
SMALL = 128 * 1024
"""Bodies with fewer bytes are always parsed. Ten base64 vectors of 2048 numbers are smaller.

If more is left of a body without its base64, the whole body is parsed instead.
"""
MAX_ENCODINGS = 2
"""Maximum number of content encodings that are applied one after the other."""


class BrokenResponse(Exception):  # noqa: N818 - it never leaves the core
    """The status is 2xx but the body is not valid; the request may be retried."""


class WrongDimensions(BrokenResponse):
    """All vectors have the wrong size. There is no retry, because it would be billed again."""


@dataclass(slots=True)  # not frozen, because that makes creating one slower
class Answer:
    """A complete HTTP response; ``headers`` are looked up by lower-case names."""

    status: int
    # The repr leaves out headers and body: a server may echo the key, and tools print the locals of
    # a traceback.
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TransportFault:
    """There was no valid HTTP response.

    ``retryable`` is false if a retry would fail in the same way, as for TLS certificates.
    """

    message: str
    timed_out: bool = False
    retryable: bool = True
    maybe_billed: bool = True


@dataclass(slots=True)  # not frozen, because that makes creating one slower
class Rows:
    """A checked response: ``vectors`` is float32 of shape (n, d), in the order of the request.

    ``tokens`` is the number of tokens billed, or ``None`` if the server did not report it.
    """

    vectors: Vectors
    tokens: int | None


def encode_request(
    batch: Batch, *, model: str, encoding_format: str, dimensions: int | None, extra: str = ""
) -> bytes:
    """Return the JSON body; ``dimensions`` is sent only if the user has set it.

    ``extra`` is a JSON object whose fields are added, or empty.
    """
    head = _head(model, encoding_format, dimensions, extra)
    return b'%b"input":%b}' % (head, orjson.dumps([item.text for item in batch]))


@lru_cache(maxsize=64)
def _head(model: str, encoding_format: str, dimensions: int | None, extra: str) -> bytes:
    parameters: dict[str, Any] = {"model": model, "encoding_format": encoding_format}
    if dimensions is not None:
        parameters["dimensions"] = dimensions
    return orjson.dumps(parameters)[:-1] + b"," + (extra[1:-1] + "," if extra else "").encode()


def decode_response(body: bytes, *, count: int, dimensions: int | None, asked: bool = True) -> Rows:
    """Return the validated vectors of a 200 response to ``count`` texts.

    Args:
        body: The response body, decompressed.
        count: How many texts were sent.
        dimensions: The size that every vector must have; ``None`` for any common size.
        asked: Whether ``dimensions`` was requested; if false, it is the size of earlier vectors.

    Raises:
        WrongDimensions: All vectors have one size, but not ``dimensions``.
        BrokenResponse: The response is not valid for another reason; the message says which.
    """
    if len(body) > max_body(count) or not parses_fast(
        body, min(count * MAX_VECTOR_NUMBERS, MAX_NUMBERS)
    ):
        raise BrokenResponse(
            f"the response is too large or too deeply nested for {counts.count(count, 'vector')}"
        )
    payload, vectors = _parsed(body, count)
    size = vectors.shape[1]
    if dimensions is not None and size != dimensions:
        if asked:
            raise WrongDimensions(f"the vectors have {size} dimensions instead of {dimensions}")
        raise WrongDimensions(
            f"the vectors have {size} dimensions, and earlier ones had {dimensions}: the server's"
            " default has changed; pass dimensions=..."
        )
    _check_numbers(vectors)
    return Rows(vectors, _billed_tokens(payload.get("usage")))


def max_body(count: int) -> int:
    """Return the maximum bytes of a valid response to ``count`` texts."""
    return min(count * MAX_VECTOR_BYTES + SMALL, MAX_RESPONSE_BYTES)


def parses_fast(body: bytes, most_values: int) -> bool:
    """Return whether parsing ``body`` takes at most tens of milliseconds, for any content."""
    return len(body) <= SMALL or (
        body.count(b"[") + body.count(b"{") <= MAX_CONTAINERS
        and body.count(b",") <= most_values + MAX_CONTAINERS
    )


def _parsed(body: bytes, count: int) -> tuple[dict[str, Any], Vectors]:
    """Return the parsed body, and its vectors in the order of the request."""
    cut = _cut(body, count)
    if cut is not None:
        rest, strings = cut
        try:
            payload = _parse(rest)
            placeholders = _place(_data(payload, count), count)
            return payload, _decoded([strings.pop(one) for one in placeholders])
        except (BrokenResponse, LookupError, TypeError):
            pass  # parse the whole body: it may be valid, and otherwise shows what is wrong
    payload = _parse(body)
    return payload, _matrix(_place(_data(payload, count), count))


_WORTH_CUTTING = 3000
"""Bytes a text from which cutting takes less time than copying: with more than 512 numbers."""
_EMBEDDING = b'"embedding":'
_PLACEHOLDERS = int.from_bytes(os.urandom(7), "big")
"""The placeholder of a vector is this number plus an offset; no server can know it."""


def _cut(body: bytes, count: int) -> tuple[bytes, dict[int, memoryview]] | None:
    """Replace the base64 of ``count`` vectors by placeholders, which are numbers.

    Return the resulting body and the base64 by placeholder; or ``None`` if the whole body must be
    parsed.

    Parsing spends most of its time on copying these strings. Base64 contains no quotation mark and
    no backslash, so it ends at the next quotation mark.
    """
    if len(body) < count * _WORTH_CUTTING:
        return None
    view, strings = memoryview(body), {}
    parts: list[bytes] = []
    at = 0
    for _ in range(count):
        colon = body.find(_EMBEDDING, at) + len(_EMBEDDING)
        start = body.find(b'"', colon, colon + 2) + 1  # there may be a space after the colon
        end = body.find(b'"', start)
        if colon < len(_EMBEDDING) or not start or end < 0:
            return None
        if not parts and body.find(b"\\", start, end) >= 0:
            return None  # the server escapes slashes
        placeholder = _PLACEHOLDERS + start
        # Without the spaces, a digit beside it would become a part of the number.
        parts += body[at : start - 1], b" %d " % placeholder
        strings[placeholder] = view[start:end]
        at = end + 1
    parts.append(body[at:])
    rest = b"".join(parts)
    # If much is left, to parse it first and then the whole body could take twice the time that
    # `parses_fast` allows.
    return None if len(rest) > SMALL else (rest, strings)


def _data(payload: Mapping[str, Any], count: int) -> list[Any]:
    data = payload.get("data")
    if not isinstance(data, list):
        raise BrokenResponse("the response has no list of vectors")
    if len(data) != count:
        found, sent = counts.count(len(data), "vector"), counts.count(count, "text")
        raise BrokenResponse(f"the response has {found} for {sent}")
    return data


def _parse(body: bytes) -> dict[str, Any]:
    try:
        payload = orjson.loads(body.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        raise BrokenResponse(f"the response is not JSON{_glimpse(body)}") from None
    if not isinstance(payload, dict):
        raise BrokenResponse(f"the response is not a JSON object but a {type(payload).__name__}")
    return payload


def _glimpse(body: bytes) -> str:
    start = body[:512].lstrip().lower()
    if not start:
        return ": it is empty"
    return ": it is an HTML page" if start.startswith((b"<!doctype", b"<html")) else ""


def _place(data: list[Any], count: int) -> list[Any]:
    """Return the ``embedding`` of each item, by ``index``, or by position if no item has it."""
    try:
        indices = [item.get("index") for item in data]
        embeddings = [item["embedding"] for item in data]
    except (AttributeError, KeyError, TypeError):
        raise BrokenResponse("an item of the response holds no vector") from None
    if indices == list(range(count)) and set(map(type, indices)) == {int}:
        return embeddings
    if all(index is None for index in indices):
        return embeddings
    placed: list[Any] = [None] * count
    seen = bytearray(count)
    for index, embedding in zip(indices, embeddings, strict=True):
        if type(index) is not int:
            raise BrokenResponse(f"an item of the response has the index {str(index)[:40]!r}")
        if not 0 <= index < count:
            raise BrokenResponse(f"index {index} is out of range for {counts.count(count, 'text')}")
        if seen[index]:
            raise BrokenResponse(f"index {index} appears twice")
        seen[index] = 1
        placed[index] = embedding
    return placed


def _matrix(embeddings: list[Any]) -> Vectors:
    if all(isinstance(item, str) for item in embeddings):
        return _decoded(embeddings)
    return _stack([_row(item) for item in embeddings])


def _decoded(strings: Sequence[str | memoryview]) -> Vectors:
    """Decode base64 vectors of one size into one buffer."""
    try:
        raw = [b64decode(string, validate=True) for string in strings]
    except (Base64Error, ValueError):
        raise BrokenResponse("a vector is not valid base64") from None
    sizes = set(map(len, raw))
    if len(sizes) != 1:
        raise BrokenResponse("the vectors have different sizes")
    size = sizes.pop()
    if not size or size % 4:
        raise BrokenResponse(
            f"a vector of {counts.count(size, 'byte')} is not a list of 32-bit numbers"
        )
    return np.frombuffer(b"".join(raw), _FLOAT32).reshape(len(raw), size // 4)


def _row(item: object) -> Vectors:
    return _decoded([item])[0] if isinstance(item, str) else _numbers(item)


def _numbers(item: object) -> Vectors:
    if not isinstance(item, list):
        raise BrokenResponse(f"a vector is a {type(item).__name__}, not a list of numbers")
    if not set(map(type, item)) <= {float, int}:
        raise BrokenResponse("a vector holds something that is not a number")
    with np.errstate(over="ignore"):  # orjson rejects numbers that are too large for a float64
        return np.array(item, dtype=np.float64).astype(np.float32)


def _stack(rows: Sequence[Vectors]) -> Vectors:
    if len({row.shape for row in rows}) != 1:
        raise BrokenResponse("the vectors have different sizes")
    if rows[0].size == 0:
        raise BrokenResponse("a vector is empty")
    return np.stack(rows)


def _check_numbers(vectors: Vectors) -> None:
    if not np.isfinite(vectors).all():
        raise BrokenResponse("a vector holds NaN or infinity")
    # An all-zero row begins with a zero; the exact test takes longer.
    if 0.0 in vectors[:, 0].tolist() and not vectors.any(axis=1).all():
        raise BrokenResponse("a vector is all zeros")


def _billed_tokens(usage: object) -> int | None:
    if not isinstance(usage, dict):
        return None
    for name in ("total_tokens", "prompt_tokens"):
        value = usage.get(name)
        if type(value) is int and 0 <= value < 1 << 40:
            return value
    return None


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body with a ``Content-Encoding`` (not requested), up to ``limit`` bytes.

    Raises:
        BrokenResponse: An encoding is unknown, there are too many encodings, or the body is
            damaged, cut off, or too large before or after decompression.
    """
    names = [part.strip().lower() for part in encoding.split(",", MAX_ENCODINGS)]
    if len(names) > MAX_ENCODINGS:
        raise BrokenResponse(f"the response is encoded more than {MAX_ENCODINGS} times")
    for name in reversed(names):
        if name in ("", "identity"):
            continue
        if name not in ("gzip", "x-gzip", "deflate"):
            raise BrokenResponse(f"the response is encoded as {name[:20]!r}, which is unsupported")
        window = 47 if name != "deflate" or body[:1] == b"\x78" else -15  # 47: gzip or zlib
        unpacker = zlib.decompressobj(window)
        if len(body) > limit:
            raise BrokenResponse("the compressed response is too large")
        try:
            body = unpacker.decompress(body, limit + 1)
        except zlib.error:
            raise BrokenResponse("the compressed response is damaged") from None
        if len(body) > limit:
            raise BrokenResponse("the response is too large when decompressed")
        if not unpacker.eof:
            raise BrokenResponse("the compressed response is cut off")
    return body
