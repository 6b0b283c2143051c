"""Usage and prices are right, and budgets are never exceeded."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from nexusflow_integrations._core import usage
from nexusflow_integrations._core.usage import (
    Budget,
    BudgetGuard,
    Ledger,
    Price,
    Total,
    Usage,
    known,
)
from nexusflow_integrations.errors import ConfigurationError

from .forked import in_child, needs_fork


def test_the_list_price_is_half_a_yuan_a_million_tokens() -> None:
    assert Price().of(1_000_000) == 0.5
    assert Price().currency == "CNY"
    usage = Usage(tokens=2_000_000)
    assert (usage.cost, usage.currency) == (1.0, "CNY")


@pytest.mark.parametrize("price", [-1.0, float("nan")])
def test_a_negative_price_is_refused(price: float) -> None:
    with pytest.raises(ConfigurationError):
        Price(price)


def test_a_cost_that_is_not_known_is_none_in_json() -> None:
    assert known(Price(None).of(7)) is None
    assert known(Price(0).of(7)) == 0.0


COUNTS = st.fixed_dictionaries(
    {name: st.integers(0, 1000) for name in ("requests", "texts", "tokens", "repaid", "refused")}
)


@given(COUNTS, COUNTS)
def test_usages_add_up_field_by_field(a: dict[str, int], b: dict[str, int]) -> None:
    total = Usage(**a) + Usage(**b)
    for name in a:
        assert getattr(total, name) == a[name] + b[name]
    assert Usage(**a) + Usage() == Usage(**a)


def test_a_ledger_counts_retries_and_marks_estimates() -> None:
    ledger = Ledger()
    ledger.sent(retry=False)
    ledger.sent(retry=True)
    ledger.billed(7, estimated=9)
    ledger.billed(None, estimated=5)
    usage = ledger.snapshot(Price(2.0, "EUR"))
    assert (usage.requests, usage.retries) == (2, 1)
    assert (usage.tokens, usage.estimated_tokens) == (12, 5)
    assert usage.currency == "EUR"


@given(st.lists(COUNTS, max_size=80))
def test_a_total_is_the_sum_of_all_ledgers_field_by_field(counts: list[dict[str, int]]) -> None:
    total, expected = Total(), Usage()
    for each in counts:
        total.add(Ledger(**each))
        expected += Usage(**each)
        assert total.snapshot(Price()) == expected
    assert len(total._parts) <= 33


def test_a_copy_of_a_total_is_independent() -> None:
    total = Total()
    total.add(Ledger(requests=1))
    twin = total.copy()
    twin.add(Ledger(requests=2))
    assert total.snapshot(Price()).requests == 1
    assert twin.snapshot(Price()).requests == 3


def test_a_total_loses_nothing_that_threads_add_at_the_same_time() -> None:
    total = Total()

    def add() -> None:
        for _ in range(3000):
            total.add(Ledger(requests=1, tokens=2))
            found = total.snapshot(Price())
            assert found.tokens == 2 * found.requests

    with ThreadPoolExecutor(4) as pool:
        for adding in [pool.submit(add) for _ in range(4)]:
            adding.result(60)
    assert total.snapshot(Price()).requests == 12_000


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_a_signal_handler_adds_to_a_total_and_reads_it_whatever_it_interrupts() -> None:
    total = Total()
    handled = 0

    def handler(*_: object) -> None:
        nonlocal handled
        handled += 1
        before = total.snapshot(Price())
        total.add(Ledger(requests=1, tokens=2))
        after = total.snapshot(Price())
        assert after.requests > before.requests  # another signal may have come between
        assert after.tokens == 2 * after.requests

    added = 0
    former = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        while handled < 500:
            total.add(Ledger(requests=1, tokens=2))
            added += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert total.snapshot(Price()).requests == added + handled


@needs_fork
def test_a_total_works_in_the_child_of_a_fork_during_an_addition() -> None:
    total = Total()
    total.add(Ledger(requests=1))
    with usage._folding:  # as another thread that is folding

        def child() -> object:
            for _ in range(100):
                total.add(Ledger(requests=1))
            return total.snapshot(Price()).requests, len(total._parts) < 40

        assert in_child(child) == repr((101, True))


@pytest.mark.parametrize(
    ("budget", "price", "tokens"),
    [
        (Budget(tokens=100), Price(), 100),
        (Budget(money=0.5), Price(), 1_000_000),
        (Budget(tokens=10, money=0.5), Price(), 10),
        (Budget(tokens=10**9, money=0.5), Price(), 1_000_000),
        (Budget(money=1.0), Price(3.0), 333_333),
        (Budget(tokens=0), Price(), 0),
        (Budget(money=0), Price(), 0),
    ],
)
def test_a_budget_in_money_is_rounded_down_to_tokens_and_the_stricter_limit_counts(
    budget: Budget, price: Price, tokens: int
) -> None:
    assert budget.in_tokens(price) == tokens


def test_money_buys_any_number_of_free_tokens() -> None:
    assert Budget(money=1.0).in_tokens(Price(0.0)) > 10**15


@pytest.mark.parametrize(
    "values", [{}, {"tokens": -1}, {"money": -0.1}, {"tokens": True}, {"money": float("nan")}]
)
def test_an_impossible_budget_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="budget"):
        Budget(**values)


@needs_fork
def test_after_a_fork_a_child_does_not_wait_for_what_its_parent_has_in_flight() -> None:
    guard = BudgetGuard(limit=100, spent=10)
    assert guard.reserve(90)
    assert not guard.reserve(50)

    def child() -> object:
        reserved = guard.reserve(50)
        guard.settle(50, 20)
        return reserved, guard.spent, guard.reserved

    assert in_child(child) == repr((True, 30, 0))
    assert guard.reserved == 90


class Purses(RuleBasedStateMachine):
    """Requests reserve the most they can cost and settle for what they were billed."""

    coalescer = Bundle("coalescer")

    def __init__(self) -> None:
        super().__init__()
        self.guard = BudgetGuard(limit=1000)
        self.billed = 0
        self.out: list[int] = []
        self.told = self.listening = 0

    @rule(target=coalescer, most=st.integers(1, 400))
    def send(self, most: int) -> int:
        room = self.guard.limit - self.billed - sum(self.out)
        granted = self.guard.reserve(most)
        assert granted == (most <= room)
        if not granted:
            return 0
        self.out.append(most)
        return most

    @rule(most=consumes(coalescer), share=st.floats(0, 1))
    def answer(self, most: int, share: float) -> None:
        if not most:
            return
        billed = int(most * share)
        self.guard.settle(most, billed)
        self.out.remove(most)
        self.billed += billed
        assert self.told == self.listening

    @rule()
    def wait(self) -> None:
        def heard() -> None:
            self.told += 1

        self.guard.listen(heard)
        self.listening += 1

    @invariant()
    def never_exceeded(self) -> None:
        assert self.guard.spent == self.billed
        assert self.guard.reserved == sum(self.out)
        assert self.guard.spent + self.guard.reserved <= self.guard.limit


TestPurses = Purses.TestCase


def test_a_sum_of_usages_is_at_the_price_of_the_first() -> None:
    total = Usage(tokens=1, price=Price(2.0, "EUR")) + Usage(tokens=2)
    assert (total.cost, total.currency) == (3 * 2.0 / 1e6, "EUR")


def test_a_ledger_counts_exactly_what_a_usage_reports() -> None:
    told = {field.name for field in fields(Usage)} - {"price"}
    assert {field.name for field in fields(Ledger)} == told


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "budget: pass tokens=..., money=..., or both"),
        ({"tokens": -1}, "budget: tokens must be a number of at least 0, not -1"),
        ({"money": -0.1}, "budget: money must be a number of at least 0, not -0.1"),
    ],
)
def test_an_invalid_budget_says_what_to_pass(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Budget(**values)
    assert str(caught.value) == said


def test_a_budget_and_a_price_may_be_nothing() -> None:
    assert Budget(tokens=0, money=0).in_tokens(Price(0)) == 0
    with pytest.raises(
        ConfigurationError,
        match=r"^price: per_million_tokens must be a number of at least 0 or None, not -0.1$",
    ):
        Price(-0.1)


def test_bills_and_estimates_of_several_requests_add_up() -> None:
    ledger = Ledger()
    for billed in (3, None, 4, None):
        ledger.billed(billed, estimated=10)
    assert (ledger.tokens, ledger.estimated_tokens) == (27, 20)
