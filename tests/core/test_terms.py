"""Whose limits hold for an account: those of the clients in use, the newest first."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest

from nexusflow_integrations._core.pace.pacing import FoundLimit, GivenLimits
from nexusflow_integrations._core.pace.terms import Presence, Terms
from nexusflow_integrations._core.request.endpoint import Lane
from nexusflow_integrations._core.settings import Settings

from .hand import Clock


class Client:
    """What a client is to its lane: present until it is closed or collected, and calling."""

    def __init__(self, lane: Lane, pacer: Any = None, **settings: Any) -> None:
        self.lane = lane
        self.presence: Presence | None = Presence()
        told = Settings(base_url="https://hand.invalid/v1", **settings)
        self.terms = Terms(told, pacer, ref(self.presence))

    def call(self) -> None:
        self.begin()
        self.lane.end(self.terms)

    def begin(self) -> None:
        self.lane.begin(self.terms)

    def close(self) -> None:
        self.presence = None


def at_once(work: Callable[[], None]) -> None:
    work()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lane(clock: Clock) -> Lane:
    def pace_with(lane: Lane, shared: Any) -> None:
        lane.use_pacer(FoundLimit(), paced_by=shared)

    return Lane(clock, pace_with, at_once)


def limits(lane: Lane) -> tuple[float | None, float | None] | None:
    """What the lane really sends at; ``None`` if it finds the limit out."""
    pacer = lane.gate.pacer
    assert pacer is lane.pacer
    if isinstance(pacer, GivenLimits):
        return pacer.requests_per_minute, pacer.tokens_per_minute
    return None


def test_the_newest_client_that_gives_a_limit_decides(lane: Lane) -> None:
    older, newer = (Client(lane, requests_per_minute=n) for n in (600, 60))
    newer.call()
    older.call()
    assert limits(lane) == (60, None)


def test_a_client_that_gives_none_keeps_to_the_limits_of_those_in_use(lane: Lane) -> None:
    giver, other = Client(lane, requests_per_minute=60), Client(lane)
    giver.call()
    other.call()
    assert limits(lane) == (60, None)


@pytest.mark.parametrize("end", ["closed", "collected"])
def test_a_client_that_gives_none_inherits_no_limit_of_one_that_is_gone(
    lane: Lane, end: str
) -> None:
    client = Client(lane, requests_per_minute=1e-9)
    client.call()
    if end == "closed":
        client.close()
    del client
    gc.collect()
    assert limits(lane) is None
    Client(lane).call()
    assert limits(lane) is None


def test_when_the_newest_is_gone_the_limit_of_the_one_before_holds_again(lane: Lane) -> None:
    older, newer = (Client(lane, requests_per_minute=n) for n in (600, 1e-9))
    older.call()
    newer.call()
    assert limits(lane) == (1e-9, None)
    newer.close()
    assert limits(lane) == (600, None)
    assert lane.pacer.wait(lane.clock()) == 0


def test_limits_hold_while_a_call_of_a_closed_client_is_in_flight(lane: Lane) -> None:
    client = Client(lane, requests_per_minute=60, max_concurrency=3)
    client.begin()
    client.close()
    Client(lane).call()
    assert limits(lane) == (60, None)
    lane.end(client.terms)
    assert limits(lane) is None


def test_a_closed_client_that_calls_after_all_is_held_to_its_own_limit(lane: Lane) -> None:
    client = Client(lane, requests_per_minute=60)
    client.close()
    client.begin()
    assert limits(lane) == (60, None)
    lane.end(client.terms)
    assert limits(lane) is None


def test_clients_that_give_one_limit_each_are_held_to_both(lane: Lane) -> None:
    clients = [Client(lane, requests_per_minute=60), Client(lane, tokens_per_minute=6000)]
    for client in clients:
        client.call()
    assert limits(lane) == (60, 6000)
    clients[0].close()
    assert limits(lane) == (None, 6000)


def test_the_same_limits_given_again_forget_nothing_of_what_was_sent(
    lane: Lane, clock: Clock
) -> None:
    client = Client(lane, requests_per_minute=60)
    client.call()
    lane.pacer.take(10, clock())
    former = lane.pacer
    Client(lane, requests_per_minute=60).call()
    assert lane.pacer is former
    client.close()
    client = Client(lane, requests_per_minute=60)  # made anew for each request, as some do
    client.call()
    assert lane.pacer.wait(clock()) == pytest.approx(1 / 0.99)


def test_the_widest_window_of_those_in_use_holds(lane: Lane) -> None:
    wide, narrow = Client(lane, max_concurrency=64), Client(lane, max_concurrency=4)
    narrow.call()
    assert (lane.window.limit, lane.window.size) == (4, 4)
    wide.call()
    assert lane.window.limit == 64
    wide.close()
    assert lane.window.limit == 4
    narrow.close()
    assert lane.window.limit == 4, "nobody says otherwise"


def test_what_keeps_the_limits_elsewhere_goes_with_the_client_that_brought_it(lane: Lane) -> None:
    older, shared = Client(lane, requests_per_minute=60), object()
    newer = Client(lane, pacer=shared, requests_per_minute=600)
    older.call()
    newer.call()
    assert lane.paced_by is shared
    newer.close()
    assert lane.paced_by is None
    assert limits(lane) == (60, None)


def test_what_the_server_taught_stays_when_all_clients_are_gone(lane: Lane, clock: Clock) -> None:
    client = Client(lane)
    client.call()
    lane.learn_batch_limit(4)
    lane.base64_refused = True
    lane.pacer.throttled(sent_at=clock(), now=clock(), hint=None)
    assert isinstance(lane.pacer, FoundLimit)
    found = lane.pacer.rate
    client.close()
    limited = Client(lane, requests_per_minute=60)
    limited.call()
    limited.close()
    Client(lane).call()
    assert isinstance(lane.pacer, FoundLimit)
    assert lane.pacer.rate == found
    assert (lane.batch_limit, lane.base64_refused) == (4, True)


def test_those_who_wait_go_on_at_once_when_the_limit_that_held_them_is_gone(lane: Lane) -> None:
    async def run() -> None:
        slow, other = Client(lane, requests_per_minute=1e-9), Client(lane)
        slow.call()
        other.begin()
        await lane.gate.enter(10)
        waiting = asyncio.ensure_future(lane.gate.enter(10))
        await asyncio.sleep(0)
        assert not waiting.done()
        slow.close()
        await asyncio.wait_for(waiting, 10)
        assert lane.gate.in_flight == 2

    asyncio.run(run())


def test_a_pacer_that_cannot_be_used_fails_each_call_that_brings_it_and_no_other(
    clock: Clock,
) -> None:
    def pace_with(lane: Lane, shared: Any) -> None:
        raise ZeroDivisionError

    lane = Lane(clock, pace_with, at_once)
    broken = Client(lane, pacer=object())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            broken.begin()
        lane.end(broken.terms)
    client = Client(lane, requests_per_minute=60)
    client.call()
    assert limits(lane) == (60, None)
