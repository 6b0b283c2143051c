"""A response means the same, whoever reads it: the caller, the background loop or aiohttp."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from faults.server import Behaviour, FaultServer, Wire, at, once, payload
from faults.surfaces import connect_at_once, used_already

from nexusflow_integrations import NexusFlow, NexusFlowError, errors
from nexusflow_integrations._core.call import engine
from nexusflow_integrations._core.request.blocking import BlockingSender
from nexusflow_integrations._core.request.polled import PolledExchange
from nexusflow_integrations._core.request.pool import AiohttpSender, LoopSender, Pool

from .scene import KEY, SIZE, assert_right

Raw = Callable[[bytes], bytes]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def sized(head: bytes) -> Raw:
    return lambda body: head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def in_chunks(body: bytes) -> bytes:
    parts = (body[start : start + 50] for start in range(0, len(body), 50))
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def first_chunk(size: bytes, end: bytes = b"\r\n") -> Raw:
    return lambda body: CHUNKED + size + b"\r\n" + body[:16] + end + in_chunks(body[16:])


def refused(status: bytes, header: bytes = b"X: y") -> Raw:
    body = b'{"error":{"code":"c","message":"no"}}'
    return lambda _: (
        b"HTTP/1.1 %s\r\n%s\r\nContent-Length: %d\r\n\r\n%s"
        % (
            status,
            header,
            len(body),
            body,
        )
    )


def constant(raw: bytes) -> Raw:
    return lambda _: raw


RAW: dict[str, Raw] = {
    "usual": sized(HEAD),
    "blank after chunked": lambda b: HEAD + b"Transfer-Encoding: chunked \r\n\r\n" + in_chunks(b),
    "identity until the end": lambda b: HEAD + b"Transfer-Encoding: identity\r\n\r\n" + b,
    "until the end": lambda b: HEAD + b"\r\n" + b,
    "line before the head": lambda b: b"\r\n" + sized(HEAD)(b),
    "HTTP/2.0": sized(HEAD.replace(b"1.1", b"2.0")),
    "120 headers": sized(HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(120))),
    "multipart": sized(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=x\r\n"),
    "parameters": sized(
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary*0=a; boundary*=b\r\n"
    ),
    "slow parameters": sized(HEAD + b"X: a=" + b";" * 65_000 + b"\r\n"),
    "size 1_0": first_chunk(b"1_0"),
    "size 0x10": first_chunk(b"0x10"),
    "size +10": first_chunk(b"+10"),
    "size -1": first_chunk(b"-1"),
    "size with extension": first_chunk(b"10;a=b"),
    "no line end after a chunk": first_chunk(b"10", b"XX"),
    "no last chunk": lambda b: CHUNKED + in_chunks(b)[:-5],
    "bad trailer": lambda b: CHUNKED + in_chunks(b)[:-2] + b"bad trailer\r\n\r\n",
    "cut status line": constant(b"HTTP/1.1 401 Unauthor"),
    "cut head": constant(b"HTTP/1.1 400 Bad Request\r\nContent-Le"),
    "cut body": lambda b: sized(HEAD)(b)[:-3],
    "two lengths": sized(HEAD + b"Content-Length: 7\r\n"),
    "NUL in a header": sized(HEAD + b"X: a\0b\r\n"),
    "blank after a hint": refused(b"503 Service Unavailable", b"x-should-retry: false "),
    "id that is not ASCII": refused(b"403 Forbidden", "X-Request-Id: 请求".encode()),
    "redirect": refused(b"302 Found", "Location: https://exämple.com/".encode()),
    "nothing": constant(b""),
    "not HTTP": constant(b"SSH-2.0-OpenSSH_9.2\r\n"),
}


def says(raw: Raw) -> Behaviour:
    def behave(wire: Wire) -> None:
        body = json.dumps(payload(wire.texts, SIZE, "base64")).encode()
        wire.send(raw(body))
        wire.fin()

    return behave


def outcome(client: NexusFlow, server: FaultServer, *, is_sync: bool) -> tuple[Any, ...]:
    try:
        text = "a text"
        assert_right([client.embed(text) if is_sync else asyncio.run(client.aembed(text))], [text])
        found: tuple[Any, ...] = ("right",)
    except NexusFlowError as error:
        found = (type(error), str(error), getattr(error, "request_id", None))
    usage = client.usage
    return *found, server.attempts, usage.requests, usage.retries, usage.tokens


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("retries", [0, 1])
def test_a_response_has_the_same_outcome_however_it_is_read(
    name: str, retries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[type] = []
    for kind in (BlockingSender, PolledExchange, LoopSender, AiohttpSender):
        method = "run" if kind is PolledExchange else "send"
        monkeypatch.setattr(kind, method, _noting(used, kind, getattr(kind, method)))
    found = []
    for way in (BlockingSender, PolledExchange, LoopSender, AiohttpSender):
        used.clear()
        observed = property(lambda _, way=way: way is AiohttpSender)
        monkeypatch.setattr(Pool, "is_observed", observed)
        monkeypatch.setattr(engine, "can_poll", lambda _, way=way: way is PolledExchange)
        monkeypatch.setattr(BlockingSender, "idle_connection", connect_at_once)
        with FaultServer(once(says(RAW[name]))) as server:
            client = NexusFlow(
                KEY, base_url=server.base_url, dimensions=SIZE, timeout=30, max_retries=retries
            )
            used_already(client)
            found.append(outcome(client, server, is_sync=way is BlockingSender))
            assert way in used
            # The server may be closing the connection: this client sends again.
            again = NexusFlow(KEY, base_url=server.base_url, dimensions=SIZE)
            assert_right([again.embed("after")], ["after"])
    assert found == [found[0]] * 4


def _noting(used: list[type], kind: type, send: Callable[..., Any]) -> Callable[..., Any]:
    def noting_send(*arguments: Any) -> Any:
        used.append(kind)
        return send(*arguments)

    return noting_send


@pytest.mark.parametrize("ask", ["embed", "aembed"])
def test_a_refusal_is_reported_though_the_server_does_not_read_the_large_text(ask: str) -> None:
    @at("headers")
    def refuse(wire: Wire) -> None:
        wire.respond(401, {"error": {"code": "invalid_api_key", "message": "no"}})
        wire.pause(20)

    with FaultServer(once(refuse)) as server:
        client = NexusFlow(
            KEY, base_url=server.base_url, dimensions=SIZE, max_retries=0, on_too_long="send"
        )
        used_already(client)
        text = "x" * 8_000_000
        began = time.monotonic()
        with pytest.raises(errors.AuthenticationError):
            client.embed(text) if ask == "embed" else asyncio.run(client.aembed(text))
        assert time.monotonic() - began < 15
