"""Only one ``add_documents`` writes to a Chroma folder at a time; other stores need no lock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from nexusflow_integrations import errors
from nexusflow_integrations._core import one_writer
from nexusflow_integrations.langchain import (
    Added,
    NexusFlowEmbeddings,
    aadd_documents,
    add_documents,
)
from nexusflow_integrations.local import LocalServer

chromadb = pytest.importorskip("chromadb")
langchain_chroma = pytest.importorskip("langchain_chroma")
collections = pytest.importorskip("nexusflow_integrations.chroma_collections")
chroma = pytest.importorskip("nexusflow_integrations.chroma")

Make = Callable[..., NexusFlowEmbeddings]
TWINS = pytest.mark.parametrize("twin", ["sync", "async"])


async def add(twin: str, store: Any, documents: Any, **options: Any) -> Added:
    """Call one of the two."""
    if twin == "sync":
        return add_documents(store, documents, **options)
    return await aadd_documents(store, documents, **options)


def documents_of(count: int, name: str = "text") -> list[Document]:
    return [Document(f"{name} {number}", id=f"{name}-{number}") for number in range(count)]


def in_folder(make: Make, folder: Path) -> Any:
    return langchain_chroma.Chroma("docs", make(), persist_directory=str(folder))


@TWINS
async def test_two_paths_to_one_folder_are_two_writers_and_the_second_pays_nothing(
    twin: str, make: Make, server: LocalServer, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    one, two = (in_folder(make, tmp_path / name) for name in ("real", "link"))
    said = []

    def documents() -> Iterator[Document]:
        yield from documents_of(3)
        with pytest.raises(errors.CollectionError, match="another client") as raised:
            add_documents(two, documents_of(3, "other"))
        said.append(raised.value)

    done = await add(twin, one, documents())
    assert (done.added, len(said), said[0].finished) == (3, 1, {})
    assert server.stats.texts == 3
    done = await add(twin, two, documents_of(3, "other"))
    assert (done.added, two._collection.count()) == (3, 6)


@TWINS
async def test_a_writer_waits_for_another_client_as_long_as_it_is_told(
    twin: str, make: Make, tmp_path: Path
) -> None:
    store = in_folder(make, tmp_path)
    other = chromadb.PersistentClient(path=f"{tmp_path}/.")
    released = threading.Event()

    def hold(begun: threading.Event) -> None:
        with one_writer.only_writer(other, 0):
            begun.set()
            released.wait(20)

    begun = threading.Event()
    thread = threading.Thread(target=hold, args=[begun])
    thread.start()
    begun.wait(20)
    try:
        with pytest.raises(errors.CollectionError, match="writer_wait=SECONDS"):
            await add(twin, store, documents_of(2), writer_wait=0.2)
        threading.Timer(0.2, released.set).start()
        assert (await add(twin, store, documents_of(2), writer_wait=20)).added == 2
    finally:
        released.set()
        thread.join()
    with pytest.raises(errors.ConfigurationError, match="writer_wait"):
        await add(twin, store, documents_of(2), writer_wait=-1)


@TWINS
async def test_runs_over_one_client_do_not_wait_for_each_other(
    twin: str, make: Make, server: LocalServer, tmp_path: Path
) -> None:
    client = chromadb.PersistentClient(path=str(tmp_path))
    function = chroma.NexusFlowEmbeddingFunction(
        server.api_key, api_base=server.base_url, dimensions=64
    )
    collection = collections.open_collection(client, "texts", function)
    store = langchain_chroma.Chroma("docs", make(), client=client)

    def documents() -> Iterator[Document]:
        yield from documents_of(300)
        collections.add_documents(collection, ids=["1"], documents=["one"])
        assert add_documents(store, documents_of(3, "inner")).added == 3

    assert (await add(twin, store, documents())).added == 300
    assert (store._collection.count(), collection.count()) == (303, 1)
    assert one_writer._held == {}


async def test_a_task_that_is_cancelled_while_it_takes_the_lock_leaves_none(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, begun, go_on = one_writer._hold, threading.Event(), threading.Event()

    def slow(path: str, store: Any) -> bool:
        found = hold(path, store)
        begun.set()
        go_on.wait(20)
        return found

    store = in_folder(make, tmp_path)
    monkeypatch.setattr(one_writer, "_hold", slow)
    task = asyncio.create_task(aadd_documents(store, documents_of(3)))
    await asyncio.to_thread(begun.wait, 20)  # the event loop runs on meanwhile
    task.cancel()
    threading.Timer(0.1, go_on.set).start()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert one_writer._held == {}
    monkeypatch.undo()
    assert add_documents(store, documents_of(3)).added == 3


def test_a_closed_client_is_an_error_of_the_store(
    make: Make, server: LocalServer, tmp_path: Path
) -> None:
    store = in_folder(make, tmp_path)
    if not hasattr(store._client, "close"):
        pytest.skip("this version of Chroma cannot close a client")
    store._client.close()
    with pytest.raises(errors.CollectionError, match="reading from Chroma failed"):
        add_documents(store, documents_of(1))
    assert server.stats.requests == 0


class Odd(InMemoryVectorStore):
    """Fails if anybody reads its ``_client``."""

    @property
    def _client(self) -> Any:
        raise RuntimeError("not connected")


class Mocked(InMemoryVectorStore):
    """Has a client with every attribute."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__(embeddings)
        self._client = MagicMock()


@TWINS
@pytest.mark.parametrize("kind", [InMemoryVectorStore, Odd, Mocked, langchain_chroma.Chroma])
async def test_a_store_without_a_folder_takes_no_lock(
    twin: str, kind: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_writer, "_hold", lambda *_: pytest.fail("took a lock"))
    embeddings = make()
    if kind is langchain_chroma.Chroma:
        store = kind(f"docs-{twin}", embeddings, client=chromadb.EphemeralClient())
    else:
        store = kind(embeddings)
    assert (await add(twin, store, documents_of(3))).added == 3
