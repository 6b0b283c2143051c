"""For each limit of an account, the value from the newest client in use holds."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest

from nexusflow_integrations._core.pace.pacing import DetectedLimit, GivenLimits
from nexusflow_integrations._core.pace.terms import Presence, Terms
from nexusflow_integrations._core.request.endpoint import EndpointState
from nexusflow_integrations._core.settings import Settings

from .hand import Clock


class Client:
    """A client as its endpoint sees it: present until it is closed or collected, and calling."""

    def __init__(self, endpoint: EndpointState, pacer: Any = None, **settings: Any) -> None:
        self.endpoint = endpoint
        self.presence: Presence | None = Presence()
        told = Settings(base_url="https://hand.invalid/v1", **settings)
        self.terms = Terms(told, pacer, ref(self.presence))

    def call(self) -> None:
        self.begin()
        self.endpoint.end(self.terms)

    def begin(self) -> None:
        self.endpoint.begin(self.terms)

    def close(self) -> None:
        self.presence = None


def at_once(work: Callable[[], None]) -> None:
    work()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def endpoint(clock: Clock) -> EndpointState:
    def pace_with(endpoint: EndpointState, shared: Any) -> None:
        endpoint.use_pacer(DetectedLimit(), paced_by=shared)

    return EndpointState(clock, pace_with, at_once)


def limits(endpoint: EndpointState) -> tuple[float | None, float | None] | None:
    """Return the limits that the endpoint uses; ``None`` if it searches for the limit."""
    pacer = endpoint.admission.pacer
    assert pacer is endpoint.pacer
    if isinstance(pacer, GivenLimits):
        return pacer.requests_per_minute, pacer.tokens_per_minute
    return None


def test_the_newest_client_that_gives_a_limit_decides(endpoint: EndpointState) -> None:
    older, newer = (Client(endpoint, requests_per_minute=n) for n in (600, 60))
    newer.call()
    older.call()
    assert limits(endpoint) == (60, None)


def test_a_client_without_limits_keeps_to_the_limits_of_clients_in_use(
    endpoint: EndpointState,
) -> None:
    giver, other = Client(endpoint, requests_per_minute=60), Client(endpoint)
    giver.call()
    other.call()
    assert limits(endpoint) == (60, None)


@pytest.mark.parametrize("end", ["closed", "collected"])
def test_a_client_without_limits_does_not_inherit_those_of_a_closed_client(
    endpoint: EndpointState, end: str
) -> None:
    client = Client(endpoint, requests_per_minute=1e-9)
    client.call()
    if end == "closed":
        client.close()
    del client
    gc.collect()
    assert limits(endpoint) is None
    Client(endpoint).call()
    assert limits(endpoint) is None


def test_when_the_newest_client_is_closed_the_limit_of_the_previous_one_applies_again(
    endpoint: EndpointState,
) -> None:
    older, newer = (Client(endpoint, requests_per_minute=n) for n in (600, 1e-9))
    older.call()
    newer.call()
    assert limits(endpoint) == (1e-9, None)
    newer.close()
    assert limits(endpoint) == (600, None)
    assert endpoint.pacer.wait(endpoint.clock()) == 0


def test_limits_hold_while_a_call_of_a_closed_client_is_in_flight(endpoint: EndpointState) -> None:
    client = Client(endpoint, requests_per_minute=60, max_concurrency=3)
    client.begin()
    client.close()
    Client(endpoint).call()
    assert limits(endpoint) == (60, None)
    endpoint.end(client.terms)
    assert limits(endpoint) is None


def test_a_closed_client_that_calls_after_all_is_held_to_its_own_limit(
    endpoint: EndpointState,
) -> None:
    client = Client(endpoint, requests_per_minute=60)
    client.close()
    client.begin()
    assert limits(endpoint) == (60, None)
    endpoint.end(client.terms)
    assert limits(endpoint) is None


def test_clients_that_give_one_limit_each_are_held_to_both(endpoint: EndpointState) -> None:
    clients = [Client(endpoint, requests_per_minute=60), Client(endpoint, tokens_per_minute=6000)]
    for client in clients:
        client.call()
    assert limits(endpoint) == (60, 6000)
    clients[0].close()
    assert limits(endpoint) == (None, 6000)


def test_the_same_limits_given_again_forget_nothing_of_what_was_sent(
    endpoint: EndpointState, clock: Clock
) -> None:
    client = Client(endpoint, requests_per_minute=60)
    client.call()
    endpoint.pacer.take(10, clock())
    former = endpoint.pacer
    Client(endpoint, requests_per_minute=60).call()
    assert endpoint.pacer is former
    client.close()
    client = Client(
        endpoint, requests_per_minute=60
    )  # a new client for each request, as some programs do
    client.call()
    assert endpoint.pacer.wait(clock()) == pytest.approx(1 / 0.99)


def test_the_largest_window_of_clients_in_use_holds(endpoint: EndpointState) -> None:
    wide, narrow = Client(endpoint, max_concurrency=64), Client(endpoint, max_concurrency=4)
    narrow.call()
    assert (endpoint.window.limit, endpoint.window.size) == (4, 4)
    wide.call()
    assert endpoint.window.limit == 64
    wide.close()
    assert endpoint.window.limit == 4
    narrow.close()
    assert endpoint.window.limit == 4, "nobody says otherwise"


def test_a_pacer_is_used_only_while_its_client_is_in_use(
    endpoint: EndpointState,
) -> None:
    older, shared = Client(endpoint, requests_per_minute=60), object()
    newer = Client(endpoint, pacer=shared, requests_per_minute=600)
    older.call()
    newer.call()
    assert endpoint.paced_by is shared
    newer.close()
    assert endpoint.paced_by is None
    assert limits(endpoint) == (60, None)


def test_limits_reported_by_the_server_stay_when_all_clients_are_gone(
    endpoint: EndpointState, clock: Clock
) -> None:
    client = Client(endpoint)
    client.call()
    endpoint.learn_batch_limit(4)
    endpoint.base64_refused = True
    endpoint.pacer.throttled(sent_at=clock(), now=clock(), hint=None)
    assert isinstance(endpoint.pacer, DetectedLimit)
    found = endpoint.pacer.rate
    client.close()
    limited = Client(endpoint, requests_per_minute=60)
    limited.call()
    limited.close()
    Client(endpoint).call()
    assert isinstance(endpoint.pacer, DetectedLimit)
    assert endpoint.pacer.rate == found
    assert (endpoint.batch_limit, endpoint.base64_refused) == (4, True)


def test_waiting_requests_continue_at_once_when_their_limit_is_gone(
    endpoint: EndpointState,
) -> None:
    async def run() -> None:
        slow, other = Client(endpoint, requests_per_minute=1e-9), Client(endpoint)
        slow.call()
        other.begin()
        await endpoint.admission.enter(10)
        waiting = asyncio.ensure_future(endpoint.admission.enter(10))
        await asyncio.sleep(0)
        assert not waiting.done()
        slow.close()
        await asyncio.wait_for(waiting, 10)
        assert endpoint.admission.in_flight == 2

    asyncio.run(run())


def test_a_pacer_that_cannot_be_used_fails_each_call_that_brings_it_and_no_other(
    clock: Clock,
) -> None:
    def pace_with(endpoint: EndpointState, shared: Any) -> None:
        raise ZeroDivisionError

    endpoint = EndpointState(clock, pace_with, at_once)
    broken = Client(endpoint, pacer=object())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            broken.begin()
        endpoint.end(broken.terms)
    client = Client(endpoint, requests_per_minute=60)
    client.call()
    assert limits(endpoint) == (60, None)
