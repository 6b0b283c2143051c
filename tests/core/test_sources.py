"""Where batches come from: all texts, or those the store does not hold and nobody else pays for."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations._core.cache.in_file import Claimed
from nexusflow_integrations._core.call import sources
from nexusflow_integrations._core.call.results import Gathered
from nexusflow_integrations._core.call.sources import CachedSource, DirectSource
from nexusflow_integrations._core.request.batching import plan_batches
from nexusflow_integrations._core.usage import Ledger

PLAN = partial(plan_batches, max_texts=3)


def scene(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    run.__name__ = test.__name__
    return run


class FakeStore:
    claim_seconds = 0.03


class FakeCache:
    """A store in a dict; ``busy`` keys are somebody else's until taken out of it."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.rows: dict[bytes, Any] = {}
        self.busy: set[bytes] = set()
        self.claimed: set[bytes] = set()
        self.claims: list[int] = []
        self.renewals = 0
        self.repaid = 0

    async def claim(self, keys: Sequence[bytes], dimensions: int | None, within: float) -> Claimed:
        self.claims.append(len(keys))
        hits = {key: self.rows[key] for key in keys if key in self.rows}
        busy = [key for key in keys if key in self.busy and key not in hits]
        mine = [key for key in keys if key not in hits and key not in self.busy]
        self.claimed |= set(mine)
        repaid, self.repaid = self.repaid, 0
        return Claimed(hits=hits, mine=mine, busy=busy, repaid=repaid)

    def put(self, rows: Sequence[tuple[bytes, Any]], within: float) -> None:
        self.rows |= {key: vector.copy() for key, vector in rows}
        self.claimed -= {key for key, _ in rows}

    def release(self, keys: Sequence[bytes]) -> None:
        self.claimed -= set(keys)

    async def renew(self, keys: Sequence[bytes]) -> None:
        self.renewals += 1


def texts(n: int) -> list[tuple[int, str]]:
    return [(index, f"t{index}") for index in range(n)]


def vector(n: int) -> np.ndarray:
    return np.full(2, n + 1, np.float32)


def cached(cache: FakeCache, n: int, slab: int = 6) -> tuple[CachedSource, Gathered, Ledger]:
    gathered, ledger = Gathered(n), Ledger()
    source = CachedSource(
        texts(n),
        PLAN,
        cache=cache,  # type: ignore[arg-type]
        key=str.encode,
        dimensions=None,
        gathered=gathered,
        ledger=ledger,
        slab=slab,
        time_left=lambda: 8.0,
    )
    return source, gathered, ledger


async def embed_all(source: Any, gathered: Gathered, *, fail: Iterable[int] = ()) -> list[int]:
    sent: list[int] = []
    while (batch := await source.next()) is not None:
        good = [item for item in batch if item.index not in fail]
        sent += [item.index for item in batch]
        if good:
            gathered.rows(good, np.stack([vector(item.index) for item in good]))
        source.keep(batch)
    source.close()
    return sent


@scene
async def test_a_direct_source_sends_every_text_in_order() -> None:
    assert await embed_all(DirectSource(texts(10), PLAN), Gathered(10)) == list(range(10))


@scene
async def test_with_an_empty_store_everything_is_sent_once_and_kept() -> None:
    cache = FakeCache()
    source, gathered, ledger = cached(cache, 20)
    assert sorted(await embed_all(source, gathered)) == list(range(20))
    assert set(cache.rows) == {text.encode() for _, text in texts(20)}
    assert cache.claimed == set()
    assert ledger.cached == 0


@scene
async def test_what_the_store_holds_is_taken_from_it_and_not_sent() -> None:
    cache = FakeCache()
    cache.rows = {f"t{n}".encode(): vector(n) for n in range(0, 20, 2)}
    source, gathered, ledger = cached(cache, 20)
    assert sorted(await embed_all(source, gathered)) == list(range(1, 20, 2))
    assert ledger.cached == 10
    assert gathered.vectors is not None
    assert gathered.vectors[:, 0].tolist() == [n + 1 for n in range(20)]


@scene
async def test_texts_are_claimed_slab_by_slab_shortly_before_they_are_sent() -> None:
    cache = FakeCache()
    source, _, _ = cached(cache, 60)
    batch = await source.next()
    assert batch is not None
    assert cache.claims == [6]
    source.close()
    assert cache.claimed == set()


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


def test_what_another_process_pays_for_is_waited_for_and_then_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "POLL", 0.005)

    async def test() -> None:
        cache = FakeCache()
        cache.busy = {b"t1", b"t4"}
        source, gathered, ledger = cached(cache, 6)

        async def other() -> None:
            await asyncio.sleep(0.02)
            cache.rows[b"t1"] = vector(1)
            cache.busy.clear()  # and t4 was given up: ours to pay for

        helper = asyncio.ensure_future(other())
        assert sorted(await embed_all(source, gathered)) == [0, 2, 3, 4, 5]
        await helper
        assert ledger.cached == 1
        assert all(gathered.done)

    asyncio.run(asyncio.wait_for(test(), 60))


@scene
async def test_what_failed_is_released_and_what_came_is_kept() -> None:
    cache = FakeCache()
    source, gathered, _ = cached(cache, 6)
    await embed_all(source, gathered, fail={1, 5})
    assert set(cache.rows) == {b"t0", b"t2", b"t3", b"t4"}
    assert cache.claimed == set()


@scene
async def test_claims_are_renewed_while_a_request_is_out_and_no_longer() -> None:
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
    source, gathered, ledger = cached(cache, 6)
    await embed_all(source, gathered)
    assert ledger.repaid == 4


@scene
async def test_many_workers_share_a_source_without_sending_a_text_twice() -> None:
    cache = FakeCache()
    cache.rows = {f"t{n}".encode(): vector(n) for n in range(0, 50, 5)}
    source, gathered, _ = cached(cache, 50)

    async def work() -> list[int]:
        sent = []
        while (batch := await source.next()) is not None:
            await asyncio.sleep(0)
            sent += [item.index for item in batch]
            gathered.rows(list(batch), np.stack([vector(item.index) for item in batch]))
            source.keep(batch)
        return sent

    sent = reduce(operator.iadd, await asyncio.gather(*[work() for _ in range(8)]), [])
    source.close()
    assert sorted(sent) == [n for n in range(50) if n % 5]
    assert all(gathered.done)
