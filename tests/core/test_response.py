"""A response is complete or not, however it is cut into pieces, and contains nothing else."""

from __future__ import annotations

import signal

import aiohttp
import pytest

from nexusflow_integrations._core.request import message
from nexusflow_integrations._core.request.blocking import BUFFER
from nexusflow_integrations._core.request.message import NotHttp, Response
from nexusflow_integrations._core.request.wire import MAX_RESPONSE_BYTES

SIZED = b"HTTP/1.1 200 OK\r\nX: y \r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked \r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED
OLD = SIZED.replace(b"1.1", b"1.0")
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\n\r\nhello"
NO_BODY = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("whole", "body", "reusable"),
    [
        (SIZED, b"hello", True),
        (CHUNKED, b"hello", True),
        (NO_BODY, b"", True),
        (INTERIM, b"hello", False),
        (OLD, b"hello", False),
        (SIZED.replace(b"X: y", b"Connection: close"), b"hello", False),
        (SIZED + b"H", b"hello", False),
        (SIZED + SIZED, b"hello", False),
        (CHUNKED + b"HTTP/1.1 200", b"hello", False),
        (CHUNKED + CHUNKED, b"hello", False),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", b"", False),
    ],
)
def test_the_first_response_is_read_and_a_connection_with_more_bytes_is_not_used_again(
    whole: bytes, body: bytes, reusable: bool
) -> None:
    response = Response()
    assert response.feed(whole)
    assert response.answer().body == body
    assert response.is_reusable is reusable


@pytest.mark.parametrize("whole", [SIZED, CHUNKED, INTERIM, UNTIL_THE_END])
def test_a_response_is_complete_only_at_its_end_however_it_is_cut(whole: bytes) -> None:
    for cut in range(1, len(whole)):
        response = Response()
        assert not response.feed(whole[:cut])
        if whole is UNTIL_THE_END:
            assert not response.feed(whole[cut:])
            assert response.feed(b"")
        else:
            assert response.feed(whole[cut:])
        assert (response.answer().status, response.answer().body) == (200, b"hello")
        assert response.is_reusable is (whole in (SIZED, CHUNKED))


@pytest.mark.parametrize("whole", [SIZED, CHUNKED, INTERIM])
def test_a_response_that_is_cut_off_anywhere_is_an_error(whole: bytes) -> None:
    head = whole.rindex(b"\r\n\r\n", 0, -5) + 4 if whole is not CHUNKED else whole.index(b"2\r\n")
    for cut in range(len(whole)):
        response = Response()
        if cut:
            assert not response.feed(whole[:cut])
        error = aiohttp.ServerDisconnectedError if cut < head else aiohttp.ClientPayloadError
        with pytest.raises(error):
            response.feed(b"")


@pytest.mark.parametrize(
    "head",
    [
        b"hello",
        b"HTTP/1.1 2_00 OK\r\n\r\n",
        b"HTTP/1.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\0Y: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x; a=" + b";" * 65_000 + b"\r\n\r\n",
    ],
    ids=lambda head: str(head)[2:50],
)
def test_what_is_not_http_is_an_error(head: bytes) -> None:
    with pytest.raises(NotHttp):
        Response().feed(head)


@pytest.mark.parametrize("size", [b"-1", b"1_0", b"0x10", b"+10", b"", b"z"])
def test_a_chunk_whose_size_is_not_a_number_is_an_error(size: bytes) -> None:
    response = Response()
    response.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises((NotHttp, aiohttp.ClientPayloadError)):
        response.feed(size + b"\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n")


def test_a_response_that_is_too_large_is_not_read_to_the_end() -> None:
    response = Response()
    assert response.feed(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_RESPONSE_BYTES + 1)
    )
    assert response.is_too_large
    response = Response()
    response.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"%x\r\n" % BUFFER + b" " * BUFFER + b"\r\n"
    fed = 0
    while not response.feed(piece):
        fed += BUFFER
    assert response.is_too_large
    assert fed == MAX_RESPONSE_BYTES


def test_the_parser_of_the_installed_aiohttp_can_be_used() -> None:
    assert message.parser_works()


def test_a_parser_that_needs_an_event_loop_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_a_loop(*_: object, **__: object) -> object:
        raise TypeError("no running event loop")

    monkeypatch.setattr(message, "HttpResponseParser", needs_a_loop)
    message.parser_works.cache_clear()
    assert not message.parser_works()
    message.parser_works.cache_clear()


def test_an_error_of_a_signal_handler_does_not_count_as_a_failure_of_the_parser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise TimeoutError("enough")

    def interrupted(*_: object, **__: object) -> object:
        return interrupt()

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        monkeypatch.setattr(message, "HttpResponseParser", interrupted)
        message.parser_works.cache_clear()
        with pytest.raises(TimeoutError, match="enough"):
            message.parser_works()
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.undo()
    assert message.parser_works()
