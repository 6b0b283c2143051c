"""These cases need a fake transport, because real servers cannot cause them on every version."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from typing import Any, cast

import httpx
import pytest

from nexusflow_integrations._core.request.pool import AiohttpSender, Pool
from nexusflow_integrations._core.request.transport import (
    AsyncHttpxSender,
    HttpxSender,
    Target,
)
from nexusflow_integrations._core.request.wire import TransportFault


class Stalling:
    """An early response: its body stalls, and the request's is still being written."""

    content_length = None
    closed = False

    @property
    def content(self) -> Any:
        return self

    async def iter_any(self) -> Any:
        raise asyncio.TimeoutError
        yield b""

    def close(self) -> None:
        self.closed = True

    async def wait_for_close(self) -> None:
        pytest.fail("this waits for the request's body, and no timeout covers it")


class Posting:
    """What ``ClientSession.post`` returns."""

    def __init__(self, response: Stalling) -> None:
        self._response = response

    def __await__(self) -> Generator[Any, None, Stalling]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Stalling:
        return self._response

    async def __aexit__(self, *_: object) -> None:
        self._response.close()
        await self._response.wait_for_close()


def test_after_a_timeout_a_request_whose_body_is_still_being_written_is_not_waited_for() -> None:
    response = Stalling()

    class Session:
        def post(self, *_: object, **__: object) -> Posting:
            return Posting(response)

    class StubPool:
        def session(self) -> Session:
            return Session()

    async def send() -> object:
        sender = AiohttpSender(cast(Pool, StubPool()), Target("http://127.0.0.1:9/v1", {}))
        return await sender.send(b"{}", 1.0)

    outcome = asyncio.run(send())
    assert isinstance(outcome, TransportFault)
    assert outcome.timed_out
    assert response.closed


def _right(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b"{}")


def test_a_call_that_is_cancelled_as_its_answer_comes_is_cancelled_with_a_callers_client() -> None:
    """Otherwise it would continue with its next batch, and pay for it."""
    may_answer = threading.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        may_answer.wait(60)
        return _right(request)

    async def run() -> None:
        with httpx.Client(transport=httpx.MockTransport(answer)) as client:
            sender = HttpxSender(client, Target("https://mock.example/v1/embeddings", {}))
            task = asyncio.ensure_future(sender.send(b"{}", 60))
            await asyncio.sleep(0)
            thread = next(t for t in threading.enumerate() if t.name == "nexusflow-httpx")
            may_answer.set()
            thread.join(60)  # the loop is blocked, and the response waits for it
            asyncio.get_running_loop().call_soon(task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


@pytest.mark.parametrize("turns", range(4))
def test_the_same_with_a_callers_async_client(turns: int) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with httpx.AsyncClient(transport=httpx.MockTransport(_right)) as client:
            target = Target("https://mock.example/v1/embeddings", {})
            task = loop.create_task(AsyncHttpxSender(client, loop, target).send(b"{}", 60))
            sending: set[asyncio.Task[object]] = set()
            while not any(other.done() for other in sending):
                await asyncio.sleep(0)
                sending |= asyncio.all_tasks() - {task, asyncio.current_task()}
            for _ in range(turns):
                await asyncio.sleep(0)
            assert task.cancel(), "too late"
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
