"""A request is checked when its turn comes, and again if the check takes long."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from nexusflow_integrations._core.call.job import MOST_TURNS, TURN, admit_and_send
from nexusflow_integrations._core.call.sources import ClaimsLost, DirectSource
from nexusflow_integrations._core.pace.pacing import GivenLimits
from nexusflow_integrations._core.request.batching import Batch, item_of
from nexusflow_integrations._core.request.endpoint import EndpointState
from nexusflow_integrations._core.request.exchange import Call, Send
from nexusflow_integrations._core.request.wire import Answer
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import Ledger

from .hand import KEY
from .timed import timed


class Store(DirectSource):
    """A source whose store takes ``seconds`` to confirm; the answer is good for ``sure``."""

    def __init__(self, seconds: float, sure: float) -> None:
        super().__init__([], plan=lambda _: iter(()))
        self.seconds = seconds
        self.sure = sure
        self.asked = 0

    async def confirm(self, batch: Batch) -> float:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        return self.sure


class Sender:
    """Notes when requests go out."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def send(self, body: bytes, timeout: float) -> Answer:
        self.times.append(asyncio.get_running_loop().time())
        return Answer(200, {}, b"")


def call(per_minute: float | None = None) -> Call:
    settings = Settings(base_url="https://hand.invalid/v1")
    call = Call(texts=[], settings=settings, key=ApiKey(KEY), ledger=Ledger())
    call.endpoint = EndpointState(asyncio.get_running_loop().time)
    if per_minute is not None:
        call.endpoint.use_pacer(GivenLimits(per_minute, None))
    return call


def step() -> Send:
    return Send(b"", (item_of(0, "a"),), 10, 60.0, urgent=False, encoding="base64")


@timed
async def test_requests_that_wait_for_the_store_are_not_all_sent_when_it_answers() -> None:
    class Rarely(Store):
        """Answers all questions at once, every three seconds."""

        async def confirm(self, batch: Batch) -> float:
            self.seconds = 3 - asyncio.get_running_loop().time() % 3
            return await super().confirm(batch)

    source, sender, of = Rarely(0.0, sure=9.0), Sender(), call(per_minute=120)
    await asyncio.gather(*(admit_and_send(of, sender, source, step()) for _ in range(8)))
    assert min(later - former for former, later in pairwise(sender.times)) >= 0.5 - TURN
    assert of.endpoint.admission.in_flight == 0


@timed
async def test_a_confirmation_by_the_store_expires() -> None:
    for seconds, sure, asked in (
        (TURN / 2, 0.0, 1),  # in time
        (TURN * 2, 9.0, 1),
        (TURN * 2, 0.6, MOST_TURNS),
    ):
        source, of = Store(seconds, sure), call(per_minute=60)
        await admit_and_send(of, Sender(), source, step())
        assert source.asked == asked


@timed
async def test_a_request_whose_texts_were_taken_over_leaves_the_queue() -> None:
    class Lost(Store):
        async def confirm(self, batch: Batch) -> float:
            raise ClaimsLost

    of, sender = call(), Sender()
    with pytest.raises(ClaimsLost):
        await admit_and_send(of, sender, Lost(0, 0), step())
    assert of.endpoint.admission.in_flight == 0
    assert sender.times == []
