"""What all calls to one endpoint know together."""

from __future__ import annotations

import asyncio

import pytest

from nexusflow_integrations._core.pace.pacing import FoundLimit, GivenLimits
from nexusflow_integrations._core.pace.terms import Terms
from nexusflow_integrations._core.request.endpoint import ALIVE, Lane, Outage
from nexusflow_integrations._core.request.failures import judge
from nexusflow_integrations._core.settings import Settings

from .hand import Clock, lane_of, no

URL = "https://hand.invalid/v1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lane(clock: Clock) -> Lane:
    return lane_of(Settings(base_url=URL), clock)


def test_without_limits_the_limit_is_found_out(lane: Lane) -> None:
    assert isinstance(lane.pacer, FoundLimit)
    assert lane.gate.pacer is lane.pacer


def test_limits_of_a_later_client_count_for_all_and_one_without_does_not_undo_them(
    lane: Lane,
) -> None:
    lane.begin(Terms(Settings(base_url=URL, requests_per_minute=600)))
    given = lane.pacer
    assert isinstance(given, GivenLimits)
    assert lane.gate.pacer is given
    lane.begin(Terms(Settings(base_url=URL)))
    lane.begin(Terms(Settings(base_url=URL, requests_per_minute=600)))
    assert lane.pacer is given, "the same limits must not forget what was sent"
    lane.begin(Terms(Settings(base_url=URL, requests_per_minute=900)))
    assert lane.pacer is not given


def test_a_batch_limit_is_only_ever_lowered(lane: Lane) -> None:
    for heard, kept in ((8, 8), (4, 4), (6, 4)):
        lane.learn_batch_limit(heard)
        assert lane.batch_limit == kept


def test_a_good_answer_proves_life_for_a_while(lane: Lane, clock: Clock) -> None:
    assert not lane.alive
    lane.good(clock(), sent_at=clock(), retries=0, estimated=10, billed=10)
    assert lane.alive
    clock.now += ALIVE + 1
    assert not lane.alive


def test_a_good_answer_ends_an_outage_and_refunds_the_retries_it_took(
    lane: Lane, clock: Clock
) -> None:
    heard = []
    outage = lane.outage = Outage(clock())
    outage.listen(lambda: heard.append(outage.recovered))
    lane.retry_budget.balance = 3.0
    lane.good(clock(), sent_at=clock(), retries=2, estimated=10, billed=None)
    assert heard == [True]
    assert lane.outage is None
    assert lane.retry_budget.balance == 5.0


def test_a_good_answer_that_was_sent_before_an_outage_does_not_end_it(
    lane: Lane, clock: Clock
) -> None:
    sent_at = clock()
    clock.now += 1
    outage = lane.outage = Outage(clock())
    clock.now += 1
    lane.good(clock(), sent_at=sent_at, retries=0, estimated=10, billed=10)
    assert not outage.over
    assert lane.outage is outage
    lane.good(clock(), sent_at=clock(), retries=0, estimated=10, billed=10)
    assert outage.recovered is True


def test_throttling_slows_the_pace_and_leaves_the_window(lane: Lane, clock: Clock) -> None:
    size = lane.window.size
    lane.bad(judge(no(429, "rate_limit_exceeded"), secrets=()), clock() - 1, clock())
    assert lane.window.size == size
    assert isinstance(lane.pacer, FoundLimit)
    assert lane.pacer.rate is not None


@pytest.mark.parametrize("answered", [True, False])
def test_a_fault_shrinks_the_window_and_leaves_the_pace(
    lane: Lane, clock: Clock, answered: bool
) -> None:
    size = lane.window.size
    failure = judge(no(503), secrets=()) if answered else None
    lane.bad(failure, clock() - 1, clock())
    assert lane.window.size < size
    assert isinstance(lane.pacer, FoundLimit)
    assert lane.pacer.rate is None


def test_an_outage_ends_once_and_tells_everyone_once() -> None:
    outage, heard = Outage(0.0), []
    for name in "ab":
        outage.listen(lambda name=name: heard.append((name, outage.recovered)))  # type: ignore[misc]
    outage.end(recovered=False)
    outage.end(recovered=True)
    assert heard == [("a", False), ("b", False)]
    assert outage.recovered is False


def test_the_pacer_hears_how_long_the_server_asked_to_wait(lane: Lane, clock: Clock) -> None:
    for _ in range(2):  # the second one, after which still nothing got through, is believed
        clock.now += 0.1
        sent_at = clock()
        clock.now += 0.1
        lane.bad(judge(no(429, retry_after="20"), secrets=()), sent_at, clock())
    assert lane.pacer.wait(clock()) == pytest.approx(20.0)


def test_a_lane_remembers_through_what_its_pace_is_shared(lane: Lane) -> None:
    shared, source = FoundLimit(), object()
    lane.use_pacer(shared, source)
    assert (lane.pacer, lane.gate.pacer, lane.paced_by) == (shared, shared, source)


def test_a_batch_limit_that_was_learnt_is_logged_once(
    lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "nexusflow_integrations"):
        lane.learn_batch_limit(4)
        lane.learn_batch_limit(4)
    assert [record.getMessage() for record in caplog.records] == [
        "the server takes at most 4 texts a request; splitting"
    ]


def test_the_gate_admits_by_the_lanes_window_and_clock(lane: Lane, clock: Clock) -> None:
    lane.begin(Terms(Settings(base_url=URL, requests_per_minute=60)))
    assert lane.gate.window is lane.window
    asyncio.run(lane.gate.enter(10))
    assert lane.gate.in_flight == 1
    assert lane.pacer.wait(clock()) == pytest.approx(1 / 0.99)


@pytest.mark.parametrize(("billed", "wait"), [(149, 1.5), (None, 1.0)])
def test_what_the_server_billed_corrects_the_pace_and_silence_does_not(
    lane: Lane, clock: Clock, billed: int | None, wait: float
) -> None:
    lane.begin(Terms(Settings(base_url=URL, tokens_per_minute=6000)))
    lane.pacer.take(99, clock())
    lane.good(clock(), sent_at=clock(), retries=0, estimated=99, billed=billed)
    assert lane.pacer.wait(clock()) == pytest.approx(wait, abs=0.01)


@pytest.mark.parametrize(("others", "grows"), [(3, True), (2, False)])
def test_the_window_grows_only_where_it_was_half_full_with_the_request_that_was_answered(
    lane: Lane, clock: Clock, others: int, grows: bool
) -> None:
    lane.window.size = 8.0
    lane.gate.in_flight = others
    lane.good(clock(), sent_at=clock(), retries=0, estimated=1, billed=1)
    assert (lane.window.size > 8.0) == grows
