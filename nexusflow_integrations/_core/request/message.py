"""The bytes of a request, and the parser of a response. Performs no I/O.

The event loop and calling threads parse responses with aiohttp's parser, so both accept the same
responses within the same limits.
"""

from __future__ import annotations

import ssl
from functools import cache
from typing import Any, cast

import aiohttp
from aiohttp.http import HttpProcessingError, HttpResponseParser
from yarl import URL

from nexusflow_integrations._core.hosts import in_url
from nexusflow_integrations._core.request.transport import (
    NOT_HTTP,
    Target,
    broken_off,
    timed_out,
)
from nexusflow_integrations._core.request.wire import MAX_RESPONSE_BYTES, Answer, TransportFault
from nexusflow_integrations._core.secret import Secret
from nexusflow_integrations._core.signals import raised_by_signal_handler

Origin = tuple[str, int, bool]
"""Host, port, and whether TLS is used."""


def origin_of(url: URL) -> Origin:
    return url.raw_host or "", url.port or 0, url.scheme == "https"


class Head:
    """The request line and the headers of a target's requests; they contain the key."""

    def __init__(self, target: Target) -> None:
        url = URL(target.url)
        lines = [f"POST {url.raw_path_qs} HTTP/1.1", f"Host: {_place(url)}"]
        headers = target.revealed()
        # Like aiohttp, send only the last of the headers whose names differ only in case.
        lines += {name.lower(): f"{name}: {value}" for name, value in headers.items()}.values()
        self._head = Secret(
            "\r\n".join([*lines, "Content-Length: "]).replace("%", "%%") + "%d\r\n\r\n"
        )

    def with_body(self, body: bytes) -> bytes:
        """Return the whole request, for sending only; do not store it."""
        return self._head.reveal().encode("ascii") % len(body) + body


def _place(url: URL) -> str:
    """Return the value of the ``Host`` header, as aiohttp writes it: without a dot at the end.

    Older versions of yarl, which aiohttp 3.10 allows, have no attribute for it.
    """
    host = in_url((url.raw_host or "").rstrip("."))
    return host if url.is_default_port() else f"{host}:{url.port}"


class NotHttp(Exception):  # noqa: N818 - users never see it
    """The response is not valid HTTP."""


class _Flow:
    """The connection as a parser sees it: it never pauses, because the body is taken at once."""

    _reading_paused = False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self, **_: object) -> None:
        pass


class Response:
    """Parses one response. Performs no I/O."""

    def __init__(self) -> None:
        # The second argument stands in for the event loop, which the parser would use only to wait
        # for the body.
        self._parser: Any = HttpResponseParser(
            cast("Any", _Flow()),
            cast("Any", _Flow()),
            MAX_RESPONSE_BYTES,
            payload_exception=aiohttp.ClientPayloadError,
            read_until_eof=True,
            auto_decompress=False,
        )
        self._message: Any = None
        self._payload: Any = None
        self._parts: list[bytes] = []  # of the body
        self._length = 0
        self._start = bytearray()  # the head, if it arrives in pieces
        self._end = b""
        self._head = 0  # bytes of the head
        self._fed = 0
        self._is_reusable = True

    def feed(self, data: bytes) -> bool:
        """Take the next bytes, or ``b""`` if the connection has ended.

        Return whether the response is complete, or too large.

        Raises:
            ServerDisconnectedError: The connection ended before the head was complete.
            ClientPayloadError: The body is incomplete or its encoding is broken.
            NotHttp: The response is not valid HTTP.
        """
        if not data and self._message is None:
            raise aiohttp.ServerDisconnectedError
        try:
            self._parse(data)
            if self._message is None:
                return False
            part = self._payload.read_nowait(-1)
        except HttpProcessingError:
            if self._message is None:
                raise NotHttp from None
            raise aiohttp.ClientPayloadError from None
        self._parts.append(part)
        self._length += len(part)
        return self._payload.is_eof() or self.is_too_large

    def _parse(self, data: bytes) -> None:
        if not data:
            self._is_reusable = False
            self._parser.feed_eof()
            return
        self._fed += len(data)
        if not self._head and self._message is None:
            place = -1 if self._start else data.find(b"\r\n\r\n")
            if place < 0:
                self._start += data
                place = self._start.find(b"\r\n\r\n")
            self._head = place + 4 if place >= 0 else 0
        messages, upgraded, rest = self._parser.feed_data(data)
        for message, payload in messages:
            if self._message is None and not (100 <= message.code < 200 and message.code != 101):
                self._message, self._payload = message, payload
            else:  # an interim response, or a second response
                self._is_reusable = False
        if upgraded or rest:
            self._is_reusable = False
        self._end = (self._end + data[-5:])[-5:]

    @property
    def is_too_large(self) -> bool:
        length = self._message.headers.get("Content-Length", "0")
        return int(length) > MAX_RESPONSE_BYTES or self._length > MAX_RESPONSE_BYTES

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can be used again.

        It cannot if it carried more than this response: what is left of the other bytes would be
        read as the response to the next request.
        """
        if not self._is_reusable or self._message.should_close:
            return False
        if self._message.chunked:
            return self._end == b"0\r\n\r\n"
        return self._fed == self._head + self._length

    def answer(self) -> Answer:
        return Answer(self._message.code, self._message.headers, b"".join(self._parts))


_SAMPLE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


@cache
def parser_works() -> bool:
    """Return whether the parser of the installed aiohttp can read a response without an event loop.

    aiohttp does not promise this. If the parser failed on a real response, the request could be
    sent again, and would then be paid for twice.
    """
    try:
        response = Response()
        is_whole = [response.feed(_SAMPLE[place : place + 1]) for place in range(len(_SAMPLE))]
        return is_whole.index(True) == len(_SAMPLE) - 1 and response.answer().body == b"{}"
    except Exception as error:  # whatever other versions raise
        if raised_by_signal_handler(error):
            raise
        return False


def fault(error: Exception, timeout: float) -> TransportFault:
    """Classify an error that occurred after the connection was opened."""
    if isinstance(error, TimeoutError):
        return timed_out(timeout)
    if isinstance(error, ssl.SSLError):
        return TransportFault("the TLS connection broke")
    return NOT_HTTP if isinstance(error, NotHttp) else TransportFault(broken_off(error))
