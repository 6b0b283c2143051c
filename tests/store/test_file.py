"""The cache file never changes foreign files, reports write errors, and leaks nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations._core.cache import file as cache_file
from nexusflow_integrations._core.cache.file import APPLICATION_ID, SCHEMA_VERSION
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.cache.keys import Keyer
from nexusflow_integrations._core.pace.in_file import SharedPacer
from nexusflow_integrations._core.pace.shared import account_id
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import CacheError

Make = Callable[..., VectorStore]
Vector = Callable[..., np.ndarray]


def filled(path: Path, rows: int = 200) -> list[bytes]:
    """Make a good cache file of ``rows`` vectors; return its keys."""
    keyer = Keyer(base_url="https://a.example/v1", model="m", dimensions=256)
    keys = [keyer(str(number)) for number in range(rows)]
    store = VectorStore(path)
    vectors = np.random.default_rng(3).standard_normal((rows, 256)).astype(np.float32)
    store.put(list(zip(keys, vectors, strict=True)))
    store.close()
    return keys


def text_file(path: Path) -> None:
    path.write_text("my notes, which no cache should ever touch\n" * 50)


def short_file(path: Path) -> None:
    path.write_bytes(b"x")


def foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine(x)")
    db.close()


def foreign_database_in_wal_mode(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE vector(k, v)")
    db.commit()
    db.close()


def foreign_application(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine(x)")
        db.execute("PRAGMA application_id = 252006674")
        db.execute("PRAGMA user_version = 1")
    db.close()


def newer_version(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()


def cut_off(path: Path) -> None:
    filled(path)
    os.truncate(path, path.stat().st_size // 2)


def cut_off_in_the_first_page(path: Path) -> None:
    filled(path)
    os.truncate(path, 3000)


def without_a_table(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE claim")
    db.close()


def overwritten_schema(path: Path) -> None:
    filled(path)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * 3996)


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (text_file, "not a cache file"),
    (short_file, "not a cache file"),
    (foreign_database, "another SQLite database"),
    (foreign_database_in_wal_mode, "another SQLite database"),
    (foreign_application, "another SQLite database"),
    (newer_version, "newer version"),
    (cut_off, "damaged"),
    (cut_off_in_the_first_page, "damaged|not a cache file"),
    (without_a_table, "damaged"),
    (overwritten_schema, "damaged|not a cache file"),
]


@pytest.mark.parametrize(
    ("make", "says"), [pytest.param(*case, id=case[0].__name__) for case in REFUSED]
)
def test_a_file_that_is_not_a_complete_cache_is_refused_and_not_changed(
    make: Callable[[Path], None], says: str, path: Path, store_on: Make
) -> None:
    make(path)
    before = path.read_bytes()
    store = store_on(path)
    for _ in range(2):
        with pytest.raises(CacheError, match=says) as caught:
            store.open()
    store.close()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    assert str(path) in str(caught.value)
    assert "was not changed" in str(caught.value)


def test_damage_inside_the_file_is_an_error_when_it_is_read_and_the_file_is_not_changed(
    path: Path, store_on: Make
) -> None:
    keys = filled(path, 100)
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for page in range(pages // 2, pages):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
    before = path.read_bytes()
    store = store_on(path)
    assert len(store.claim(keys[:5], 256).hits) == 5
    with pytest.raises(CacheError, match="damaged"):
        store.claim(keys, 256)
    store.close()
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_cache(
    path: Path, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    path.touch()
    store = store_on(path)
    store.put([(keys[0], vector())])
    assert store.present(keys) == {keys[0]}


def test_a_folder_is_refused(tmp_path: Path, store_on: Make) -> None:
    with pytest.raises(CacheError, match="is a folder"):
        store_on(tmp_path).open()


def test_the_header_says_whose_file_it_is(path: Path) -> None:
    filled(path, 1)
    header = path.read_bytes()[:100]
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
    assert int.from_bytes(header[60:64], "big") == SCHEMA_VERSION


def test_a_file_that_stays_locked_makes_the_cache_unavailable(
    path: Path, store_on: Make, keys: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    monkeypatch.setattr(cache_file, "BUSY_SECONDS", 0.1)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    store = store_on(path)
    with pytest.raises(StoreUnavailable, match="locked"):
        store.claim(keys, 8)
    writer.execute("ROLLBACK")
    writer.close()
    assert store.claim(keys, 8).mine == keys


def test_a_file_system_without_a_write_ahead_log_is_named(
    path: Path, store_on: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutWal(sqlite3.Connection):
        """What SQLite does where shared memory is missing: it keeps the old journal mode."""

        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            return super().execute(statement.replace("= WAL", "= DELETE"), *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: connect(*args, factory=WithoutWal, **more)
    )
    with pytest.raises(StoreUnavailable, match="network file systems"):
        store_on(path).open()


# -- read-only -------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(job: Callable[[], str]) -> str:
    """Run ``job`` without root's power over permissions; return what it returns."""
    if os.getuid() != 0:
        return job()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            said = job()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif("sys.platform == 'win32'", reason="permissions of POSIX")
@pytest.mark.parametrize(
    ("file_mode", "folder_mode"),
    [
        pytest.param(0o444, 0o777, id="file"),
        pytest.param(0o444, 0o555, id="file and folder"),
        pytest.param(0o666, 0o555, id="folder"),
        pytest.param(None, 0o555, id="folder without a file"),
        pytest.param(0o000, 0o777, id="unreadable file"),
    ],
)
def test_a_store_without_write_permission_is_unavailable_and_is_not_changed(
    open_folder: Path, file_mode: int | None, folder_mode: int
) -> None:
    path = open_folder / "cache.db"
    if file_mode is not None:
        filled(path)
        path.chmod(file_mode)
    before = path.read_bytes() if path.exists() else None
    open_folder.chmod(folder_mode)

    def job() -> str:
        try:
            VectorStore(path).open()
        except StoreUnavailable as error:
            return f"unavailable: {error}"
        return "opened"

    said = as_nobody(job)
    assert said.startswith("unavailable: "), said
    assert str(path) in said
    open_folder.chmod(0o755)
    assert (path.read_bytes() if path.exists() else None) == before


# -- full ------------------------------------------------------------------------------------------

Work = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        sys.platform == "linux"
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("only root may mount a disk in memory")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def check_filled(path: Path, done: dict[str, Any], store_on: Make) -> None:
    assert done["said"], "there was room for everything"
    assert "cannot be used" in done["said"]
    assert done["kept"] > 100
    assert done["present"] == done["kept"]
    copy = path.parent.parent / "copy.db"  # on a disk with room
    for suffix in ("", "-wal"):
        if Path(f"{path}{suffix}").exists():
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    assert store_on(copy).info().vectors == done["kept"]


def test_a_full_disk_keeps_what_was_acknowledged(
    small_disk: Path, work: Work, outcome: Callable[..., Any], store_on: Make
) -> None:
    path = small_disk / "cache.db"
    check_filled(path, outcome(work("fill", path=str(path), limit=None, rows=10_000)), store_on)


@pytest.mark.skipif("sys.platform == 'win32'", reason="a limit of POSIX")
def test_a_file_that_may_not_grow_keeps_what_was_acknowledged(
    tmp_path: Path, work: Work, outcome: Callable[..., Any], store_on: Make
) -> None:
    path = tmp_path / "folder" / "cache.db"
    done = outcome(work("fill", path=str(path), limit=500_000, rows=10_000))
    check_filled(path, done, store_on)


def test_a_disk_that_is_full_from_the_start_is_unavailable(small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(StoreUnavailable):
        VectorStore(small_disk / "cache.db").open()


# -- what is in it ---------------------------------------------------------------------------------


def test_neither_a_text_nor_the_key_nor_an_instruction_is_in_any_byte(
    path: Path, store_on: Make, vector: Vector
) -> None:
    secret = "sk-air-0123456789abcdef"
    store = store_on(path)
    url = "https://a.example/v1"
    keyer = store.keyer(base_url=url, model="m", dimensions=8)
    key = keyer("Instruct: find it the patient's diagnosis")
    pacer = SharedPacer(
        store,
        account_id(base_url=url, key=ApiKey(secret), model="m"),
        requests_per_minute=60,
        tokens_per_minute=60,
    )
    store.claim([key, keyer("another patient")], 8)
    pacer.lease(1, 10)
    store.put([(key, vector())])
    files = [Path(f"{path}{suffix}") for suffix in ("", "-wal", "-shm")]
    content = b"".join(file.read_bytes() for file in files)
    store.close()
    content += path.read_bytes()
    assert key in content
    for hidden in (secret, secret[7:], "patient", "diagnosis", "Instruct", "find it"):
        assert hidden.encode() not in content
        assert hidden.encode("utf-16-le") not in content


def test_accounts_are_distinguished_by_url_key_and_model() -> None:
    ids = {
        account_id(base_url=url, key=ApiKey(key), model=model)
        for url in ("https://a", "https://b")
        for key in ("k1", "k2")
        for model in ("m", "n")
    }
    assert len(ids) == 8
    assert {len(one) for one in ids} == {16}


@pytest.mark.parametrize("size", [64, 1024])
def test_a_vector_takes_its_bytes_and_little_more(path: Path, store_on: Make, size: int) -> None:
    store = store_on(path)
    keyer = Keyer(base_url="https://a.example/v1", model="m", dimensions=size)
    vectors = np.random.default_rng(5).standard_normal((3_000, size)).astype(np.float32)
    rows = [(keyer(str(number)), vector) for number, vector in enumerate(vectors)]
    for start in range(0, 3_000, 100):
        store.put(rows[start : start + 100])
    store.close()
    each = path.stat().st_size / 3_000
    assert 4 * size < each < 4 * size + 600
