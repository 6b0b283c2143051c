"""Pacing uses the whole quota and no more, with a given limit and with one found by trial."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations._core.pace.pacing import (
    BETA,
    MIN_RATE,
    SAFETY,
    DetectedLimit,
    Gcra,
    GivenLimits,
    Pacer,
)

from .simulation import Bucket, simulate

RATES = st.floats(0.1, 500)


# ---- the cell rate algorithm


@given(RATES, st.lists(st.floats(0, 3), min_size=2, max_size=60))
def test_over_any_stretch_no_more_is_sent_than_the_rate_allows_and_the_slack(
    rate: float, pauses: list[float]
) -> None:
    gcra = Gcra(rate)
    now, sent = 100.0, []
    for pause in pauses:
        now += pause
        now += gcra.wait(now)
        gcra.take(1, now)
        sent.append(now)
    for i, start in enumerate(sent):
        for j in range(i, len(sent)):
            allowed = (sent[j] - start + gcra.slack) * rate + 1
            assert j - i + 1 <= allowed + 1e-6 * allowed + 1e-6


@given(RATES, st.floats(1, 10_000))
def test_an_idle_time_earns_no_credit(rate: float, rest: float) -> None:
    gcra = Gcra(rate)
    gcra.take(1, 0.0)
    late = gcra.next_at + rest
    gcra.take(1, late)
    assert gcra.wait(late) == pytest.approx(1 / rate, abs=1e-6)


def test_a_delay_within_the_slack_is_caught_up() -> None:
    gcra = Gcra(10, slack=0.1)
    gcra.take(1, 0.0)
    gcra.take(1, 0.15)  # 0.05 s late
    assert gcra.wait(0.15) == pytest.approx(0.05)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_larger_requests_wait_proportionally_longer(sizes: list[int]) -> None:
    gcra = Gcra(100.0)
    now = 0.0
    for size in sizes:
        now += gcra.wait(now)
        gcra.take(size, now)
    assert now + gcra.wait(now) == pytest.approx(sum(sizes) / 100.0)


# ---- given limits


@pytest.mark.parametrize("per_second", [2, 10, 60, 120])
@pytest.mark.parametrize("burst", [1.0, 0.3])
def test_a_given_request_limit_is_used_to_97_percent_with_under_1_percent_refused(
    per_second: int, burst: float
) -> None:
    out = simulate(
        GivenLimits(per_second * 60, None),
        60,
        requests=Bucket(lambda _: per_second, max(burst, 1.5 / per_second)),
    )
    assert out.good >= 0.97 * per_second * 60
    assert out.refused_share < 0.01


@pytest.mark.parametrize("billed", [0.7, 1.0, 1.3])
def test_a_given_token_limit_is_used_to_97_percent_also_when_the_estimate_is_off(
    billed: float,
) -> None:
    chance = random.Random(3)
    per_second = 5000
    out = simulate(
        GivenLimits(None, per_second * 60),
        120,
        tokens=Bucket(lambda _: per_second),
        size=lambda: chance.randint(50, 900),
        bill=lambda estimated: round(estimated * billed),
    )
    assert out.tokens >= 0.97 * per_second * 120
    assert out.refused_share < 0.01


@pytest.mark.parametrize(("requests", "tokens"), [(10, 10_000), (100, 2_000)])
def test_whichever_of_two_limits_binds_is_used(requests: int, tokens: int) -> None:
    out = simulate(
        GivenLimits(requests * 60, tokens * 60),
        60,
        requests=Bucket(lambda _: requests),
        tokens=Bucket(lambda _: tokens),
        size=lambda: 200,
    )
    assert max(out.good / (requests * 60), out.tokens / (tokens * 60)) >= 0.97
    assert out.refused_share < 0.01


def test_a_shared_quota_slows_the_pace_which_then_recovers() -> None:
    # Another user takes half of the quota for a while.
    out = simulate(
        GivenLimits(50 * 60, None),
        180,
        requests=Bucket(lambda t: 25 if 40 <= t < 80 else 50),
    )
    assert out.rate(20, 40) >= 0.95 * 50
    assert out.rate(60, 80) >= 0.85 * 25
    assert out.rate(120, 180) >= 0.95 * 50


def test_refusals_of_one_burst_slow_a_given_limit_once() -> None:
    pacer = GivenLimits(60, None)
    for number in range(20):
        pacer.throttled(sent_at=10.0, now=10.1 + number / 100, hint=None)
    pacer.take(1, 10.4)
    once = pacer.wait(10.4)
    other = GivenLimits(60, None)
    other.throttled(sent_at=10.0, now=10.1, hint=None)
    other.take(1, 10.4)
    assert once == pytest.approx(other.wait(10.4), rel=0.02)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0.0, 50.0)), max_size=50))
def test_wrong_bills_never_stop_a_given_limit(bills: list[tuple[int, float]]) -> None:
    pacer = GivenLimits(None, 60_000)
    now = 0.0
    for estimated, factor in bills:
        now += pacer.wait(now)
        pacer.take(estimated, now)
        pacer.settle(estimated, int(estimated * factor))
        assert math.isfinite(pacer.wait(now))
    assert pacer.wait(now) <= sum(e * max(10.0, f) for e, f in bills) / 990 + 1


# ---- a limit found by trial


@pytest.mark.parametrize("per_second", [5, 10, 30, 60, 100, 150])
@pytest.mark.parametrize("burst", [0.3, 1.0])
@pytest.mark.parametrize("hint", [None, 1.0])
def test_an_unknown_limit_is_used_to_85_percent_with_under_10_percent_refused(
    per_second: int, burst: float, hint: float | None
) -> None:
    out = simulate(
        DetectedLimit(),
        120,
        requests=Bucket(lambda _: per_second, max(burst, 1.5 / per_second)),
        hint=hint,
    )
    assert out.rate(10, 120) >= 0.85 * per_second
    assert out.refused_share < 0.10


def test_an_unknown_token_limit_is_found_too() -> None:
    out = simulate(DetectedLimit(), 120, tokens=Bucket(lambda _: 4000), size=lambda: 200)
    assert out.rate(10, 120) >= 0.85 * 20
    assert out.refused_share < 0.10


def test_after_the_limit_changes_both_ways_it_converges_again() -> None:
    out = simulate(
        DetectedLimit(),
        240,
        requests=Bucket(lambda t: 100 if t < 60 else 20 if t < 120 else 100),
    )
    assert out.rate(30, 60) >= 85
    assert out.rate(80, 120) >= 17
    late = sum(out.refused_by_second[s] for s in range(80, 120))
    assert late <= 0.10 * (out.rate(80, 120) * 40 + late)
    assert out.rate(180, 240) >= 85


@pytest.mark.parametrize("pause", [30, 45, 60, 100])
def test_a_bulk_load_after_a_time_of_single_queries_gets_the_whole_quota(pause: int) -> None:
    cycle = 20 + pause
    out = simulate(
        DetectedLimit(),
        cycle * 8,
        requests=Bucket(lambda _: 20),
        refusing=0.01,
        concurrency=lambda t: 32 if t % cycle < 20 else int(t % 1 < 0.1),
    )
    loaded = sum(out.rate(start + 4, start + 20) for start in range(0, cycle * 8, cycle)) / 8
    assert loaded >= 0.85 * 20
    assert out.refused_share < 0.10


@pytest.mark.parametrize("per_second", [600, 1200])
def test_a_quota_of_hundreds_of_requests_a_second_is_kept_to(per_second: int) -> None:
    out = simulate(
        DetectedLimit(),
        20,
        requests=Bucket(lambda _: per_second),
        concurrency=lambda _: 1000,
    )
    assert out.rate(10, 20) >= 0.85 * per_second
    assert out.refused_share < 0.15


def test_without_a_refusal_nothing_is_paced() -> None:
    pacer = DetectedLimit()
    for number in range(1000):
        assert pacer.wait(number / 1000) == 0.0
        pacer.take(100, number / 1000)
        pacer.succeeded(number / 1000)
    assert pacer.rate is None


def paced(good: int = 20) -> DetectedLimit:
    pacer = DetectedLimit()
    for number in range(good):
        pacer.succeeded(number / good)
    return pacer


def test_many_refusals_of_one_burst_count_once() -> None:
    one, many = paced(), paced()
    one.throttled(sent_at=0.9, now=1.0, hint=None)
    for number in range(30):
        many.throttled(sent_at=0.9 + number / 1000, now=1.0 + number / 100, hint=None)
    assert one.rate is not None
    assert many.rate == pytest.approx(one.rate)


def test_a_refusal_of_a_request_sent_after_the_cut_cuts_again() -> None:
    pacer = paced()
    pacer.throttled(sent_at=0.9, now=1.0, hint=None)
    pacer.take(1, 1.5)
    first = pacer.rate
    pacer.throttled(sent_at=1.6, now=1.7, hint=None)
    assert first is not None
    assert pacer.rate is not None
    assert pacer.rate < first


def test_a_refusal_soon_after_the_first_cut_does_not_end_the_search() -> None:
    pacer = paced()
    pacer.throttled(sent_at=0.9, now=1.0, hint=None)
    first = pacer.rate
    pacer.throttled(sent_at=1.1, now=1.2, hint=None)  # a retry that met a bucket still empty
    assert first is not None
    assert pacer.rate is not None
    assert pacer.rate < first
    pacer.take(100, 3.2)  # two seconds later the search has doubled it twice
    assert pacer.rate > 2 * first


def test_the_rate_is_cut_to_a_share_of_what_was_accepted() -> None:
    pacer = paced(20)  # 20 good answers in the last second
    pacer.throttled(sent_at=0.9, now=1.0, hint=None)
    assert pacer.rate == pytest.approx(20 * BETA, rel=0.1)


def test_no_number_of_refusals_pushes_the_rate_below_the_least() -> None:
    pacer = DetectedLimit()
    for number in range(1, 60):
        pacer.throttled(sent_at=number - 0.5, now=float(number), hint=None)
    assert pacer.rate == MIN_RATE
    assert pacer.wait(60.0) <= 1 / MIN_RATE


def test_a_hint_delays_other_requests_only_while_none_succeeds() -> None:
    pacer = paced()
    pacer.throttled(sent_at=0.9, now=1.0, hint=30.0)
    assert pacer.wait(1.0) < 1.0
    pacer.throttled(sent_at=1.5, now=2.0, hint=30.0)
    assert pacer.wait(2.0) == pytest.approx(30.0)
    pacer.throttled(sent_at=2.5, now=3.0, hint=86_400.0)
    assert pacer.wait(3.0) <= 60.0


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "good", "refused", "settle"]), st.floats(0, 30)),
        max_size=80,
    ),
    st.sampled_from(["found", "requests", "tokens", "both"]),
)
def test_no_history_makes_a_pacer_wait_for_ever_or_a_negative_time(
    history: list[tuple[str, float]], kind: str
) -> None:
    pacer: Pacer = {
        "found": DetectedLimit(),
        "requests": GivenLimits(600, None),
        "tokens": GivenLimits(None, 6000),
        "both": GivenLimits(600, 6000),
    }[kind]
    now = 0.0
    for what, pause in history:
        now += pause
        if what == "take":
            now += pacer.wait(now)
            pacer.take(100, now)
        elif what == "good":
            pacer.succeeded(now)
        elif what == "settle":
            pacer.settle(100, 120)
        else:
            pacer.throttled(sent_at=max(0.0, now - pause / 2), now=now, hint=None)
        assert 0.0 <= pacer.wait(now) <= 80 * (120 / (100 * 0.1) + 5)


def test_where_one_request_a_second_is_all_there_is_a_late_one_brings_no_early_one() -> None:
    pacer = GivenLimits(60, None)
    sent = []
    now = 0.0
    for late in (0.0, 0.0, 0.08, 0.0, 0.05, 0.0):  # timers that fired late
        now += pacer.wait(now) + late
        pacer.take(1, now)
        sent.append(now)
    assert min(after - before for before, after in pairwise(sent)) >= 1.0
    assert sent[-1] <= 5 / 0.99 + 0.2  # and nothing of the limit is lost


def test_a_refusal_of_a_given_limit_slows_by_a_tenth_and_never_to_less_than_a_tenth() -> None:
    def gap(refusals: int) -> float:
        pacer = GivenLimits(600, None)
        for number in range(refusals):
            pacer.throttled(sent_at=10.0 + number, now=10.5 + number, hint=None)
        now = 9.5 + max(1, refusals)
        pacer.take(1, now)
        return pacer.wait(now)

    assert gap(1) == pytest.approx(gap(0) / 0.9)
    assert gap(2) == pytest.approx(gap(0) / 0.81)
    assert gap(100) == pytest.approx(gap(0) / 0.1)


def test_a_refusal_of_a_request_sent_in_the_moment_of_the_cut_belongs_to_it() -> None:
    pacer = GivenLimits(600, None)
    for _ in range(2):
        pacer.throttled(sent_at=10.0, now=10.0, hint=None)
    once = GivenLimits(600, None)
    once.throttled(sent_at=9.0, now=10.0, hint=None)
    for each in (pacer, once):
        each.take(1, 10.0)
    assert pacer.wait(10.0) == once.wait(10.0)


def following(former: GivenLimits, later: GivenLimits) -> GivenLimits:
    later.follow(former)
    return later


@pytest.mark.parametrize(
    ("former", "later", "wait"),
    [
        (GivenLimits(60, None), GivenLimits(120, None), 0.5),
        (GivenLimits(120, None), GivenLimits(60, None), 1.0),
        (GivenLimits(None, 60), GivenLimits(None, 180), 1.0),
        (GivenLimits(60, 60), GivenLimits(120, None), 0.5),
        (GivenLimits(1e-9, None), GivenLimits(60, None), 1.0),
        (GivenLimits(5e-324, 5e-324), GivenLimits(600, None), 0.1),
    ],
)
def test_new_limits_owe_what_was_sent_at_their_own_rate(
    former: GivenLimits, later: GivenLimits, wait: float
) -> None:
    former.take(3, 100.0)
    assert following(former, later).wait(100.0) == pytest.approx(wait / SAFETY)


def test_a_debt_from_a_lower_limit_is_paid_off_at_the_rate_of_the_new_one() -> None:
    former = GivenLimits(None, 1.0)
    former.take(1000, 100.0)
    assert former.wait(160.0) > 60_000
    later = following(former, GivenLimits(None, 60_000))
    assert later.wait(100.0) == pytest.approx(1.0 / SAFETY)
    assert later.wait(160.0) == 0


def test_a_new_kind_of_limit_owes_nothing_of_the_former_kind() -> None:
    before = GivenLimits(60, None)
    before.take(3, 100.0)
    assert following(before, GivenLimits(None, 60)).wait(100.0) == 0


def test_limits_that_follow_some_that_were_never_used_owe_nothing() -> None:
    assert following(GivenLimits(1e-9, 1e-9), GivenLimits(60, 60)).wait(100.0) == 0


# ---- token limits, to the last factor


def test_a_given_token_limit_is_used_to_99_percent_of_it() -> None:
    pacer = GivenLimits(None, 6000)
    pacer.take(99, 10.0)
    assert pacer.wait(10.0) == pytest.approx(1.0)


def test_a_bill_above_the_estimate_delays_the_next_request_and_one_below_hastens_it() -> None:
    for billed, wait in ((149, 1.5), (99, 1.0), (50, 0.5)):
        pacer = GivenLimits(None, 6000)
        pacer.take(99, 10.0)
        pacer.settle(99, billed)
        assert pacer.wait(10.0) == pytest.approx(wait, abs=0.01)


@pytest.mark.parametrize(
    ("billed", "ratio"), [(200, 1.1), (50, 0.95), (100_000, 1.9), (0, 0.91), (100, 1.0)]
)
def test_one_bill_moves_the_estimate_by_a_tenth_of_a_change_that_is_at_most_tenfold(
    billed: int, ratio: float
) -> None:
    pacer = GivenLimits(None, 6000)
    pacer.settle(100, billed)
    later = 1e6
    pacer.take(99, later)
    assert pacer.wait(later) == pytest.approx(ratio)


@pytest.mark.parametrize("estimated", [0, 1])
def test_only_an_estimate_of_something_can_be_corrected(estimated: int) -> None:
    pacer = GivenLimits(None, 6000)
    pacer.settle(estimated, 2)
    later = 1e6
    pacer.take(99, later)
    assert pacer.wait(later) == pytest.approx(1.1 if estimated else 1.0)


def test_a_refusal_slows_tokens_like_requests_and_a_pause_regains_at_most_the_limit() -> None:
    pacer = GivenLimits(None, 6000)
    pacer.throttled(sent_at=9.0, now=10.0, hint=None)
    pacer.take(99, 10.0)
    assert pacer.wait(10.0) == pytest.approx(1 / 0.9)
    pacer.take(99, 1000.0)
    assert pacer.wait(1000.0) == pytest.approx(1.0)


# ---- the first refusal, with few or no successes


def test_a_refusal_before_any_good_answer_starts_the_search_at_one_a_second() -> None:
    pacer = DetectedLimit()
    pacer.throttled(sent_at=9.0, now=10.0, hint=None)
    assert pacer.rate == pytest.approx(BETA * 1.0)


def test_a_single_good_answer_before_the_first_refusal_counts() -> None:
    pacer = DetectedLimit()
    pacer.succeeded(9.1)
    pacer.throttled(sent_at=9.0, now=10.0, hint=None)
    assert pacer.rate == pytest.approx(BETA / 0.9)


def test_a_refusal_of_a_request_sent_in_the_moment_of_a_cut_belongs_to_that_cut() -> None:
    pacer = DetectedLimit()
    pacer.throttled(sent_at=9.0, now=10.0, hint=None)
    rate = pacer.rate
    pacer.throttled(sent_at=10.0, now=10.4, hint=None)
    assert pacer.rate == rate


def test_a_burst_above_the_known_rate_does_not_raise_it() -> None:
    pacer = DetectedLimit(rate=2.0)
    for number in range(20):
        pacer.succeeded(9.5 + number / 100)
    pacer.throttled(sent_at=9.0, now=10.0, hint=None)
    assert pacer.rate == pytest.approx(BETA * 2.0)


def test_a_search_for_the_limit_may_continue_after_hours() -> None:
    pacer = DetectedLimit()
    pacer.succeeded(1000.0)
    pacer.throttled(sent_at=1000.0, now=1000.1, hint=None)
    now = 1000.1 + 3 * 3600
    assert pacer.wait(now) == 0
    pacer.take(1, now)
    assert pacer.wait(now + 0.001) == 0


def test_a_rate_that_was_not_refused_for_two_minutes_is_forgotten() -> None:
    pacer = DetectedLimit()
    for number in range(20):
        pacer.succeeded(9.5 + number / 100)
    pacer.throttled(sent_at=9.0, now=10.0, hint=None)
    pacer.throttled(sent_at=10.6, now=11.0, hint=None)  # ends the search
    now = 11.0
    while now < 131.0:
        now += max(0.5, pacer.wait(now))
        pacer.take(1, now)
        pacer.succeeded(now)
        if now < 20.0:
            assert pacer.rate is not None
    assert pacer.rate is None
    assert pacer.wait(now) == 0.0
    pacer.throttled(sent_at=now, now=now + 0.1, hint=None)
    assert pacer.rate is not None
    assert pacer.rate < 3
