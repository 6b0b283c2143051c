"""Waits have full jitter, and all calls share a budget of retries."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nexusflow_integrations._core.request import retry
from nexusflow_integrations._core.request.retry import (
    BASE_FAULT,
    BASE_THROTTLE,
    MAX_DELAY,
    RetryBudget,
    after_hint,
    backoff,
)

UNIT = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 10**9), st.floats(0.001, 10), UNIT)
def test_a_wait_lies_between_nothing_and_the_doubling_ceiling_however_many_retries(
    number: int, base: float, draw: float
) -> None:
    wait = backoff(number, base, draw)
    assert 0 <= wait < MAX_DELAY
    assert wait <= base * 2.0 ** min(number - 1, 60)


@given(st.integers(1, 200), UNIT)
def test_the_ceiling_never_falls_from_one_retry_to_the_next(number: int, draw: float) -> None:
    assert backoff(number + 1, 0.25, draw) >= backoff(number, 0.25, draw)


def test_jitter_is_full_waits_spread_evenly_from_zero_to_the_ceiling() -> None:
    random.seed(7)
    waits = [backoff(3, 1.0) for _ in range(4000)]
    assert abs(statistics.mean(waits) - 2.0) < 0.1
    assert min(waits) < 0.05
    assert max(waits) > 3.95


def test_throttling_waits_longer_than_a_fault() -> None:
    assert BASE_THROTTLE >= 1.0 > BASE_FAULT
    assert backoff(1, BASE_THROTTLE, 0.5) > backoff(1, BASE_FAULT, 0.5)


def test_seven_attempts_outlast_a_minute_so_limits_per_minute_can_recover() -> None:
    ceilings = [backoff(n, BASE_THROTTLE, 0.999999) for n in range(1, 7)]
    assert sum(ceilings) > 60


@given(st.floats(0.001, 300), UNIT)
def test_a_wait_the_server_asks_for_is_never_cut_and_hardly_stretched(
    hint: float, draw: float
) -> None:
    assert hint <= after_hint(hint, draw) <= hint * 1.1


def test_by_default_waits_differ_from_each_other() -> None:
    assert len({backoff(5, 1.0) for _ in range(20)}) == 20
    assert len({after_hint(1.0) for _ in range(20)}) == 20


@pytest.mark.parametrize("calls", [100, 1000])
def test_with_every_request_failing_a_tenth_is_added_beyond_the_reserve(calls: int) -> None:
    budget = RetryBudget()
    granted = 0
    for _ in range(calls):
        budget.first_attempt()
        while budget.take():
            granted += 1
    assert granted <= budget.reserve + calls * budget.deposit + 1


class Budget(RuleBasedStateMachine):
    """The balance stays in [0, reserve]; retries are paid for; refunds need a retry first."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = RetryBudget()
        self.firsts = self.taken = self.refunded = 0

    @rule()
    def first_attempt(self) -> None:
        self.budget.first_attempt()
        self.firsts += 1

    @rule()
    def retry(self) -> None:
        before = self.budget.balance
        if self.budget.take():
            self.taken += 1
            assert self.budget.balance == before - 1
        else:
            assert before < 1
            assert self.budget.balance == before

    @precondition(lambda self: self.taken > self.refunded)
    @rule()
    def it_succeeds(self) -> None:
        before = self.budget.balance
        self.budget.refund(1)
        self.refunded += 1
        assert self.budget.balance >= before

    @invariant()
    def balance_within_bounds(self) -> None:
        assert 0 <= self.budget.balance <= self.budget.reserve

    @invariant()
    def no_more_than_was_paid_for(self) -> None:
        lost = self.taken - self.refunded
        assert lost <= self.budget.reserve + self.firsts * self.budget.deposit + 1e-6


TestBudget = Budget.TestCase


def test_the_longest_wait_the_server_may_ask_for_is_longer_than_any_of_ours() -> None:
    assert retry.MAX_HINT > retry.MAX_DELAY


def test_a_wait_that_was_asked_for_is_spread_by_at_most_a_tenth() -> None:
    assert [retry.after_hint(10.0, draw) for draw in (0.0, 0.5, 1.0)] == [10.0, 10.5, 11.0]
