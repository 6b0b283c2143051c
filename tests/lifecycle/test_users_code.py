"""If a user's function or object fails, the vectors that were paid for still arrive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from faults.server import FaultServer

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.shared_budget import Grant
from nexusflow_integrations.errors import APIConnectionError, BudgetExceededError

from .scene import assert_right, client_of, tasks, texts, until

TEXTS = texts(100)


def embed(client: NexusFlow, **options: Any) -> list[Any]:
    return list(client.embed(TEXTS, **options))


def aembed(client: NexusFlow, **options: Any) -> list[Any]:
    return list(asyncio.run(client.aembed(TEXTS, **options)))


def stream(client: NexusFlow) -> list[Any]:
    return [item.vector for item in client.embed_stream(TEXTS)]


def astream(client: NexusFlow) -> list[Any]:
    async def work() -> list[Any]:
        return [item.vector async for item in client.aembed_stream(TEXTS)]

    return asyncio.run(work())


CALLS = [embed, aembed, stream, astream]
each_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)


def fails(_: object) -> None:
    raise ZeroDivisionError("the user's")


def reported(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage().startswith(name)]


@each_call
def test_vectors_arrive_though_on_usage_raises_which_is_logged_once(
    call: Callable[..., list[Any]], server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(server, on_usage=fails)
    assert_right(call(client), TEXTS)
    (record,) = reported(caplog, "on_usage")
    assert "ZeroDivisionError" in record.getMessage()
    assert record.exc_info


@pytest.mark.parametrize("call", [embed, aembed])
def test_vectors_arrive_though_progress_raises_which_is_logged_once(
    call: Callable[..., list[Any]], server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert_right(call(client_of(server, batch_size=2), progress=fails), TEXTS)
    assert len(reported(caplog, "progress")) == 1


def test_a_function_that_returns_a_coroutine_is_reported_and_leaves_none_behind(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def later(_: object) -> None: ...

    client = client_of(server, on_usage=lambda usage: later(usage))
    assert_right(client.embed(TEXTS), TEXTS)
    assert "must be a plain function" in reported(caplog, "on_usage")[0].getMessage()


@each_call
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_and_exit_pass_through_on_usage(
    call: Callable[..., list[Any]], error: type[BaseException], server: FaultServer
) -> None:
    def stop(_: object) -> None:
        raise error

    with pytest.raises(error):
        call(client_of(server, on_usage=stop))
    until(lambda: not tasks())
    assert_right(embed(client_of(server)), TEXTS)


def test_on_usage_may_call_the_client_again(server: FaultServer) -> None:
    begun, found = [], []

    def again(_: object) -> None:
        if len(begun) < 3:
            begun.append(1)
            found.append(client.embed("once more"))

    client = client_of(server, on_usage=again, max_concurrency=1)
    assert_right(client.embed(TEXTS), TEXTS)
    assert_right(found, ["once more"] * 3)


class Raising(httpx.BaseTransport):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_ctrl_c_and_exit_pass_through_an_http_client_and_the_next_call_works(
    error: BaseException, server: FaultServer
) -> None:
    http = httpx.Client(transport=Raising(error))
    with pytest.raises(type(error)):
        client_of(server, http_client=http).embed(TEXTS)
    until(lambda: not tasks())
    assert_right(embed(client_of(server)), TEXTS)


class AsyncRaising(httpx.AsyncBaseTransport):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self.error


@each_call
@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), GeneratorExit(), StopIteration()], ids=repr
)
def test_an_http_client_that_raises_an_error_of_control_flow_does_not_cancel_the_call(
    call: Callable[..., list[Any]], error: BaseException, server: FaultServer
) -> None:
    client = client_of(
        server,
        http_client=httpx.Client(transport=Raising(error)),
        async_http_client=httpx.AsyncClient(transport=AsyncRaising(error)),
        max_retries=0,
    )
    with pytest.raises(APIConnectionError, match="the http client that was passed in failed"):
        call(client)


class OddResponse:
    is_stream_consumed = True
    headers: Any = {}  # noqa: RUF012
    content: Any = b""
    status_code: Any = 200

    def __init__(self, **odd: Any) -> None:
        vars(self).update(odd)


@pytest.mark.parametrize(
    "response",
    [
        None,
        "text",
        OddResponse(status_code="200"),
        OddResponse(status_code=None),
        OddResponse(headers=None),
        OddResponse(headers={1: "x"}),
        OddResponse(content=None),
        OddResponse(content="text"),
    ],
)
def test_an_odd_answer_of_an_http_client_is_one_typed_error(
    response: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = httpx.Client()
    monkeypatch.setattr(http, "send", lambda *_, **__: response)
    client = NexusFlow("key", base_url="http://127.0.0.1:1/v1", http_client=http, max_retries=0)
    with pytest.raises(APIConnectionError, match="the http client that was passed in failed"):
        client.embed("a text")


class OddLimits:
    """Limits that do not work: a lease returns or raises ``answer``."""

    requests_per_minute = 600_000.0
    tokens_per_minute = None

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    @property
    def processes(self) -> int:
        raise ZeroDivisionError

    def lease(self, count: int, tokens: int, **_: Any) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        raise ZeroDivisionError

    def throttled(self, ago: float) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "answer",
    [ZeroDivisionError(), StopIteration(), None, [], ["soon"], [float("nan")], [float("inf")], 3],
)
def test_vectors_arrive_although_a_pacer_is_unusable(answer: Any, server: FaultServer) -> None:
    client = client_of(server, pacer=OddLimits(answer), deadline=60.0)
    assert_right(client.embed(TEXTS), TEXTS)


class OddBudget:
    tokens = 1_000_000

    def __init__(self, grant: Any) -> None:
        self._grant = grant

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Any:
        if isinstance(self._grant, Exception):
            raise self._grant
        return self._grant


@pytest.mark.parametrize(
    "grant",
    [
        ZeroDivisionError(),
        StopIteration(),
        None,
        5,
        (1, 2, False),
        Grant("9", 9, False),
        Grant(-1, 9, True),
    ],
)
def test_an_unusable_shared_budget_is_one_typed_error(grant: Any, server: FaultServer) -> None:
    client = client_of(server, budget=OddBudget(grant), deadline=60.0)
    with pytest.raises(BudgetExceededError, match="could not be reached"):
        client.embed(TEXTS)
    assert not server.requests
