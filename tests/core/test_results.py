"""Rows are collected by index, in any order, and callers get arrays with their usage."""

from __future__ import annotations

import asyncio
import pickle
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations._core.call.coalescing import Coalescer
from nexusflow_integrations._core.call.results import (
    MOST_WAITING,
    PAUSE,
    ROWS_AT_ONCE,
    CallResults,
    EmbeddingArray,
    EmbeddingList,
    RowLists,
)
from nexusflow_integrations._core.request.batching import Item, item_of, plan_batches
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.errors import (
    BadRequestError,
    InvalidResponseError,
    NexusFlowError,
    RefusedTextsError,
)


def rows_of(places: Sequence[int], size: int = 3) -> np.ndarray:
    return np.array([[place + 0.5] * size for place in places], np.float32)


@given(
    st.sets(st.integers(0, 39), min_size=1), st.integers(1, 7), st.randoms(use_true_random=False)
)
def test_rows_of_any_batches_in_any_order_end_at_their_index(
    places: set[int], size: int, chance: random.Random
) -> None:
    results = CallResults(40)
    items = [item_of(place, "t") for place in sorted(places)]
    batches = list(plan_batches(items, max_texts=size))
    chance.shuffle(batches)
    for batch in batches:
        results.rows(batch, rows_of([item.index for item in batch]))
    finished = results.finished()
    assert set(finished) == places
    assert all(row.tolist() == [place + 0.5] * 3 for place, row in finished.items())
    for place in range(40):
        assert results.settled(place) == (place in places)


@given(st.permutations(range(6)), st.integers(1, 6))
def test_rows_of_a_batch_in_any_order_end_at_their_index(order: list[int], size: int) -> None:
    # Texts whose claims were lost are handed out again in the order in which they were lost.
    results = CallResults(6, lists=None)
    places = order[:size]
    results.rows([item_of(place, "t") for place in places], rows_of(places))
    finished = results.finished()
    assert set(finished) == set(places)
    assert all(row.tolist() == [place + 0.5] * 3 for place, row in finished.items())


def test_a_call_that_lost_a_text_keeps_the_other_vectors() -> None:
    results = CallResults(2)
    results.row(1, np.ones(3, np.float32))
    with pytest.raises(NexusFlowError, match="without all vectors") as raised:
        results.result(Usage(), single=False, collect=False)
    assert list(raised.value.finished) == [1]


def test_a_row_of_another_size_than_the_others_is_an_error_naming_both() -> None:
    results = CallResults(2)
    results.row(0, np.ones(3, np.float32))
    with pytest.raises(InvalidResponseError, match="have 4 dimensions and others 3"):
        results.row(1, np.ones(4, np.float32))
    assert list(results.finished()) == [0]


def test_no_finished_rows_give_an_empty_result() -> None:
    assert CallResults(3).finished() == {}


def test_progress_adds_up_to_all_texts_refused_ones_too() -> None:
    heard: list[int] = []
    results = CallResults(4, heard.append)
    results.report()
    results.rows([item_of(0, "a"), item_of(1, "b")], rows_of([0, 1]))
    results.report()
    results.row(2, rows_of([2])[0])
    results.refused(item_of(3, "d"), BadRequestError("no"))
    results.report()
    results.report()
    assert heard == [2, 2]


def test_a_call_that_waits_for_a_text_is_woken_by_its_row_its_refusal_or_the_end() -> None:
    async def scene() -> None:
        results = CallResults(4)
        waits = [results.settling(place) for place in range(4)]
        results.settling(0).cancel()
        results.row(0, rows_of([0])[0])
        results.rows([item_of(1, "b")], rows_of([1]))
        results.refuse(2, BadRequestError("no"))
        assert [wait.done() for wait in waits] == [True, True, True, False]
        results.wake_all()
        await waits[3]
        assert not results.settled(3)
        assert results.waiting == {}

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_a_row_that_a_calling_thread_lends_is_copied_before_its_caller_may_change_it() -> None:
    coalescer = Coalescer()
    carrier, waiting = CallResults(1), CallResults(1)
    carrier.thread, waiting.thread = 1, 2
    assert coalescer.enter([(0, "text")], carrier)
    mine, others = coalescer.join([(0, "text")], waiting)
    assert (mine, others) == ([], [(0, "text", carrier, 0)])
    carrier.rows([Item(0, "text", 1)], rows_of([0]))
    coalescer.exit([(0, "text")], carrier)
    carrier.part()
    assert carrier.vectors is not None
    carrier.vectors[:] = 0
    lent = carrier.lend(0)
    assert lent is not None
    assert lent.tolist() == rows_of([0])[0].tolist()


def test_an_array_has_its_usage_and_its_parts_have_none() -> None:
    array = np.ones((2, 3), np.float32).view(EmbeddingArray)
    array.usage = Usage(tokens=5)
    assert array.usage.tokens == 5
    assert array[0].usage is None
    assert (array + 1).usage is None
    assert isinstance(array, np.ndarray)


def test_an_array_can_be_pickled_and_keeps_its_numbers() -> None:
    array = np.ones((2, 3), np.float32).view(EmbeddingArray)
    array.usage = Usage(tokens=5)
    assert np.array_equal(pickle.loads(pickle.dumps(array)), array)


def test_a_list_with_gaps_knows_reasons_and_usage() -> None:
    reason = BadRequestError("no")
    rows = EmbeddingList([np.ones(2, np.float32), None], {1: reason}, Usage(texts=2))
    assert len(rows) == 2
    assert rows[1] is None
    assert rows.refused == {1: reason}
    assert rows.usage.texts == 2


# ---- the caller's result


def gathered_of(count: int, *, refused: tuple[int, ...] = ()) -> CallResults:
    results = CallResults(count)
    for place in range(count):
        if place in refused:
            results.refuse(place, BadRequestError(f"no {place}"))
        else:
            results.row(place, rows_of([place])[0])
    return results


def test_a_list_of_texts_gives_a_matrix_and_one_text_a_vector() -> None:
    usage = Usage(texts=2)
    many = gathered_of(2).result(usage, single=False, collect=False)
    assert isinstance(many, EmbeddingArray)
    assert many.tolist() == [[0.5] * 3, [1.5] * 3]
    assert many.dtype == np.float32
    assert many.usage is usage
    one = gathered_of(1).result(usage, single=True, collect=True)
    assert isinstance(one, EmbeddingArray)
    assert one.tolist() == [0.5] * 3
    assert one.usage is usage


def test_collected_refusals_leave_gaps_also_where_nothing_else_is_left() -> None:
    some = gathered_of(3, refused=(1,)).result(Usage(), single=False, collect=True)
    assert isinstance(some, EmbeddingList)
    assert [row if row is None else row.tolist() for row in some] == [[0.5] * 3, None, [2.5] * 3]
    assert list(some.refused) == [1]
    assert some.usage == Usage()
    none = gathered_of(2, refused=(0, 1)).result(Usage(), single=False, collect=True)
    assert list(none) == [None, None]


def test_refusals_that_are_not_collected_raise_with_the_first_three_reasons_and_all_vectors() -> (
    None
):
    with pytest.raises(RefusedTextsError) as caught:
        gathered_of(6, refused=(5, 1, 2, 4)).result(Usage(), single=False, collect=False)
    error = caught.value
    assert str(error) == (
        "the server refused 4 of 6 texts (text 1: no 1; text 2: no 2; text 4: no 4; and 1 more);"
        " the others are in this error's `finished`"
    )
    assert sorted(error.refused) == [1, 2, 4, 5]
    assert {place: row.tolist() for place, row in error.finished.items()} == {
        0: [0.5] * 3,
        3: [3.5] * 3,
    }
    with pytest.raises(RefusedTextsError, match=r"text 2: no 2\);"):
        gathered_of(4, refused=(0, 1, 2)).result(Usage(), single=False, collect=False)


def test_the_only_texts_refusal_is_raised_as_it_is_also_where_refusals_are_collected() -> None:
    with pytest.raises(BadRequestError, match=r"^no 0$"):
        gathered_of(1, refused=(0,)).result(Usage(), single=True, collect=True)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_call_that_ended_without_all_vectors_never_returns_what_is_there(rows: int) -> None:
    results = CallResults(2)
    for place in range(rows):
        results.row(place, rows_of([place])[0])
    with pytest.raises(NexusFlowError, match="a bug in this package"):
        results.result(Usage(), single=False, collect=False)


def test_rows_found_one_by_one_are_all_reported() -> None:
    heard: list[int] = []
    results = CallResults(3, heard.append)
    for place in range(3):
        results.row(place, rows_of([place])[0])
    results.report()
    assert heard == [3]


def test_a_row_wakes_only_calls_that_wait_for_it() -> None:
    async def scene() -> None:
        results = CallResults(2)
        waiting = results.settling(0)
        results.row(1, rows_of([1])[0])
        assert not waiting.done()
        results.row(0, rows_of([0])[0])
        await waiting

    asyncio.run(asyncio.wait_for(scene(), 5))


class FirstOutOfMemory(np.ndarray):
    tried = False

    def tolist(self) -> list[list[float]]:
        if not self.tried:
            self.tried = True
            raise MemoryError
        return super().tolist()


async def test_rows_whose_lists_could_not_be_made_on_the_way_are_made_in_the_end() -> None:
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    vectors = rows_of([0, 1])
    lists = RowLists(2)
    lists.add([0], vectors[:1].view(FirstOutOfMemory))
    lists.add([1], vectors[1:])
    while lists._is_scheduled:
        await asyncio.sleep(PAUSE)
    assert len(failed) == 1
    assert lists._rows == [None, vectors[1].tolist()]
    assert await asyncio.wait_for(lists.of(vectors), 30) == vectors.tolist()


def in_lists(vectors: np.ndarray, lists: RowLists) -> CallResults:
    """Return the results of a call for lists, all of whose rows have arrived."""
    results = CallResults(len(vectors), lists=lists)
    lists.add = lambda *_: None  # type: ignore[method-assign]  # no event loop runs
    for batch in plan_batches([item_of(place, "t") for place in range(len(vectors))], max_texts=10):
        results.rows(batch, vectors[[item.index for item in batch]])
    return results


@pytest.mark.parametrize("made", [0, 1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 5])
def test_a_thread_makes_only_the_lists_that_are_missing(made: int) -> None:
    vectors = rows_of(range(2 * ROWS_AT_ONCE + 5))
    lists = RowLists(len(vectors))
    before = lists._rows[:made] = vectors[:made].tolist()
    results = in_lists(vectors, lists)
    asyncio.run(results.make_lists())
    assert lists._rows.count(None) == len(vectors) - made, (
        "the event loop leaves them to the thread"
    )
    array = results.result(Usage(), single=False, collect=False)
    found = array.tolist()
    assert found == vectors.tolist()
    assert all(row is other for row, other in zip(found, before, strict=False))
    assert array.tolist() == found
    assert array.tolist() is not found, "the caller may change its lists"


def test_an_event_loop_gets_all_lists_made() -> None:
    vectors = rows_of(range(ROWS_AT_ONCE + 5))
    lists = RowLists(len(vectors))
    results = in_lists(vectors, lists)
    results.is_of_loop = True
    asyncio.run(results.make_lists())
    assert lists._rows == vectors.tolist()


class MemoryForOnePart(np.ndarray):
    parts = 0

    def tolist(self) -> Any:
        MemoryForOnePart.parts += 1
        if MemoryForOnePart.parts > 1:
            raise MemoryError
        return super().tolist()


def test_lists_made_before_memory_ran_out_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryForOnePart, "parts", 0)
    lists = RowLists(2 * ROWS_AT_ONCE)
    with pytest.raises(MemoryError):
        lists.finish(rows_of(range(2 * ROWS_AT_ONCE)).view(MemoryForOnePart))
    assert lists._rows == [], "the error needs the memory"


def test_vectors_are_not_lost_if_there_is_no_memory_for_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: RowLists, vectors: np.ndarray) -> None:
        raise MemoryError

    vectors = rows_of(range(12))
    monkeypatch.setattr(RowLists, "finish", fail)
    results = in_lists(vectors, RowLists(len(vectors)))
    asyncio.run(results.make_lists())
    array = results.result(Usage(), single=False, collect=False)
    with pytest.raises(NexusFlowError, match="not enough memory") as caught:
        array.tolist()
    assert sorted(caught.value.finished) == list(range(12))
    assert np.array_equal(np.stack(list(caught.value.finished.values())), vectors)


class Clock:
    """The time of the running event loop, which passes only if told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = asyncio.get_running_loop().time()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)

    async def turn(self) -> None:
        for _ in range(2):  # the loop calls what is due after the tasks that are ready
            await asyncio.sleep(0)


async def test_lists_are_made_in_a_pause_between_responses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    vectors = rows_of(range(40))
    lists = RowLists(40)
    for start in range(0, 40, 10):
        lists.add(range(start, start + 10), vectors[start : start + 10])
        clock.now += 0.9 * PAUSE
        await clock.turn()
    assert lists._rows == [None] * 40
    clock.now += 0.2 * PAUSE
    while lists._is_scheduled:
        await clock.turn()
    assert lists._rows == vectors.tolist()


async def test_only_some_rows_wait_for_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    count = MOST_WAITING + 3 * ROWS_AT_ONCE
    vectors = rows_of(range(count))
    lists = RowLists(count)
    for start in range(0, count, 10):
        lists.add(range(start, min(start + 10, count)), vectors[start : start + 10])
        clock.now += 0.9 * PAUSE
        for _ in range(20):
            await clock.turn()
        assert lists._count <= MOST_WAITING
    made = count - lists._rows.count(None)
    assert count - MOST_WAITING <= made < count
    assert await lists.of(vectors) == vectors.tolist()


async def test_the_lists_of_a_large_batch_are_made_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    count = 3 * ROWS_AT_ONCE - 1
    vectors = rows_of(range(count))
    lists = RowLists(count)
    lists.add(range(count), vectors)
    clock.now += PAUSE
    made = []
    for _ in range(4):
        await asyncio.sleep(0)
        made.append(count - lists._rows.count(None))
    assert made == [0, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE, count]
    assert await lists.of(vectors) == vectors.tolist()
