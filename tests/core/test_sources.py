"""A source gives batches of all texts, or of those that are neither stored nor claimed."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial, reduce, wraps
from itertools import count
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations._core.cache.in_file import Claimed
from nexusflow_integrations._core.call import sources
from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.call.sources import CachedSource, ClaimsLost, DirectSource
from nexusflow_integrations._core.request.batching import plan_batches
from nexusflow_integrations._core.usage import Ledger

PLAN = partial(plan_batches, max_texts=3)


def scene(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 60))

    return run


class FakeStore:
    claim_seconds = 0.03


class FakeCache:
    """A store in a dict; ``busy`` keys are claimed by others until they are removed.

    ``confirming`` is called before claims are confirmed, as if it happened just before.
    """

    def __init__(self) -> None:
        self.store = FakeStore()
        self.rows: dict[bytes, Any] = {}
        self.busy: set[bytes] = set()
        self.claimed: set[bytes] = set()
        self.claims: list[int] = []
        self.sent: list[bool] = []
        self.renewals = 0
        self.repaid = 0
        self.confirming: Callable[[], object] = lambda: None
        self.calls: set[int] = set()
        self.numbers = count(1)

    def new_call(self) -> int:
        return next(self.numbers)

    async def claim(
        self,
        keys: Sequence[bytes],
        dimensions: int | None,
        within: float,
        *,
        call: int,
        most: int,
        sent: bool,
    ) -> Claimed:
        self.claims.append(len(keys))
        self.sent.append(sent)
        self.calls.add(call)
        hits = {key: self.rows[key] for key in keys if key in self.rows}
        busy = [key for key in keys if key in self.busy and key not in hits]
        mine = [key for key in keys if key not in hits and key not in self.busy][:most]
        self.claimed |= set(mine)
        repaid, self.repaid = self.repaid, 0
        return Claimed(hits=hits, mine=mine, busy=busy, repaid=repaid)

    def put(self, rows: Sequence[tuple[bytes, Any]], within: float) -> None:
        self.rows |= {key: vector.copy() for key, vector in rows}
        self.claimed -= {key for key, _ in rows}

    async def confirm(self, keys: Sequence[bytes], call: int, within: float) -> set[bytes]:
        self.calls.add(call)
        self.confirming()
        return set(keys) - self.claimed

    def release(self, keys: Sequence[bytes], call: int) -> None:
        self.calls.add(call)
        self.claimed -= set(keys)

    async def renew(self, keys: Sequence[bytes], call: int) -> None:
        self.calls.add(call)
        self.renewals += 1

    def lose(self, *keys: bytes) -> None:
        """End claims, as if they had expired and others had taken and released them."""
        self.claimed -= set(keys)


class FakeGate:
    """Admits ``most`` at once, if it is open."""

    def __init__(self, most: int = 100, *, is_open: bool = False) -> None:
        self._most = most
        self.is_open = is_open

    def wanted(self, unsent: int) -> int:
        return self._most - unsent


def texts(n: int) -> list[tuple[int, str]]:
    return [(index, f"t{index}") for index in range(n)]


def vector(n: int) -> np.ndarray:
    return np.full(2, n + 1, np.float32)


def cached(
    cache: FakeCache,
    n: int,
    chunk: int = 6,
    admission: FakeGate | None = None,
) -> tuple[CachedSource, CallResults, Ledger]:
    results, ledger = CallResults(n), Ledger()
    source = CachedSource(
        texts(n),
        PLAN,
        cache=cache,  # type: ignore[arg-type]
        key=str.encode,
        dimensions=None,
        results=results,
        ledger=ledger,
        batch_size=3,
        chunk=chunk,
        admission=admission or FakeGate(),  # type: ignore[arg-type]
        time_left=lambda: 8.0,
    )
    return source, results, ledger


async def embed_all(source: Any, results: CallResults, *, fail: Iterable[int] = ()) -> list[int]:
    sent: list[int] = []
    while (batch := await source.next()) is not None:
        with suppress(ClaimsLost):
            await source.confirm(batch)
            good = [item for item in batch if item.index not in fail]
            sent += [item.index for item in batch]
            if good:
                results.rows(good, np.stack([vector(item.index) for item in good]))
        source.keep(batch)
    source.close()
    return sent


@scene
async def test_a_direct_source_sends_every_text_in_order() -> None:
    assert await embed_all(DirectSource(texts(10), PLAN), CallResults(10)) == list(range(10))


@scene
async def test_with_an_empty_store_everything_is_sent_once_and_stored() -> None:
    cache = FakeCache()
    source, results, ledger = cached(cache, 20)
    assert sorted(await embed_all(source, results)) == list(range(20))
    assert set(cache.rows) == {text.encode() for _, text in texts(20)}
    assert cache.claimed == set()
    assert ledger.cached == 0


@scene
async def test_stored_vectors_are_used_and_their_texts_are_not_sent() -> None:
    cache = FakeCache()
    cache.rows = {f"t{n}".encode(): vector(n) for n in range(0, 20, 2)}
    source, results, ledger = cached(cache, 20)
    assert sorted(await embed_all(source, results)) == list(range(1, 20, 2))
    assert ledger.cached == 10
    assert results.vectors is not None
    assert results.vectors[:, 0].tolist() == [n + 1 for n in range(20)]


@scene
async def test_texts_are_looked_up_in_chunks_and_claimed_shortly_before_they_are_sent() -> None:
    cache = FakeCache()
    source, _, _ = cached(cache, 60)
    batch = await source.next()
    assert batch is not None
    assert cache.claims == [6]
    assert len(cache.claimed) == 3
    source.close()
    assert cache.claimed == set()
    assert len(cache.calls) == 1


async def turns() -> None:
    """Run the loop until it is idle."""
    for _ in range(50):
        await asyncio.sleep(0)


@scene
async def test_no_more_batches_are_prepared_than_can_be_sent_soon() -> None:
    cache = FakeCache()
    source, _, _ = cached(cache, 60, admission=FakeGate(2))
    asked = [asyncio.ensure_future(source.next()) for _ in range(5)]
    await turns()
    ready = [task.result() for task in asked if task.done()]
    assert len(ready) == 2
    assert len(cache.claimed) == 6
    for batch, leave in zip(ready, (source.confirm, source.keep), strict=True):
        assert batch is not None
        before = sum(task.done() for task in asked)
        if (leaving := leave(batch)) is not None:
            await leaving
        await turns()
        assert sum(task.done() for task in asked) == before + 1
    asked[-1].cancel()
    source.close()


@scene
async def test_hits_do_not_make_batches_short_except_for_the_last() -> None:
    cache = FakeCache()
    cache.rows = {f"t{n}".encode(): vector(n) for n in range(60) if n % 3}
    source, _, _ = cached(cache, 60)
    sizes = []
    while (batch := await source.next()) is not None:
        sizes.append(len(batch))
    source.close()
    assert sum(sizes) == 20
    assert sizes[:-1] == [3] * (len(sizes) - 1)


def test_texts_that_another_process_pays_for_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "POLL", 0.005)

    async def test() -> None:
        cache = FakeCache()
        cache.busy = {b"t1", b"t4"}
        source, results, ledger = cached(cache, 6)

        async def other() -> None:
            await asyncio.sleep(0.02)
            cache.rows[b"t1"] = vector(1)
            cache.busy.clear()  # and t4 was released, so it is sent here

        helper = asyncio.ensure_future(other())
        assert sorted(await embed_all(source, results)) == [0, 2, 3, 4, 5]
        await helper
        assert ledger.cached == 1
        assert all(results.done)

    asyncio.run(asyncio.wait_for(test(), 60))


@scene
async def test_failed_texts_are_released_and_received_vectors_are_kept() -> None:
    cache = FakeCache()
    source, results, _ = cached(cache, 6)
    await embed_all(source, results, fail={1, 5})
    assert set(cache.rows) == {b"t0", b"t2", b"t3", b"t4"}
    assert cache.claimed == set()


@scene
async def test_claims_are_renewed_only_while_a_request_is_in_flight() -> None:
    cache = FakeCache()
    source, _, _ = cached(cache, 3)
    await source.next()
    while cache.renewals < 2:
        await asyncio.sleep(0.01)
    source.close()
    await asyncio.sleep(0)
    renewals = cache.renewals
    await asyncio.sleep(0.05)
    assert cache.renewals == renewals


@scene
async def test_texts_paid_for_twice_are_reported() -> None:
    cache = FakeCache()
    cache.repaid = 4
    source, results, ledger = cached(cache, 6)
    await embed_all(source, results)
    assert ledger.repaid == 4


@scene
async def test_many_workers_share_a_source_without_sending_a_text_twice() -> None:
    cache = FakeCache()
    cache.rows = {f"t{n}".encode(): vector(n) for n in range(0, 50, 5)}
    source, results, _ = cached(cache, 50)

    async def work() -> list[int]:
        sent = []
        while (batch := await source.next()) is not None:
            await asyncio.sleep(0)
            sent += [item.index for item in batch]
            results.rows(list(batch), np.stack([vector(item.index) for item in batch]))
            source.keep(batch)
        return sent

    sent = reduce(operator.iadd, await asyncio.gather(*[work() for _ in range(8)]), [])
    source.close()
    assert sorted(sent) == [n for n in range(50) if n % 5]
    assert all(results.done)


@scene
async def test_two_calls_of_a_process_have_claims_of_their_own() -> None:
    cache = FakeCache()
    for _ in range(2):
        source, results, _ = cached(cache, 3)
        await embed_all(source, results)
        cache.rows.clear()
    assert len(cache.calls) == 2


@scene
async def test_texts_taken_over_by_others_are_not_sent_but_read_when_stored() -> None:
    cache = FakeCache()
    source, results, ledger = cached(cache, 9)

    def stand_still() -> None:
        cache.confirming = lambda: None
        cache.lose(b"t1", b"t2")
        cache.rows[b"t1"] = vector(1)  # paid for by others; t2 was released

    cache.confirming = stand_still
    sent = await embed_all(source, results)
    assert sorted(sent) == [0, 2, 3, 4, 5, 6, 7, 8]
    assert len(sent) == len(set(sent))
    assert ledger.cached == 1
    assert all(results.done)
    assert cache.claimed == set()


@scene
async def test_a_part_of_a_batch_that_came_before_the_rest_was_lost_is_kept() -> None:
    cache = FakeCache()
    source, results, _ = cached(cache, 3)
    batch = await source.next()
    assert batch is not None
    await source.confirm(batch[:1])
    results.rows(batch[:1], vector(0)[None])
    cache.lose(b"t1")
    with pytest.raises(ClaimsLost):
        await source.confirm(batch[1:])
    source.keep(batch)
    assert set(cache.rows) == {b"t0"}
    assert cache.claimed == {b"t2"}  # still to be sent here
    assert sorted(await embed_all(source, results)) == [1, 2]


@scene
async def test_a_store_that_forgets_all_claims_keeps_no_text_from_being_sent() -> None:
    cache = FakeCache()
    source, results, _ = cached(cache, 7)
    cache.confirming = lambda: cache.claimed.clear()
    assert sorted(await embed_all(source, results)) == list(range(7))


@scene
async def test_lost_claims_are_reported_once_and_not_as_lost_money(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "nexusflow_integrations")
    cache = FakeCache()
    source, results, ledger = cached(cache, 9)
    losses = iter([True, True, False, True])
    cache.confirming = lambda: cache.claimed.clear() if next(losses, False) else None
    await embed_all(source, results)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "claims on texts expired before the texts were sent" in record.message
    assert ledger.repaid == 0


@scene
async def test_with_an_open_queue_a_call_of_one_batch_claims_its_texts_as_sent() -> None:
    cache = FakeCache()
    source, results, _ = cached(cache, 3, admission=FakeGate(is_open=True))
    cache.confirming = lambda: pytest.fail("asked again")
    assert sorted(await embed_all(source, results)) == [0, 1, 2]
    assert cache.sent == [True]


@scene
async def test_texts_that_are_claimed_again_are_looked_at_together_with_those_claimed_before() -> (
    None
):
    """A stop: one claim was found to be lost, and another ran out, too."""
    cache = FakeCache()
    source, results, _ = cached(cache, 3, admission=FakeGate(is_open=True))
    batch = await source.next()
    assert batch is not None
    source._fresh_until = 0.0
    cache.lose(b"t0")
    with pytest.raises(ClaimsLost):
        await source.confirm(batch[:1])
    source.keep(batch)
    cache.lose(b"t1")
    cache.rows[b"t1"] = vector(1)
    assert sorted(await embed_all(source, results)) == [0, 2]


@pytest.mark.parametrize(
    ("count", "is_open", "late"), [(3, True, True), (3, False, False), (4, True, False)]
)
def test_a_call_of_more_batches_or_one_that_waits_confirms_its_claims(
    monkeypatch: pytest.MonkeyPatch, count: int, is_open: bool, late: bool
) -> None:
    monkeypatch.setattr(sources, "FRESH", 0.0 if late else 60.0)

    async def test() -> None:
        cache = FakeCache()
        asked: list[bool] = []
        source, results, _ = cached(cache, count, admission=FakeGate(is_open=is_open))
        cache.confirming = lambda: asked.append(True)
        await embed_all(source, results)
        assert cache.sent[0] is late
        assert asked

    asyncio.run(asyncio.wait_for(test(), 60))
