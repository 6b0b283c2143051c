"""Two real processes never write to a ``PersistentClient`` folder at once, and damage nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import pytest

from nexusflow_integrations import errors
from nexusflow_integrations._core import one_writer
from nexusflow_integrations.chroma_collections import add_documents, open_collection
from nexusflow_integrations.local import LocalServer

from .conftest import KEY
from .test_add_documents import numbered
from .test_embedding_function import Make

WRITER = f"""
import sys
import chromadb
from nexusflow_integrations import errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import (
    add_documents, open_collection, sync_documents,
)

folder, address, name, work, wait = sys.argv[1:]
if "langchain" in work:
    import asyncio
    from langchain_chroma import Chroma
    from langchain_core.documents import Document
    from nexusflow_integrations import langchain
    embeddings = langchain.NexusFlowEmbeddings(
        api_key={KEY!r}, base_url=address, dimensions=64
    )
function = NexusFlowEmbeddingFunction({KEY!r}, api_base=address, dimensions=64)
collection = open_collection(chromadb.PersistentClient(path=folder), "docs", function)
print("open", flush=True)
for turn, line in enumerate(sys.stdin):
    ids = [f"{{name}}-{{turn}}-{{n}}" for n in range(int(line))]
    columns = {{"ids": ids, "documents": [f"text {{id}}" for id in ids]}}
    try:
        if work == "add":
            add_documents(collection, **columns, writer_wait=float(wait))
        elif "langchain" in work:
            store = Chroma("docs", embeddings, persist_directory=folder)
            documents = [Document(f"text {{id}}", id=id) for id in ids]
            if work == "langchain":
                langchain.add_documents(store, documents, writer_wait=float(wait))
            else:
                asyncio.run(
                    langchain.aadd_documents(store, documents, writer_wait=float(wait))
                )
        else:
            columns["metadatas"] = [{{"source": name}}] * len(ids)
            sync_documents(collection, **columns, where={{"source": name}}, remove=False,
                           writer_wait=float(wait))
        print("wrote", flush=True)
    except errors.CollectionError as error:
        print(f"refused: {{error}}", flush=True)
"""

READER = """
import sys
import chromadb
collection = chromadb.PersistentClient(path=sys.argv[1]).get_collection(
    "docs", embedding_function=None
)
count = collection.count()
found = collection.get(include=["embeddings"])
assert len(set(found["ids"])) == len(found["embeddings"]) == count
nearest = collection.query(query_embeddings=found["embeddings"][:50], n_results=1)["distances"]
assert max(row[0] for row in nearest) < 1e-5, nearest
print(count)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, server: LocalServer) -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def start(name: str, work: str, wait: float) -> subprocess.Popen[str]:
        if "langchain" in work:
            pytest.importorskip("langchain_chroma")
        arguments = [str(tmp_path), server.base_url, name, work, str(wait)]
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", WRITER, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        # Chroma itself fails if two processes create a folder at the same time.
        assert says(running[-1]) == "open"
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()


def counted(folder: Path) -> int:
    """How many documents a new process finds, all with their vectors."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "work"), [("add", "sync"), ("langchain", "sync"), ("langchain", "async langchain")]
)
def test_two_processes_that_wait_for_each_other_damage_nothing(
    start: Start, tmp_path: Path, other: str, work: str
) -> None:
    one, two = start("one", other, 120), start("two", work, 120)
    for count in (600, 500):
        for process in (one, two):
            write(process, count)
    assert [says(process) for process in (one, two) for _ in range(2)] == ["wrote"] * 4
    assert counted(tmp_path) == 2 * 1100


@pytest.mark.slow
@pytest.mark.parametrize("work", ["add", "langchain"])
def test_two_processes_that_take_turns_damage_nothing(
    start: Start, tmp_path: Path, work: str
) -> None:
    one, two = start("one", work, 0), start("two", work, 0)
    for _ in range(4):
        for process in (one, two):
            write(process, 300)
            assert says(process) == "wrote"
    assert counted(tmp_path) == 2400


@pytest.mark.parametrize("work", ["sync", "langchain", "async langchain"])
def test_the_second_writer_gets_an_error_that_says_what_to_do(
    client: Any, make: Make, start: Start, tmp_path: Path, server: LocalServer, work: str
) -> None:
    other = start("other", work, 0)
    here = chromadb.PersistentClient(path=str(tmp_path)).get_collection(
        "docs", embedding_function=make()
    )
    with one_writer.only_writer(here, 0):
        write(other, 20)
        assert "another process" in (refused := says(other))
        assert "writer_wait=SECONDS" in refused
    assert server.stats.texts == 0
    write(other, 20)
    assert says(other) == "wrote"


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_no_lock(start: Start, tmp_path: Path, make: Make) -> None:
    killed = start("killed", "add", 0)
    write(killed, 100_000)
    here = chromadb.PersistentClient(path=str(tmp_path)).get_collection(
        "docs", embedding_function=make()
    )
    while not here.count():
        pass
    with pytest.raises(errors.CollectionError, match="another process"):
        add_documents(here, **numbered(10))
    killed.kill()
    killed.wait()
    assert add_documents(here, **numbered(10)).added == 10
    assert counted(tmp_path) == here.count()


@pytest.mark.slow
def test_two_clients_of_one_process_with_different_paths_are_two_writers(
    tmp_path: Path, make: Make
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    one, two = (
        open_collection(chromadb.PersistentClient(path=str(tmp_path / name)), "docs", make())
        for name in ("real", "link")
    )
    with one_writer.only_writer(one, 0):
        add_documents(one, **numbered(300))
        with pytest.raises(errors.CollectionError, match="another client"):
            add_documents(two, **numbered(300, start=300))
    for start in range(300, 2400, 600):
        add_documents(two, **numbered(300, start=start))
        add_documents(one, **numbered(300, start=start + 300))
    assert counted(tmp_path / "real") == 2700


def test_a_folder_that_cannot_be_locked_is_an_error_before_anything_is_paid_for(
    client: Any, make: Make, tmp_path: Path, server: LocalServer
) -> None:
    collection = open_collection(client, "docs", make())
    (tmp_path / "db" / one_writer.LOCK_FILE).mkdir()
    with pytest.raises(errors.CollectionError, match="cannot lock"):
        add_documents(collection, **numbered(3))
    assert server.stats.requests == 0


def test_a_client_that_wrote_last_itself_is_not_opened_anew(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = open_collection(client, "docs", make())
    add_documents(collection, **numbered(3))
    monkeypatch.setattr(collection._client, "start", lambda: pytest.fail("opened anew"))
    add_documents(collection, **numbered(9))
