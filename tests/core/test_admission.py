"""The admission queue keeps the order of requests, prefers queries, and loses no slot."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from nexusflow_integrations._core.pace.admission import READY, AdmissionQueue
from nexusflow_integrations._core.pace.pacing import DetectedLimit, GivenLimits
from nexusflow_integrations._core.pace.window import START, Window

from .timed import timed


def admission(limit: int = 2, per_minute: float | None = None) -> AdmissionQueue:
    pacer = DetectedLimit() if per_minute is None else GivenLimits(per_minute, None)
    return AdmissionQueue(pacer, Window(limit=limit), asyncio.get_running_loop().time)


async def enter(queue: AdmissionQueue, order: list[str], name: str, **how: bool) -> None:
    await queue.enter(10, **how)
    order.append(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@timed
async def test_as_many_enter_as_the_window_has_room_for() -> None:
    queue, order = admission(2), []
    tasks = [asyncio.ensure_future(enter(queue, order, str(n))) for n in range(5)]
    await settle()
    assert order == ["0", "1"]
    assert queue.in_flight == 2
    for n in range(2, 5):
        queue.leave()
        await settle()
        assert order[-1] == str(n)
        assert queue.in_flight == 2
    await asyncio.gather(*tasks)


@timed
async def test_queries_pass_before_documents_that_came_earlier_and_in_their_own_order() -> None:
    queue, order = admission(1), []
    await queue.enter(10)
    tasks = [asyncio.ensure_future(enter(queue, order, f"d{n}")) for n in range(3)]
    await settle()
    tasks += [asyncio.ensure_future(enter(queue, order, f"q{n}", urgent=True)) for n in range(2)]
    await settle()
    for _ in range(5):
        queue.leave()
        await settle()
    assert order == ["q0", "q1", "d0", "d1", "d2"]
    await asyncio.gather(*tasks)


@timed
async def test_the_pacer_spaces_admissions_also_when_there_is_room() -> None:
    queue = admission(10, per_minute=60)
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(4):
        await queue.enter(10)
        times.append(loop.time())
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps == pytest.approx([1 / 0.99] * 3, rel=0.01)


@timed
async def test_an_urgent_request_takes_the_next_paced_turn() -> None:
    queue, order = admission(10, per_minute=60), []
    await queue.enter(10)
    document = asyncio.ensure_future(enter(queue, order, "document"))
    await asyncio.sleep(0.2)
    await enter(queue, order, "query", urgent=True)
    await document
    assert order == ["query", "document"]


@timed
async def test_a_request_that_was_admitted_but_not_sent_goes_before_new_ones_of_its_kind() -> None:
    queue, order = admission(10, per_minute=60), []
    await queue.enter(10)
    first = asyncio.ensure_future(enter(queue, order, "first"))
    query = asyncio.ensure_future(enter(queue, order, "query", urgent=True))
    again = asyncio.ensure_future(enter(queue, order, "again", again=True))
    await asyncio.gather(first, query, again)
    assert order == ["query", "again", "first"]


@timed
async def test_an_open_queue_prepares_as_many_requests_as_could_be_sent_now() -> None:
    queue = admission(20)
    assert queue.is_open
    assert queue.wanted(0) == START
    assert queue.wanted(3) == START - 3
    for _ in range(START):
        await queue.enter(10)
    assert not queue.is_open
    assert queue.wanted(0) == READY
    assert queue.wanted(READY) == 0


@timed
async def test_a_paced_queue_prepares_a_few_requests_ahead_and_at_least_one_of_each_call() -> None:
    queue, order = admission(20, per_minute=60), []
    assert not queue.is_open
    assert queue.wanted(0) == READY
    await queue.enter(10)
    tasks = [asyncio.ensure_future(enter(queue, order, str(n))) for n in range(READY - 1)]
    await settle()
    assert [queue.wanted(unsent) for unsent in (0, 1, READY)] == [1, 1, 0]
    tasks.append(asyncio.ensure_future(enter(queue, order, "one more")))
    await settle()
    assert [queue.wanted(unsent) for unsent in (0, 1, READY)] == [1, 0, 0]
    await asyncio.gather(*tasks)


@timed
async def test_a_queue_that_found_a_limit_prepares_a_few_requests_ahead() -> None:
    queue = admission(20)
    queue.pacer.throttled(sent_at=asyncio.get_running_loop().time(), now=1000.0, hint=None)
    assert queue.wanted(0) == READY


@timed
async def test_a_cancelled_waiting_request_holds_no_slot() -> None:
    queue, order = admission(1), []
    await queue.enter(10)
    gone = asyncio.ensure_future(enter(queue, order, "gone"))
    next_one = asyncio.ensure_future(enter(queue, order, "next"))
    await settle()
    gone.cancel()
    await settle()
    queue.leave()
    await next_one
    assert order == ["next"]
    assert queue.in_flight == 1
    queue.leave()
    assert queue.in_flight == 0


@timed
async def test_a_request_admitted_and_cancelled_at_once_passes_its_slot_on() -> None:
    queue, order = admission(1), []
    await queue.enter(10)
    gone = asyncio.ensure_future(enter(queue, order, "gone"))
    next_one = asyncio.ensure_future(enter(queue, order, "next"))
    await settle()
    queue.leave()  # admits the first ...
    gone.cancel()  # ... which is cancelled before it runs
    await next_one
    assert order == ["next"]
    assert queue.in_flight == 1


@timed
async def test_a_cancelled_paced_request_does_not_stop_the_others() -> None:
    queue, order = admission(10, per_minute=60), []
    await queue.enter(10)
    gone = asyncio.ensure_future(enter(queue, order, "gone"))
    next_one = asyncio.ensure_future(enter(queue, order, "next"))
    await asyncio.sleep(0.1)
    gone.cancel()
    await next_one
    assert order == ["next"]


@timed
async def test_when_all_are_cancelled_the_queue_is_open() -> None:
    queue, order = admission(1), []
    await queue.enter(10)
    tasks = [asyncio.ensure_future(enter(queue, order, str(n))) for n in range(20)]
    await settle()
    for task in tasks:
        task.cancel()
    await settle()
    queue.leave()
    assert queue.in_flight == 0
    await queue.enter(10)
    assert queue.in_flight == 1
    assert order == []


@timed
async def test_a_smaller_window_admits_none_until_enough_have_left() -> None:
    queue, order = admission(4), []
    for _ in range(4):
        await queue.enter(10)
    queue.window.failed(sent_at=1.0, now=2.0)  # 4 -> 2.8
    waiting = asyncio.ensure_future(enter(queue, order, "w"))
    await settle()
    queue.leave()
    queue.leave()
    await settle()
    assert order == []
    queue.leave()
    await waiting
    assert queue.in_flight == 2


@timed
async def test_a_replaced_pacer_is_used_from_the_next_turn_on() -> None:
    queue = admission(10, per_minute=60)
    await queue.enter(10)
    queue.pacer = DetectedLimit()
    began = asyncio.get_running_loop().time()
    await queue.enter(10)
    assert asyncio.get_running_loop().time() == began


class Paced:
    """A pacer that allows a request each ``interval`` seconds and records its calls."""

    def __init__(self, interval: float) -> None:
        self.interval, self.next_at = interval, float("-inf")
        self.took: list[tuple[int, float]] = []

    def wait(self, now: float) -> float:
        return max(0.0, self.next_at - now)

    def take(self, tokens: int, now: float) -> None:
        self.took.append((tokens, now))
        self.next_at = now + self.interval

    def settle(self, estimated: int, billed: int) -> None: ...

    def throttled(self, *, sent_at: float, now: float, hint: float | None) -> None: ...

    def succeeded(self, now: float) -> None: ...


@timed
async def test_the_pacer_gets_the_tokens_of_each_request_when_it_is_sent() -> None:
    loop = asyncio.get_running_loop()
    pacer = Paced(0.5)
    queue = AdmissionQueue(pacer, Window(limit=8), loop.time)
    start = loop.time()
    await asyncio.gather(*(queue.enter(tokens) for tokens in (11, 22, 33)))
    assert [tokens for tokens, _ in pacer.took] == [11, 22, 33]
    assert [at - start for _, at in pacer.took] == pytest.approx([0.0, 0.5, 1.0])


@timed
async def test_after_a_response_the_next_is_admitted_only_when_the_response_was_read() -> None:
    queue = admission(1)
    await queue.enter(10)
    waiting = asyncio.ensure_future(queue.enter(10))
    await settle()
    queue.leave()
    assert queue.in_flight == 0
    queue.pacer.throttled(sent_at=0.0, now=asyncio.get_running_loop().time(), hint=None)
    await settle()
    assert not waiting.done()
    waiting.cancel()


@timed
async def test_room_is_lent_to_threads_only_while_nothing_waits_and_nothing_is_paced() -> None:
    queue = admission(3)
    assert not queue.try_enter("before the first call")
    await queue.enter(10)
    queue.lend()
    assert queue.try_enter("a")
    assert queue.try_enter("b")
    assert not queue.try_enter("c")
    assert not queue.exit("c")
    waiting = asyncio.ensure_future(queue.enter(10))
    await settle()
    assert not waiting.done()
    assert queue.exit("a")  # a request waits, so the loop must pump
    assert not queue.try_enter("d")
    queue.exit("d")
    queue.pump()
    await settle()
    assert waiting.done()
    assert queue.in_flight + len(queue.threads) == 3
    queue.exit("b")
    queue.leave()
    assert queue.try_enter("e")
    paced = admission(2, per_minute=60)
    paced.lend()
    assert not paced.try_enter("f")


@timed
async def test_queries_need_the_loop_after_a_refusal_but_not_for_ever() -> None:
    queue = admission(4)
    loop = asyncio.get_running_loop()
    queue.lend()
    assert queue.try_enter("a")
    queue.exit("a")
    await queue.enter(10)
    queue.pacer.throttled(sent_at=loop.time(), now=loop.time() + 0.1, hint=None)
    queue.leave()
    assert not queue.try_enter("b")
    queue.exit("b")
    await asyncio.sleep(120)
    await queue.enter(10)
    queue.leave()
    assert queue.try_enter("c")


@timed
async def test_the_loop_takes_back_what_it_lends() -> None:
    queue = admission(3)
    queue.lend()
    assert queue.try_enter("a")
    for _ in range(2):
        await asyncio.wait_for(queue.enter(10), 1)
    assert not queue.try_enter("b")
    queue.exit("b")
    assert queue.in_flight == 2
    assert queue.threads == {"a"}


@timed
async def test_a_smaller_window_is_lent_smaller() -> None:
    queue = admission(4)
    queue.lend()
    queue.window.failed(sent_at=0.0, now=1.0)
    queue.lend()
    assert [queue.try_enter(name) for name in "abcd"] == [True, False, False, False]


@timed
async def test_threads_leave_room_for_one_request_of_the_loop() -> None:
    for limit in range(1, 4):
        queue = admission(limit)
        queue.lend()
        names = range(limit)
        assert [queue.try_enter(name) for name in names] == [True] * (limit - 1) + [False]
        queue.exit(limit - 1)
        await asyncio.wait_for(queue.enter(10), 1)
        assert queue.in_flight + len(queue.threads) == limit


@timed
async def test_the_loop_may_send_one_request_although_threads_fill_a_smaller_window() -> None:
    queue = admission(4)
    queue.lend()
    assert all(queue.try_enter(name) for name in "abc")
    for now in range(8):
        queue.window.failed(sent_at=now + 0.5, now=now + 1)
    queue.lend()
    assert queue.window.size == 1
    await asyncio.wait_for(queue.enter(10), 1)
    waiting = asyncio.ensure_future(queue.enter(10))
    await settle()
    assert not waiting.done()
    queue.leave()
    await asyncio.wait_for(waiting, 1)


class Interrupted(set[object]):
    """The requests of threads; another thread runs once, before or after an operation."""

    def __init__(self, other: Callable[[], object], at: int) -> None:
        super().__init__()
        self._other = other
        self._left = at

    def _moment(self) -> None:
        self._left -= 1
        if self._left == -1:
            self._other()

    def add(self, request: object) -> None:
        self._moment()
        super().add(request)
        self._moment()

    def __len__(self) -> int:
        self._moment()
        length = super().__len__()
        self._moment()
        return length


async def interrupted(moment: int, entered: list[bool]) -> AdmissionQueue:
    """Return a queue with one free place, which thread "b" tries to enter at ``moment``."""
    queue = admission(2)
    await queue.enter(10)
    queue.lend()
    queue.threads = Interrupted(lambda: entered.append(queue.try_enter("b")), moment)
    return queue


@timed
async def test_two_threads_never_take_the_same_place() -> None:
    for moment in range(4):
        entered: list[bool] = []
        queue = await interrupted(moment, entered)
        entered.append(queue.try_enter("a"))
        assert len(entered) == 2
        assert entered.count(True) <= 1


@timed
async def test_a_thread_and_the_loop_never_take_the_same_place() -> None:
    for moment in range(2):
        entered: list[bool] = []
        queue = await interrupted(moment, entered)
        waiting = asyncio.ensure_future(queue.enter(10))
        await settle()
        assert entered
        assert any(entered) + queue.in_flight <= 2
        waiting.cancel()


@timed
async def test_a_thread_that_enters_while_the_loop_lends_gets_no_additional_place() -> None:
    for moment in range(4):
        queue = admission(3)
        queue.lend()
        queue.threads = Interrupted(lambda queue=queue: queue.try_enter("a"), moment)  # type: ignore[misc]
        queue.lend()
        for name in "bcd":
            if not queue.try_enter(name):
                queue.exit(name)
        assert len(queue.threads) <= 2
