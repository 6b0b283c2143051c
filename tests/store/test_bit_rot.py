"""Flipped bits in stored vectors cause typed errors, never wrong vectors."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.pace.in_file import SharedPacer
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import CacheError

Make = Callable[..., Any]
Vector = Callable[..., np.ndarray]

both = pytest.mark.parametrize("kept_in", ["file", "redis"])
"""Marks tests that run with a file and with a server."""

PAGE = 4096


def flip(data: bytes, *bits: int) -> bytes:
    flipped = bytearray(data)
    for bit in bits:
        flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def rewrite(store: Any, key: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change the row of ``key`` behind the store's back."""
    if isinstance(store, VectorStore):
        with store.transaction() as db:
            ((row,),) = db.execute("SELECT v FROM vector WHERE k = ?", (key,)).fetchall()
            db.execute("UPDATE vector SET v = ? WHERE k = ?", (change(row), key))
    else:
        with store.server._connected().client() as client:
            name = b"nexusflow:vector:" + key
            client.set(name, change(client.get(name)))


@both
@pytest.mark.parametrize("dimensions", [8, None])
def test_a_row_with_a_flipped_bit_counts_as_absent_and_is_replaced(
    store: Any, keys: list[bytes], vector: Vector, dimensions: int | None
) -> None:
    chance = random.Random(14)
    store.put([(key, vector(number)) for number, key in enumerate(keys)])
    for _ in range(40):
        number = chance.randrange(len(keys))
        bit = chance.randrange(8 * 36)
        rewrite(store, keys[number], lambda row, bit=bit: flip(row, bit))
        claimed = store.claim(keys, dimensions)
        assert claimed.mine == [keys[number]]
        assert len(claimed.hits) == len(keys) - 1
        store.put([(keys[number], vector(number))])
    hits = store.claim(keys, dimensions).hits
    assert [hits[key].tolist() for key in keys] == [
        vector(number).tolist() for number in range(len(keys))
    ]


@both
def test_rows_that_changed_places_count_as_absent(
    store: Any, keys: list[bytes], vector: Vector
) -> None:
    store.put([(key, vector(number)) for number, key in enumerate(keys)])
    rows: list[bytes] = []
    for key in keys[:2]:
        rewrite(store, key, lambda row: rows.append(row) or row)
    rewrite(store, keys[0], lambda _: rows[1])
    rewrite(store, keys[1], lambda _: rows[0])
    assert store.claim(keys, 8).mine == keys[:2]


@both
def test_damage_is_logged_once(
    store: Any, keys: list[bytes], vector: Vector, caplog: pytest.LogCaptureFixture
) -> None:
    store.put([(key, vector()) for key in keys])
    with caplog.at_level(logging.INFO, "nexusflow_integrations"):
        store.claim(keys, 8)
        assert not caplog.records
        for key in keys[:3]:
            rewrite(store, key, lambda row: flip(row, 5))
        for _ in range(3):
            assert store.claim(keys[:2], 8).hits == {}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"the cache {store.path} is damaged: " in record.message
    assert ": 2 of the vectors just read" in record.message


def test_a_row_whose_own_copy_of_its_key_is_damaged_is_found_by_the_index(
    store: VectorStore, keys: list[bytes], vector: Vector, path: Path
) -> None:
    store.put([(key, vector(number)) for number, key in enumerate(keys)])
    store.close()
    data = path.read_bytes()
    # The key precedes the vector in the table, and the number of the row in the index.
    place = data.index(keys[3] + vector(3).tobytes())
    path.write_bytes(flip(data, 8 * place + 100))
    hits = store.claim(keys, 8).hits
    assert len(hits) == len(keys)
    assert hits[keys[3]].tolist() == vector(3).tolist()


@pytest.fixture
def rotting(store_on: Make, keys: list[bytes], vector: Vector, tmp_path: Path) -> bytes:
    """The bytes of a file with vectors of two sizes, claims, limits and counts in it."""
    store = store_on(tmp_path / "sound.db")
    store.keyer(base_url="https://a.example/v1", model="m", dimensions=8)
    for number, key in enumerate(keys[:15]):
        store.put([(key, vector(number))])
    big = store.keyer(base_url="https://a.example/v1", model="big", dimensions=1024)
    store.put([(big(str(number)), vector(number, size=1024)) for number in range(12)])
    store.claim(keys, 8)
    SharedPacer(store, b"account", requests_per_minute=600, tokens_per_minute=None).lease(3, 1)
    store._checkpoint(store._db)
    return store.path.read_bytes()


def use(store: VectorStore, right: dict[bytes, np.ndarray]) -> list[dict[bytes, np.ndarray]]:
    """Do with ``store`` all that can be done; return what it found."""
    found: list[dict[bytes, np.ndarray]] = []
    small = [key for key, row in right.items() if len(row) == 8]
    pacer = SharedPacer(store, b"account", requests_per_minute=600, tokens_per_minute=None)
    steps: list[Callable[[], Any]] = [
        lambda: found.append(store.claim(small, 8).hits),
        lambda: found.append(store.claim(small, None).hits),
        lambda: found.append(store.claim(list(right), 1024).hits),
        lambda: store.renew(small),
        lambda: store.release(small[:5]),
        lambda: store.put([(key, right[key]) for key in small]),
        lambda: found.append(store.claim(small, 8).hits),
        lambda: store.present(small),
        lambda: pacer.lease(1, 1)[0] < 1 or pytest.fail("a wait that nobody meant"),
        store.info,
        lambda: store.prune(max_age=86_400, max_bytes=10_000),
    ]
    for step in steps:
        with suppress(CacheError, StoreUnavailable):
            step()
    store.close()
    return found


@pytest.mark.parametrize("bits", [1, 30])
def test_a_flipped_bit_anywhere_gives_no_wrong_vector_and_no_error_without_a_type(
    rotting: bytes, store_on: Make, keys: list[bytes], vector: Vector, path: Path, bits: int
) -> None:
    chance = random.Random(bits)
    big = store_on(path).keyer(base_url="https://a.example/v1", model="big", dimensions=1024)
    right = {key: vector(number) for number, key in enumerate(keys)}
    right |= {big(str(number)): vector(number, size=1024) for number in range(12)}
    for _ in range(40):
        flips = [chance.randrange(8 * PAGE, 8 * len(rotting)) for _ in range(bits)]
        path.write_bytes(flip(rotting, *flips))
        for hits in use(store_on(path), right):
            for key, hit in hits.items():
                assert np.array_equal(hit, right[key]), flips
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()


def test_a_damaged_list_of_free_pages_ends_pruning(store: VectorStore, vector: Vector) -> None:
    keyer = store.keyer(base_url="https://a.example/v1", model="m", dimensions=1024)
    store.put([(keyer(str(number)), vector(size=1024)) for number in range(50)])
    store.put([(keyer("last"), vector(size=1024))])
    with store.transaction() as db:
        db.execute("DELETE FROM vector WHERE rowid < 40")
    store.close()
    data = store.path.read_bytes()
    assert int.from_bytes(data[36:40], "big") > 30  # pages on the list of free ones, in the header
    store.path.write_bytes(data[:32] + bytes(4) + data[36:])  # and none where it begins
    with suppress(CacheError, StoreUnavailable):
        store.prune(max_bytes=0)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE block SET used = 'yesterday', created = x'00'",
        "UPDATE block SET used = 1e300, created = -1e300",
        "UPDATE block SET id = 9223372036854775807",
        "UPDATE block SET id = -5",
        "UPDATE counter SET n = 'many'",
        "UPDATE kind SET dimensions = 'eight', base_url = x'ff00ff', model = 7",
        "UPDATE kind SET prefix = x''",
        "UPDATE kind SET prefix = 'text'",
    ],
)
def test_invalid_values_are_left_out_of_the_counts(
    store: VectorStore, keys: list[bytes], vector: Vector, path: Path, statement: str
) -> None:
    store.put([(key, vector()) for key in keys])
    store.close()
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    info = store.info()
    assert info.vectors == sum(rows.vectors for rows in info.models) == len(keys)
    assert info.hit_rate == 0
    assert all(isinstance(rows.base_url, str) for rows in info.models)
    assert info.used is None or 0 <= info.used < 1e11
    store.prune(max_age=86_400)
    store.prune(max_bytes=0)
