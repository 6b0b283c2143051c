"""Many processes never exceed one budget, however they draw, die and return tokens."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nexusflow_integrations._core import forks, shared_budget
from nexusflow_integrations._core.shared_budget import LOST, Grant, Grants, SharedBudgetGuard
from nexusflow_integrations.errors import BudgetExceededError

LIMIT = 10_000


def draw(grants: Grants, holder: str, least: int, wanted: int, **more: Any) -> Grant:
    call = {"unused": 0, "kept": 0, "now": 0.0, **more}
    return grants.draw(holder, least=least, wanted=wanted, **call)


def test_a_grant_leaves_half_to_others_and_shrinks_towards_the_end() -> None:
    grants = Grants(1_000)
    assert draw(grants, "a", 10, 800).tokens == 500
    assert draw(grants, "b", 10, 800).tokens == 125
    assert draw(grants, "c", 300, 800).tokens == 300


def test_less_than_the_least_is_not_granted() -> None:
    grants = Grants(1_000)
    draw(grants, "a", 950, 950)
    assert draw(grants, "b", 51, 900) == Grant(0, 50, pending=True)
    assert draw(grants, "b", 50, 900) == Grant(50, 0, pending=True)


def test_returned_tokens_are_available_to_all() -> None:
    grants = Grants(1_000)
    draw(grants, "a", 1_000, 1_000)
    assert draw(grants, "a", 0, 0, unused=400) == Grant(0, 400, pending=False)
    assert draw(grants, "b", 400, 400) == Grant(400, 0, pending=False)


def test_only_granted_tokens_can_be_returned() -> None:
    """As after a restart, when a holder returns tokens of the previous budget."""
    grants = Grants(1_000, granted=700)
    assert draw(grants, "a", 0, 0, unused=500).left == 300


def test_a_lost_holder_is_not_waited_for_and_what_it_held_counts_as_spent() -> None:
    grants = Grants(1_000)
    draw(grants, "a", 600, 600)
    assert draw(grants, "b", 500, 500, now=LOST - 1).pending
    assert draw(grants, "b", 500, 500, now=LOST + 1) == Grant(0, 400, pending=False)


class Fleet(RuleBasedStateMachine):
    """Processes that draw, spend, return tokens, lose answers and die; a budget that restarts."""

    @initialize()
    def begin(self) -> None:
        self.grants = Grants(LIMIT)
        self.available = dict.fromkeys("abc", 0)
        self.spent = 0
        self.now = 0.0

    @rule(
        who=st.sampled_from("abc"),
        least=st.integers(0, 3_000),
        more=st.integers(0, 3_000),
        back=st.floats(0, 1),
        answered=st.booleans(),
    )
    def draw(self, who: str, least: int, more: int, back: float, answered: bool) -> None:
        unused = int(self.available[who] * back)
        self.available[who] -= unused
        grant = self.grants.draw(
            who,
            least=least,
            wanted=least + more,
            unused=unused,
            kept=self.available[who],
            now=self.now,
        )
        assert grant.tokens == 0 or least <= grant.tokens <= least + more
        if answered:
            self.available[who] += grant.tokens

    @rule(who=st.sampled_from("abc"), share=st.floats(0, 1))
    def spend(self, who: str, share: float) -> None:
        tokens = int(self.available[who] * share)
        self.available[who] -= tokens
        self.spent += tokens

    @rule(who=st.sampled_from("abc"))
    def die(self, who: str) -> None:
        self.available[who] = 0

    @rule(seconds=st.floats(0, 2 * LOST))
    def rest(self, seconds: float) -> None:
        self.now += seconds

    @rule(ahead=st.integers(0, 100))
    def restart(self, ahead: int) -> None:
        self.grants = Grants(LIMIT, granted=min(LIMIT, self.grants.granted + ahead))

    @invariant()
    def what_is_spent_and_what_may_be_spent_fit_the_budget(self) -> None:
        assert self.spent + sum(self.available.values()) <= self.grants.granted <= LIMIT


TestFleet = Fleet.TestCase


# -- the guard -------------------------------------------------------------------------------------


class Bank:
    """A shared budget in this process; each guard has its own holder name."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.grants = Grants(tokens)
        self.draws = 0
        self.broken = False
        self._lock = threading.Lock()

    def teller(self, name: str) -> Teller:
        return Teller(self, name)


class Teller:
    def __init__(self, bank: Bank, name: str) -> None:
        self.tokens = bank.tokens
        self._bank, self._name = bank, name

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Grant:
        with self._bank._lock:
            self._bank.draws += 1
            if self._bank.broken:
                raise OSError("limits://user:password@host is gone")
            return self._bank.grants.draw(
                self._name, least=least, wanted=wanted, unused=unused, kept=kept, now=0.0
            )


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_budget, "PAUSE", 0.005)
    monkeypatch.setattr(shared_budget, "LULL", 0.05)


async def reserved(guard: SharedBudgetGuard, most: int) -> bool:
    """Reserve like a request: wait while it may still fit."""
    while not guard.reserve(most):
        if not guard.pending:
            return False
        told = asyncio.Event()
        guard.listen(told.set)
        await asyncio.wait_for(told.wait(), 30)
    return True


async def spend(guard: SharedBudgetGuard, most: int, billed: int) -> int:
    """Send requests until the budget is used up; return what was billed."""
    total = 0
    while await reserved(guard, most):
        await asyncio.sleep(0)
        guard.settle(most, billed)
        total += billed
    return total


async def test_several_guards_use_up_the_budget_and_no_more() -> None:
    bank = Bank(100_000)
    purses = [SharedBudgetGuard(bank.teller(name)) for name in "abc"]
    spent = sum(await asyncio.gather(*(spend(guard, 100, 60) for guard in purses)))
    assert 100_000 - 100 < spent <= 100_000


async def test_many_requests_are_paid_from_one_draw() -> None:
    bank = Bank(10_000_000)
    guard = SharedBudgetGuard(bank.teller("a"))
    for _ in range(1_000):
        assert await reserved(guard, 100)
    assert bank.draws < 200


async def test_an_idle_guard_returns_what_it_did_not_spend() -> None:
    bank = Bank(100_000)
    guard = SharedBudgetGuard(bank.teller("a"))
    assert await reserved(guard, 100)
    guard.settle(100, 70)

    async def settled() -> None:
        while bank.grants.granted != 70:
            await asyncio.sleep(0.001)

    await asyncio.wait_for(settled(), 30)
    assert bank.grants.at_rest


async def test_a_guard_that_needs_more_than_is_left_waits_for_what_others_may_return() -> None:
    bank = Bank(1_000)
    one, other = (SharedBudgetGuard(bank.teller(name)) for name in "ab")
    assert await reserved(one, 900)
    waiting = asyncio.ensure_future(reserved(other, 500))
    while bank.draws < 4:
        await asyncio.sleep(0.001)
    assert not waiting.done()
    one.settle(900, 100)
    assert await asyncio.wait_for(waiting, 30)


async def test_a_guard_that_has_spent_all_it_drew_is_not_waited_for() -> None:
    bank = Bank(1_000)
    one, other = (SharedBudgetGuard(bank.teller(name)) for name in "ab")
    assert await reserved(one, 1_000)
    one.settle(1_000, 1_000)
    until = time.monotonic() + 30
    while other.reserve(500) or other.pending:
        assert time.monotonic() < until
        await asyncio.sleep(0.001)
    assert bank.grants.at_rest


@pytest.mark.parametrize("closes", [False, True], ids=["idle", "closed"])
async def test_a_guard_that_pauses_after_too_small_a_grant_returns_its_tokens_then(
    monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """Seed 1201654 of the simulation."""
    monkeypatch.setattr(shared_budget, "PAUSE", 0.2)
    bank = Bank(1_000)
    one, other = (SharedBudgetGuard(bank.teller(name)) for name in "ab")
    assert await reserved(one, 900)
    assert await reserved(other, 10)
    waiting = asyncio.ensure_future(reserved(other, 500))
    while not other._pausing:
        await asyncio.sleep(0.001)
    waiting.cancel()
    other.settle(10, 10)
    if closes:
        await asyncio.wait_for(other.give_back(), 30)
    else:
        until = time.monotonic() + 30
        while bank.grants._held["b"][0] and time.monotonic() < until:
            await asyncio.sleep(0.01)
    assert bank.grants._held["b"][0] == 0


async def test_without_the_shared_budget_nothing_is_sent_and_no_secret_is_shown() -> None:
    bank = Bank(1_000)
    bank.broken = True
    guard = SharedBudgetGuard(bank.teller("a"))
    with pytest.raises(BudgetExceededError, match="could not be reached") as caught:
        await reserved(guard, 10)
    assert "password" not in str(caught.value)
    bank.broken = False
    await asyncio.sleep(0.01)
    assert await reserved(guard, 10)


async def test_a_server_that_bills_more_than_a_text_can_cost_is_paid_before_the_next() -> None:
    bank = Bank(1_000)
    guard = SharedBudgetGuard(bank.teller("a"))
    total = await spend(guard, 100, 150)
    assert total <= 1_000 + 50


async def test_a_forked_child_spends_nothing_that_its_parent_drew() -> None:
    guard = SharedBudgetGuard(Bank(1_000_000).teller("a"))
    assert await reserved(guard, 10)
    assert guard._available
    forks._in_child()
    assert not guard.reserve(10)
    assert guard.reserved == 0


async def test_a_budget_that_hangs_is_waited_for_within_the_patience_and_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_budget, "PATIENCE", 0.05)
    bank = Bank(1_000)
    free = threading.Event()

    class Hung(Teller):
        def draw(self, *args: int) -> Grant:
            free.wait(60)
            return super().draw(*args)

    guard = SharedBudgetGuard(Hung(bank, "a"))
    for _ in range(3):
        with pytest.raises(BudgetExceededError, match="could not be reached"):
            await reserved(guard, 10)
    free.set()
    while guard.pending:
        await asyncio.sleep(0.001)
    assert await reserved(guard, 10)
    assert bank.draws <= 2
