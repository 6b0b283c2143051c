"""What a sender does with aiohttp, where no server can show it with every version of aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, cast

import pytest

from nexusflow_integrations._core.request.transport import AiohttpSender, Pool, Target
from nexusflow_integrations._core.request.wire import TransportFault


class Stalling:
    """A response that came early: its body stalls, and the request's is still being written."""

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
