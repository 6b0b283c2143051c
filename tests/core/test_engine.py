"""What a call has in flight, and how it ends, with a sender in place of the network."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import orjson
import pytest

from nexusflow_integrations._core.background import background_loop
from nexusflow_integrations._core.batching import Batch
from nexusflow_integrations._core.engine import (
    DRAIN,
    MOST_SENDERS,
    Engine,
    Request,
    Stop,
    StoppedElsewhere,
)
from nexusflow_integrations._core.exchange import TransportFault
from nexusflow_integrations._core.results import Gathered
from nexusflow_integrations._core.settings import ApiKey, Settings
from nexusflow_integrations._core.sources import DirectSource
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


class Scripted:
    """Answers request number n (from 1) with ``answers[n]``, all others well and at once."""

    def __init__(self, answers: dict[int, Answer]) -> None:
        self.answers = answers
        self.requests = 0

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        self.requests += 1
        number = self.requests
        await asyncio.sleep(0)
        return self.answers.get(number) or answer_to(body)


def engine_over(sender: Scripted) -> Engine:
    engine = Engine(background_loop())
    engine._sender = lambda _: sender  # type: ignore[method-assign]
    return engine


TOLD = Settings(base_url="http://127.0.0.1:1/v1")


def test_progress_hears_of_all_that_was_finished_before_a_call_failed() -> None:
    refused = b'{"error":{"message":"inappropriate content","code":"data_inspection_failed"}}'
    wrong_key = b'{"error":{"message":"no such key","code":"invalid_api_key"}}'
    sender = Scripted({1: Answer(400, {}, refused), 3: Answer(401, {}, wrong_key)})
    heard: list[int] = []
    request = Request(TEXTS[:10], TOLD, ApiKey("sk-test"), Ledger(), on_progress=heard.append)
    with pytest.raises(NexusFlowError) as failure:
        asyncio.run(engine_over(sender).embed(request))
    assert sum(heard) == len(failure.value.finished) == 5


@pytest.mark.parametrize("error", [NexusFlowError("the store broke"), RuntimeError("a bug")])
def test_an_error_between_requests_ends_the_call_before_the_rest_is_paid_for(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    class Failing(DirectSource):
        async def next(self) -> Batch | None:
            nonlocal asked
            asked += 1
            if asked == 10:
                raise error
            return await super().next()

    monkeypatch.setattr("nexusflow_integrations._core.engine.DirectSource", Failing)
    sender = Scripted({})
    with pytest.raises(type(error), match=str(error)):
        asyncio.run(engine_over(sender).embed(Request(TEXTS, TOLD, ApiKey("sk-test"), Ledger())))
    assert sender.requests < 40


def test_a_stop_while_requests_are_being_added_waits_for_none_that_was_added_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Waiting(DirectSource):
        async def next(self) -> Batch | None:
            await asyncio.Event().wait()  # as for texts that another process is paying for
            return None

    monkeypatch.setattr("nexusflow_integrations._core.engine.DirectSource", Waiting)

    async def run() -> None:
        stop = Stop()
        request = Request(TEXTS, TOLD, ApiKey("sk-test"), Ledger(), stop=stop)
        call = asyncio.create_task(engine_over(Scripted({})).embed(request))
        for _ in range(8):
            await asyncio.sleep(0)
        stop.request()
        with pytest.raises(StoppedElsewhere):
            await asyncio.wait_for(call, DRAIN / 2)

    asyncio.run(run())


def test_calls_with_headers_of_their_own_leave_no_more_than_some_senders() -> None:
    async def run() -> int:
        engine = Engine(background_loop())
        for number in range(200):
            headers = {"X-Trace": str(number)}
            told = Settings(base_url="http://127.0.0.1:1/v1", default_headers=headers)
            sender = engine._sender(Request(["a"], told, ApiKey("sk-test"), Ledger()))
            assert sender._headers["x-trace"] == str(number)  # type: ignore[attr-defined]
        await engine._pool.close()
        return len(engine._senders)

    assert asyncio.run(run()) == MOST_SENDERS
