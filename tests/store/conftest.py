"""Fixtures: stores on new files or servers, a simulated clock, and real worker processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations._core.cache.cache import Store
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.cache.in_redis import RedisStore
from nexusflow_integrations._core.cache.keys import Keyer
from nexusflow_integrations._core.redis.address import RedisAddress, address_or_path

WORKERS = Path(__file__).parent / "workers.py"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vectors.sqlite3"


@pytest.fixture
def kept_in() -> str:
    """The place of stores: tests that hold for both run with ``file`` and ``redis``."""
    return "file"


@pytest.fixture
def place(kept_in: str, path: Path, request: pytest.FixtureRequest) -> str:
    """The value for ``cache=``."""
    return str(path) if kept_in == "file" else str(request.getfixturevalue("redis_server").url)


@pytest.fixture
def store_on(place: str, clock: Any) -> Iterator[Callable[..., Store]]:
    """Make stores, by default with one file or server and one clock, and close them at the end."""
    stores: list[Store] = []

    usual = address_or_path(place)

    def make(where: Any = usual, **options: Any) -> Store:
        make_one = RedisStore if isinstance(where, RedisAddress) else VectorStore
        stores.append(make_one(where, **{"clock": clock, **options}))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(store_on: Callable[..., VectorStore]) -> VectorStore:
    return store_on()


@pytest.fixture
def keyer() -> Keyer:
    return Keyer(base_url="https://a.example/v1", model="m", dimensions=64)


@pytest.fixture
def work() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``workers.py`` in new processes, and end them after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(job: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(WORKERS), job, json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def start_together() -> Callable[[Path, int], None]:
    """Start a number of workers, which wait for a file, at the same time."""

    def go(ready: Path, count: int) -> None:
        until = time.monotonic() + 300
        while len(list(ready.parent.glob(f"{ready.name}.*"))) < count:
            assert time.monotonic() < until
            time.sleep(0.01)
        ready.touch()

    return go


@pytest.fixture
def outcome() -> Callable[[subprocess.Popen[str]], Any]:
    """Wait for a worker, and return its last line of output, parsed as JSON."""

    def wait(process: subprocess.Popen[str]) -> Any:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        return json.loads(output.splitlines()[-1])

    return wait
