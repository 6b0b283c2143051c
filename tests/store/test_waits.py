"""A cache file that is locked, or a Redis server that hangs, delays no call and no exit."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.cache import cache as cache_module
from nexusflow_integrations._core.cache.cache import store_at
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.redis.address import address_or_path
from nexusflow_integrations.errors import APITimeoutError
from nexusflow_integrations.local import LocalServer

both = pytest.mark.parametrize("kept_in", ["file", "redis"])

SOON = 8.0
"""Seconds: far more than a deadline of one second, and less than a store was waited for once."""


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer("hash", latency_ms=5, record_texts=True) as running:
        yield running


@pytest.fixture
def client_of(place: str, server: LocalServer) -> Callable[..., NexusFlow]:
    def make(**settings: Any) -> NexusFlow:
        usual: dict[str, Any] = {"base_url": server.base_url, "cache": place, "dimensions": 64}
        return NexusFlow(server.api_key, **{**usual, **settings})

    return make


@pytest.fixture
def hung(kept_in: str, path: Path, request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Have the store hang for as long as a ``with`` block lasts."""

    @contextmanager
    def locked() -> Iterator[None]:
        db = sqlite3.connect(path, isolation_level=None, timeout=60)
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            db.execute("ROLLBACK")
            db.close()

    @contextmanager
    def stopped() -> Iterator[None]:
        redis = request.getfixturevalue("redis_server")
        redis.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            redis.signal(signal.SIGCONT)

    return locked if kept_in == "file" else stopped


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.01)


@contextmanager
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON


def stored(place: str, client: NexusFlow, texts: list[str]) -> bool:
    """Whether the store, looked at from outside, holds the vectors of all ``texts``."""
    store = store_at(address_or_path(place))
    try:
        keyer = store.keyer(base_url=client.base_url, model=client.model, dimensions=64)
        keys = {keyer(text) for text in texts}
        return store.present(list(keys)) == keys
    finally:
        store.close()


@both
@pytest.mark.parametrize("limits", [{}, {"requests_per_minute": 600}], ids=["", "paced"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_deadline_holds_whatever_the_store_does(
    client_of: Callable[..., NexusFlow],
    hung: Callable[[], Any],
    place: str,
    limits: dict[str, float],
    opened: bool,
) -> None:
    client_of(cache=None).embed("imports are done")
    store = store_at(address_or_path(place))
    store.open()
    store.close()
    client = client_of(deadline=1.0, **limits)
    if opened:
        client_of(**limits).embed("the store is open")
    calls: list[Callable[[], object]] = [
        lambda: client.estimate(["e"]),
        lambda: client.embed([f"embed {n}" for n in range(30)]),
        lambda: asyncio.run(client.aembed([f"aembed {n}" for n in range(30)])),
        lambda: client.embed("query", role="query"),
        lambda: list(client.embed_stream(f"stream {n}" for n in range(30))),
    ]
    with hung():
        for call in calls:
            with soon(), suppress(APITimeoutError):
                call()


@both
def test_without_a_deadline_a_call_waits_a_moment_and_goes_on_without_the_cache(
    client_of: Callable[..., NexusFlow],
    hung: Callable[[], Any],
    place: str,
    server: LocalServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "FIRST_PAUSE", 0.1)
    caplog.set_level(logging.WARNING, "nexusflow_integrations")
    client = client_of()
    client.embed("known")
    with hung():
        with soon():
            client.embed("the first to wait")
        with soon():
            for n in range(20):
                client.embed(f"later {n}")
        off = [record.getMessage() for record in caplog.records]
        assert len(off) == 1
        assert off[0].startswith("the cache is off until it works again: ")
    texts = ["the first to wait", *(f"later {n}" for n in range(20))]
    until(lambda: len(caplog.records) == 2)
    assert caplog.records[1].getMessage().startswith("the cache works again: ")
    until(lambda: stored(place, client, texts))
    paid = server.stats.texts
    client_of().embed([*texts, "known"])
    assert server.stats.texts == paid
    assert server.stats.duplicates == {}


def test_vectors_that_the_caller_changes_are_stored_as_they_came(
    client_of: Callable[..., NexusFlow],
    path: Path,
    kept_in: str,
    hung: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "FIRST_PAUSE", 0.1)
    client = client_of()
    client.embed("known")
    with hung():
        vectors = client.embed(["a", "b"])
        right = np.array(vectors)
        vectors[:] = 7.0
    until(lambda: stored(str(path), client, ["a", "b"]))
    assert np.array_equal(client.embed(["a", "b"]), right)


def test_a_disk_that_stalls_holds_up_neither_a_call_nor_its_vectors(
    client_of: Callable[..., NexusFlow], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    client_of(cache=None).embed("imports are done")
    put = VectorStore.put

    def stall(store: VectorStore, rows: Any) -> None:
        free.wait(60)
        put(store, rows)

    monkeypatch.setattr(VectorStore, "put", stall)
    client = client_of(deadline=1.0)
    with soon():
        assert client.embed(["a", "b"]).shape == (2, 64)  # in time, though not yet stored
    free.set()
    until(lambda: stored(place, client, ["a", "b"]))


EXIT = """
    import sys, time
    from nexusflow_integrations import NexusFlow
    place, base_url, key = sys.argv[1:]
    limits = {"requests_per_minute": 600}
    client = NexusFlow(key, base_url=base_url, cache=place, dimensions=64, deadline=1.0, **limits)
    client.estimate(["imports are done"])
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        client.embed([f"text {n}" for n in range(30)])
    except Exception as error:
        assert type(error).__name__ == "APITimeoutError", error
    print("bye", flush=True)
"""


@both
def test_a_process_ends_soon_while_the_store_hangs(
    hung: Callable[[], Any], place: str, server: LocalServer
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(line[4:] for line in EXIT.splitlines()), place,
         server.base_url, server.api_key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        with hung():
            process.stdin.write("\n")
            process.stdin.flush()
            with soon():
                assert process.stdout.readline() == "bye\n"
            with soon():
                process.wait(60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
