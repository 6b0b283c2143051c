"""How many requests a call has in flight, with a sender in place of the network."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import orjson
import pytest

from nexusflow_integrations._core.background import background_loop
from nexusflow_integrations._core.engine import Engine, Request
from nexusflow_integrations._core.exchange import TransportFault
from nexusflow_integrations._core.results import Gathered
from nexusflow_integrations._core.settings import ApiKey, Settings
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations._core.wire import Answer
from nexusflow_integrations.errors import NexusFlowError

TEXTS = [f"text {number}" for number in range(2000)]


def vector_of(text: str) -> list[float]:
    return [float(text.split()[-1]) + 1, 1.0]


def encoded(text: str) -> str:
    return base64.b64encode(np.array(vector_of(text), dtype="<f4").tobytes()).decode()


def answer_to(body: bytes) -> Answer:
    texts = orjson.loads(body)["input"]
    data = [{"index": index, "embedding": encoded(text)} for index, text in enumerate(texts)]
    return Answer(200, {}, orjson.dumps({"data": data, "usage": {"total_tokens": len(data)}}))


class Server:
    """Answers once ``delay`` has been awaited, and counts what is in flight."""

    def __init__(self, delay: Callable[[Server], object]) -> None:
        self._delay = delay
        self.in_flight = self.most = self.requests = 0

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        self.requests += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await self._delay(self)  # type: ignore[misc]
        self.in_flight -= 1
        return answer_to(body)


async def at_once(_: Server) -> None:
    await asyncio.sleep(0)


def embed(server: Server, texts: list[str], **settings: int) -> Gathered:
    async def call() -> Gathered:
        engine = Engine(background_loop())
        engine._sender = lambda _: server  # type: ignore[method-assign,assignment]
        told = Settings(base_url="http://127.0.0.1:1/v1", **settings)  # type: ignore[arg-type]
        work = engine.embed(Request(texts, told, ApiKey("sk-test"), Ledger()))
        return await asyncio.wait_for(work, 60)

    return asyncio.run(call())


def check(gathered: Gathered, texts: list[str]) -> None:
    assert gathered.vectors is not None
    assert gathered.vectors.tolist() == [vector_of(text) for text in texts]


def test_a_slow_server_has_all_requests_in_flight_that_the_window_allows() -> None:
    full = asyncio.Event()

    async def until_full(server: Server) -> None:
        if server.in_flight == 32:
            full.set()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(full.wait(), 0.05)

    server = Server(until_full)
    check(embed(server, TEXTS), TEXTS)
    assert server.most == 32


def test_a_server_that_answers_as_fast_as_it_is_read_is_asked_over_few_connections() -> None:
    server = Server(at_once)
    check(embed(server, TEXTS), TEXTS)
    assert server.requests == 200
    assert server.most <= 4


@pytest.mark.parametrize("most", [1, 2, 3])
def test_never_more_requests_are_in_flight_than_max_concurrency(most: int) -> None:
    async def delay(_: Server) -> None:
        await asyncio.sleep(0.001)

    server = Server(delay)
    check(embed(server, TEXTS[:200], max_concurrency=most), TEXTS[:200])
    assert server.most == most


def test_texts_left_over_by_a_call_that_failed_are_sent_together_too() -> None:
    """The second round of a call that had waited for another's texts, after a first of its own."""
    broken = asyncio.Event()

    class Refusing:
        async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
            await broken.wait()
            return Answer(401, {}, b'{"error":{"message":"no such key","code":"invalid_api_key"}}')

    async def a_while(_: Server) -> None:
        await asyncio.sleep(0.05)

    server = Server(a_while)

    async def run() -> Gathered:
        engine = Engine(background_loop())
        senders = [server, Refusing(), server]
        engine._sender = lambda _: senders.pop(0)  # type: ignore[method-assign]

        def call(texts: list[str], **settings: int) -> asyncio.Task[Gathered]:
            told = Settings(base_url="http://127.0.0.1:1/v1", **settings)  # type: ignore[arg-type]
            return asyncio.create_task(
                engine.embed(Request(texts, told, ApiKey("sk-test"), Ledger()))
            )

        await call(["text 0"])  # opens the window of 16, of which the first call takes 4
        server.requests = 0
        first = call(TEXTS[:400], max_concurrency=4)
        await asyncio.sleep(0.05)
        second = call(TEXTS[:500])
        while server.requests < 10:  # for the hundred texts that nobody else embeds
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        server.most = 0
        broken.set()
        with pytest.raises(NexusFlowError, match="no such key"):
            await first
        return await second

    check(asyncio.run(asyncio.wait_for(run(), 60)), TEXTS[:500])
    assert server.requests == 50
    assert server.most > 8
