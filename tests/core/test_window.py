"""The window of requests in flight grows on successes while used, and shrinks on faults."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nexusflow_integrations._core.pace.window import DECREASE, FULL, SLOW_START, START, Window


def test_it_starts_below_its_limit_and_triples_a_round_trip() -> None:
    window = Window(limit=64)
    assert window.size == START
    for _ in range(START):
        window.succeeded(int(window.size), 1.0)  # more are sent at once
    assert window.size == 3 * START


def test_200_requests_with_the_default_limit_need_no_more_rounds_than_with_a_full_window() -> None:
    window, left, rounds = Window(limit=32), 200, 0
    while left > 0:
        sent = min(left, int(window.size))
        for _ in range(sent):
            window.succeeded(int(window.size), float(rounds))
        left, rounds = left - sent, rounds + 1
    assert rounds == -(-200 // 32)


def test_a_server_that_refuses_more_requests_at_once_gets_no_more_for_a_while() -> None:
    window = Window(limit=32)
    for others in (11, 9, 6, 4):
        window.full(others, now=1.0)
    assert window.size == 4
    window.succeeded(4, now=1.0 + FULL / 2)
    assert window.size == 4
    window.succeeded(4, now=1.0 + FULL)
    assert window.size == 4.25
    window.full(0, now=30.0)
    assert window.size == 1


def test_it_never_starts_above_its_limit() -> None:
    assert Window(limit=3).size == 3
    assert not Window(limit=3).allows(3)


def test_after_a_fault_it_grows_by_one_per_round_trip() -> None:
    window = Window(limit=64, size=20.0)
    window.failed(sent_at=1.0, now=2.0)
    size = window.size
    assert size == pytest.approx(20 * DECREASE)
    for _ in range(int(size)):
        window.succeeded(int(size), 3.0)
    assert window.size == pytest.approx(size + 1, abs=0.1)


def test_one_burst_of_faults_counts_once_and_later_faults_again() -> None:
    window = Window(limit=64, size=20.0)
    for number in range(15):
        window.failed(sent_at=1.0, now=2.0 + number)
    assert window.size == pytest.approx(20 * DECREASE)
    window.failed(sent_at=2.5, now=20.0)
    assert window.size == pytest.approx(20 * DECREASE**2)


def test_a_window_that_is_not_used_does_not_grow() -> None:
    window = Window(limit=64)
    for _ in range(100):
        window.succeeded(3, 1.0)
    assert window.size == START


def test_another_limit_lets_a_window_grow_later_and_cuts_it_at_once() -> None:
    window = Window(limit=8)
    window.set_limit(32)
    assert (window.limit, window.size) == (32, 8)
    window.set_limit(4)
    assert (window.limit, window.size) == (4, 4)


class Windows(RuleBasedStateMachine):
    """Requests succeed or fail; one may always be sent, never more than the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(limit=24)
        self.out: list[float] = []
        self.now = 0.0

    @rule(seconds=st.floats(0.001, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.window.allows(len(self.out)))
    @rule()
    def send(self) -> None:
        self.out.append(self.now)

    @precondition(lambda self: self.out)
    @rule()
    def succeed(self) -> None:
        before = self.window.size
        self.window.succeeded(len(self.out), self.now)
        self.out.pop(0)
        assert before <= self.window.size <= before + SLOW_START

    @precondition(lambda self: self.out)
    @rule()
    def fail(self) -> None:
        before = self.window.size
        self.window.failed(self.out.pop(0), self.now)
        assert max(1.0, before * DECREASE) - 1e-9 <= self.window.size <= before

    @invariant()
    def within_bounds(self) -> None:
        assert 1.0 <= self.window.size <= self.window.limit
        assert self.window.allows(0)
        assert not self.window.allows(self.window.limit)


TestWindows = Windows.TestCase
