"""With every logger at DEBUG, neither the key nor texts appear in logs or tracebacks."""

from __future__ import annotations

import asyncio
import logging
import signal
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


class Filter(logging.Filter):
    """A user's filter with a bug."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise ZeroDivisionError


class Handler(logging.Handler):
    """A user's handler with a bug."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ZeroDivisionError


class NoLimits:
    """Shared limits that cannot be reached."""

    requests_per_minute = 60_000.0
    tokens_per_minute = None
    processes = 1

    def lease(self, *_: object, **__: object) -> list[float]:
        raise OSError

    adjust = throttled = lease


def fails(_: object) -> None:
    raise ValueError


OPTIONS: dict[str, dict[str, Any]] = {
    "a failing callback": {"on_usage": fails},
    "a cache that cannot be used": {"cache": "/proc/missing/cache"},
    "limits that cannot be reached": {"pacer": NoLimits()},
}


@pytest.mark.parametrize("how", ["filter", "handler"])
@pytest.mark.parametrize("what", OPTIONS)
def test_an_error_of_a_filter_or_handler_does_not_reach_the_call(
    server: Any, how: str, what: str
) -> None:
    texts = [f"text {n}" for n in range(30)]
    client = client_of(server, model=f"{how} {what}", **OPTIONS[what])
    logger = logging.getLogger("nexusflow_integrations")
    added: Any = Filter() if how == "filter" else Handler()
    (logger.addFilter if how == "filter" else logger.addHandler)(added)
    try:
        assert_right(asyncio.run(asyncio.wait_for(client.aembed(texts), 20)), texts)
        assert_right(client.embed(texts), texts)
        assert_right([row.vector for row in client.embed_stream(texts)], texts)
    finally:
        logger.removeFilter(added)
        logger.removeHandler(added)


def test_a_record_names_the_line_that_logs(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    client_of(server, on_usage=fails).embed(["a"])
    (record,) = caplog.records
    assert record.filename == "caller.py"
    assert record.funcName == "_log"
    assert record.exc_info is not None


def test_a_signal_handler_that_raises_while_something_is_logged_ends_the_call(
    server: Any,
) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            signal.raise_signal(signal.SIGTERM)

    logger, slow = logging.getLogger("nexusflow_integrations"), Slow()
    former = signal.signal(signal.SIGTERM, interrupt)
    logger.addHandler(slow)
    try:
        with pytest.raises(Interrupted):
            client_of(server, on_usage=fails).embed(["a"])
    finally:
        logger.removeHandler(slow)
        signal.signal(signal.SIGTERM, former)
