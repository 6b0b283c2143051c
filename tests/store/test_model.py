"""Three stores on one file or server agree with plain dictionaries, in any order of calls."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from nexusflow_integrations._core.cache.cache import Store
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.cache.in_redis import RedisStore
from nexusflow_integrations._core.cache.keys import Keyer
from nexusflow_integrations._core.redis.address import RedisAddress

HOLD = 10.0
KEYER = Keyer(base_url="https://a.example/v1", model="m", dimensions=4)
KEYS = [KEYER(str(number)) for number in range(12)]

who = st.integers(0, 2)
calls = st.integers(0, 1)
some_keys = st.lists(st.sampled_from(KEYS), max_size=6)
numbers = st.floats(width=32)


@dataclass
class Claim:
    owner: tuple[int, int]
    """Of which store and which call."""
    until: float
    sent: bool = False


class Stores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1_800_000_000.0
        self.stores: list[Store] = [self.fresh() for _ in range(3)]
        self.owners = [0, 1, 2]
        self.rows: dict[bytes, np.ndarray] = {}
        self.claims: dict[bytes, Claim] = {}
        self.dead: list[Store] = []

    def fresh(self) -> Store:
        path = Path(self.folder.name) / "cache.db"
        return VectorStore(path, clock=lambda: self.now, claim_seconds=HOLD)

    def teardown(self) -> None:
        for store in self.stores + self.dead:
            store.close()
        self.folder.cleanup()

    def good(self, key: bytes) -> bool:
        row = self.rows.get(key)
        return row is not None and bool(np.isfinite(row).all() and row.any()) and len(row) == 4

    def live(self, key: bytes) -> bool:
        return key in self.claims and self.now < self.claims[key].until

    def owns(self, key: bytes, who: int, call: int) -> bool:
        return key in self.claims and self.claims[key].owner == (self.owners[who], call)

    @rule(
        who=who,
        call=calls,
        keys=some_keys,
        dimensions=st.sampled_from([4, None]),
        most=st.sampled_from([None, None, 0, 1, 3]),
    )
    def claim(
        self, who: int, call: int, keys: list[bytes], dimensions: int | None, most: int | None
    ) -> None:
        claimed = self.stores[who].claim(keys, dimensions, call=call, most=most)
        hits = {key for key in keys if self.good(key)}
        busy = {key for key in keys if key not in hits and self.live(key)}
        mine = [key for key in dict.fromkeys(keys) if key not in hits and key not in busy][:most]
        repaid = [
            key
            for key in mine
            if key in self.claims and self.claims[key].sent and not self.owns(key, who, call)
        ]
        assert set(claimed.hits) == hits
        assert sorted(claimed.busy) == sorted(busy)
        assert claimed.mine == mine
        assert claimed.repaid == len(repaid)
        for key in hits:
            assert claimed.hits[key].tobytes() == self.rows[key].tobytes()
        for key in mine:
            self.claims[key] = Claim((self.owners[who], call), self.now + HOLD)

    @rule(
        who=who,
        rows=st.lists(st.tuples(st.sampled_from(KEYS), st.lists(numbers, min_size=4, max_size=4))),
    )
    def put(self, who: int, rows: list[tuple[bytes, list[float]]]) -> None:
        vectors = [(key, np.array(row, np.float32)) for key, row in rows]
        self.stores[who].put(vectors)
        for key, row in vectors:
            self.rows[key] = row
            self.claims.pop(key, None)

    @rule(who=who, call=calls, keys=some_keys)
    def release(self, who: int, call: int, keys: list[bytes]) -> None:
        self.stores[who].release(keys, call)
        for key in keys:
            if self.owns(key, who, call):
                del self.claims[key]

    @rule(who=who, call=calls, keys=some_keys)
    def renew(self, who: int, call: int, keys: list[bytes]) -> None:
        self.stores[who].renew(keys, call)
        for key in keys:
            if self.owns(key, who, call):
                self.claims[key].until = self.now + HOLD

    @rule(who=who, call=calls, keys=some_keys)
    def confirm(self, who: int, call: int, keys: list[bytes]) -> None:
        lost = self.stores[who].confirm(keys, call)
        assert lost == {key for key in keys if not self.owns(key, who, call)}
        for key in set(keys) - lost:
            self.claims[key].until = self.now + HOLD
            self.claims[key].sent = True

    @rule(
        who=who,
        call=calls,
        row=st.tuples(st.sampled_from(KEYS), st.lists(numbers, min_size=4, max_size=4)),
        given_up=some_keys,
        sent=some_keys,
    )
    def write_together(
        self,
        who: int,
        call: int,
        row: tuple[bytes, list[float]],
        given_up: list[bytes],
        sent: list[bytes],
    ) -> None:
        def work() -> None:
            self.put(who, [row])
            self.release(who, call, given_up)
            self.confirm(who, call, sent)

        self.stores[who].together(work)

    @rule(seconds=st.sampled_from([0.5, 4.0, HOLD, 90_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(who=who)
    def close_and_go_on(self, who: int) -> None:
        self.stores[who].close()
        self.forget_claims(self.owners[who])
        self.owners[who] = max(self.owners) + 1

    def forget_claims(self, owner: int) -> None:
        for key in [key for key, claim in self.claims.items() if claim.owner[0] == owner]:
            del self.claims[key]

    @rule(who=who)
    def die_and_come_back(self, who: int) -> None:
        self.die(self.stores[who])
        self.stores[who] = self.fresh()
        self.owners[who] = max(self.owners) + 1

    def die(self, dying: Any) -> None:
        if dying._db is not None:
            dying._db.close()
            dying._db = None

    @rule(who=who)
    def clear(self, who: int) -> None:
        self.stores[who].clear()
        self.rows.clear()

    @rule(who=who, days=st.integers(1, 3))
    def prune_nothing_that_is_used(self, who: int, days: int) -> None:
        for store in self.stores:
            store.claim([key for key in KEYS if self.good(key)], 4)
        assert self.stores[who].prune(max_age=days * 86_400).vectors == 0

    @invariant()
    def rows_and_claims_in_the_file_are_those_of_the_model(self) -> None:
        info = self.stores[0].info()
        assert info.vectors == len(self.rows)
        assert info.in_flight == sum(self.live(key) for key in self.claims)
        assert self.stores[1].present(KEYS) == set(self.rows)


THOROUGH = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.slow
def test_three_stores_on_one_file_behave_like_plain_dictionaries() -> None:
    run_state_machine_as_test(Stores, settings=THOROUGH)


@pytest.mark.slow
def test_three_stores_on_one_server_behave_like_plain_dictionaries(redis_server: Any) -> None:
    class StoresOnRedis(Stores):
        def __init__(self) -> None:
            with redis_server.client() as client:
                client.flushall()
            super().__init__()

        def fresh(self) -> Store:
            address = RedisAddress(redis_server.url)
            return RedisStore(address, clock=lambda: self.now, claim_seconds=HOLD)

        def die(self, dying: Any) -> None:
            dying.server.close()

    run_state_machine_as_test(StoresOnRedis, settings=THOROUGH)
