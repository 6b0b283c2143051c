"""Shared limits hold with a simulated clock, and with real processes and a real server."""

from __future__ import annotations

import asyncio
import heapq
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexusflow_integrations._core.cache import in_file
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.pace.admission import AdmissionQueue
from nexusflow_integrations._core.pace.in_file import SharedPacer
from nexusflow_integrations._core.pace.pacing import GivenLimits, Pacer
from nexusflow_integrations._core.pace.shared import (
    ASK_AGAIN,
    IDLE,
    LAPSE,
    LeasedPacer,
    given_back,
)
from nexusflow_integrations._core.pace.window import Window
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.local import LocalServer, Quotas
from nexusflow_integrations.local.quotas import QuotaGate

if TYPE_CHECKING:
    from conftest import Clock

Make = Callable[..., VectorStore]
Work = Callable[..., "subprocess.Popen[str]"]
Outcome = Callable[..., Any]
Together = Callable[[Path, int], None]
MakePacer = Callable[..., SharedPacer]


def reserve(pacer: SharedPacer, tokens: int) -> float:
    return max(0.0, pacer.lease(1, tokens)[0])


@pytest.fixture
def pacer_on(store_on: Make) -> MakePacer:
    """Make pacers, each on a store of its own, by default of one account at 10 a second."""

    def make(
        account: bytes = b"account",
        requests: float | None = 600,
        tokens: float | None = None,
        **options: Any,
    ) -> SharedPacer:
        return SharedPacer(
            store_on(**options), account, requests_per_minute=requests, tokens_per_minute=tokens
        )

    return make


# -- the arithmetic --------------------------------------------------------------------------------


def test_reservations_of_two_are_spaced_as_those_of_one(pacer_on: MakePacer) -> None:
    one, other = pacer_on(), pacer_on()
    waits = [reserve(pacer, 1) for pacer in (one, other, other, one, other)]
    assert waits == pytest.approx([0, 1 / 9.9, 2 / 9.9, 3 / 9.9, 4 / 9.9], abs=1e-6)


@pytest.mark.parametrize("absurd", [1e-9, 5e-324])
def test_a_process_with_an_absurd_limit_owes_the_others_only_what_it_sent(
    pacer_on: MakePacer, absurd: float
) -> None:
    slow, other = pacer_on(requests=absurd, tokens=absurd), pacer_on(tokens=60_000)
    assert reserve(slow, 100) == 0
    assert reserve(slow, 100) > 3000
    assert reserve(other, 100) < 1


def test_a_lease_is_a_series_of_reservations(pacer_on: MakePacer) -> None:
    one, other = pacer_on(), pacer_on()
    assert one.lease(3, 1) == pytest.approx([0, 1 / 9.9, 2 / 9.9], abs=1e-6)
    assert reserve(other, 1) == pytest.approx(3 / 9.9, abs=1e-6)


def test_accounts_do_not_wait_for_each_other(pacer_on: MakePacer) -> None:
    assert pacer_on(b"one").lease(5, 1)[-1] > 0.4
    assert reserve(pacer_on(b"other"), 1) == 0


def test_an_idle_time_earns_no_credit(pacer_on: MakePacer, clock: Clock) -> None:
    pacer = pacer_on()
    reserve(pacer, 1)
    clock.now += 60
    assert pacer.lease(3, 1) == pytest.approx([0, 1 / 9.9, 2 / 9.9], abs=1e-6)


def test_all_processes_wait_for_tokens_billed_beyond_the_estimate(pacer_on: MakePacer) -> None:
    one, other = (pacer_on(requests=None, tokens=6_000) for _ in range(2))
    assert reserve(one, 50) == 0
    one.adjust(40)
    assert reserve(other, 10) == pytest.approx(90 / 99, abs=1e-6)
    other.adjust(-9)
    assert reserve(one, 10) == pytest.approx(91 / 99, abs=1e-6)


def test_a_refusal_slows_down_all_once_a_burst_and_is_forgiven(
    pacer_on: MakePacer, clock: Clock
) -> None:
    one, other = pacer_on(), pacer_on()
    clock.now += 1
    one.throttled(0.5)
    other.throttled(0.4)
    clock.now += 1
    first, second = other.lease(2, 1)
    assert second - first == pytest.approx(1 / 9.9 / 0.95, rel=1e-3)
    clock.now += 30
    first, second = one.lease(2, 1)
    assert second - first == pytest.approx(1 / 9.9, rel=1e-3)


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_wall_clock_that_jumps_changes_no_send_time(
    pacer_on: MakePacer, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    one, other = pacer_on(requests=6, clock=None), pacer_on(requests=6, clock=None)
    one.lease(5, 1)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump)
    assert 40 < reserve(other, 1) <= 5 / 0.099


@pytest.mark.parametrize("passed", [-3600, -1, 1, 3600])
def test_reservations_before_a_reboot_are_unknown_after_it(
    pacer_on: MakePacer, clock: Clock, monkeypatch: pytest.MonkeyPatch, passed: float
) -> None:
    pacer_on(requests=6).lease(500, 1)
    monkeypatch.setattr(in_file, "boot_number", lambda: 7)
    clock.now += passed
    assert pacer_on(requests=6).lease(2, 1) == pytest.approx([0, 1 / 0.099], abs=1e-6)


def test_where_boots_cannot_be_distinguished_no_process_waits_for_the_time_of_another_boot(
    pacer_on: MakePacer, clock: Clock
) -> None:
    one, other = pacer_on(), pacer_on()
    one.lease(5, 1)
    clock.now -= 3600
    assert reserve(other, 1) == pytest.approx(5 / 9.9, abs=1e-6)
    assert reserve(one, 1) == pytest.approx(6 / 9.9, abs=1e-6)
    other.throttled(0)
    clock.now -= 3600
    assert reserve(one, 1) < 1


def test_a_row_with_a_flipped_bit_is_unknown(pacer_on: MakePacer, store: VectorStore) -> None:
    pacer = pacer_on()
    pacer.lease(50, 1)
    with store.transaction() as db:
        ((state,),) = db.execute("SELECT state FROM pacer").fetchall()
    for bit in range(8 * len(state)):
        flipped = bytearray(state)
        flipped[bit // 8] ^= 1 << bit % 8
        with store.transaction() as db:
            db.execute("UPDATE pacer SET state = ?", (bytes(flipped),))
        assert reserve(pacer, 1) == 0


@pytest.mark.parametrize("garbage", [b"", b"x" * 60, "text", 7, 1.5])
def test_a_row_that_is_not_a_state_counts_as_unknown(
    pacer_on: MakePacer, store: VectorStore, garbage: object
) -> None:
    pacer = pacer_on()
    pacer.lease(50, 1)
    with store.transaction() as db:
        db.execute("UPDATE pacer SET state = ?", (garbage,))
    assert reserve(pacer, 1) == 0


def test_an_implausible_send_time_is_ignored(pacer_on: MakePacer) -> None:
    pacer = pacer_on()
    reserve(pacer, 1)
    pacer.adjust(0, late=1e300)
    assert reserve(pacer, 1) == pytest.approx(3600)


@dataclass(order=True)
class Event:
    at: float
    who: int
    tokens: int = field(compare=False)
    reserved: bool = field(compare=False)


gaps = st.one_of(st.sampled_from([0.0, 0.28, 0.33]), st.floats(0, 0.3), st.floats(0, 5))
shares = st.one_of(st.sampled_from([0.25, 1.0]), st.floats(0, 1))
late = st.floats(0, 0.004)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    requests=st.sampled_from([30, 59, 60, 75, 120, 600, 6_000]),
    tokens=st.sampled_from([None, 60, 6_000, 600_000]),
    plans=st.lists(
        st.lists(st.tuples(gaps, shares, late), min_size=1, max_size=12),
        min_size=1,
        max_size=3,
    ),
)
def test_a_server_with_the_same_limits_refuses_nothing(
    requests: int, tokens: int | None, plans: list[list[tuple[float, float, float]]]
) -> None:
    start = 1_800_000_000.0
    now = start
    server = QuotaGate(Quotas(requests_per_minute=requests, tokens_per_minute=tokens), start)
    with tempfile.TemporaryDirectory() as folder:
        stores = [VectorStore(Path(folder) / "cache.db", clock=lambda: now) for _ in plans]
        pacers = [
            SharedPacer(store, b"a", requests_per_minute=requests, tokens_per_minute=tokens)
            for store in stores
        ]
        left = [iter(plan) for plan in plans]
        lateness = [0.0] * len(plans)
        events: list[Event] = []

        def plan_next(who: int) -> None:
            step = next(left[who], None)
            if step is not None:
                gap, share, lateness[who] = step
                most = max(1, int((tokens or 6_000_000) / 60))
                size = max(1, int(share * most))
                heapq.heappush(events, Event(now + gap, who, size, False))

        for who in range(len(plans)):
            plan_next(who)
        while events:
            event = heapq.heappop(events)
            now = event.at
            if not event.reserved:
                # Timers fire late, which a limit with room for one request does not bear.
                spare = lateness[event.who] if requests >= 120 and tokens != 60 else 0.0
                at = now + reserve(pacers[event.who], event.tokens) + spare
                heapq.heappush(events, Event(at, event.who, event.tokens, True))
                continue
            assert server.admit(event.tokens, now) is None
            server.release()
            plan_next(event.who)
        for store in stores:
            store.close()


@pytest.mark.parametrize("late", [0.0, 0.03, 0.08])
@pytest.mark.parametrize("size", [10, 60, 95])
def test_two_processes_that_always_have_something_to_send_use_the_whole_limit(
    pacer_on: MakePacer, clock: Clock, late: float, size: int
) -> None:
    """100 tokens a second, whatever the size of a request and however late the timers."""
    pacers = [pacer_on(requests=None, tokens=6_000) for _ in range(2)]
    start = clock.now
    due = [start + reserve(pacer, size) for pacer in pacers]
    sent = 0
    while min(due) < start + 120:
        who = due.index(min(due))
        clock.now = max(clock.now, due[who])
        sent += 1
        due[who] = clock.now + reserve(pacers[who], size) + late
    assert 0.97 * 12_000 < sent * size <= 12_000 + size


def test_a_request_that_needs_all_of_a_second_waits_until_a_delay_is_made_up_for(
    pacer_on: MakePacer, clock: Clock
) -> None:
    pacer = pacer_on(requests=None, tokens=6_000)
    server = QuotaGate(Quotas(tokens_per_minute=6_000), clock.now)
    for tokens, gap in ((50, 0.0), (50, 0.6), (100, 0.0)):
        clock.now += gap
        clock.now += reserve(pacer, tokens)
        assert server.admit(tokens, clock.now) is None


# -- real processes --------------------------------------------------------------------------------


def refused(sent: list[float], **limits: float) -> int:
    """How many of the requests sent at these times a server with the limits refuses."""
    server = QuotaGate(Quotas(**limits), min(sent))
    count = 0
    for at in sorted(sent):
        if server.admit(20, at) is None:
            server.release()
        else:
            count += 1
    return count


@pytest.mark.parametrize("tokens", [None, 20_000])
def test_processes_with_the_same_limit_stay_under_it_together(
    path: Path, work: Work, outcome: Outcome, start_together: Together, tokens: float | None
) -> None:
    ready = path.with_name("ready")
    options = {"path": str(path), "requests_per_minute": 1_200, "count": 27, "ready": str(ready)}
    started = [work("reserve", tokens=20, tokens_per_minute=tokens, **options) for _ in range(3)]
    start_together(ready, 3)
    together = [at for one in started for at in outcome(one)]
    assert len(together) == 3 * 27
    limits = {"requests_per_minute": 1_200.0}
    if tokens is not None:
        limits["tokens_per_minute"] = tokens
    assert refused(together, **limits) == 0
    # Twice as many requests are refused, so the check above can fail.
    assert refused(sorted([*together, *together]), **limits) > 0.2 * len(together)


@pytest.mark.parametrize(
    ("limits", "texts"),
    [
        pytest.param({"requests_per_minute": 1_500}, 1, id="requests"),
        pytest.param({"tokens_per_minute": 30_000}, 10, id="tokens", marks=pytest.mark.slow),
    ],
)
def test_two_processes_at_one_server_are_hardly_refused(
    path: Path,
    work: Work,
    outcome: Outcome,
    start_together: Together,
    limits: dict[str, float],
    texts: int,
) -> None:
    ready = path.with_name("ready")
    with LocalServer("hash", **limits) as server:
        options = {
            "path": str(path),
            "base_url": server.base_url,
            "api_key": server.api_key,
            "limits": limits,
            "texts": texts,
            "count": 50,
            "ready": str(ready),
        }
        started = [work("admission", **options) for _ in range(2)]
        start_together(ready, 2)
        done = [outcome(one) for one in started]
        assert server.stats.requests == sum(one["sent"] for one in done) == 100
        # Each for itself would have a quarter or more refused.
        assert sum(one["refused"] for one in done) <= 5


# -- on the event loop -----------------------------------------------------------------------------


class Thread:
    """The store's thread, which works when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Future[Any]]] = []
        self.ended = False

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        if self.ended:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = Future()
        self.jobs.append((job, future))
        return future

    @staticmethod
    def _do(job: Callable[[], Any], future: Future[Any]) -> None:
        try:
            future.set_result(job())
        except Exception as error:
            future.set_exception(error)

    async def work(self) -> int:
        """Do all that was submitted; return how much that was."""
        await asyncio.sleep(0)
        jobs, self.jobs = self.jobs, []
        for job, future in jobs:
            self._do(job, future)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return len(jobs)


@dataclass
class Leased:
    """A leased pacer whose two clocks move together and whose thread the test holds."""

    pacer: LeasedPacer
    thread: Thread
    clock: Clock
    readied: list[float]

    @property
    def now(self) -> float:
        return self.clock.now - 1_000_000

    def wait(self) -> float:
        return self.pacer.wait(self.now)

    def take(self, tokens: int = 10) -> None:
        self.pacer.take(tokens, self.now)


@pytest.fixture
def leased(pacer_on: MakePacer, clock: Clock) -> Callable[..., Leased]:
    def make(**limits: Any) -> Leased:
        thread = Thread()
        readied: list[float] = []
        return Leased(
            LeasedPacer(
                pacer_on(**limits),
                thread.submit,
                lambda: readied.append(clock.now),
                lambda: clock.now - 1_000_000,
            ),
            thread,
            clock,
            readied,
        )

    return make


async def test_a_queue_waits_until_send_times_arrive_and_is_notified(
    leased: Callable[..., Leased],
) -> None:
    made = leased()
    assert made.wait() > 0
    assert made.wait() > 0
    assert len(made.thread.jobs) == 1
    await made.thread.work()
    assert len(made.readied) == 1
    assert made.wait() == 0
    made.take()
    assert made.wait() > 0
    await made.thread.work()
    assert made.wait() == pytest.approx(1 / 9.9, abs=1e-5)


async def test_nothing_is_reserved_before_somebody_waits(leased: Callable[..., Leased]) -> None:
    made = leased(tokens=6_000)
    made.pacer.succeeded(made.now)
    assert await made.thread.work() == 0


async def test_leases_grow_while_they_are_used_up_and_stay_within_a_tenth_of_a_second(
    leased: Callable[..., Leased], clock: Clock
) -> None:
    made = leased(requests=6_000)
    sizes = []
    for _ in range(200):
        while (wait := made.wait()) > 0:
            if made.thread.jobs and not made.pacer._slots:
                await made.thread.work()
                sizes.append(len(made.pacer._slots))
            else:
                clock.now += wait
        made.take()
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == 10


async def test_an_unused_send_time_expires_and_returns_its_tokens(
    leased: Callable[..., Leased], pacer_on: MakePacer, clock: Clock
) -> None:
    made = leased(requests=None, tokens=6_000)
    made.wait()
    await made.thread.work()
    assert made.wait() == 0
    clock.now += LAPSE + 0.01
    assert made.wait() > 0
    await made.thread.work()
    assert reserve(pacer_on(requests=None, tokens=6_000), 1) <= 1.02


@pytest.mark.parametrize(
    ("charges", "requests", "tokens", "expected"),
    [
        ([10, 10], 20.0, 1e9, (0.1 * 1e9 - 20, -0.1)),  # the seconds count for both limits
        ([10], 2.0, 100.0, (40.0, -0.5)),
        ([10], 1.0, 100.0, (-10.0, 0.0)),  # no room for a second request in the same second
        ([], 20.0, 100.0, (0.0, 0.0)),
    ],
)
def test_unused_send_times_are_given_back_as_far_as_a_burst_is_allowed(
    charges: list[int], requests: float, tokens: float, expected: tuple[float, float]
) -> None:
    assert given_back(charges, requests, tokens) == pytest.approx(expected)


class Recorded:
    """Limits that record what is reported; send times are a twentieth of a second apart."""

    requests_per_minute, tokens_per_minute = 1_200.0, None

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.adjusted: list[float] = []

    def lease(self, count: int, tokens: int, **_: float) -> list[float]:
        return [0.05 * n for n in range(count)]

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        self.adjusted.append(late)

    def throttled(self, ago: float) -> None:
        raise AssertionError("nothing was refused")


@pytest.mark.parametrize(("processes", "expected"), [(1, []), (2, [-0.05])])
async def test_a_process_that_has_nothing_more_to_send_gives_its_send_time_to_the_others(
    processes: int, expected: list[float]
) -> None:
    thread, shared, now = Thread(), Recorded(processes), 100.0
    pacer = LeasedPacer(shared, thread.submit, lambda: None, lambda: now)
    pacer.wait(now)
    await thread.work()
    assert pacer._timer is not None
    pacer._timer.cancel()
    now += IDLE - 0.001
    pacer._look()
    assert len(pacer._slots) == 1
    now += 0.002
    pacer._look()
    await thread.work()
    assert shared.adjusted == pytest.approx(expected)
    assert len(pacer._slots) == (processes == 1)


async def test_the_real_cost_of_a_request_reaches_the_other_processes_without_another_request(
    leased: Callable[..., Leased], pacer_on: MakePacer
) -> None:
    made = leased(requests=None, tokens=6_000)
    other = pacer_on(requests=None, tokens=6_000)
    made.wait()
    await made.thread.work()
    made.take(10)
    while await made.thread.work():
        pass
    assert reserve(other, 1) == pytest.approx(10 / 99, abs=1e-5)
    made.pacer.settle(10, 40)
    assert await made.thread.work() == 1
    assert reserve(other, 1) == pytest.approx(41 / 99, abs=1e-5)
    made.pacer.settle(10, 20)
    made.pacer.settle(10, 20)
    assert await made.thread.work() == 1


async def test_the_next_request_is_charged_like_the_most_expensive_recent_one(
    leased: Callable[..., Leased], pacer_on: MakePacer
) -> None:
    made = leased(requests=None, tokens=60_000)
    other = pacer_on(requests=None, tokens=60_000)
    made.wait()
    await made.thread.work()
    made.take(900)
    made.wait()
    await made.thread.work()
    # It is not yet known that the one that waits is a small one.
    assert reserve(other, 1) == pytest.approx(2 * 900 / 990, abs=1e-5)


async def test_a_lease_holds_no_more_than_a_tenth_of_a_second_of_the_tokens(
    leased: Callable[..., Leased], clock: Clock
) -> None:
    made = leased(requests=60_000, tokens=600_000)
    held = []
    for _ in range(60):
        while (wait := made.wait()) > 0:
            if made.thread.jobs and not made.pacer._slots:
                await made.thread.work()
                held.append(len(made.pacer._slots))
            else:
                clock.now += wait
        made.take(400)
    assert held[0] == 1
    assert held[-1] == max(held) == 2  # of 400 tokens, where 10,000 are let through a second


async def test_a_request_that_goes_out_late_pushes_back_the_next_where_there_is_no_room(
    leased: Callable[..., Leased], clock: Clock
) -> None:
    made = leased(requests=60)
    made.wait()
    await made.thread.work()
    clock.now += 0.2
    assert made.wait() == 0
    made.take()
    made.wait()
    await made.thread.work()
    assert made.wait() >= 1.0


async def test_refusals_are_passed_on_to_all(
    leased: Callable[..., Leased], pacer_on: MakePacer, clock: Clock
) -> None:
    made = leased()
    clock.now += 1
    made.pacer.throttled(sent_at=made.now - 0.5, now=made.now, hint=None)
    await made.thread.work()
    first, second = pacer_on().lease(2, 1)
    assert second - first > 1.05 / 9.9


@pytest.mark.parametrize("how", ["unavailable", "cancelled", "ended"])
async def test_without_the_file_the_process_keeps_to_the_same_limits_by_itself(
    leased: Callable[..., Leased], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    made = leased(tokens=6_000)

    def fail(*args: Any, **more: Any) -> None:
        raise StoreUnavailable("the disk is full")

    if how == "unavailable":
        monkeypatch.setattr(made.pacer._shared, "lease", fail)
    made.thread.ended = how == "ended"
    made.wait()
    if how == "cancelled":
        made.thread.jobs.pop()[1].cancel()
    await made.thread.work()
    assert made.readied
    assert made.wait() == 0
    alone = GivenLimits(600, 6_000)
    for tokens in (10, 40):
        made.take(tokens)
        alone.take(tokens, made.now)
        made.pacer.settle(tokens, 2 * tokens)
        alone.settle(tokens, 2 * tokens)
        assert made.wait() == pytest.approx(alone.wait(made.now))
    made.pacer.throttled(sent_at=made.now, now=made.now, hint=None)
    assert await made.thread.work() == 0


async def test_limits_that_cannot_be_asked_are_reported_once_and_stop_nobody(
    leased: Callable[..., Leased],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    clock: Clock,
) -> None:
    made = leased()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to limits://user:password@host")

    monkeypatch.setattr(made.pacer._shared, "lease", fail)
    made.wait()
    await made.thread.work()
    assert made.wait() == 0
    clock.now += ASK_AGAIN
    made.wait()
    assert await made.thread.work() == 1
    assert [record.message for record in caplog.records] == [
        "this process sets its own pace until the shared limits can be reached again: OSError"
    ]


async def test_alone_a_process_takes_its_share_of_the_limits_and_asks_again(
    leased: Callable[..., Leased], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    made = leased()
    monkeypatch.setattr(type(made.pacer._shared), "processes", 4)
    made.thread.ended = True
    made.wait()
    await made.thread.work()
    assert made.wait() == 0
    made.take()
    assert made.wait() == pytest.approx(4 / 9.9)
    made.thread.ended = False
    clock.now += ASK_AGAIN
    made.wait()
    await made.thread.work()
    made.take()
    assert made.wait() > 0
    await made.thread.work()
    assert made.wait() == pytest.approx(1 / 9.9, abs=1e-5)


async def test_limits_that_do_not_answer_are_waited_for_a_second_and_asked_only_once(
    leased: Callable[..., Leased], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    made = leased()
    waited = 0.0
    while (wait := made.wait()) > 0:
        waited += wait
        clock.now += wait
    assert waited == pytest.approx(1.0, abs=0.3)
    made.take()
    for _ in range(10):
        clock.now += ASK_AGAIN
        made.wait()
    assert len(made.thread.jobs) == 1
    await made.thread.work()  # its late answer has expired, so another is requested
    made.wait()
    await made.thread.work()
    made.take()
    assert [record.getMessage() for record in caplog.records] == [
        "this process sets its own pace until the shared limits can be reached again:"
        " no answer within 1 s",
        "the shared limits can be reached again, and are used again",
    ]


async def test_limits_may_say_how_long_they_are_to_be_waited_for(
    leased: Callable[..., Leased], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(SharedPacer, "patience", 20.0, raising=False)
    made = leased()
    began = clock.now
    while (wait := made.wait()) > 0:
        clock.now += wait
    assert clock.now - began == pytest.approx(20.0, abs=0.5)


async def test_the_time_that_a_process_was_suspended_does_not_count_as_waiting(
    leased: Callable[..., Leased], clock: Clock
) -> None:
    made = leased()
    made.wait()
    clock.now += 60
    assert made.wait() > 0
    await made.thread.work()
    assert made.wait() == 0


async def test_nothing_is_sent_too_early_when_a_process_returns_to_the_shared_limits(
    leased: Callable[..., Leased], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    made = leased(requests=60)
    fails = False

    def lease(*args: Any, **more: Any) -> list[float]:
        if fails:
            raise StoreUnavailable("the disk is full")
        return ask(*args, **more)

    ask = made.pacer._shared.lease
    monkeypatch.setattr(made.pacer._shared, "lease", lease)
    sent: list[float] = []
    while len(sent) < 20:
        await made.thread.work()
        if (wait := made.wait()) > 0:
            clock.now += min(wait, 0.1)
        else:
            made.take()
            sent.append(clock.now)
            fails = len(sent) // 2 % 2 == 1
            monkeypatch.setattr(made.pacer, "_ask_at", 0.0)
    assert min(after - before for before, after in pairwise(sent)) >= 0.9


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def test_a_queue_admits_all_in_order_and_never_blocks_its_loop(
    pacer_on: MakePacer, thread: ThreadPoolExecutor
) -> None:
    shared = pacer_on(requests=6_000, clock=time.time)
    pacer: Pacer = LeasedPacer(shared, thread.submit, lambda: admission.pump())
    admission = AdmissionQueue(pacer, Window(limit=32), time.monotonic)
    order: list[int] = []

    async def request(number: int) -> None:
        await admission.enter(10)
        order.append(number)
        await asyncio.sleep(0)
        admission.leave()

    began = time.monotonic()
    await asyncio.wait_for(asyncio.gather(*(request(number) for number in range(60))), 60)
    assert order == list(range(60))
    assert time.monotonic() - began >= 59 / 100
    assert admission.in_flight == 0


async def test_a_queue_whose_thread_is_blocked_continues_when_it_is_free(
    pacer_on: MakePacer, thread: ThreadPoolExecutor
) -> None:
    shared = pacer_on(clock=time.time)
    admission = AdmissionQueue(
        LeasedPacer(shared, thread.submit, lambda: admission.pump()),
        Window(limit=4),
        time.monotonic,
    )
    free = threading.Event()
    held = thread.submit(free.wait, 60)
    entering = asyncio.ensure_future(admission.enter(10))
    for _ in range(10):
        await asyncio.sleep(0.01)
    assert not held.done()
    assert not entering.done()
    free.set()
    await asyncio.wait_for(entering, 60)
