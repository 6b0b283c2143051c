"""A cache file that is removed or replaced while it is open is noticed at the next use."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.cache.cache import Cache
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.local import LocalServer

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows removes no file that is open"
)

Make = Callable[..., VectorStore]
Vector = Callable[..., np.ndarray]


def remove(path: Path) -> None:
    path.unlink()


def remove_all(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace(path: Path) -> None:
    """Replaced by another cache, with the old log left beside it."""
    other = path.with_name("other.sqlite3")
    store = VectorStore(other)
    store.open()
    store.close()
    os.replace(other, path)


def remove_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def remove_index(path: Path) -> None:
    Path(f"{path}-shm").unlink()


def whole(path: Path) -> bool:
    db = sqlite3.connect(path)
    (found,) = db.execute("PRAGMA integrity_check").fetchall()
    db.close()
    return bool(found == ("ok",))


@pytest.mark.parametrize(
    ("move", "others"),
    [
        *[(move, others) for move in (remove, remove_all, remove_folder) for others in (0, 1)],
        *[(move, others) for move in (replace, remove_index) for others in (0, 1)],
        (remove_log, 0),
    ],
)
def test_rows_go_to_the_file_that_the_path_names(
    tmp_path: Path,
    store_on: Make,
    keys: list[bytes],
    vector: Vector,
    caplog: pytest.LogCaptureFixture,
    move: Callable[[Path], None],
    others: int,
) -> None:
    path = tmp_path / "folder" / "vectors.sqlite3"
    stores = [store_on(path) for _ in range(1 + others)]
    for number, store in enumerate(stores):
        store.claim(keys, 8)
        store.put([(keys[number], vector())])
    move(path)
    for number, store in enumerate(stores):
        store.put([(keys[10 + number], vector())])
        store.put([(keys[15 + number], vector())])
    put = {keys[place + number] for number in range(1 + others) for place in (10, 15)}
    assert store_on(path).present(keys) >= put
    for store in stores:
        store.close()
    assert store_on(path).present(keys) >= put
    assert whole(path)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 + others
    assert all(f"the cache {path} was removed or replaced" in line for line in said)


@pytest.mark.parametrize("move", [remove, remove_all, remove_folder, replace])
def test_no_row_is_read_from_a_file_that_is_gone(
    path: Path,
    store_on: Make,
    keys: list[bytes],
    vector: Vector,
    move: Callable[[Path], None],
) -> None:
    store = store_on(path)
    store.claim(keys, 8)
    store.put([(key, vector()) for key in keys])
    move(path)
    assert store.claim(keys[:4], 8).hits == {}
    assert store.present(keys) == set()


async def test_a_folder_that_was_removed_is_not_made_again_when_the_cache_is_closed(
    tmp_path: Path,
    store_on: Make,
    keys: list[bytes],
    vector: Vector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = store_on(tmp_path / "folder" / "vectors.sqlite3")
    store.put([(keys[0], vector())])
    store.claim(keys, 8)
    shutil.rmtree(tmp_path / "folder")
    await Cache(store).close()
    assert not (tmp_path / "folder").exists()
    assert not caplog.records


def test_a_row_that_is_written_as_the_file_goes_is_written_again(
    path: Path, store_on: Make, keys: list[bytes], vector: Vector, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_on()
    store.open()
    written = store._put

    def put(rows: Any) -> None:
        written(rows)
        if not gone:
            gone.append(1)
            path.unlink()

    gone: list[int] = []
    monkeypatch.setattr(store, "_put", put)
    store.put([(keys[0], vector())])
    assert store_on().present(keys) == {keys[0]}


def test_writes_together_into_a_file_that_is_removed_meanwhile_are_done_in_the_new_one(
    path: Path, store_on: Make, keys: list[bytes], vector: Vector, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_on()
    store.open()
    store.claim(keys[:2], 2)
    turns = []

    def work() -> set[bytes]:
        store.put([(keys[0], vector())])
        if not turns:
            path.unlink()
        turns.append(1)
        return store.confirm(keys[1:2])

    assert store.together(work) == {keys[1]}  # the new file has no claims
    assert len(turns) == 2
    assert store_on().present(keys) == {keys[0]}
    assert caplog.text.count("was removed or replaced") == 1


def test_a_file_of_somebody_else_in_its_place_is_left_alone_and_gone_without(
    path: Path, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    store = store_on()
    store.open()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()
    path.write_text("notes " * 100)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="not a cache file"):
            store.put([(keys[0], vector())])
    assert path.read_text() == "notes " * 100
    path.unlink()
    store.put([(keys[0], vector())])
    assert store_on().present(keys) == {keys[0]}


def test_a_client_stores_its_vectors_and_the_next_process_pays_for_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "nexusflow_integrations")
    with LocalServer("hash") as server:
        client = NexusFlow(server.api_key, base_url=server.base_url, cache=path, dimensions=64)
        client.embed("before")
        path.unlink()
        client.embed(["one", "two"])
        store = VectorStore(path)
        keyer = store.keyer(base_url=client.base_url, model=client.model, dimensions=64)
        assert len(store.present([keyer("one"), keyer("two")])) == 2
        store.close()
    assert len(caplog.records) == 1


def test_the_target_of_a_symbolic_link_is_created(
    tmp_path: Path, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    target = tmp_path / "disk" / "of mine" / "vectors.sqlite3"
    link = tmp_path / "cache.sqlite3"
    link.symlink_to(target)
    store = store_on(link)
    store.put([(keys[0], vector())])
    assert link.is_symlink()
    assert store_on(target).present(keys) == {keys[0]}
    assert store.info().bytes > 4096
    store.close()
    assert {file.name for file in tmp_path.iterdir()} == {"cache.sqlite3", "disk"}


def test_a_symbolic_link_that_leads_elsewhere_is_followed(
    tmp_path: Path, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    link = tmp_path / "cache.sqlite3"
    link.symlink_to(tmp_path / "one")
    store = store_on(link)
    store.put([(keys[0], vector())])
    link.unlink()
    link.symlink_to(tmp_path / "two")
    store.put([(keys[1], vector())])
    assert store_on(tmp_path / "two").present(keys) == {keys[1]}
    assert store_on(tmp_path / "one").present(keys) == {keys[0]}


def test_a_symbolic_link_to_itself_is_unavailable(tmp_path: Path, store_on: Make) -> None:
    link = tmp_path / "cache.sqlite3"
    link.symlink_to(link)
    with pytest.raises(StoreUnavailable, match="cannot be"):
        store_on(link).open()
