"""The engine sends requests and ends calls correctly, with a sender instead of the network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest

from nexusflow_integrations._core.call.background import background_loop
from nexusflow_integrations._core.call.caller import NO_HOOKS, Caller
from nexusflow_integrations._core.call.engine import (
    MOST_SENDERS,
    Engine,
)
from nexusflow_integrations._core.call.job import DRAIN, Stop, StoppedElsewhere
from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.call.sources import DirectSource
from nexusflow_integrations._core.request import exchange
from nexusflow_integrations._core.request.batching import Batch
from nexusflow_integrations._core.request.exchange import Call
from nexusflow_integrations._core.request.transport import Sender
from nexusflow_integrations._core.request.wire import Answer, TransportFault, decode_response
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations.errors import NexusFlowError

from .hand import KEY, no, right, vector_of

SIZE = 64
TEXTS = [f"text {number}" for number in range(2000)]
WRONG_KEY = no(401, "invalid_api_key", "no such key")


async def at_once(_: Server) -> None:
    await asyncio.sleep(0)


class Server:
    """Answers after ``delay``, and counts requests in flight.

    Request number n (from 1) gets ``answers[n]``, all others a valid response.
    """

    def __init__(
        self,
        delay: Callable[[Server], Awaitable[None]] = at_once,
        answers: Mapping[int, Answer] = {},
    ) -> None:
        self._delay = delay
        self._answers = answers
        self.in_flight = self.most = self.requests = 0

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        self.requests += 1
        answer = self._answers.get(self.requests) or right(json.loads(body))
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await self._delay(self)
        self.in_flight -= 1
        return answer


def engine_over(*senders: Sender) -> Engine:
    """An engine whose first call uses the first sender and so on; the last serves the rest."""
    engine = Engine(background_loop())
    left = list(senders)
    engine._sender = lambda _: left.pop(0) if left[1:] else left[0]  # type: ignore[method-assign]
    return engine


def call_of(texts: list[str], **options: Any) -> Call:
    settings = Settings(base_url="https://hand.invalid/v1", dimensions=SIZE, **options)
    return Call(texts=texts, settings=settings, key=ApiKey(KEY), ledger=Ledger())


def embed(server: Server, texts: list[str], **settings: Any) -> CallResults:
    work = engine_over(server).embed(call_of(texts, **settings))
    return asyncio.run(asyncio.wait_for(work, 60))


def check(results: CallResults, texts: list[str]) -> None:
    assert results.vectors is not None
    assert results.vectors.tolist() == [vector_of(text, SIZE).tolist() for text in texts]


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


def test_a_fast_server_needs_few_connections() -> None:
    server = Server(at_once)
    check(embed(server, TEXTS), TEXTS)
    assert server.requests == 200
    assert server.most <= 4


@pytest.mark.parametrize(("most", "order"), [(32, "ssdd"), (2, "sdsd")])
def test_with_few_tasks_all_arrived_responses_are_decoded_before_the_next_sends(
    monkeypatch: pytest.MonkeyPatch, most: int, order: str
) -> None:
    """A server on the same machine is then woken once for several requests."""
    events: list[str] = []

    async def at_once(_: Server) -> None:
        events.append("s")
        await asyncio.sleep(0)

    def decode(*args: Any, **options: Any) -> Any:
        events.append("d")
        return decode_response(*args, **options)

    monkeypatch.setattr(exchange, "decode_response", decode)
    server = Server(at_once)
    check(embed(server, TEXTS, max_concurrency=most), TEXTS)
    assert server.most == 2
    assert "".join(events).count(order) >= 95  # of 100 pairs


@pytest.mark.parametrize("most", [1, 2, 3])
def test_never_more_requests_are_in_flight_than_max_concurrency(most: int) -> None:
    async def delay(_: Server) -> None:
        await asyncio.sleep(0.001)

    server = Server(delay)
    check(embed(server, TEXTS[:200], max_concurrency=most), TEXTS[:200])
    assert server.most == most


def test_texts_left_over_by_a_call_that_failed_are_sent_together_too() -> None:
    """The second round of a call that waited for another call's texts after its first round."""
    broken = asyncio.Event()

    async def until_broken(_: Server) -> None:
        await broken.wait()

    async def a_while(_: Server) -> None:
        await asyncio.sleep(0.05)

    server = Server(a_while)

    async def run() -> CallResults:
        refusing = Server(until_broken, dict.fromkeys(range(1, 5), WRONG_KEY))
        engine = engine_over(server, refusing, server)

        def call(texts: list[str], **settings: Any) -> asyncio.Task[CallResults]:
            return asyncio.create_task(engine.embed(call_of(texts, **settings)))

        await call(["text 0"])  # opens the window of 16, of which the first call takes 4
        server.requests = 0
        first = call(TEXTS[:400], max_concurrency=4)
        await asyncio.sleep(0.05)
        second = call(TEXTS[:500])
        while server.requests < 10:  # for the hundred texts that no other call embeds
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


def test_an_array_changed_by_its_caller_changes_no_row_of_a_call_that_shared_a_text() -> None:
    released = asyncio.Event()

    async def until_released(_: Server) -> None:
        await released.wait()

    async def a_moment(_: Server) -> None:
        await asyncio.sleep(0.05)

    async def run() -> CallResults:
        engine = engine_over(Server(until_released), Server(a_moment))

        def call(texts: list[str]) -> asyncio.Task[CallResults]:
            return asyncio.create_task(engine.embed(call_of(texts)))

        slow, fast = call(["text 0"]), call(["text 1"])
        await asyncio.sleep(0)
        sharing = call(["text 0", "text 1"])
        mine = (await fast).vectors
        assert mine is not None
        mine[:] = 0  # while the other call still waits for its first text
        released.set()
        await slow
        return await sharing

    check(asyncio.run(asyncio.wait_for(run(), 60)), ["text 0", "text 1"])


def test_calls_that_cut_texts_at_different_lengths_share_none() -> None:
    async def a_moment(_: Server) -> None:
        await asyncio.sleep(0.05)

    text = " ".join(f"word{number}" for number in range(400))

    async def run() -> list[CallResults]:
        engine = engine_over(Server(a_moment))
        calls = [
            engine.embed(call_of([text], on_too_long="truncate", max_text_tokens=most))
            for most in (100, 200)
        ]
        return list(await asyncio.gather(*calls))

    short, long = asyncio.run(asyncio.wait_for(run(), 60))
    assert short.vectors is not None
    assert long.vectors is not None
    assert short.vectors.tolist() != long.vectors.tolist()


def test_progress_reports_all_that_was_finished_before_a_call_failed() -> None:
    refused = no(400, "data_inspection_failed", "inappropriate content")
    server = Server(answers={1: refused, 3: WRONG_KEY})
    heard: list[int] = []
    caller = Caller(heard.append, NO_HOOKS, progress=True)
    with pytest.raises(NexusFlowError) as failure:
        asyncio.run(engine_over(server).embed(call_of(TEXTS[:10]), caller))
    assert sum(heard) == len(failure.value.finished) == 5


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NexusFlowError("the store broke"), "the store broke"),
        (RuntimeError("a bug"), "RuntimeError, which is a bug"),
    ],
)
def test_an_error_between_requests_ends_the_call_before_the_rest_is_paid_for(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    class Failing(DirectSource):
        async def next(self) -> Batch | None:
            nonlocal asked
            asked += 1
            if asked == 10:
                raise error
            return await super().next()

    monkeypatch.setattr("nexusflow_integrations._core.call.engine.DirectSource", Failing)
    server = Server()
    with pytest.raises(NexusFlowError, match=words) as failure:
        embed(server, TEXTS)
    assert server.requests < 40
    assert error in (failure.value, failure.value.__cause__)
    assert failure.value.finished


def test_a_stop_while_requests_are_being_added_waits_for_none_that_was_added_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Waiting(DirectSource):
        async def next(self) -> Batch | None:
            await asyncio.Event().wait()  # as for texts that another process is paying for
            return None

    monkeypatch.setattr("nexusflow_integrations._core.call.engine.DirectSource", Waiting)

    async def run() -> None:
        stop = Stop()
        call = asyncio.create_task(engine_over(Server()).embed(call_of(TEXTS), stop=stop))
        for _ in range(8):
            await asyncio.sleep(0)
        stop.request()
        with pytest.raises(StoppedElsewhere):
            await asyncio.wait_for(call, DRAIN / 2)

    asyncio.run(run())


async def no_second_answer(server: Server) -> None:
    if server.requests > 1:
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_concurrency": 2},
        {"max_concurrency": 1},
        {"max_concurrency": 1, "requests_per_minute": 1},
    ],
    ids=["two at once", "one by one", "one a minute"],
)
def test_a_call_that_is_stopped_ends_soon_with_what_it_has(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexusflow_integrations._core.call.job.DRAIN", 0.05)

    async def run() -> None:
        stop = Stop()
        call = call_of(["a", "b"], batch_size=1, **settings)
        embedding = engine_over(Server(no_second_answer)).embed(call, stop=stop)
        asyncio.get_running_loop().call_later(0.1, stop.request)
        with pytest.raises(StoppedElsewhere) as failure:
            await asyncio.wait_for(embedding, 20)
        assert failure.value.finished.keys() == {0}

    asyncio.run(run())


def test_a_call_that_is_stopped_does_not_wait_for_another_s_text() -> None:
    async def run() -> None:
        stop = Stop()
        slow = Server(lambda _: asyncio.Event().wait())
        engine = engine_over(slow, Server())
        other = asyncio.create_task(engine.embed(call_of(["theirs"])))
        while not slow.requests:
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.1, stop.request)
        with pytest.raises(StoppedElsewhere) as failure:
            await asyncio.wait_for(engine.embed(call_of(["mine", "theirs"]), stop=stop), 20)
        assert failure.value.finished.keys() == {0}
        other.cancel()
        await asyncio.wait([other])

    asyncio.run(run())


def test_calls_with_headers_of_their_own_leave_no_more_than_some_senders() -> None:
    async def run() -> int:
        engine = Engine(background_loop())
        for number in range(200):
            told = call_of(["a"], default_headers={"X-Trace": str(number)})
            sender = engine._sender(told)
            assert f"X-Trace: {number}\r\n".encode() in sender._head.with_body(b"")  # type: ignore[attr-defined]
        await engine._pool.close()
        return engine._own_sender.cache_info().currsize

    assert asyncio.run(run()) == MOST_SENDERS
