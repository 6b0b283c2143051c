"""All calls to one endpoint share its state."""

from __future__ import annotations

import asyncio

import pytest

from nexusflow_integrations._core.pace.pacing import DetectedLimit, GivenLimits
from nexusflow_integrations._core.pace.terms import Terms
from nexusflow_integrations._core.request.endpoint import ALIVE, EndpointState, Outage
from nexusflow_integrations._core.request.failures import judge
from nexusflow_integrations._core.settings import Settings

from .hand import Clock, lane_of, no

URL = "https://hand.invalid/v1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def endpoint(clock: Clock) -> EndpointState:
    return lane_of(Settings(base_url=URL), clock)


def test_without_limits_the_limit_is_detected(endpoint: EndpointState) -> None:
    assert isinstance(endpoint.pacer, DetectedLimit)
    assert endpoint.admission.pacer is endpoint.pacer


def test_limits_of_a_later_client_count_for_all_and_one_without_does_not_undo_them(
    endpoint: EndpointState,
) -> None:
    endpoint.begin(Terms(Settings(base_url=URL, requests_per_minute=600)))
    given = endpoint.pacer
    assert isinstance(given, GivenLimits)
    assert endpoint.admission.pacer is given
    endpoint.begin(Terms(Settings(base_url=URL)))
    endpoint.begin(Terms(Settings(base_url=URL, requests_per_minute=600)))
    assert endpoint.pacer is given, "the same limits must not forget what was sent"
    endpoint.begin(Terms(Settings(base_url=URL, requests_per_minute=900)))
    assert endpoint.pacer is not given


def test_a_batch_limit_is_only_ever_lowered(endpoint: EndpointState) -> None:
    for heard, kept in ((8, 8), (4, 4), (6, 4)):
        endpoint.learn_batch_limit(heard)
        assert endpoint.batch_limit == kept


def test_a_good_answer_proves_life_for_a_while(endpoint: EndpointState, clock: Clock) -> None:
    assert not endpoint.alive
    endpoint.good(clock(), sent_at=clock(), retries=0, estimated=10, billed=10)
    assert endpoint.alive
    clock.now += ALIVE + 1
    assert not endpoint.alive


def test_a_good_answer_ends_an_outage_and_refunds_the_retries_it_took(
    endpoint: EndpointState, clock: Clock
) -> None:
    heard = []
    outage = endpoint.outage = Outage(clock())
    outage.listen(lambda: heard.append(outage.recovered))
    endpoint.retry_budget.balance = 3.0
    endpoint.good(clock(), sent_at=clock(), retries=2, estimated=10, billed=None)
    assert heard == [True]
    assert endpoint.outage is None
    assert endpoint.retry_budget.balance == 5.0


def test_a_good_answer_that_was_sent_before_an_outage_does_not_end_it(
    endpoint: EndpointState, clock: Clock
) -> None:
    sent_at = clock()
    clock.now += 1
    outage = endpoint.outage = Outage(clock())
    clock.now += 1
    endpoint.good(clock(), sent_at=sent_at, retries=0, estimated=10, billed=10)
    assert not outage.over
    assert endpoint.outage is outage
    endpoint.good(clock(), sent_at=clock(), retries=0, estimated=10, billed=10)
    assert outage.recovered is True


def test_throttling_slows_the_pace_but_not_the_window(
    endpoint: EndpointState, clock: Clock
) -> None:
    size = endpoint.window.size
    endpoint.bad(judge(no(429, "rate_limit_exceeded"), secrets=()), clock() - 1, clock())
    assert endpoint.window.size == size
    assert isinstance(endpoint.pacer, DetectedLimit)
    assert endpoint.pacer.rate is not None


@pytest.mark.parametrize("answered", [True, False])
def test_a_fault_shrinks_the_window_but_not_the_pace(
    endpoint: EndpointState, clock: Clock, answered: bool
) -> None:
    size = endpoint.window.size
    failure = judge(no(503), secrets=()) if answered else None
    endpoint.bad(failure, clock() - 1, clock())
    assert endpoint.window.size < size
    assert isinstance(endpoint.pacer, DetectedLimit)
    assert endpoint.pacer.rate is None


def test_an_outage_ends_once_and_informs_every_listener_once() -> None:
    outage, heard = Outage(0.0), []
    for name in "ab":
        outage.listen(lambda name=name: heard.append((name, outage.recovered)))  # type: ignore[misc]
    outage.end(recovered=False)
    outage.end(recovered=True)
    assert heard == [("a", False), ("b", False)]
    assert outage.recovered is False


def test_the_pacer_gets_the_wait_that_the_server_asked_for(
    endpoint: EndpointState, clock: Clock
) -> None:
    for _ in range(2):  # the second hint is used, since nothing succeeded after the first
        clock.now += 0.1
        sent_at = clock()
        clock.now += 0.1
        endpoint.bad(judge(no(429, retry_after="20"), secrets=()), sent_at, clock())
    assert endpoint.pacer.wait(clock()) == pytest.approx(20.0)


def test_an_endpoint_remembers_through_what_its_pace_is_shared(endpoint: EndpointState) -> None:
    shared, source = DetectedLimit(), object()
    endpoint.use_pacer(shared, source)
    assert (endpoint.pacer, endpoint.admission.pacer, endpoint.paced_by) == (shared, shared, source)


def test_a_batch_limit_that_was_learnt_is_logged_once(
    endpoint: EndpointState, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "nexusflow_integrations"):
        endpoint.learn_batch_limit(4)
        endpoint.learn_batch_limit(4)
    assert [record.getMessage() for record in caplog.records] == [
        "the server accepts at most 4 texts per request; splitting"
    ]


def test_the_queue_uses_the_endpoints_window_and_clock(
    endpoint: EndpointState, clock: Clock
) -> None:
    endpoint.begin(Terms(Settings(base_url=URL, requests_per_minute=60)))
    assert endpoint.admission.window is endpoint.window
    asyncio.run(endpoint.admission.enter(10))
    assert endpoint.admission.in_flight == 1
    assert endpoint.pacer.wait(clock()) == pytest.approx(1 / 0.99)


@pytest.mark.parametrize(("billed", "wait"), [(149, 1.5), (None, 1.0)])
def test_billed_tokens_correct_the_pace_and_a_missing_usage_does_not(
    endpoint: EndpointState, clock: Clock, billed: int | None, wait: float
) -> None:
    endpoint.begin(Terms(Settings(base_url=URL, tokens_per_minute=6000)))
    endpoint.pacer.take(99, clock())
    endpoint.good(clock(), sent_at=clock(), retries=0, estimated=99, billed=billed)
    assert endpoint.pacer.wait(clock()) == pytest.approx(wait, abs=0.01)


@pytest.mark.parametrize(("others", "grows"), [(3, True), (2, False)])
def test_the_window_grows_only_where_it_was_half_full_with_the_request_that_was_answered(
    endpoint: EndpointState, clock: Clock, others: int, grows: bool
) -> None:
    endpoint.window.size = 8.0
    endpoint.admission.in_flight = others
    endpoint.good(clock(), sent_at=clock(), retries=0, estimated=1, billed=1)
    assert (endpoint.window.size > 8.0) == grows
