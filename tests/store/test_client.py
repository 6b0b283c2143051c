"""``cache=`` works end to end: the server counts the texts paid for."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.cache.cache import store_at
from nexusflow_integrations._core.redis.address import address_or_path
from nexusflow_integrations.errors import CacheError
from nexusflow_integrations.local import LocalServer

Work = Callable[..., "subprocess.Popen[str]"]
Outcome = Callable[..., Any]

both = pytest.mark.parametrize("kept_in", ["file", "redis"])
"""Marks tests that run with a file and with a server."""

TEXTS = [f"text number {number}" for number in range(400)]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[LocalServer]:
    """Answers after 20 ms, or as many as the test asks for."""
    latency = getattr(request, "param", 20)
    with LocalServer("hash", latency_ms=latency, record_texts=True) as running:
        yield running


@pytest.fixture
def client_of(place: str, server: LocalServer) -> Callable[..., NexusFlow]:
    def make(**settings: Any) -> NexusFlow:
        usual: dict[str, Any] = {"base_url": server.base_url, "cache": place}
        return NexusFlow(server.api_key, **{**usual, **settings})

    return make


@pytest.fixture
def call(work: Work, place: str, server: LocalServer) -> Callable[..., subprocess.Popen[str]]:
    """Start a process that embeds through the client."""

    def start(texts: list[str], ready: Path | None = None, **settings: Any) -> Any:
        return work(
            "call",
            path=place,
            base_url=server.base_url,
            api_key=server.api_key,
            texts=texts,
            settings=settings,
            ready=str(ready or ""),
        )

    return start


@both
def test_the_next_process_finds_vectors_that_were_paid_for(
    call: Callable[..., Any], outcome: Outcome, server: LocalServer
) -> None:
    first = outcome(call(TEXTS))
    assert (first["cached"], server.stats.texts) == (0, 400)
    second = outcome(call(TEXTS[::-1]))
    assert (second["cached"], second["requests"], server.stats.texts) == (400, 0, 400)
    assert second["checksum"] == pytest.approx(first["checksum"])


@both
def test_processes_on_one_corpus_pay_once(
    tmp_path: Path,
    call: Callable[..., Any],
    outcome: Outcome,
    server: LocalServer,
    start_together: Callable[[Path, int], None],
) -> None:
    ready = tmp_path / "ready"
    started = [call(TEXTS, ready) for _ in range(3)]
    start_together(ready, 3)
    done = [outcome(one) for one in started]
    assert server.stats.duplicates == {}
    assert server.stats.texts == 400
    assert sum(one["cached"] for one in done) == 800
    assert {tuple(one["shape"]) for one in done} == {(400, 1024)}
    assert len({one["checksum"] for one in done}) == 1


@pytest.mark.slow
@both
@pytest.mark.parametrize("server", [200], indirect=True)  # a second and more, to be killed in
@pytest.mark.parametrize("trial", range(2))
def test_after_a_kill_the_next_run_pays_again_for_no_more_than_was_in_flight(
    trial: int, call: Callable[..., Any], outcome: Outcome, server: LocalServer
) -> None:
    killed = call(TEXTS, max_concurrency=4)
    until = time.monotonic() + 300
    while server.stats.texts < 80 + 80 * trial:
        assert time.monotonic() < until
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    while server.stats.in_flight:
        time.sleep(0.01)
    assert server.stats.texts < 400
    done = outcome(call(TEXTS, max_concurrency=4))
    twice = server.stats.duplicates
    assert set(twice.values()) <= {2}
    assert len(twice) <= 4 * 10
    assert server.stats.texts == 400 + len(twice)
    assert len(twice) <= done["repaid"] <= 4 * 10
    assert done["cached"] >= 400 - done["requests"] * 10
    assert any("paid for again" in line for line in done["logged"])


@pytest.mark.parametrize(
    ("kept_in", "limit"),
    [
        pytest.param("file", "requests", id="requests-file"),
        pytest.param("file", "tokens", id="tokens-file", marks=pytest.mark.slow),
        pytest.param("redis", "requests", id="requests-redis", marks=pytest.mark.slow),
        pytest.param("redis", "tokens", id="tokens-redis", marks=pytest.mark.slow),
    ],
)
def test_processes_with_one_key_keep_its_limit_together(
    tmp_path: Path,
    place: str,
    work: Work,
    outcome: Outcome,
    start_together: Callable[[Path, int], None],
    limit: str,
) -> None:
    quotas = (
        {"requests_per_minute": 1_200} if limit == "requests" else {"tokens_per_minute": 20_000}
    )
    with LocalServer("hash", **quotas) as server:  # type: ignore[arg-type]
        ready = tmp_path / "ready"
        started = [
            work(
                "call",
                path=place,
                base_url=server.base_url,
                api_key=server.api_key,
                texts=[f"{who} {number}" for number in range(500)],
                settings=quotas,
                ready=str(ready),
            )
            for who in ("one", "other")
        ]
        start_together(ready, 2)
        done = [outcome(one) for one in started]
        stats = server.stats
        assert stats.texts == 1_000
        # Each for itself would have a quarter or more refused.
        assert stats.statuses.get(429, 0) <= 5
        assert all(one["requests"] >= 50 for one in done)


@both
def test_another_model_size_instruction_or_address_never_gets_the_same_vectors(
    client_of: Callable[..., NexusFlow], server: LocalServer
) -> None:
    client_of().embed(TEXTS[:10])
    variants: list[tuple[dict[str, Any], str]] = [
        ({"dimensions": 1024}, "document"),
        ({"dimensions": 64}, "document"),
        ({"query_instruction": "Find: "}, "query"),
        ({"base_url": server.base_url.replace("127.0.0.1", "localhost")}, "document"),
    ]
    for count, (settings, role) in enumerate(variants, start=2):
        client = client_of(**settings)
        vectors = client.embed(TEXTS[:10], role=role)  # type: ignore[call-overload]
        assert vectors.shape == (10, settings.get("dimensions", 1024))
        assert client.usage.cached == 0
        assert server.stats.texts == 10 * count
    again = client_of(query_instruction="Find: ")
    again.embed(TEXTS[:10])
    assert again.usage.cached == 10


@both
def test_threads_loops_and_clients_of_one_process_pay_once(
    client_of: Callable[..., NexusFlow], server: LocalServer
) -> None:
    def in_loop() -> Any:
        return asyncio.run(client_of().aembed(TEXTS[:60]))

    with ThreadPoolExecutor(6) as threads:
        jobs = [
            threads.submit(in_loop if number % 2 else lambda: client_of().embed(TEXTS[:60]))
            for number in range(6)
        ]
        results = [job.result(300) for job in jobs]
    assert server.stats.texts == 60
    for vectors in results:
        assert np.array_equal(vectors, results[0])


@both
def test_two_keys_with_one_store_pay_once(place: str) -> None:
    with LocalServer("hash", latency_ms=50, record_texts=True) as server:
        clients = [
            NexusFlow(key, base_url=server.base_url, cache=place)
            for key in ("sk-air-one", "sk-air-two")
        ]
        with ThreadPoolExecutor(2) as threads:
            for job in [threads.submit(client.embed, TEXTS[:100]) for client in clients]:
                job.result(300)
        assert server.stats.duplicates == {}


@both
def test_a_call_that_was_given_up_leaves_nothing_that_the_next_must_wait_for(
    client_of: Callable[..., NexusFlow],
) -> None:
    client = client_of()
    client.embed("the first")
    _store_of(client).claim_seconds = 600

    async def within(seconds: float) -> Any:
        return await asyncio.wait_for(client.aembed(TEXTS), seconds)

    for seconds in (0.0005, 0.002, 0.005, 0.01, 0.02, 0.03):
        with suppress(asyncio.TimeoutError):
            asyncio.run(within(seconds))
    assert asyncio.run(within(300)).shape == (400, 1024)


def test_a_process_that_ends_leaves_one_file(
    path: Path, call: Callable[..., Any], outcome: Outcome
) -> None:
    outcome(call(TEXTS))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@both
@pytest.mark.skipif("sys.platform == 'win32'", reason="a signal of POSIX")
def test_nobody_waits_for_the_claims_of_an_interrupted_process(
    place: str, call: Callable[..., Any], outcome: Outcome, server: LocalServer
) -> None:
    interrupted = call(TEXTS, max_concurrency=2)
    until = time.monotonic() + 300
    while server.stats.texts < 100:
        assert time.monotonic() < until
        time.sleep(0.002)
    interrupted.send_signal(signal.SIGINT)
    interrupted.wait(300)
    store = store_at(address_or_path(place))
    info = store.info()
    store.close()
    assert info.vectors >= 80
    assert info.in_flight == 0


@pytest.mark.parametrize("kind", ["foreign", "newer", "text", "cut off"])
def test_a_file_that_is_not_ours_is_an_error_and_nothing_is_sent(
    path: Path, client_of: Callable[..., NexusFlow], server: LocalServer, kind: str
) -> None:
    if kind == "text":
        path.write_text("notes " * 1000)
    elif kind == "foreign":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE mine(x)")
        db.close()
    else:
        other = client_of(cache=path.with_name("other"))
        other.embed(TEXTS[:50])
        with sqlite3.connect(path.with_name("other")) as db:
            db.execute("VACUUM INTO ?", (str(path),))
        db.close()
        if kind == "newer":
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version = 99")
            db.close()
        else:
            os.truncate(path, path.stat().st_size // 2)
        server.reset_stats()
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(CacheError, match="was not changed"):
            client_of().embed(TEXTS[:50])
    assert server.stats.requests == 0
    assert path.read_bytes() == before


def test_without_a_writable_folder_vectors_arrive_with_one_warning_of_each_kind(
    client_of: Callable[..., NexusFlow],
    server: LocalServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = client_of(cache="/proc/cache.db", requests_per_minute=60_000)
    with caplog.at_level(logging.INFO, "nexusflow_integrations"):
        for _ in range(2):
            assert client.embed(TEXTS[:50]).shape == (50, 1024)
    off, alone = sorted(
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    )
    assert off.startswith("the cache is off until it works again: the cache /proc/cache.db")
    assert alone.startswith(
        "this process sets its own pace until the shared limits can be reached again: "
    )
    assert server.stats.texts == 100


def test_a_disk_that_fills_up_during_a_run_loses_no_vector(
    client_of: Callable[..., NexusFlow], server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(requests_per_minute=60_000)
    client.embed(TEXTS[:100])
    engine_cache = _store_of(client)
    connection = engine_cache._connection()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 20}")
    with caplog.at_level(logging.INFO, "nexusflow_integrations"):
        assert client.embed(TEXTS).shape == (400, 1024)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "full" in warnings[0].getMessage()
    assert server.stats.duplicates == {}


def test_a_process_may_use_any_number_of_caches(
    tmp_path: Path, client_of: Callable[..., NexusFlow]
) -> None:
    def threads() -> int:
        return sum(thread.name == "nexusflow-cache" for thread in threading.enumerate())

    before = threads()
    for number in range(120):
        with client_of(cache=tmp_path / f"{number}.sqlite3", dimensions=64) as client:
            client.embed([f"text {number}"])
    assert threads() - before < 60
    again = client_of(cache=tmp_path / "0.sqlite3", dimensions=64).embed(["text 0"])
    assert again.usage.cached == 1


async def test_a_cache_in_use_stays_open_while_many_others_are_opened(
    tmp_path: Path, client_of: Callable[..., NexusFlow], server: LocalServer
) -> None:
    client = client_of(dimensions=64)
    others = [client_of(cache=tmp_path / f"{n}.sqlite3", dimensions=64) for n in range(80)]
    calls = [other.aembed([f"other {number}"]) for number, other in enumerate(others)]
    await asyncio.gather(client.aembed(TEXTS), *calls, client.aembed(TEXTS))
    assert (await client.aembed(TEXTS)).usage.cached == len(TEXTS)
    assert server.stats.duplicates == {}


def _store_of(client: NexusFlow) -> Any:
    from nexusflow_integrations._core.call.engine import engine

    _, running = engine()
    return running._caches[client._cache].store  # type: ignore[index]


@pytest.mark.parametrize("broken", ["locked", "no folder", "no server"])
def test_verifying_a_cache_that_cannot_be_used_is_an_error_and_not_the_first_run(
    broken: str, path: Path, tmp_path: Path, server: LocalServer
) -> None:
    place = str(path)
    if broken == "no folder":
        (tmp_path / "file").touch()
        place = str(tmp_path / "file" / "vectors.sqlite3")
    elif broken == "no server":
        place = "redis://:a-password@127.0.0.1:1/0"
    locker = sqlite3.connect(path, isolation_level=None)
    if broken == "locked":
        locker.execute("PRAGMA locking_mode = EXCLUSIVE")
        locker.execute("BEGIN EXCLUSIVE")
    made: dict[str, Any] = {"base_url": server.base_url, "dimensions": 64, "deadline": 2.0}
    for _ in range(2):
        client = NexusFlow(server.api_key, cache=place, **made)
        with pytest.raises(CacheError, match="neither be compared nor stored") as caught:
            client.verify_cache()
        assert "a-password" not in str(caught.value)
    locker.close()


@both
@pytest.mark.parametrize("settings", [{}, {"document_instruction": "Text: "}])
def test_verify_cache_compares_from_the_second_call_on(
    settings: dict[str, Any], client_of: Callable[..., NexusFlow]
) -> None:
    found = [client_of(dimensions=64, **settings).verify_cache() for _ in range(2)]
    assert found == [False, True]
