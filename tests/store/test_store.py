"""A store finds, claims, keeps and drops rows correctly, with a simulated clock."""

from __future__ import annotations

import copy
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from nexusflow_integrations._core.cache import file as cache_file
from nexusflow_integrations._core.cache import in_file
from nexusflow_integrations._core.cache.file import default_path
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.cache.keys import Keyer
from nexusflow_integrations._core.cache.upkeep import Pruned
from nexusflow_integrations._core.unavailable import StoreUnavailable

if TYPE_CHECKING:
    from conftest import Clock

Make = Callable[..., VectorStore]
Vector = Callable[..., np.ndarray]
DAY = 86_400

both = pytest.mark.parametrize("kept_in", ["file", "redis"])
"""Marks tests that run with a file and with a server."""

# -- finding ---------------------------------------------------------------------------------------


@both
def test_a_stored_vector_is_returned_bit_for_bit(
    store: VectorStore, keyer: Keyer, store_on: Make
) -> None:
    vectors = np.random.default_rng(7).standard_normal((600, 64)).astype(np.float32)
    vectors[0, :2] = np.float32(1e-42), np.float32(-0.0)
    rows = [(keyer(str(number)), vector) for number, vector in enumerate(vectors)]
    store.put(rows)
    for reader in (store, store_on()):
        claimed = reader.claim([key for key, _ in rows], 64)
        assert not claimed.mine
        assert not claimed.busy
        for key, vector in rows:
            assert claimed.hits[key].dtype == np.float32
            assert claimed.hits[key].tobytes() == vector.tobytes()


@both
@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(np.array([1, 2, 3], np.float32), id="another size"),
        pytest.param(np.array([1, np.nan, 3, 4], np.float32), id="not a number"),
        pytest.param(np.array([1, np.inf, 3, 4], np.float32), id="infinite"),
        pytest.param(np.zeros(4, np.float32), id="all zeros"),
        pytest.param(np.array([], np.float32), id="empty"),
    ],
)
@pytest.mark.parametrize("dimensions", [4, None])
def test_a_row_that_is_not_a_vector_counts_as_absent_and_is_replaced(
    store: VectorStore, keys: list[bytes], bad: np.ndarray, dimensions: int | None
) -> None:
    good = np.array([1, 2, 3, 4], np.float32)
    store.put([(keys[0], bad), (keys[1], good)])
    claimed = store.claim(keys[:2], dimensions)
    assert claimed.mine == keys[:1]
    assert list(claimed.hits) == keys[1:2]
    store.put([(keys[0], good)])
    assert set(store.claim(keys[:2], dimensions).hits) == set(keys[:2])


def test_a_damaged_row_counts_as_absent(
    store: VectorStore, keys: list[bytes], vector: Vector, path: Path
) -> None:
    store.put([(key, vector()) for key in keys[:4]])
    store.close()
    with sqlite3.connect(path) as db:
        for key, value in zip(keys, (b"123", "text", 7), strict=False):
            db.execute("UPDATE vector SET v = ? WHERE k = ?", (value, key))
    db.close()
    for dimensions in (8, None):
        claimed = store.claim(keys[:4], dimensions)
        assert list(claimed.hits) == keys[3:4]
        assert set(claimed.mine) == set(keys[:3])
        store.release(claimed.mine)


@both
def test_without_a_size_all_hits_have_the_size_of_the_newest_vector(
    store: VectorStore, keys: list[bytes], vector: Vector
) -> None:
    store.put([(key, vector(size=8)) for key in keys[:3]])
    store.put([(keys[3], vector(size=4))])
    claimed = store.claim(keys[:4], None)
    assert list(claimed.hits) == [keys[3]]
    assert claimed.mine == keys[:3]


@both
def test_a_key_that_is_asked_for_twice_is_claimed_once(
    store: VectorStore, keys: list[bytes]
) -> None:
    assert store.claim([keys[0], keys[1], keys[0]], 8).mine == keys[:2]


@both
def test_empty_lists_of_keys_have_no_effect(store: VectorStore) -> None:
    assert store.claim([], 8) == ({}, [], [], 0)
    store.put([])
    store.release([])
    store.renew([])
    assert store.present([]) == set()
    assert store.info().vectors == 0


@both
def test_present_tells_what_has_a_row_and_claims_nothing(
    store: VectorStore, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    store.put([(keys[0], vector())])
    store.claim([keys[1]], 8)
    assert store.present(keys) == {keys[0]}
    assert set(store_on().claim(keys, 8).mine) == set(keys[2:])


@both
def test_thousands_of_keys_are_claimed_at_once(store: VectorStore, keyer: Keyer) -> None:
    keys = [keyer(str(number)) for number in range(3_000)]
    assert store.claim(keys, 64).mine == keys
    assert store.claim(keys, 64).busy == keys


# -- claims ----------------------------------------------------------------------------------------


@both
def test_a_claimed_key_is_busy_for_all_callers(
    store: VectorStore, store_on: Make, keys: list[bytes]
) -> None:
    assert store.claim(keys[:3], 8).mine == keys[:3]
    claimed = store_on().claim(keys[:5], 8)
    assert claimed.busy == keys[:3]
    assert claimed.mine == keys[3:5]
    assert store.claim(keys[:1], 8).busy == keys[:1]


@both
def test_a_waiting_caller_finds_the_stored_vector(
    store: VectorStore, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    other = store_on()
    store.claim(keys[:2], 8)
    assert other.claim(keys[:2], 8).busy == keys[:2]
    store.put([(keys[0], vector(5))])
    claimed = other.claim(keys[:2], 8)
    assert claimed.hits[keys[0]].tolist() == vector(5).tolist()
    assert claimed.busy == keys[1:2]
    assert store.info().in_flight == 1


@both
def test_a_released_claim_is_free_for_others_and_was_not_paid_for(
    store: VectorStore, store_on: Make, keys: list[bytes]
) -> None:
    store.claim(keys[:2], 8)
    store.release(keys[:1])
    claimed = store_on().claim(keys[:2], 8)
    assert claimed.mine == keys[:1]
    assert claimed.busy == keys[1:2]
    assert claimed.repaid == 0


@both
def test_no_owner_releases_or_renews_the_claim_of_another(
    store: VectorStore, store_on: Make, keys: list[bytes], clock: Clock
) -> None:
    other = store_on()
    store.claim(keys[:1], 8)
    other.release(keys[:1])
    assert other.claim(keys[:1], 8).busy == keys[:1]
    clock.now += 9
    other.renew(keys[:1])
    clock.now += 2
    assert other.claim(keys[:1], 8).mine == keys[:1]


@both
def test_a_claim_that_runs_out_is_taken_over_and_counted_as_repaid_if_it_was_sent(
    store: VectorStore, store_on: Make, keys: list[bytes], clock: Clock
) -> None:
    store.claim(keys[:3], 8)
    assert store.confirm(keys[:2]) == set()
    clock.now += 9.9
    other = store_on()
    assert other.claim(keys[:2], 8).busy == keys[:2]
    clock.now += 0.1
    claimed = other.claim(keys[:4], 8)
    assert claimed.mine == keys[:4]
    assert claimed.repaid == 2  # the others had been claimed, not sent
    store.renew(keys[:2])
    store.release(keys[:2])
    assert store.claim(keys[:2], 8).busy == keys[:2]


@both
def test_an_expired_claim_of_the_same_process_does_not_count_as_repaid(
    store: VectorStore, keys: list[bytes], clock: Clock
) -> None:
    store.claim(keys[:1], 8)
    store.confirm(keys[:1])
    clock.now += 11
    claimed = store.claim(keys[:1], 8)
    assert claimed.mine == keys[:1]
    assert claimed.repaid == 0


@both
def test_a_claim_is_confirmed_as_long_as_nobody_has_taken_it(
    store: VectorStore, store_on: Make, keys: list[bytes], vector: Vector, clock: Clock
) -> None:
    store.claim(keys[:4], 8)
    clock.now += 60
    other = store_on()
    other.claim(keys[:1], 8)
    other.put([(keys[1], vector())])
    other.release(keys[2:3])
    assert store.confirm(keys[:6]) == {*keys[:2], *keys[4:6]}
    assert other.claim(keys[2:4], 8).busy == keys[2:4]
    assert other.confirm(keys[:1]) == set()


@both
def test_a_claim_of_one_call_does_not_belong_to_another_of_the_same_process(
    store: VectorStore, store_on: Make, keys: list[bytes], clock: Clock
) -> None:
    assert store.claim(keys[:2], 8, call=1).mine == keys[:2]
    assert store.confirm(keys[:1], 1) == set()
    assert store.confirm(keys[:2], 2) == set(keys[:2])
    store.release(keys[:2], 2)
    clock.now += 10
    store.renew(keys[:2], 2)
    claimed = store.claim(keys[:2], 8, call=2)
    assert (claimed.mine, claimed.repaid) == (keys[:2], 1)
    assert store.confirm(keys[:2], 1) == set(keys[:2])
    store.release(keys[:2], 1)
    assert store.confirm(keys[:2], 2) == set()
    store.close()
    assert store_on().claim(keys[:2], 8).mine == keys[:2]


@both
def test_no_more_are_claimed_than_asked_for(
    store: VectorStore, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    store.put([(keys[0], vector())])
    store.claim(keys[1:3], 8)
    claimed = store_on().claim(keys, 8, most=4)
    assert (list(claimed.hits), claimed.busy) == (keys[:1], keys[1:3])
    assert claimed.mine == keys[3:7]
    assert store.info().in_flight == 6
    assert store.claim(keys[7:], 8, most=0).mine == []


def test_writes_together_are_all_done_or_none(
    store: VectorStore, keys: list[bytes], vector: Vector
) -> None:
    store.claim(keys[:2], 8)

    def half() -> None:
        store.put([(keys[0], vector())])
        store.release(keys[1:2])
        1 / 0  # noqa: B018

    def whole() -> set[bytes]:
        store.put([(keys[0], vector())])
        return store.confirm(keys[1:3])

    with suppress(ZeroDivisionError):
        store.together(half)
    assert store.present(keys) == set()
    assert store.claim(keys[:2], 8).busy == keys[:2]
    assert store.together(whole) == {keys[2]}
    assert store.present(keys) == {keys[0]}


@both
def test_a_renewed_claim_stays_valid(
    store: VectorStore, store_on: Make, keys: list[bytes], clock: Clock
) -> None:
    store.claim(keys[:2], 8)
    store.confirm(keys[:2])
    for _ in range(5):
        clock.now += 6
        store.renew(keys[:1])
    claimed = store_on().claim(keys[:2], 8)
    assert claimed.busy == keys[:1]
    assert claimed.repaid == 1


@both
def test_a_clock_that_is_set_back_does_not_extend_a_claim_by_hours(
    store: VectorStore, store_on: Make, keys: list[bytes], clock: Clock
) -> None:
    store.claim(keys[:2], 8)
    clock.now -= 3600
    store.renew(keys[:1])
    claimed = store_on().claim(keys[:2], 8)
    assert claimed.busy == keys[:1]
    assert claimed.mine == keys[1:2]


FAR = 4_102_444_800.0
"""The year 2100."""


def rewrite_claim(store: Any, key: bytes, since: object, until: object, owner: object = 5) -> None:
    """Put other times into a claim, as this package never does."""
    if isinstance(store, VectorStore):
        with store.transaction() as db:
            db.execute(
                "UPDATE claim SET since = ?, until = ?, owner = ? WHERE k = ?",
                (since, until, owner, key),
            )
    else:
        with store.server._connected().client() as client:
            words = client.hget("nexusflow:claims", key).split()
            words[0], words[2:4] = str(owner).encode(), [str(since).encode(), str(until).encode()]
            client.hset("nexusflow:claims", key, b" ".join(words))


@both
def test_no_claim_is_believed_for_longer_than_a_claim_can_last(
    store: VectorStore, store_on: Make, keys: list[bytes], clock: Clock
) -> None:
    store.claim(keys[:1], 8)
    rewrite_claim(store, keys[0], clock.now, FAR)
    other = store_on()
    assert other.claim(keys[:1], 8).busy == keys[:1]
    clock.now += 10
    assert other.info().in_flight == 0
    assert other.claim(keys[:1], 8).mine == keys[:1]


@both
@pytest.mark.parametrize(
    ("since", "until"),
    [
        pytest.param(FAR, FAR + 10, id="in the future"),
        pytest.param(0.0, FAR, id="since 1970"),
        pytest.param("inf", "inf", id="infinite"),
        pytest.param("-inf", "inf", id="always"),
        pytest.param("nan", "nan", id="not a number"),
        pytest.param("yesterday", "tomorrow", id="words"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_an_impossible_claim_is_ignored(
    store: VectorStore, store_on: Make, keys: list[bytes], since: object, until: object
) -> None:
    store.claim(keys[:1], 8)
    rewrite_claim(store, keys[0], since, until)
    other = store_on()
    assert other.info().in_flight == 0
    assert other.claim(keys[:1], 8).mine == keys[:1]
    assert other.info().in_flight == 1


@both
@pytest.mark.parametrize("owner", [-1, 2**63 - 1, "me", "ffffffffffffffffffffffff"])
def test_a_claim_of_an_impossible_owner_is_not_an_error(
    store: VectorStore, store_on: Make, keys: list[bytes], clock: Clock, owner: object
) -> None:
    store.claim(keys[:1], 8)
    rewrite_claim(store, keys[0], clock.now, clock.now + 10, owner)
    other = store_on()
    for one in (store, other):
        one.renew(keys[:1])
        one.release(keys[:1])
    clock.now += 10
    assert other.claim(keys[:1], 8).mine == keys[:1]


def test_claims_of_another_boot_are_ignored(
    store: VectorStore, store_on: Make, keys: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.claim(keys[:2], 8)
    monkeypatch.setattr(in_file, "boot_number", lambda: 7)
    after = store_on()
    assert after.info().in_flight == 0
    assert after.claim(keys[:2], 8).mine == keys[:2]


def test_a_wall_clock_that_jumps_ends_no_claim(
    store_on: Make, keys: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = store_on(clock=None), store_on(clock=None)
    one.claim(keys[:1], 8)
    wall = time.time
    for jump in (-60, 60, -86_400, 86_400):
        monkeypatch.setattr(time, "time", lambda jump=jump: wall() + jump)
        assert other.claim(keys[:1], 8).busy == keys[:1]
        monkeypatch.setattr(time, "time", wall)


@both
def test_closing_gives_up_all_claims(store: VectorStore, store_on: Make, keys: list[bytes]) -> None:
    store.claim(keys, 8)
    store.close()
    claimed = store_on().claim(keys, 8)
    assert claimed.mine == keys
    assert claimed.repaid == 0


def test_abandoned_claims_are_dropped_after_a_week(
    path: Path, store_on: Make, keys: list[bytes], clock: Clock
) -> None:
    def claims() -> int:
        db = sqlite3.connect(path)
        count: int = db.execute("SELECT count(*) FROM claim").fetchone()[0]
        db.close()
        return count

    store_on().claim(keys, 8)
    clock.now += 6 * DAY
    store_on().open()
    assert claims() == len(keys)
    clock.now += 2 * DAY
    store_on().open()
    assert claims() == 0


def test_looking_again_at_what_is_found_or_busy_needs_no_write(
    store: VectorStore,
    store_on: Make,
    keys: list[bytes],
    vector: Vector,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_file, "BUSY_SECONDS", 0.1)
    store.put([(keys[0], vector())])
    store.claim(keys[1:2], 8)
    other = store_on()
    other.open()
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    claimed = other.claim(keys[:2], 8)
    assert list(claimed.hits) == keys[:1]
    assert claimed.busy == keys[1:2]
    with pytest.raises(StoreUnavailable, match="locked"):
        other.claim(keys[2:3], 8)
    writer.execute("ROLLBACK")
    writer.close()
    assert other.claim(keys[2:3], 8).mine == keys[2:3]


@both
def test_a_put_that_fails_keeps_nothing_and_leaves_the_store_usable(
    store: VectorStore, keys: list[bytes], vector: Vector
) -> None:
    store.claim(keys[:2], 8)
    with pytest.raises(ValueError, match="could not convert"):
        store.put([(keys[0], vector()), (keys[1], "not a vector")])  # type: ignore[list-item]
    assert store.present(keys) == set()
    store.put([(keys[0], vector())])
    assert store.present(keys) == {keys[0]}


# -- care ------------------------------------------------------------------------------------------


def test_info_tells_rows_by_model_and_the_hit_rate(
    store: VectorStore, store_on: Make, vector: Vector, clock: Clock
) -> None:
    one = store.keyer(base_url="https://a.example/v1", model="m", dimensions=None)
    other = store.keyer(base_url="https://a.example/v1", model="n", dimensions=8)
    day = int(clock.now) // DAY * DAY
    store.claim([one("a"), one("b"), one("c"), other("a")], None)
    store.put([(one(text), vector()) for text in "abc"])
    store.put([(other("a"), vector()), (Keyer(base_url="", model="", dimensions=8)("a"), vector())])
    store.claim([one("a"), one("b")], None)
    clock.now += 3 * DAY
    store.claim([one("a"), one("b")], None)
    store.close()
    info = store_on().info()
    assert [(rows.base_url, rows.model, rows.dimensions, rows.vectors) for rows in info.models] == [
        ("https://a.example/v1", "m", None, 3),
        ("https://a.example/v1", "n", 8, 1),
        ("?", "?", None, 1),
    ]
    assert info.vectors == 5
    assert (info.hits, info.misses, info.hit_rate) == (4, 4, 0.5)
    assert (info.created, info.used) == (day, day + 3 * DAY)
    assert info.bytes == store.path.stat().st_size + Path(f"{store.path}-wal").stat().st_size


def test_the_rows_of_a_kind_are_counted_up_to_the_last_prefix_there_is(
    store: VectorStore, vector: Vector
) -> None:
    for first in (0x00, 0x7F, 0xFF):
        prefix = bytes([first]) * 4
        store._kinds[prefix] = keyer = Keyer(base_url="u", model=f"{first}", dimensions=8)
        keyer.prefix = prefix
        store.put([(prefix + bytes([last]) * 20, vector()) for last in (0x00, 0xFF)])
    assert [rows.vectors for rows in store.info().models] == [2, 2, 2]


def test_reading_a_missing_cache_does_not_create_it(store: VectorStore) -> None:
    info = store.info()
    assert (info.vectors, info.bytes, info.hit_rate, info.created) == (0, 0, 0.0, None)
    assert store.prune(max_age=0) == store.clear() == Pruned(0, 0)
    assert not store.path.exists()


def test_reading_the_same_rows_again_on_the_same_day_writes_nothing(
    store: VectorStore, store_on: Make, keys: list[bytes], vector: Vector, clock: Clock
) -> None:
    store.put([(key, vector()) for key in keys])
    clock.now += 2 * DAY
    reader = store_on()
    reader.claim(keys, 8)
    wal = Path(f"{store.path}-wal")
    before = wal.read_bytes()
    for _ in range(3):
        reader.claim(keys, 8)
    assert wal.read_bytes() == before


def test_prune_by_age_removes_what_was_not_used_and_spares_what_was(
    store: VectorStore, store_on: Make, keyer: Keyer, vector: Vector, clock: Clock
) -> None:
    keys = [keyer(str(number)) for number in range(1_023)]
    store.put([(key, vector()) for key in keys])
    clock.now += 10 * DAY
    store.claim(keys[300:301], 8)  # its neighbours, 256 rows in all, stay with it
    clock.now += 10 * DAY
    store.put([(keyer("new"), vector())])
    assert store.prune(max_age=25 * DAY).vectors == 0
    assert store.prune(max_age=15 * DAY).vectors == 1_023 - 256
    left = store_on().present([*keys, keyer("new")])
    assert {keys[300], keyer("new")} < left
    assert len(left) == 257


def test_prune_by_size_comes_down_to_it_with_the_least_recently_used_first(
    store: VectorStore, keyer: Keyer, clock: Clock
) -> None:
    vectors = np.random.default_rng(1).standard_normal((1_000, 256)).astype(np.float32)
    keys = [keyer(str(number)) for number in range(1_000)]
    for start in range(0, 1_000, 100):
        store.put(list(zip(keys, vectors, strict=True))[start : start + 100])
        clock.now += DAY
    store.close()
    size = store.info().bytes
    pruned = store.prune(max_bytes=size // 2)
    after = store.info()
    assert size * 0.4 < after.bytes <= size // 2
    assert pruned.vectors == 1_000 - after.vectors
    assert pruned.bytes >= size // 2
    assert store.present(keys) == set(keys[pruned.vectors :])
    assert store.prune(max_bytes=size).vectors == 0


def test_clear_removes_all_vectors_and_shrinks_the_file(
    store: VectorStore, keyer: Keyer, vector: Vector
) -> None:
    store.put([(keyer(str(number)), vector(size=1024)) for number in range(300)])
    cleared = store.clear()
    assert cleared.vectors == 300
    assert cleared.bytes > 300 * 4096
    info = store.info()
    assert (info.vectors, info.models, info.hits, info.misses) == (0, (), 0, 0)
    store.put([(keyer("x"), vector())])
    assert store.info().vectors == 1


@both
def test_other_processes_continue_while_one_prunes(
    store: VectorStore, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    other = store_on()
    store.put([(key, vector()) for key in keys])
    other.claim(keys, 8)
    store.clear()
    assert other.claim(keys, 8).mine == keys
    other.put([(keys[0], vector())])
    assert store.present(keys) == {keys[0]}


# -- life ------------------------------------------------------------------------------------------


def test_making_a_store_touches_no_file(path: Path, store_on: Make) -> None:
    store_on()
    store_on(path.parent / "folder" / "deep" / "file")
    assert list(path.parent.iterdir()) == []


def test_the_folder_is_made_and_only_the_owner_may_read_the_file(
    tmp_path: Path, store_on: Make
) -> None:
    store = store_on(tmp_path / "a" / "b" / "cache.db")
    store.open()
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a" / "b" / "cache.db-wal").stat().st_mode & 0o777 == 0o600


def test_a_closed_store_leaves_one_file_and_opens_again(
    store: VectorStore, keys: list[bytes], vector: Vector
) -> None:
    store.put([(keys[0], vector())])
    store.close()
    store.close()
    assert list(store.path.parent.iterdir()) == [store.path]
    assert store.present(keys) == {keys[0]}


def test_a_pickled_store_is_another_owner_in_the_other_process(
    path: Path, keys: list[bytes], vector: Vector
) -> None:
    store = VectorStore(path, claim_seconds=33)
    store.put([(keys[0], vector())])
    store.claim(keys[1:2], 8)
    for twin in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        assert (twin.path, twin.claim_seconds) == (path, 33)
        claimed = twin.claim(keys[:2], 8)
        assert list(claimed.hits) == keys[:1]
        assert claimed.busy == keys[1:2]
        twin.release(keys[1:2])
        assert twin.claim(keys[1:2], 8).busy == keys[1:2]
        twin.close()
    store.close()


def test_a_relative_path_means_where_the_store_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = VectorStore("cache.db")
    monkeypatch.chdir("/")
    assert store.path == tmp_path / "cache.db"


@pytest.mark.parametrize("name", ["a b.db", "100%.db", "who?.db", "a#b.db", "向量.db"])
def test_any_file_name_works(
    tmp_path: Path, name: str, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    store = store_on(tmp_path / name)
    store.put([(keys[0], vector())])
    store.close()
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert store.present(keys) == {keys[0]}


@pytest.mark.skipif("sys.platform in ('win32', 'darwin')", reason="other folders by convention")
def test_true_means_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_on: Make
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_path() == tmp_path / "xdg" / "nexusflow" / "vectors.sqlite3"
    assert store_on(True).path == default_path()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/to/be/ignored")
    assert default_path() == tmp_path / ".cache" / "nexusflow" / "vectors.sqlite3"
    assert store_on("~/here.db").path == tmp_path / "here.db"


def test_false_is_not_a_path() -> None:
    with pytest.raises(ValueError, match="path"):
        VectorStore(False)


@both
def test_many_threads_may_use_one_store(store_on: Make, keyer: Keyer, vector: Vector) -> None:
    store = store_on(claim_seconds=600)
    keys = [keyer(str(number)) for number in range(200)]
    paid: list[bytes] = []

    def work() -> None:
        for start in range(0, 200, 10):
            mine = store.claim(keys[start : start + 10], 8).mine
            paid.extend(mine)
            store.put([(key, vector()) for key in mine])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(paid) == sorted(keys)
    assert store.present(keys) == set(keys)
