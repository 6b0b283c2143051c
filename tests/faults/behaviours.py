"""The faults of a server: one function, or a maker of functions, for each; see `server.Wire`."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import random
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import numpy as np

from .server import Behaviour, Wire, at, encode, payload

HTML = "text/html; charset=utf-8"


Headers = Iterable[tuple[str, str]]


def page(status: int, title: str, server: str = "nginx/1.22.1") -> str:
    """An error page as gateways write them."""
    padding = "<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n" * 6
    return (
        f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{status} {title}</h1></center>\r\n<hr><center>{server}</center>\r\n"
        f"</body>\r\n</html>\r\n{padding}"
    )


# ---------------------------------------------------------------- a status, a body, headers


def error(
    code: object, message: object = "the server's own words", type_: str | None = "some_error"
) -> dict[str, Any]:
    """The documented error body."""
    return {"error": {"code": code, "message": message, "type": type_}}


def says(
    status: int,
    body: bytes | str | dict[str, Any] | list[Any] = b"",
    headers: Headers | Callable[[], Headers] = (),
    **options: Any,
) -> Behaviour:
    """Respond with this status and body. A callable makes the headers when they are sent."""

    def behaviour(wire: Wire) -> None:
        wire.respond(status, body, headers() if callable(headers) else headers, **options)

    return behaviour


def html(status: int, title: str, **options: Any) -> Behaviour:
    return says(status, page(status, title), content_type=HTML, **options)


def echoes_the_key(status: int) -> Behaviour:
    """The server repeats the Authorization header in its error message."""

    def behaviour(wire: Wire) -> None:
        assert wire.request is not None
        key = (wire.request.header("authorization") or "").removeprefix("Bearer ")
        wire.respond(status, error("invalid_api_key", f"Incorrect API key provided: {key}."))

    return behaviour


def batch_size_error(limit: int) -> dict[str, Any]:
    return error(
        "InvalidParameter",
        f"<400> InternalError.Algo.InvalidParameter: Value error, batch size is invalid,"
        f" it should not be larger than {limit}.: input.contents",
    )


LENGTH_ERROR = error(
    "InvalidParameter",
    "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 8192]",
)
MODERATION_ERROR = error(
    "data_inspection_failed",
    "<400> InternalError.Algo.DataInspectionFailed: Input data may contain inappropriate content.",
    "data_inspection_failed",
)


def refuses_base64(wire: Wire) -> None:
    assert wire.request is not None
    if wire.request.encoding == "base64":
        wire.respond(
            400,
            error("InvalidParameter", "encoding_format: only 'float' is supported, not 'base64'"),
        )
    else:
        wire.right()


def token_limit(limit: int) -> Behaviour:
    """429 for a request that is larger than the whole minute's tokens."""

    def behaviour(wire: Wire) -> None:
        asked = sum(len(text) for text in wire.texts)
        if asked > limit:
            message = (
                "Request too large for text-embedding-v4 on tokens per min (TPM):"
                f" Limit {limit}, Requested {asked}."
            )
            wire.respond(429, error("rate_limit_exceeded", message, "tokens"))
        else:
            wire.right()

    return behaviour


class Quota:
    """429 beyond so many requests (in bursts of `burst`) or tokens a second."""

    def __init__(
        self, per_second: float, burst: int = 2, *, tokens_per_second: float | None = None
    ) -> None:
        self.rate = per_second
        self.burst = burst
        self.token_rate = tokens_per_second
        self.requests_left = float(burst)
        self.tokens_left = tokens_per_second or 0.0
        self.last = time.monotonic()

    def __call__(self, wire: Wire) -> None:
        tokens = sum(len(text) for text in wire.texts)
        with wire.server.lock:
            now = time.monotonic()
            passed, self.last = now - self.last, now
            self.requests_left = min(self.burst, self.requests_left + passed * self.rate)
            enough = self.requests_left >= 1
            if self.token_rate is not None:
                self.tokens_left = min(self.token_rate, self.tokens_left + passed * self.token_rate)
                enough = enough and self.tokens_left >= tokens
            if enough:
                self.requests_left -= 1
                self.tokens_left -= tokens
        if enough:
            wire.right()
        else:
            wire.respond(429, error("limit_requests", "Requests rate limit exceeded, try later."))


def http_date(seconds: float, zone: timezone = timezone.utc) -> str:
    when = datetime.now(zone) + timedelta(seconds=seconds)
    if zone is timezone.utc:
        return format_datetime(when, usegmt=True)
    return format_datetime(when)


def asctime_date(seconds: float) -> str:
    return time.asctime(time.gmtime(time.time() + seconds))


def rfc850_date(seconds: float) -> str:
    return time.strftime("%A, %d-%b-%y %H:%M:%S GMT", time.gmtime(time.time() + seconds))


# ---------------------------------------------------------------- a 200 that is not right


def edited(
    change: Callable[[dict[str, Any]], object], encoding: str | None = None, **options: Any
) -> Behaviour:
    """The right body after `change`, which edits it in place."""

    def behaviour(wire: Wire) -> None:
        body = wire.right_body(encoding)
        change(body)
        wire.respond(200, body, **options)

    return behaviour


def replaced(make: Callable[[dict[str, Any]], Any], encoding: str | None = None) -> Behaviour:
    """The right body, changed by `make`."""
    return lambda wire: wire.respond(200, make(wire.right_body(encoding)))


def unchanged(body: dict[str, Any]) -> None:
    """For `edited`, when the encoding or a header is tested."""


def each_item(change: Callable[[int, dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(body: dict[str, Any]) -> None:
        for i, item in enumerate(body["data"]):
            change(i, item)

    return edit


def index_becomes(value: Callable[[int], Any]) -> Callable[[dict[str, Any]], None]:
    return each_item(lambda i, item: item.update(index=value(i)))


def last_vector(change: Callable[[list[float]], Any]) -> Callable[[dict[str, Any]], None]:
    """Change the last vector, as floats (use with encoding="float")."""

    def edit(body: dict[str, Any]) -> None:
        item = body["data"][-1]
        other = change(item["embedding"])
        if other is not None:
            item["embedding"] = other

    return edit


def last_element(value: Any) -> Behaviour:
    def change(vector: list[float]) -> None:
        vector[-1] = value

    return edited(last_vector(change), "float")


def literal_element(literal: str) -> Behaviour:
    """A number in a form that no JSON library writes."""

    def change(body: dict[str, Any]) -> str:
        body["data"][-1]["embedding"][-1] = "@"
        return json.dumps(body).replace('"@"', literal)

    return replaced(change, "float")


def last_base64(change: Callable[[str], str]) -> Behaviour:
    def edit(body: dict[str, Any]) -> None:
        item = body["data"][-1]
        item["embedding"] = change(item["embedding"])

    return edited(edit, "base64")


def base64_of(vector: Any) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def with_number(position: int, value: float) -> Callable[[str], str]:
    def change(encoded: str) -> str:
        vector = np.frombuffer(base64.b64decode(encoded), dtype="<f4").copy()
        vector[position] = value
        return base64_of(vector)

    return change


def of_dimensions(dimensions: int) -> Behaviour:
    return lambda wire: wire.respond(200, wire.right_body(dimensions=dimensions))


def raw(text: Callable[[str], str | bytes], **options: Any) -> Behaviour:
    """The right body as JSON text, changed as text."""

    def behaviour(wire: Wire) -> None:
        wire.respond(200, text(json.dumps(wire.right_body(), ensure_ascii=False)), **options)

    return behaviour


def shuffle(body: dict[str, Any]) -> None:
    random.Random(7).shuffle(body["data"])


def native_dashscope(body: dict[str, Any]) -> dict[str, Any]:
    items = [{"text_index": x["index"], "embedding": x["embedding"]} for x in body["data"]]
    return {"output": {"embeddings": items}, "usage": {"total_tokens": 3}, "request_id": "r"}


# ---------------------------------------------------------------- below HTTP


def right_bytes(wire: Wire) -> tuple[bytes, bytes]:
    """Head and body of the right answer."""
    body = encode(wire.right_body())
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


@at("connect")
def resets_on_accept(wire: Wire) -> None:
    wire.reset()


@at("connect")
def closes_on_accept(wire: Wire) -> None:
    wire.fin()


@at("connect")
def silent_on_accept(wire: Wire) -> None:
    """The connection stays open, but nothing is read or sent (or a TLS handshake stalls)."""
    wire.pause(60)


def resets_on_request(wire: Wire) -> None:
    wire.reset()


def closes_on_request(wire: Wire) -> None:
    wire.fin()


def resets_mid_head(wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: appl")
    wire.pause(0.02)  # else the reset overtakes the bytes
    wire.reset()


def resets_mid_body(wire: Wire) -> None:
    head, body = right_bytes(wire)
    wire.send(head + body[: len(body) // 2])
    wire.pause(0.02)
    wire.reset()


def closes_mid_head(wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: appl")
    wire.fin()


def closes_mid_body(wire: Wire) -> None:
    head, body = right_bytes(wire)
    wire.send(head + body[: len(body) // 2])
    wire.fin()


def close_delimited(part: float = 1.0) -> Behaviour:
    """The response has no length: the body ends with the connection, even if it is truncated."""

    def behaviour(wire: Wire) -> None:
        _, body = right_bytes(wire)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
        wire.send(body[: int(len(body) * part)])
        wire.fin()

    return behaviour


def error_cut(status: int) -> Behaviour:
    """An error whose body ends early."""

    def behaviour(wire: Wire) -> None:
        head = f"HTTP/1.1 {status} No\r\nContent-Length: 5000\r\n\r\n"
        wire.send(head.encode() + b'{"error":{"code":"some_code","mess')
        wire.fin()

    return behaviour


CHUNKED_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunked(size: int = 7) -> Behaviour:
    """The right answer in small chunks: no fault."""

    def behaviour(wire: Wire) -> None:
        _, body = right_bytes(wire)
        pieces = [chunk(body[i : i + size]) for i in range(0, len(body), size)]
        wire.send(CHUNKED_HEAD + b"\r\n" + b"".join(pieces) + b"0\r\n\r\n")

    return behaviour


def chunk_truncated(wire: Wire) -> None:
    _, body = right_bytes(wire)
    wire.send(CHUNKED_HEAD + b"\r\n" + b"%x\r\n" % len(body) + body[: len(body) // 2])
    wire.fin()


def chunks_without_end(wire: Wire) -> None:
    """The whole body is sent, but the connection ends before the last chunk."""
    _, body = right_bytes(wire)
    wire.send(CHUNKED_HEAD + b"\r\n" + chunk(body))
    wire.fin()


def chunk_size_is_no_number(wire: Wire) -> None:
    _, body = right_bytes(wire)
    wire.send(CHUNKED_HEAD + b"\r\n" + b"xyz\r\n" + body + b"\r\n0\r\n\r\n")
    wire.fin()


def chunk_size_lies(wire: Wire) -> None:
    _, body = right_bytes(wire)
    wire.send(CHUNKED_HEAD + b"\r\n" + b"%x\r\n" % (len(body) - 9) + body + b"\r\n0\r\n\r\n")
    wire.fin()


def endless_tiny_chunks(wire: Wire) -> None:
    wire.send(CHUNKED_HEAD + b"\r\n" + chunk(b'{"data":['))
    while True:
        wire.send(chunk(b" ") * 16)
        wire.pause(0.01)


def length_too_long_then_silence(wire: Wire) -> None:
    head, body = right_bytes(wire)
    wire.send(head.replace(b"Length: %d" % len(body), b"Length: %d" % (len(body) + 50)) + body)
    wire.hold()


def length_too_long_then_close(wire: Wire) -> None:
    head, body = right_bytes(wire)
    wire.send(head.replace(b"Length: %d" % len(body), b"Length: %d" % (len(body) + 50)) + body)
    wire.fin()


def length_too_short(wire: Wire) -> None:
    """The rest of the body stays on the connection and damages the next response."""
    wire.respond(200, wire.right_body(), length=20)


def smuggles_a_second_answer(wire: Wire) -> None:
    """The right response, and in the same bytes a second response to no request."""
    head, body = right_bytes(wire)
    assert wire.request is not None
    alien = payload(
        [f"alien {text}" for text in wire.texts],
        wire.request.dimensions or wire.server.dimensions,
        wire.request.encoding,
    )
    other = encode(alien)
    second = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(other)}"
    wire.send(head + body + second.encode() + b"\r\n\r\n" + other)


def smuggles_late(wire: Wire) -> None:
    """Like above, but the second response is sent a moment after the first."""
    wire.right()
    wire.pause(0.02)
    assert wire.request is not None
    wire.respond(
        200,
        payload(
            [f"alien {text}" for text in wire.texts],
            wire.request.dimensions or wire.server.dimensions,
            wire.request.encoding,
        ),
    )


def two_lengths(wire: Wire) -> None:
    _, body = right_bytes(wire)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nContent-Length: 7\r\n\r\n"
    wire.send(head.encode() + body)
    wire.fin()


def length_and_chunked(wire: Wire) -> None:
    _, body = right_bytes(wire)
    wire.send(CHUNKED_HEAD + b"Content-Length: 7\r\n\r\n" + chunk(body) + b"0\r\n\r\n")
    wire.fin()


def sends(data: bytes, *, close: bool = True) -> Behaviour:
    def behaviour(wire: Wire) -> None:
        wire.send(data)
        if close:
            wire.fin()

    return behaviour


def http_0_9(wire: Wire) -> None:
    """A body without status line and headers."""
    wire.send(encode(wire.right_body()))
    wire.fin()


def http_1_0(wire: Wire) -> None:
    wire.right(version="HTTP/1.0")
    wire.fin()


def no_answer(wire: Wire) -> None:
    wire.hold()


def head_then_silence(wire: Wire) -> None:
    head, _ = right_bytes(wire)
    wire.send(head)
    wire.hold()


def half_body_then_silence(wire: Wire) -> None:
    head, body = right_bytes(wire)
    wire.send(head + body[: len(body) // 2])
    wire.hold()


def drips_body(every: float = 0.05) -> Behaviour:
    def behaviour(wire: Wire) -> None:
        head, body = right_bytes(wire)
        wire.send(head)
        wire.drip(body, every=every)

    return behaviour


def drips_head(wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\n")
    for i in range(100_000):
        wire.drip(b"X-Header-%d: y\r\n" % i)


def drips_error_body(status: int) -> Behaviour:
    def behaviour(wire: Wire) -> None:
        wire.send(f"HTTP/1.1 {status} No\r\nContent-Length: 100000\r\n\r\n".encode())
        wire.drip(b"x" * 100_000)

    return behaviour


def interim(status: int, times: int | None, every: float = 0.02) -> Behaviour:
    """1xx responses before the right one; if `times` is None, they never end."""

    def behaviour(wire: Wire) -> None:
        sent = 0
        while times is None or sent < times:
            wire.send(f"HTTP/1.1 {status} Wait\r\nLink: </x>; rel=preload\r\n\r\n".encode())
            wire.pause(every)
            sent += 1
        wire.right()

    return behaviour


def endless_interim_flood(wire: Wire) -> None:
    """1xx responses as fast as they can be read."""
    while True:
        wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 200)


def header_flood(wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\n")
    for start in range(0, 2_000_000, 1000):
        wire.send(b"".join(b"X-%d: y\r\n" % i for i in range(start, start + 1000)))


def huge_header(wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nX-Huge: ")
    for _ in range(256):
        wire.send(b"y" * 65536)
    wire.send(b"\r\n\r\n{}")


@functools.lru_cache(maxsize=1)
def _spaces() -> bytes:
    return b" " * 65536


def endless_body(wire: Wire) -> None:
    wire.send(CHUNKED_HEAD + b"\r\n" + chunk(b'{"data":['))
    piece = chunk(_spaces())
    while True:
        wire.send(piece)


def huge_length(wire: Wire) -> None:
    """A true Content-Length of 64 GB, and that many bytes."""
    wire.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 64000000000\r\n\r\n"
    )
    while True:
        wire.send(_spaces())


# ---------------------------------------------------------------- compression


@functools.lru_cache(maxsize=1)
def bomb(megabytes: int = 512) -> bytes:
    """gzip that unpacks to so many megabytes of blanks inside a JSON list."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(b'{"data":[') + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + piece * megabytes  # a full flush makes each piece stand alone


def gzip_bomb(wire: Wire) -> None:
    wire.respond(200, bomb(), [("Content-Encoding", "gzip")])


def gzip_bomb_in_error(wire: Wire) -> None:
    wire.respond(400, bomb(), [("Content-Encoding", "gzip")])


def compressed(encoding: str, pack: Callable[[bytes], bytes]) -> Behaviour:
    def behaviour(wire: Wire) -> None:
        body = pack(encode(wire.right_body()))
        wire.respond(200, body, [("Content-Encoding", encoding)])

    return behaviour


def gzip_cut(data: bytes) -> bytes:
    return gzip.compress(data)[:-20]


def gzip_twice(data: bytes) -> bytes:
    return gzip.compress(gzip.compress(data))


def gzip_bomb_twice(data: bytes) -> bytes:
    return gzip.compress(bomb())


def gzip_bad_checksum(data: bytes) -> bytes:
    packed = bytearray(gzip.compress(data))
    packed[-8] ^= 0xFF
    return bytes(packed)


# ---------------------------------------------------------------- keep-alive and lateness


def then_closes(behaviour: Behaviour) -> Behaviour:
    def both(wire: Wire) -> None:
        behaviour(wire)
        wire.fin()

    return both


def right_then_close(after: float) -> Behaviour:
    """Close the idle connection without notice, `after` seconds after the response."""

    def behaviour(wire: Wire) -> None:
        wire.right()
        wire.pause(after)
        wire.fin()

    return behaviour


def right_then_reset(wire: Wire) -> None:
    wire.right()
    wire.pause(0.02)
    wire.reset()


def right_once_per_connection(then: Behaviour) -> Behaviour:
    """The first request of each connection gets the right response; the next one gets `then`."""
    served: set[int] = set()

    def behaviour(wire: Wire) -> None:
        with wire.server.lock:
            again = wire.connection in served
            served.add(wire.connection)
        if again:
            then(wire)
        else:
            wire.right()

    return behaviour


def right_after(seconds: float) -> Behaviour:
    """The right answer, late, on a connection that stays open."""

    def behaviour(wire: Wire) -> None:
        wire.pause(seconds)
        wire.right()

    return behaviour


def answers_early(status: int, body: dict[str, Any]) -> Behaviour:
    """Answer before the request's body is read, then reset."""

    @at("headers")
    def behaviour(wire: Wire) -> None:
        wire.respond(status, body, [("Connection", "close")])
        wire.pause(0.05)
        wire.reset()

    return behaviour


@at("headers")
def never_reads_the_body(wire: Wire) -> None:
    wire.pause(60)


@at("headers")
def reads_slowly(wire: Wire) -> None:
    """A few bytes of the request now and then."""
    while True:
        if not wire.sock.recv(64):
            return
        wire.pause(0.05)


# ---------------------------------------------------------------- redirects


def redirects(status: int, location: Callable[[Wire], str | None]) -> Behaviour:
    def behaviour(wire: Wire) -> None:
        target = location(wire)
        headers = [] if target is None else [("Location", target)]
        wire.respond(status, b"", headers, content_type=None)

    return behaviour


def one_after_another(behaviours: Iterable[Behaviour]) -> Behaviour:
    """One behaviour for each request, then right responses."""
    queue: Iterator[Behaviour] = iter(list(behaviours))

    def behaviour(wire: Wire) -> None:
        with wire.server.lock:
            step = next(queue, None)
        if step is None:
            wire.right()
        else:
            step(wire)

    return behaviour
