"""A store that fails or hangs delays a call once, and only briefly."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import pytest

from nexusflow_integrations._core.cache import cache as cache_module
from nexusflow_integrations._core.cache.cache import Cache
from nexusflow_integrations._core.cache.in_file import Claimed
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import CacheError

T = TypeVar("T")

LOCKED = StoreUnavailable("the cache cannot be used: database is locked")
FOREIGN = CacheError("notes.txt is not a cache file of nexusflow-integrations")


class Store:
    """Rows and claims in memory; ``fails`` is raised instead of an answer while it is set."""

    path = "the store"
    claim_seconds = 10.0

    def __init__(self) -> None:
        self.rows: dict[bytes, np.ndarray] = {}
        self.claims: set[bytes] = set()
        self.fails: Exception | None = None
        self.asked: list[str] = []
        self.is_closed = False

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.fails is not None:
            raise self.fails

    def claim(
        self,
        keys: Sequence[bytes],
        dimensions: int | None,
        *,
        call: int,
        most: int | None,
        sent: bool,
    ) -> Claimed:
        self._ask("claim")
        hits = {key: self.rows[key] for key in keys if key in self.rows}
        mine = [key for key in keys if key not in hits][:most]
        self.claims.update(mine)
        return Claimed(hits, mine, [], 0)

    def present(self, keys: Sequence[bytes]) -> set[bytes]:
        self._ask("present")
        return self.rows.keys() & set(keys)

    def put(self, rows: Sequence[tuple[bytes, Any]]) -> None:
        self._ask("put")
        self.rows.update(rows)
        self.claims.difference_update(key for key, _ in rows)

    def release(self, keys: Iterable[bytes], call: int) -> None:
        self._ask("release")
        self.claims.difference_update(keys)

    def renew(self, keys: Iterable[bytes], call: int) -> None:
        self._ask("renew")

    def confirm(self, keys: Sequence[bytes], call: int) -> set[bytes]:
        self._ask("confirm")
        return set(keys) - self.claims

    def together(self, work: Callable[[], T]) -> T:
        return work()

    def probe(self) -> None:
        self._ask("probe")

    def close(self) -> None:
        self.is_closed = True


class Thread:
    """The store's thread, which works when the test lets it."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.works = True

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append((future, work))
        if self.works:
            self.work()
        return future

    def work(self) -> None:
        jobs, self.jobs = self.jobs, []
        for future, work in jobs:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:
                    future.set_exception(error)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PATIENCE", 0.1)
    monkeypatch.setattr(cache_module, "GRACE", 0.01)
    monkeypatch.setattr(cache_module, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(cache_module, "LONGEST_PAUSE", 0.04)
    monkeypatch.setattr(cache_module, "CLOSING", 0.2)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def thread() -> Thread:
    return Thread()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "nexusflow_integrations")
    return lambda: [record.getMessage() for record in caplog.records]


def cache_on(store: Store, thread: Thread) -> Cache:
    return Cache(store, thread.submit)  # type: ignore[arg-type]


def rows(*keys: bytes) -> list[tuple[bytes, np.ndarray]]:
    return [(key, np.ones(2, np.float32)) for key in keys]


async def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it never became true"
        await asyncio.sleep(0.002)


OFF = "the cache is off until it works again: "


async def test_a_store_that_hangs_is_waited_for_once_and_then_not_used(
    store: Store, thread: Thread, said: Callable[[], list[str]]
) -> None:
    cache = cache_on(store, thread)
    thread.works = False
    first, second = await asyncio.gather(cache.claim([b"a"], 2), cache.claim([b"b"], 2))
    assert (first.mine, second.mine) == ([b"a"], [b"b"])
    asked = len(thread.jobs)
    assert (await cache.claim([b"c"], 2)).mine == [b"c"]
    assert await cache.present([b"c"]) == set()
    await cache.renew([b"c"], 1)
    assert await cache.confirm([b"c"], 1) == set()
    assert cache.put(rows(b"c")) is None
    assert len(thread.jobs) == asked
    assert said() == [f"{OFF}the store has not answered for 0.1 s"]


async def test_requests_to_a_hanging_store_that_did_not_start_are_dropped(
    store: Store, thread: Thread
) -> None:
    cache = cache_on(store, thread)
    thread.works = False
    await cache.claim([b"a"], 2)
    thread.works = True
    thread.work()
    await until(lambda: not cache._is_off)
    assert "claim" not in store.asked


async def test_a_store_that_reports_a_failure_is_retried_until_it_works(
    store: Store, thread: Thread, said: Callable[[], list[str]]
) -> None:
    cache = cache_on(store, thread)
    store.fails = LOCKED
    assert (await cache.claim([b"a"], 2)).mine == [b"a"]
    assert (await cache.claim([b"b"], 2)).mine == [b"b"]
    await until(lambda: store.asked.count("probe") >= 3)
    assert said() == [f"{OFF}{LOCKED}"]
    store.fails = None
    await until(lambda: not cache._is_off)
    assert (await cache.claim([b"a"], 2)).mine == [b"a"]
    assert store.claims == {b"a"}
    assert said()[1:] == ["the cache works again: the store"]


async def test_vectors_paid_for_while_the_cache_was_off_are_stored_when_it_works_again(
    store: Store, thread: Thread
) -> None:
    cache = cache_on(store, thread)
    store.fails = LOCKED
    failing = cache.put(rows(b"a", b"b"))
    assert failing is not None
    await failing  # the call continues
    assert cache.put(rows(b"c")) is None
    await until(lambda: store.asked.count("put") >= 3)
    store.fails = None
    await until(lambda: not cache._is_off)
    await until(lambda: store.rows.keys() == {b"a", b"b", b"c"})
    assert cache._held == 0


async def test_rows_are_committed_together_and_waited_for(store: Store, thread: Thread) -> None:
    cache = cache_on(store, thread)
    first, second = cache.put(rows(b"a")), cache.put(rows(b"b"))
    assert first is not None
    assert second is not None
    await asyncio.gather(first, second)
    assert store.asked == ["put"]
    assert store.rows.keys() == {b"a", b"b"}


async def test_a_call_with_little_time_continues_alone_and_keeps_late_claims(
    store: Store, thread: Thread, said: Callable[[], list[str]]
) -> None:
    cache = cache_on(store, thread)
    thread.works = False
    assert (await cache.claim([b"a"], 2, 0.005)).mine == [b"a"]
    kept = cache.put(rows(b"b"), 0.005)
    assert kept is not None
    await kept
    thread.works = True
    thread.work()
    await until(lambda: store.claims == {b"a"} and store.rows.keys() == {b"b"})
    assert said() == []
    assert not cache._is_off


async def test_claims_of_a_cancelled_call_are_released(store: Store, thread: Thread) -> None:
    cache = cache_on(store, thread)
    thread.works = False
    claiming = asyncio.ensure_future(cache.claim([b"a"], 2))
    await asyncio.sleep(0)
    (future, work) = thread.jobs.pop()
    assert future.set_running_or_notify_cancel()
    claiming.cancel()
    await asyncio.wait([claiming])
    thread.works = True
    future.set_result(work())
    assert store.claims == {b"a"}
    await until(lambda: not store.claims)


async def test_late_claims_on_keys_that_the_call_does_not_send_are_released(
    store: Store, thread: Thread
) -> None:
    """Another process has stored one in the meantime: the store claims the next instead."""
    cache = cache_on(store, thread)
    thread.works = False
    assert (await cache.claim([b"a", b"b", b"c"], 2, 0.005, most=2)).mine == [b"a", b"b"]
    store.rows[b"a"] = np.ones(2, np.float32)
    thread.works = True
    thread.work()
    assert store.claims == {b"b", b"c"}
    await until(lambda: store.claims == {b"b"})


async def test_claims_that_come_together_with_a_cancellation_are_released(
    store: Store, thread: Thread
) -> None:
    cache = cache_on(store, thread)
    thread.works = False
    claiming = asyncio.ensure_future(cache.claim([b"a"], 2))
    await asyncio.sleep(0)
    thread.works = True
    thread.work()
    asyncio.get_running_loop().call_soon(claiming.cancel)  # right behind the answer
    await asyncio.wait([claiming])
    assert claiming.cancelled()
    await until(lambda: not store.claims)


async def test_claims_are_confirmed_together_with_what_else_is_written(
    store: Store, thread: Thread
) -> None:
    cache = cache_on(store, thread)
    await cache.claim([b"a", b"b", b"c", b"e"], 2)
    store.claims.discard(b"c")  # taken over
    asked = len(store.asked)
    thread.works = False
    confirming = [
        asyncio.ensure_future(cache.confirm([b"a", b"c"], 1)),
        asyncio.ensure_future(cache.confirm([b"b"], 2)),
    ]
    await asyncio.sleep(0)
    cache.put(rows(b"d"))
    cache.release([b"e"], 1)
    await until(lambda: thread.jobs)
    assert len(thread.jobs) == 1
    thread.works = True
    thread.work()
    assert await asyncio.gather(*confirming) == [{b"c"}, set()]
    assert store.asked[asked:] == ["put", "release", "confirm", "confirm"]
    assert store.claims == {b"a", b"b"}


async def test_claims_that_cannot_be_confirmed_are_taken_for_held_and_not_confirmed_later(
    store: Store, thread: Thread
) -> None:
    cache = cache_on(store, thread)
    await cache.claim([b"a"], 2)
    store.fails = LOCKED
    assert await cache.confirm([b"b"], 1) == set()
    store.fails = None
    await until(lambda: not cache._is_off)
    assert store.asked.count("confirm") == 1
    assert await cache.confirm([b"b"], 1) == {b"b"}


async def test_a_call_with_little_time_does_not_wait_for_a_confirmation(
    store: Store, thread: Thread
) -> None:
    cache = cache_on(store, thread)
    await cache.claim([b"a"], 2)
    thread.works = False
    assert await cache.confirm([b"b"], 1, 0.005) == set()
    thread.works = True
    thread.work()


async def test_no_more_is_held_than_fits_and_the_rest_is_reported(
    store: Store,
    thread: Thread,
    said: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "MOST_HELD", 20)
    cache = cache_on(store, thread)
    assert not cache.keeps_all  # it has not worked yet
    await cache.present([b"a"], 2)
    assert cache.keeps_all
    store.fails = LOCKED
    await cache.claim([b"a"], 2)
    assert not cache.keeps_all
    for key in (b"a", b"b", b"c", b"d"):
        cache.put(rows(key))
    store.fails = None
    await until(lambda: not cache._is_off)
    assert store.rows.keys() == {b"a", b"b"}
    assert said()[-1] == "2 vectors were paid for and could not be stored in the cache"
    assert not cache.keeps_all


async def test_a_foreign_store_is_an_error_of_the_call_and_does_not_turn_the_cache_off(
    store: Store, thread: Thread, said: Callable[[], list[str]]
) -> None:
    cache = cache_on(store, thread)
    store.fails = FOREIGN
    for _ in range(2):
        with pytest.raises(CacheError, match=r"notes\.txt"):
            await cache.claim([b"a"], 2)
    assert said() == []


async def test_a_store_that_turns_out_to_be_foreign_after_a_hang_is_an_error_of_the_next_call(
    store: Store, thread: Thread
) -> None:
    cache = cache_on(store, thread)
    thread.works = False
    await cache.claim([b"a"], 2)
    store.fails = FOREIGN
    thread.works = True
    thread.work()
    await until(lambda: not cache._is_off)
    with pytest.raises(CacheError, match=r"notes\.txt"):
        await cache.claim([b"a"], 2)


async def test_rows_that_a_damaged_store_refuses_lose_no_vector(
    store: Store, thread: Thread, said: Callable[[], list[str]]
) -> None:
    cache = cache_on(store, thread)
    await cache.claim([b"a"], 2)
    store.fails = CacheError("the cache is damaged")
    kept = cache.put(rows(b"a"))
    assert kept is not None
    await kept
    await until(lambda: store.asked.count("put") >= 3)
    assert said() == [f"{OFF}the cache is damaged"]


async def test_an_unexpected_error_turns_the_cache_off_without_showing_its_message(
    store: Store, thread: Thread, said: Callable[[], list[str]]
) -> None:
    cache = cache_on(store, thread)
    store.fails = OSError("no route to redis://user:password@host")
    assert (await cache.claim([b"a"], 2)).mine == [b"a"]
    assert said() == [f"{OFF}OSError"]


async def test_closing_stores_what_is_left_and_closes_the_store(
    store: Store, thread: Thread, said: Callable[[], list[str]]
) -> None:
    cache = cache_on(store, thread)
    store.fails = LOCKED
    await cache.claim([b"a"], 2)
    cache.put(rows(b"a"))
    store.fails = None
    await cache.close()
    assert store.rows.keys() == {b"a"}
    assert store.is_closed
    assert len(said()) == 1


async def test_a_single_vector_that_is_lost_is_counted_as_one(
    store: Store, thread: Thread, said: Callable[[], list[str]]
) -> None:
    cache = cache_on(store, thread)
    store.fails = LOCKED
    await cache.claim([b"a"], 2)
    cache.put(rows(b"a"))
    await cache.close()
    assert said()[-1] == "1 vector was paid for and could not be stored in the cache"


async def test_closing_waits_for_a_store_that_hangs_no_longer_than_it_may(
    store: Store, said: Callable[[], list[str]]
) -> None:
    cache = Cache(store)  # type: ignore[arg-type]
    await cache.claim([b"a"], 2)
    free = threading.Event()
    store.put = lambda _: free.wait(60)  # type: ignore[assignment, method-assign, return-value]
    kept = cache.put(rows(b"a", b"b"))
    assert kept is not None
    await kept
    began = time.monotonic()
    await cache.close()
    assert time.monotonic() - began < 30
    free.set()
    assert said()[-1] == "2 vectors were paid for and could not be stored in the cache"
