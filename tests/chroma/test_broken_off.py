"""A collection stays usable after a sync that was killed or lost its disk or server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import httpx
import pytest
from chromadb.api.base_http_client import BaseHTTPClient
from chromadb.errors import InternalError

from nexusflow_integrations import errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection, sync_documents
from nexusflow_integrations.chroma_collections.calls import Calls
from nexusflow_integrations.local import LocalServer

from .conftest import KEY, ChromaRun
from .test_one_writer import counted
from .test_sync_documents import held

SLICE = 20
CONCURRENCY = 2
IN_FLIGHT = 40 * 3 + 2 * SLICE
"""Texts that may be paid for and not written: three slabs of the stream, and two slices."""

OLD = {f"id{n}": f"old text {n}" for n in range(400)}
NEW = {f"id{n}": f"new text {n}" for n in range(100, 900)}
CHANGED, GONE = OLD.keys() & NEW.keys(), OLD.keys() - NEW.keys()

SYNC = f"""
import json, resource, sys
import chromadb
import httpx
from nexusflow_integrations import errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection, sync_documents

folder, address, room = sys.argv[1:]
source = json.load(sys.stdin)
function = NexusFlowEmbeddingFunction(
    {KEY!r}, api_base=address, dimensions=64, max_concurrency={CONCURRENCY}
)
collection = open_collection(chromadb.PersistentClient(path=folder), "docs", function)
if int(room):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
done = 0

def progress(count):
    global done
    done += count
    print(done, flush=True)

try:
    sync_documents(collection, ids=[*source], documents=[*source.values()], slice_size={SLICE},
                   progress=progress, verify=False)
except errors.CollectionError as error:
    print(json.dumps([str(error), sorted(error.finished)]), flush=True)
"""


@pytest.fixture
def paid() -> Iterator[LocalServer]:
    """A server with some latency that notes every text."""
    with LocalServer("hash", latency_ms=10, record_texts=True) as server:
        yield server


def started(folder: Path, server: LocalServer, room: int = 0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SYNC, str(folder), server.base_url, str(room)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(NEW))
    process.stdin.close()
    process.stdin = None  # communicate would write to it
    return process


def fill(collection: Any) -> None:
    sync_documents(collection, ids=[*OLD], documents=[*OLD.values()])


def check(collection: Any) -> None:
    """Check that no old passage is removed before all new ones are stored."""
    texts = {name: document for name, (document, _) in held(collection).items()}
    for name in CHANGED:
        assert texts[name] in (OLD[name], NEW[name])
    if missing := GONE - texts.keys():
        assert NEW.items() <= texts.items(), f"{len(missing)} removed too early"


def paid_twice(server: LocalServer) -> int:
    return len(server.stats.received) - len(set(server.stats.received))


@pytest.mark.parametrize(
    ("seed", "number"),
    [
        pytest.param(1, signal.SIGKILL, id="kill -9", marks=pytest.mark.slow),
        pytest.param(2, signal.SIGKILL, id="kill -9, later", marks=pytest.mark.slow),
        pytest.param(3, signal.SIGINT, id="Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_and_run_again_it_has_lost_nothing_and_pays_only_for_the_rest(
    tmp_path: Path, paid: LocalServer, seed: int, number: signal.Signals
) -> None:
    moments = random.Random(seed)
    function = NexusFlowEmbeddingFunction(KEY, api_base=paid.base_url, dimensions=64)
    collection = open_collection(chromadb.PersistentClient(path=str(tmp_path)), "docs", function)
    fill(collection)
    paid.reset_stats()
    for kills in range(1, 3):
        process = started(tmp_path, paid)
        assert process.stdout is not None
        already = len(held(collection).items() & {(k, (v, None)) for k, v in NEW.items()})
        after = already + moments.randrange(0, 250)
        for line in process.stdout:
            if int(line) > after:
                break
        time.sleep(moments.random() * 0.05)
        os.kill(process.pid, number)
        process.communicate(timeout=60)
        check(collection)
        assert paid_twice(paid) <= kills * IN_FLIGHT
    done = sync_documents(collection, ids=[*NEW], documents=[*NEW.values()])
    assert {name: text for name, (text, _) in held(collection).items()} == NEW
    assert done.removed in (0, len(GONE))
    assert set(paid.stats.received) == set(NEW.values())
    assert paid_twice(paid) <= 2 * IN_FLIGHT
    assert counted(tmp_path) == len(NEW)


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_passages_and_names_what_was_paid_for(
    tmp_path: Path, paid: LocalServer
) -> None:
    function = NexusFlowEmbeddingFunction(KEY, api_base=paid.base_url, dimensions=64)
    collection = open_collection(chromadb.PersistentClient(path=str(tmp_path)), "docs", function)
    fill(collection)
    paid.reset_stats()
    room = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    output, trouble = started(tmp_path, paid, room + 150_000).communicate(timeout=100)
    said, finished = json.loads(output.splitlines()[-1])
    assert "writing" in said, trouble
    check(collection)
    have = {text for text, _ in held(collection).values()}
    named = {[*NEW.values()][place] for place in finished}
    assert len(set(paid.stats.received) - have - named) <= IN_FLIGHT
    assert not have & named
    sync_documents(collection, ids=[*NEW], documents=[*NEW.values()])
    assert counted(tmp_path) == len(NEW)


def test_a_write_that_failed_inside_the_store_is_not_repeated_but_a_read_is() -> None:
    attempts = []

    def write() -> None:
        attempts.append(1)
        raise InternalError("Database error: (code: 13) database or disk is full")

    with pytest.raises(errors.CollectionError, match=r"writing 20 documents failed: .*is full"):
        Calls(None, timeout=30)("writing 20 documents", write)
    assert len(attempts) == 1
    with pytest.raises(errors.CollectionError, match="reading failed 3 times: InternalError"):
        Calls(None, timeout=30)("reading", write)
    assert len(attempts) == 4


def test_a_write_is_repeated_while_a_proxy_has_no_server() -> None:
    def answer(status: int) -> None:
        request = httpx.Request("POST", "http://127.0.0.1")
        response = httpx.Response(status, request=request, text="<html>Bad Gateway</html>")
        BaseHTTPClient._raise_chroma_error(response)

    statuses = [200, 504, 502]
    Calls(None, timeout=30)("writing 20 documents", lambda: answer(statuses.pop()))
    assert not statuses
    with pytest.raises(errors.CollectionError, match="writing 20 documents failed: Exception"):
        Calls(None, timeout=30)("writing 20 documents", lambda: answer(403))


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_is_waited_for(
    chroma: ChromaRun, paid: LocalServer
) -> None:
    function = NexusFlowEmbeddingFunction(KEY, api_base=paid.base_url, dimensions=64)
    collection = open_collection(
        chromadb.HttpClient(host="127.0.0.1", port=chroma.port), "docs", function
    )
    fill(collection)
    paid.reset_stats()
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if done - count < 300 <= done:
            chroma.kill()
            threading.Thread(target=chroma.start).start()

    synced = sync_documents(
        collection, ids=[*NEW], documents=[*NEW.values()], slice_size=50, progress=progress
    )
    assert (synced.added, synced.changed, synced.removed) == (500, 300, 100)
    assert {name: text for name, (text, _) in held(collection).items()} == NEW
    assert paid_twice(paid) == 0


@pytest.mark.slow
def test_a_server_that_does_not_come_back_is_an_error_and_the_next_run_pays_for_the_rest(
    chroma: ChromaRun, paid: LocalServer
) -> None:
    function = NexusFlowEmbeddingFunction(
        KEY, api_base=paid.base_url, dimensions=64, max_concurrency=CONCURRENCY
    )
    collection = open_collection(
        chromadb.HttpClient(host="127.0.0.1", port=chroma.port), "docs", function
    )
    fill(collection)
    paid.reset_stats()
    fields: dict[str, Any] = {"ids": [*NEW], "documents": [*NEW.values()], "slice_size": SLICE}
    killed = False

    def progress(count: int) -> None:
        nonlocal killed
        if not killed:
            killed = True
            chroma.kill()

    with pytest.raises(errors.CollectionError, match="times: ConnectError") as caught:
        sync_documents(collection, **fields, progress=progress, store_timeout=1)
    assert caught.value.finished
    chroma.start()
    check(collection)
    written = {text for text, _ in held(collection).values()} & set(NEW.values())
    assert len(set(paid.stats.received)) - len(written) <= IN_FLIGHT
    paid.reset_stats()
    assert sync_documents(collection, **fields).removed == len(GONE)
    assert set(paid.stats.received) == set(NEW.values()) - written
