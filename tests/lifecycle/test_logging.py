"""With every logger at DEBUG, neither the key nor texts appear in logs or tracebacks."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import Any

import pytest

from nexusflow_integrations.errors import NexusFlowError

from .scene import KEY, assert_right, client_of

TEXT = "my private diary entry"


def everything(records: list[logging.LogRecord]) -> str:
    parts = []
    for record in records:
        parts += [record.getMessage(), repr(record.args), str(record.exc_info)]
        parts += [repr(value) for value in vars(record).values()]
    return "\n".join(parts)


@pytest.mark.usefixtures("short_delays")
@pytest.mark.parametrize("how", ["sync", "async", "httpx", "async httpx"])
def test_neither_key_nor_text_is_logged(
    server: Any, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    import httpx

    for name in ("", "httpx", "httpcore", "aiohttp", "asyncio", "nexusflow_integrations"):
        caplog.set_level(logging.DEBUG, logger=name)

    def shaky(wire: Any) -> None:
        auth = wire.request.header("authorization")
        if wire.number % 3 == 0:
            wire.respond(503, {"error": {"code": "x", "message": f"{auth} {KEY}"}})
        elif wire.number % 3 == 1:
            wire.respond(400, {"error": {"code": "InvalidParameter", "message": "base64?"}})
        else:
            wire.right()

    server.script = type(server.script)(shaky)
    options: dict[str, Any] = {}
    if how == "httpx":
        options["http_client"] = httpx.Client()

    async def call() -> Any:
        async with httpx.AsyncClient() as http:
            client = client_of(server, async_http_client=http if how == "async httpx" else None)
            return await client.aembed([TEXT])

    if how in ("sync", "httpx"):
        rows = client_of(server, **options).embed([TEXT])
    else:
        rows = asyncio.run(call())
    assert_right(rows, [TEXT])
    logged = everything(caplog.records)
    assert "nexusflow_integrations" in logged, "the retries are logged"
    assert KEY not in logged
    assert TEXT not in logged


@pytest.mark.usefixtures("short_delays")
def test_the_key_is_in_no_traceback_that_quotes_the_locals_of_our_frames(server: Any) -> None:
    def refuse(wire: Any) -> None:
        wire.respond(401, {"error": {"code": "invalid_api_key", "message": f"no {KEY}"}})

    server.script = type(server.script)(refuse)
    client = client_of(server)

    def embed() -> None:
        client.embed(["a"])

    with pytest.raises(NexusFlowError) as caught:
        embed()
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )
    assert "client.embed" in shown
    assert KEY not in shown


def test_the_key_is_in_no_repr(server: Any) -> None:
    client = client_of(server, default_headers={"X-Secret": "hush"})
    for shown in (repr(client), str(client), repr(client.settings), repr(vars(client))):
        assert KEY not in shown
        assert "hush" not in shown
