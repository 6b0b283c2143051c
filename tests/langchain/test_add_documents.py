"""``add_documents`` works with real stores: bad documents are left out, none is paid twice."""

from __future__ import annotations

import asyncio
import copy
import enum
import json
import signal
import subprocess
import sys
import threading
import uuid
from collections import UserDict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.exceptions import ModelError
from langchain_core.vectorstores import InMemoryVectorStore

from nexusflow_integrations import LeftOut, errors
from nexusflow_integrations.langchain import (
    Added,
    NexusFlowEmbeddings,
    aadd_documents,
    add_documents,
    ingestion,
)
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]
REFUSED = "!?" * 4500
"""9,000 tokens for the server, which refuses it, and far fewer by the estimate."""


class Place:
    """A store, and how to look into it."""

    def __init__(self, store: Any, size: Callable[[], int]) -> None:
        self.store = store
        self.size = size


def in_memory(embeddings: NexusFlowEmbeddings) -> Place:
    store = InMemoryVectorStore(embeddings)
    return Place(store, lambda: len(store.store))


def in_chroma(embeddings: NexusFlowEmbeddings) -> Place:
    chroma = pytest.importorskip("langchain_chroma")
    chromadb = pytest.importorskip("chromadb")
    client = chromadb.EphemeralClient()
    name = f"c{uuid.uuid4().hex}"
    store = chroma.Chroma(name, embedding_function=embeddings, client=client)
    return Place(store, lambda: client.get_collection(name).count())


def in_faiss(embeddings: NexusFlowEmbeddings) -> Place:
    faiss = pytest.importorskip("faiss")
    vectorstores = pytest.importorskip("langchain_community.vectorstores")
    docstores = pytest.importorskip("langchain_community.docstore.in_memory")
    index = faiss.IndexFlatL2(64)
    store = vectorstores.FAISS(embeddings, index, docstores.InMemoryDocstore(), {})
    return Place(store, lambda: index.ntotal)


def in_qdrant(embeddings: NexusFlowEmbeddings) -> Place:
    qdrant = pytest.importorskip("langchain_qdrant")
    client_of = pytest.importorskip("qdrant_client")
    client = client_of.QdrantClient(":memory:")
    size = client_of.models.VectorParams(size=64, distance=client_of.models.Distance.COSINE)
    client.create_collection("docs", vectors_config=size)
    store = qdrant.QdrantVectorStore(client, "docs", embedding=embeddings)
    return Place(store, lambda: client.count("docs").count)


STORES = [in_memory, in_chroma, in_faiss, in_qdrant]
Open = Callable[[NexusFlowEmbeddings], Place]


def source(count: int, bad: dict[int, str] | None = None) -> list[Document]:
    """Documents with ids that every store takes."""
    texts = [f"text number {number}" for number in range(count)]
    for place, text in (bad or {}).items():
        texts[place] = text
    return [
        Document(text, id=str(uuid.UUID(int=place + 1)), metadata={"source": f"{place % 3}.pdf"})
        for place, text in enumerate(texts)
    ]


async def add(twin: str, store: Any, documents: Any, **options: Any) -> Added:
    """Call one of the two."""
    if twin == "sync":
        return add_documents(store, documents, **options)
    return await aadd_documents(store, documents, **options)


TWINS = pytest.mark.parametrize("twin", ["sync", "async"])


# -- what is left out ------------------------------------------------------------------------------


@TWINS
@pytest.mark.parametrize("opened", STORES)
async def test_two_refused_of_500_leave_498_in_the_store(
    twin: str, opened: Open, make: Make, server: LocalServer, tmp_path: Path
) -> None:
    documents = source(500, {77: REFUSED, 402: REFUSED + "!"})
    cache = tmp_path / "vectors.sqlite3"
    place = opened(make(cache=cache))
    server.reset_stats()  # Qdrant asks for a vector to learn its size
    done = await add(twin, place.store, documents)
    assert place.size() == done.added == 498
    assert [(left.id, left.source, left.place, left.reason) for left in done.left_out] == [
        (documents[77].id, "2.pdf", 77, "refused"),
        (documents[402].id, "0.pdf", 402, "refused"),
    ]
    assert isinstance(done.left_out[0], LeftOut)
    assert isinstance(done.left_out[0].error, errors.BadRequestError)
    assert done.usage.texts == 500
    assert done.usage.refused == 2
    assert done.usage.tokens == server.stats.tokens > 0
    (found,) = place.store.similarity_search("text number 123", k=1)
    assert found.page_content == "text number 123"

    server.reset_stats()
    again = await add(twin, place.store, documents)
    assert (again.added, again.present, again.differing) == (0, 498, 0)
    assert [left.place for left in again.left_out] == [77, 402]
    assert server.stats.received == (), "only the two were sent, and refused again"

    server.reset_stats()
    elsewhere = opened(make(cache=cache))
    third = await add(twin, elsewhere.store, documents)
    assert third.added == elsewhere.size() == 498
    assert third.usage.cached == 498
    assert server.stats.received == (), "only the two were sent, and refused again"


@TWINS
async def test_blank_pages_and_halves_of_characters_are_left_out_before_anything_is_sent(
    twin: str, make: Make, server: LocalServer
) -> None:
    documents = [
        Document("a", metadata={"source": "a.pdf", "page": 0}),
        Document(" \n", metadata={"source": "a.pdf", "page": 1}),
        Document("half \ud800", id="x"),
        Document("b"),
    ]
    place = in_memory(make())
    done = await add(twin, place.store, documents)
    assert done.added == place.size() == 2
    assert [(left.id, left.place, left.reason, left.source) for left in done.left_out] == [
        (None, 1, "blank", "a.pdf"),
        ("x", 2, "invalid text", None),
    ]
    assert str(done.left_out[0]) == "document 1 (a.pdf): the text is blank"
    assert set(server.stats.received) == {"a", "b"}


def test_every_text_is_sent_once_and_its_vector_is_its_own(make: Make, server: LocalServer) -> None:
    documents = source(130)
    for opened in STORES:
        embeddings = make()
        place = opened(embeddings)
        server.reset_stats()
        add_documents(place.store, documents, slice_size=40)
        assert sorted(server.stats.received) == sorted(one.page_content for one in documents)
    store = in_memory(make())
    add_documents(store.store, documents)
    right = make().embed_documents([one.page_content for one in documents])
    held = [store.store.store[one.id]["vector"] for one in documents]
    assert np.abs(np.array(held) - right).max() < 1e-6
    assert store.store.embeddings._held == ()


@TWINS
async def test_equal_texts_are_sent_once_and_each_has_a_list_of_its_own(
    twin: str, make: Make, server: LocalServer
) -> None:
    place = in_memory(make())
    done = await add(twin, place.store, [Document("same"), Document("same"), Document("other")])
    assert done.added == place.size() == 3
    assert sorted(server.stats.received) == ["other", "same"]
    vectors = [item["vector"] for item in place.store.store.values()]
    vectors[0][0] = 99.0
    assert vectors[1][0] != 99.0


@TWINS
@pytest.mark.parametrize("limited", [False, True])
async def test_a_text_that_is_too_long_is_left_out_or_split_as_the_embeddings_say(
    twin: str, limited: bool, make: Make, server: LocalServer, turns: Any
) -> None:
    long = "word " * 20_000
    options = {"rate_limiter": turns(server)} if limited else {}
    place = in_memory(make(**options))
    done = await add(twin, place.store, source(30, {4: long, 20: long + "b", 21: REFUSED}))
    assert place.size() == done.added == 27
    assert [(left.place, left.reason) for left in done.left_out] == [
        (4, "too long"),
        (20, "too long"),
        (21, "refused"),
    ]
    assert done.left_out[0].message.startswith("the text is too long: it has about 2")
    place = in_memory(make(on_too_long="split", **options))
    assert (await add(twin, place.store, source(5, {4: long}))).added == 5


@TWINS
async def test_a_document_that_the_store_does_not_take_is_left_out_alone(
    twin: str, make: Make
) -> None:
    documents = source(30)
    documents[17].metadata["odd"] = {"nested": "mapping"}
    documents[29].metadata["odd"] = {"nested": "mapping"}
    place = in_chroma(make())
    done = await add(twin, place.store, documents)
    assert place.size() == done.added == 28
    assert [(left.place, left.reason) for left in done.left_out] == [
        (17, "refused by the store"),
        (29, "refused by the store"),
    ]
    assert "Chroma refused it: ValueError" in done.left_out[0].message
    again = await add(twin, place.store, documents)
    assert (again.added, again.present) == (0, 28)
    assert [left.message for left in again.left_out] == [left.message for left in done.left_out]


class Picky(InMemoryVectorStore):
    """Refuses a write with a document whose metadata has ``bad``."""

    error: Exception = ValueError("bad metadata")

    def add_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
        if any("bad" in document.metadata for document in documents):
            raise self.error
        return super().add_documents(documents, ids=ids, **kwargs)

    async def aadd_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
        return self.add_documents(documents, ids=ids, **kwargs)


@TWINS
@pytest.mark.parametrize("kind", ["qdrant", "chroma", "requests"])
@pytest.mark.parametrize("status", [400, 422])
async def test_a_document_that_a_stores_server_refuses_is_left_out_alone(
    twin: str, kind: str, status: int, make: Make
) -> None:
    class Refusal(Exception):
        def __init__(self) -> None:
            if kind == "qdrant":
                self.status_code = status
            if kind == "requests":
                self.response = SimpleNamespace(status_code=status)

        if kind == "chroma":

            def code(self) -> int:
                return status

    class Served(Picky):
        error = Refusal()

    store = Served(make())
    done = await add(twin, store, with_bad(9, [3, 8]))
    assert done.added == len(store.store) == 7
    assert [left.place for left in done.left_out] == [3, 8]
    status = 500
    store.error = Refusal()
    with pytest.raises(errors.CollectionError, match="writing 1 document to Served failed"):
        await add(twin, store, [*source(4), with_bad(9, [8])[8]], slice_size=1)


def with_bad(count: int, bad: Any) -> list[Document]:
    documents = source(count)
    for place in bad:
        documents[place].metadata["bad"] = 1
    return documents


@TWINS
@pytest.mark.parametrize("size", [1, 2, 5])
async def test_refused_documents_are_left_out_even_if_they_fill_whole_slices(
    twin: str, size: int, make: Make
) -> None:
    store, bad = Picky(make()), {0, 1, 5, 6, 7, 8, 9, 19}
    counts: list[int] = []
    options: Any = {"slice_size": size, "progress": counts.append}
    done = await add(twin, store, with_bad(20, bad), **options)
    assert done.added == len(store.store) == 12
    assert {left.place for left in done.left_out} == bad
    assert {left.reason for left in done.left_out} == {"refused by the store"}
    assert sum(counts) == 20


@TWINS
async def test_a_store_that_refuses_all_documents_of_a_run_is_an_error(
    twin: str, make: Make
) -> None:
    store = Picky(make())
    with pytest.raises(errors.CollectionError, match="one by one to Picky failed: ValueError: bad"):
        await add(twin, store, with_bad(3, range(3)), slice_size=1)
    with pytest.raises(errors.CollectionError, match="writing 1 document one by one"):
        await add(twin, store, with_bad(1, [0]))
    with pytest.raises(errors.CollectionError) as raised:
        await add(twin, store, with_bad(3, range(3)))
    assert set(raised.value.finished) == {0, 1, 2}
    await add(twin, store, source(2))
    other = source(2, {0: "another", 1: "text"})  # differs from what the store has
    done = await add(twin, store, [*other, with_bad(3, [2])[2]])
    assert (done.differing, len(done.left_out)) == (2, 1)


@TWINS
@pytest.mark.parametrize("broken", [False, True])
async def test_after_an_error_the_vectors_of_documents_that_the_store_refused_are_kept(
    twin: str, broken: bool, make: Make, server: LocalServer
) -> None:
    class Breaking(Picky):
        def add_documents(self, documents: Any, **kwargs: Any) -> list[str]:
            if broken and len(self.store) == 10:
                raise OSError("the disk is full")
            return super().add_documents(documents, **kwargs)

        async def aadd_documents(self, documents: Any, **kwargs: Any) -> list[str]:
            return self.add_documents(documents, **kwargs)

    store = Breaking(make())
    documents = with_bad(20, [3, 5])
    documents[19].page_content = REFUSED
    with pytest.raises(errors.NexusFlowError) as raised:
        await add(twin, store, documents, slice_size=1, on_refused="raise")
    assert isinstance(raised.value, errors.CollectionError if broken else errors.RefusedTextsError)
    written = {item["text"] for item in store.store.values()}
    assert len(written) == (10 if broken else 17)
    finished = raised.value.finished
    assert {3, 5} <= finished.keys()
    assert {documents[place].page_content for place in finished} == (
        {document.page_content for document in documents} - written - {REFUSED}
    )


@TWINS
@pytest.mark.parametrize("size", [1, 40, 250])
async def test_a_store_that_refuses_250_in_a_row_ends_the_run_before_all_are_paid_for(
    twin: str, size: int, make: Make, server: LocalServer
) -> None:
    store = Picky(make())
    documents = with_bad(20_000, range(10, 20_000))
    with pytest.raises(errors.CollectionError, match="writing 250 documents one by one") as raised:
        await add(twin, store, iter(documents), slice_size=size)
    paid = set(server.stats.received)
    assert len(paid) < 2_000
    assert {documents[place].page_content for place in raised.value.finished} == paid - {
        item["text"] for item in store.store.values()
    }


@TWINS
async def test_a_second_run_leaves_out_what_the_store_refused_in_the_first(
    twin: str, make: Make, server: LocalServer
) -> None:
    store = Picky(make())
    documents = with_bad(3_000, range(0, 3_000, 10))
    done = await add(twin, store, documents)
    assert (done.added, len(done.left_out)) == (2_700, 300)
    done = await add(twin, store, documents)
    assert (done.added, done.present, len(done.left_out)) == (0, 2_700, 300)


class Garbled(InMemoryVectorStore):
    """Answers one look-up with something that its client cannot read."""

    def get_by_ids(self, ids: Any, /) -> list[Document]:
        json.loads("<html>")
        raise AssertionError

    async def aget_by_ids(self, ids: Any, /) -> list[Document]:
        return self.get_by_ids(ids)


@TWINS
async def test_an_answer_that_cannot_be_read_does_not_make_a_stored_document_new(
    twin: str, make: Make, server: LocalServer
) -> None:
    store = Garbled(make())
    (document,) = source(1)
    InMemoryVectorStore.add_documents(store, [document])
    server.reset_stats()
    document.page_content = "another text"
    with pytest.raises(errors.CollectionError, match="reading from Garbled failed: JSONDecodeErr"):
        await add(twin, store, [document])
    assert server.stats.texts == 0


class Numbered(InMemoryVectorStore):
    """Takes only numbers as ids."""

    def get_by_ids(self, ids: Any, /) -> list[Document]:
        for name in ids:
            int(name)
        return super().get_by_ids(ids)

    async def aget_by_ids(self, ids: Any, /) -> list[Document]:
        return self.get_by_ids(ids)

    def add_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
        for name in ids:
            int(name)
        return super().add_documents(documents, ids=ids, **kwargs)

    async def aadd_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
        return self.add_documents(documents, ids=ids, **kwargs)


@TWINS
async def test_an_id_that_the_store_does_not_take_is_left_out_alone(
    twin: str, make: Make, server: LocalServer
) -> None:
    store = Numbered(make())
    documents = [Document(f"text {number}") for number in range(9)]
    ids = ["x", *map(str, range(1, 8)), "y"]
    for added in (7, 0):
        done = await add(twin, store, documents, ids=ids)
        assert (done.added, done.present) == (added, 7 - added)
        assert [(left.id, left.reason) for left in done.left_out] == [
            ("x", "refused by the store"),
            ("y", "refused by the store"),
        ]
    server.reset_stats()
    with pytest.raises(errors.CollectionError, match="reading from Numbered failed: ValueError"):
        await add(twin, store, documents, ids=list("abcdefghi"))
    assert server.stats.texts == 0  # a store that takes none of the ids costs nothing


@TWINS
@pytest.mark.parametrize("opened", [in_chroma, in_memory])
async def test_numbers_that_chroma_would_change_are_left_out_only_there(
    twin: str, opened: Open, make: Make
) -> None:
    place = opened(make())
    documents = source(6)
    for place_of, value in enumerate([10**30, float("nan"), float("inf"), -(2**63), 1.5]):
        documents[place_of].metadata["k"] = value
    done = await add(twin, place.store, documents)
    if opened is in_memory:
        assert done.added == 6
    else:
        assert [(left.place, left.reason) for left in done.left_out] == [
            (number, "invalid metadata") for number in range(3)
        ]
        assert "does not fit into 64 bits" in str(done.left_out[0])
        assert "which Chroma does not keep" in str(done.left_out[1])
    again = await add(twin, place.store, documents)
    assert (again.added, again.present, again.differing) == (0, done.added, 0)


# -- adding again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", STORES)
def test_stored_documents_are_not_paid_for_and_differing_ones_are_not_changed(
    opened: Open, make: Make, server: LocalServer
) -> None:
    place = opened(make())
    add_documents(place.store, source(20))
    server.reset_stats()
    changed = source(25, {3: "another text"})
    changed[4].metadata["source"] = "renamed.pdf"
    changed[5].metadata = {}  # no difference: a store may have added what it has more
    done = add_documents(place.store, changed)
    assert (done.added, done.present, done.differing) == (5, 18, 2)
    assert place.size() == 25
    assert sorted(server.stats.received) == sorted(f"text number {n}" for n in range(20, 25))
    (kept,) = place.store.get_by_ids([changed[3].id])
    assert kept.page_content == "text number 3"


@pytest.mark.parametrize("opened", [in_chroma, in_memory])
@pytest.mark.parametrize(
    ("before", "after", "same"),
    [(1, True, False), (True, 1, False), (0.0, False, False), (1, 1.0, True), (True, True, True)],
)
def test_a_truth_value_differs_from_a_number(
    before: object, after: object, same: bool, opened: Open, make: Make
) -> None:
    place = opened(make())
    for value in (before, after):
        (document,) = source(1)
        document.metadata["k"] = value
        done = add_documents(place.store, [document])
    assert (done.present, done.differing) == (same, not same)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ([1], [True], False),
        ([0, True], [0, 1], False),
        ((1,), (True,), False),
        ({"a": 1}, {"a": True}, False),
        ({"a": [{"b": False}]}, {"a": [{"b": 0}]}, False),
        ({"a": 1}, {"b": 1}, False),
        ([1], [1, 1], False),
        ([1], (1,), False),
        ({"a": [1, float("nan")]}, {"a": [1.0, float("nan")]}, True),
        ({"a": [np.array([1, 2])]}, {"a": [np.array([1, 2])]}, True),
    ],
)
def test_a_truth_value_differs_from_a_number_at_every_depth(
    before: object, after: object, same: bool, make: Make
) -> None:
    place = in_memory(make())
    for value in (before, after):
        (document,) = source(1)
        document.metadata["k"] = value
        done = add_documents(place.store, [document])
    assert (done.present, done.differing) == (same, not same)


@TWINS
@pytest.mark.parametrize("opened", STORES)
async def test_a_document_with_any_metadata_is_recognised(
    twin: str, opened: Open, make: Make, server: LocalServer
) -> None:
    place = opened(make())
    documents = source(4)
    documents[0].metadata = {}
    documents[1].metadata = {"page": None}
    if opened is in_memory:
        documents[2].metadata = {"score": float("nan"), "pages": np.array([1, 2])}
    assert (await add(twin, place.store, documents)).added == 4
    server.reset_stats()
    again = source(4)
    for document, first in zip(again, documents, strict=True):
        document.metadata = copy.deepcopy(first.metadata)
    assert (await add(twin, place.store, again)).present == 4
    assert server.stats.texts == 0
    if opened is in_memory:
        again[2].metadata["pages"] = np.array([1, 3])
        assert (await add(twin, place.store, again)).differing == 1


def test_a_store_that_cannot_be_asked_gets_all(make: Make) -> None:
    class Mute(InMemoryVectorStore):
        def get_by_ids(self, ids: Any, /) -> list[Document]:
            raise NotImplementedError

    store = Mute(make())
    assert add_documents(store, source(5)).added == 5
    assert add_documents(store, source(5)).added == 5
    assert len(store.store) == 5


@pytest.mark.parametrize("method", ["get_by_ids", "add_documents"])
@pytest.mark.parametrize("kind", [RuntimeError, TimeoutError, ConnectionError])
def test_an_error_of_a_signal_handler_is_not_taken_for_one_of_the_store(
    make: Make, kind: type[Exception], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(*_: object) -> None:
        raise kind("the time is over")

    def interrupted(*_: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(InMemoryVectorStore, method, interrupted)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(kind, match="the time is over"):
            add_documents(InMemoryVectorStore(make()), source(5))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ids_that_are_given_go_before_those_of_the_documents(make: Make) -> None:
    place = in_memory(make())
    documents = [Document("a", id="own"), Document("b", id="kept"), Document("c")]
    add_documents(place.store, documents, ids=["given", None, None])
    assert {"given", "kept"} < set(place.store.store)
    assert len(place.store.store) == 3


# -- what cannot be --------------------------------------------------------------------------------


@TWINS
async def test_a_store_with_another_embedding_is_refused(twin: str) -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    with pytest.raises(errors.ConfigurationError, match="DeterministicFakeEmbedding") as raised:
        await add(twin, store, source(3))
    assert isinstance(raised.value, ModelError)
    with pytest.raises(errors.ConfigurationError, match="expected a LangChain VectorStore"):
        await add(twin, object(), source(3))


@TWINS
@pytest.mark.parametrize(
    ("documents", "ids", "said"),
    [
        ("a text", None, "documents must be an iterable, not str"),
        (Document("a"), None, "documents is one document"),
        ([Document("a"), "b"], None, "document 1 is not a LangChain Document but a str"),
        ([Document("a")], "a", r"ids must be a list of ids, not one string: write \[id\]"),
        ([Document("a")], {"a"}, "ids must be a list of ids, not set, which has no order"),
        (
            [Document("a")],
            UserDict(a=1),
            r"ids must be a list of ids, not UserDict: pass its values",
        ),
        ([Document("a")], SimpleNamespace(columns=["a"]), "yields the names of its columns"),
        ([Document("a"), Document("b")], ["x"], "only 1 item in ids, but more in documents"),
        ([Document("a")], ["x", "y"], "only 1 item in documents, but more in ids"),
        ([Document("a"), Document("b")], ["x", "x"], "id 'x' appears twice: at positions 0 and 1"),
    ],
)
async def test_bad_lists_are_refused_before_anything_is_sent(
    twin: str, documents: Any, ids: Any, said: str, make: Make, server: LocalServer
) -> None:
    with pytest.raises(errors.InvalidInputError, match=said):
        await add(twin, in_memory(make()).store, documents, ids=ids)
    assert server.stats.requests == 0


def test_the_error_for_an_async_iterable_names_the_function_that_accepts_it(make: Make) -> None:
    async def documents() -> AsyncIterator[Document]:
        yield Document("a")

    with pytest.raises(errors.InvalidInputError, match="use aadd_documents"):
        add_documents(in_memory(make()).store, documents())  # type: ignore[arg-type]


def test_a_loader_is_distinguished_from_its_documents(make: Make) -> None:
    class Loader:
        def lazy_load(self) -> Iterator[Document]:
            yield Document("a")

    store = in_memory(make()).store
    with pytest.raises(errors.InvalidInputError, match="pass its lazy_load"):
        add_documents(store, Loader())  # type: ignore[arg-type]
    assert add_documents(store, Loader().lazy_load()).added == 1


@TWINS
@pytest.mark.parametrize(
    "setting", [{"slice_size": 0}, {"slice_size": 100_000}, {"on_blank": "skip"}, {"progress": 1}]
)
async def test_an_impossible_setting_is_refused_by_its_name(
    twin: str, setting: dict[str, Any], make: Make, server: LocalServer
) -> None:
    with pytest.raises(errors.ConfigurationError, match=next(iter(setting))):
        await add(twin, in_memory(make()).store, source(3), **setting)
    assert server.stats.requests == 0


@TWINS
async def test_a_document_whose_id_is_not_text_is_left_out(twin: str, make: Make) -> None:
    documents = [Document(text) for text in "abc"]
    done = await add(twin, in_memory(make()).store, documents, ids=["x", "", b"z"])
    assert done.added == 1
    assert [(left.place, left.id, left.reason) for left in done.left_out] == [
        (1, None, "invalid id"),
        (2, None, "invalid id"),
    ]


class Name(str, enum.Enum):
    """Like ``StrEnum`` of Python 3.11, but its ``str`` is ``Name.X``."""

    X = "x"


@TWINS
@pytest.mark.parametrize(
    "kind", ["enum", "numpy text", "numpy number", "pyarrow", "column of pyarrow"]
)
async def test_an_id_is_stored_by_its_value(twin: str, kind: str, make: Make) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    ids: Any = {
        "enum": [Name.X],
        "numpy text": np.array(["x"]),
        "numpy number": np.array([7]),
        "pyarrow": [pyarrow.scalar("x")],
        "column of pyarrow": pyarrow.array(["x"]),
    }[kind]
    place = in_memory(make())
    document = Document("a", metadata={"source": Name.X})
    done = await add(twin, place.store, [document], ids=ids)
    assert not done.left_out
    (name,) = place.store.store
    assert type(name) in (str, int)
    assert name == (7 if kind == "numpy number" else "x")
    with pytest.raises(errors.InvalidInputError, match=f"id {str(name)!r} appears twice"):
        await add(twin, place.store, [Document("a")] * 2, ids=[ids[0], name])
    done = await add(twin, place.store, [Document(" ", metadata={"source": Name.X})], ids=ids)
    assert [(left.id, left.source) for left in done.left_out] == [(str(name), "x")]


@TWINS
async def test_on_refused_raise_raises_when_all_others_are_stored(twin: str, make: Make) -> None:
    place = in_memory(make())
    with pytest.raises(errors.RefusedTextsError, match="all others are in the store") as raised:
        await add(twin, place.store, source(20, {7: REFUSED}), on_refused="raise")
    assert set(raised.value.refused) == {7}
    assert place.size() == 19


@TWINS
async def test_the_error_about_refused_documents_names_those_that_were_left_out(
    twin: str, make: Make
) -> None:
    place, some = in_memory(make()), source(20, {3: " ", 5: " ", 7: REFUSED})
    said = r"; 2 more could not be stored \(.*blank.*\); all others are in the store$"
    with pytest.raises(errors.RefusedTextsError, match=said):
        await add(twin, place.store, some, on_refused="raise")
    assert place.size() == 17


@TWINS
async def test_on_blank_raise_raises_before_a_list_is_sent(
    twin: str, make: Make, server: LocalServer
) -> None:
    place = in_memory(make())
    with pytest.raises(errors.InvalidInputError, match="document 5 is blank") as raised:
        await add(twin, place.store, source(20, {5: " "}), on_blank="raise")
    assert raised.value.index == 5
    assert server.stats.requests == 0


LONG = "word " * 20_000


@TWINS
async def test_a_document_that_is_too_long_is_left_out_unless_the_embedding_handles_it(
    twin: str, make: Make
) -> None:
    done = await add(twin, in_memory(make()).store, source(3, {1: LONG}))
    assert [(left.place, left.reason) for left in done.left_out] == [(1, "too long")]
    assert done.left_out[0].message.startswith("the text is too long: it has about 2")
    split = await add(twin, in_memory(make(on_too_long="split")).store, source(3, {1: LONG}))
    assert (split.added, split.usage.split) == (3, 1)


@TWINS
async def test_on_too_long_overrides_the_embedding_for_one_run(
    twin: str, make: Make, server: LocalServer
) -> None:
    place = in_memory(make(on_too_long="split"))
    done = await add(twin, place.store, source(3, {1: LONG}), on_too_long="collect")
    assert [left.reason for left in done.left_out] == ["too long"]
    place = in_memory(make())
    done = await add(twin, place.store, source(3, {1: LONG}), on_too_long="split")
    assert (done.added, place.size(), done.usage.split) == (3, 3, 1)
    assert done.usage.tokens == place.store.embeddings.usage.tokens > 0

    server.reset_stats()
    place = in_memory(make())
    with pytest.raises(errors.InvalidInputError, match=r"^document 5 is too long: it") as raised:
        await add(twin, place.store, source(20, {5: LONG}), on_too_long="error")
    assert raised.value.index == 5
    assert server.stats.requests == 0
    with pytest.raises(errors.InvalidInputError, match=r"^document 5 is too long: it"):
        await add(twin, place.store, iter(source(20, {5: LONG})), on_too_long="error")
    with pytest.raises(errors.ConfigurationError, match=r"^on_too_long must be"):
        await add(twin, place.store, source(1), on_too_long="raise")


@TWINS
async def test_an_error_in_a_generator_leaves_what_came_before_in_the_store(
    twin: str, make: Make
) -> None:
    def documents() -> Iterator[Document]:
        yield from source(300)
        raise LookupError("the file has ended")

    place = in_memory(make())
    with pytest.raises(LookupError):
        await add(twin, place.store, documents())
    assert place.size() == 300
    with pytest.raises(errors.InvalidInputError, match="twice"):
        await add(twin, place.store, iter([*source(310), source(1)[0]]))
    assert place.size() == 310


@TWINS
async def test_a_generator_may_yield_one_object_again_and_again(twin: str, make: Make) -> None:
    def documents() -> Iterator[Document]:
        document = Document("")
        for number in range(300):
            document.page_content = f"text {number}"
            document.metadata["number"] = number
            yield document
        document.page_content = "changed"

    embeddings = make()
    store = InMemoryVectorStore(embeddings)
    await add(twin, store, documents(), ids=[str(number) for number in range(300)])
    texts = [f"text {number}" for number in range(300)]
    stored = [store.store[str(number)] for number in range(300)]
    assert [item["text"] for item in stored] == texts
    assert [item["metadata"] for item in stored] == [{"number": number} for number in range(300)]
    right = np.array(embeddings.embed_documents(texts))
    assert np.abs(np.array([item["vector"] for item in stored]) - right).max() < 1e-6


# -- what fails midway -----------------------------------------------------------------------------


@TWINS
@pytest.mark.parametrize("fault", [ConnectionError, ValueError])
async def test_a_store_that_fails_midway_loses_no_vector(
    twin: str, fault: type[Exception], make: Make, server: LocalServer
) -> None:
    class Full(InMemoryVectorStore):
        def add_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
            if len(self.store) >= 100:
                raise fault("the disk is full")
            return super().add_documents(documents, ids=ids, **kwargs)

        async def aadd_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
            return self.add_documents(documents, ids=ids, **kwargs)

    store = Full(make())
    documents = source(3000)
    with pytest.raises(errors.CollectionError, match="to Full failed") as raised:
        await add(twin, store, iter(documents), slice_size=50)
    error = raised.value
    assert isinstance(error, ModelError)
    assert isinstance(error.__cause__, fault)
    assert len(store.store) == 100
    paid = set(server.stats.received)
    assert len(paid) < 2000
    written = {item["text"] for item in store.store.values()}
    assert {documents[place].page_content for place in error.finished} == paid - written
    (right,) = make().embed_documents([documents[100].page_content])
    assert np.abs(error.finished[100] - np.array(right)).max() < 1e-6


@TWINS
async def test_a_store_that_cannot_be_read_is_an_error_before_anything_is_sent(
    twin: str, make: Make, server: LocalServer
) -> None:
    class Gone(InMemoryVectorStore):
        def get_by_ids(self, ids: Any, /) -> list[Document]:
            raise ConnectionError("nobody listens")

    with pytest.raises(errors.CollectionError, match="reading from Gone failed: ConnectionError"):
        await add(twin, Gone(make()), source(3))
    assert server.stats.requests == 0


@TWINS
async def test_documents_embedded_before_the_service_fails_are_in_the_store(
    twin: str, answering: Callable[..., NexusFlowEmbeddings]
) -> None:
    answered: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        import json

        texts = json.loads(request.content)["input"]
        if any(text.endswith(" 321") for text in texts):
            return httpx.Response(401, json={"error": {"message": "expired"}})
        answered.extend(texts)
        data = [{"index": n, "embedding": [float(len(t))] * 64} for n, t in enumerate(texts)]
        return httpx.Response(200, json={"data": data, "usage": {"total_tokens": len(texts)}})

    place = in_memory(answering(answer, max_concurrency=1))
    with pytest.raises(errors.AuthenticationError) as raised:
        await add(twin, place.store, source(1000))
    # How many depends on when the failure is noticed, and requests need not be sent in order.
    assert sorted(each["text"] for each in place.store.store.values()) == sorted(answered)
    assert 0 < place.size() < 1000
    assert raised.value.finished == {}
    text = next(iter(place.store.store.values()))["text"]
    assert next(iter(place.store.store.values()))["vector"] == [float(len(text))] * 64


# -- other cases -------------------------------------------------------------------------


@TWINS
async def test_a_rate_limiter_is_acquired_for_each_batch(
    twin: str, make: Make, server: LocalServer, turns: Any
) -> None:
    limiter = turns(server)
    place = in_memory(make(rate_limiter=limiter))
    done = await add(twin, place.store, source(301, {300: REFUSED}))
    assert place.size() == done.added == 300
    assert [left.place for left in done.left_out] == [300]
    assert len(limiter.gone) == 31
    assert done.usage.texts == 301


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_rate_limiter_is_acquired_for_the_comparison_of_sizes_too(
    asynchronous: bool, make: Make, server: LocalServer, turns: Any, tmp_path: Path
) -> None:
    limiter = turns(server)
    embeddings = make(rate_limiter=limiter, cache=tmp_path / "v.db", derive=True)
    if asynchronous:
        await embeddings.aembed_documents(["a text"])
    else:
        embeddings.embed_documents(["a text"])
    assert len(limiter.gone) == server.stats.requests > 1


class Prefixed(NexusFlowEmbeddings):
    """A subclass that changes what is sent."""

    def embed_documents(self, texts: list[str], chunk_size: int | None = None) -> Any:
        return super().embed_documents([f"passage: {text}" for text in texts], chunk_size)

    async def aembed_documents(self, texts: list[str], chunk_size: int | None = None) -> Any:
        texts = [f"passage: {text}" for text in texts]
        return await super().aembed_documents(texts, chunk_size)


@TWINS
@pytest.mark.parametrize("opened", STORES)
async def test_a_subclass_that_changes_texts_pays_once_and_stores_its_own_vectors(
    twin: str, opened: Open, server: LocalServer, key: str
) -> None:
    embeddings = Prefixed(api_key=key, base_url=server.base_url, dimensions=64)
    place = opened(embeddings)
    documents = source(300, {299: REFUSED})
    done = await add(twin, place.store, documents)
    assert place.size() == done.added == 299
    assert sorted(server.stats.received).count("passage: text number 7") == 1
    assert len([text for text in server.stats.received if "number" in text]) == 299
    found, distance = place.store.similarity_search_with_score("passage: text number 7", k=1)[0]
    assert found.page_content == "text number 7"
    assert min(abs(distance), abs(1 - distance)) < 1e-5


async def test_two_runs_over_one_object_do_not_take_each_others_vectors(
    make: Make, server: LocalServer
) -> None:
    embeddings = make()
    places = [in_memory(embeddings) for _ in range(4)]
    runs = [aadd_documents(place.store, source(200), slice_size=20) for place in places]
    await asyncio.gather(*runs)
    assert [place.size() for place in places] == [200] * 4
    assert len(set(server.stats.received)) == 200
    assert embeddings._held == ()


@TWINS
async def test_all_documents_are_stored_though_progress_raises_which_is_logged_once(
    twin: str, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(count: int) -> None:
        raise ZeroDivisionError

    place = in_memory(make())
    done = await add(twin, place.store, source(100, {3: " "}), slice_size=20, progress=fails)
    assert done.added == place.size() == 99
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith("progress raised ZeroDivisionError; the call continues")


@TWINS
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_progress_stops_the_run_and_keeps_what_is_ready(
    twin: str, make: Make, stop: type[BaseException]
) -> None:
    def progress(count: int) -> None:
        raise stop

    place = in_memory(make())
    with pytest.raises(stop):
        asyncio.run(add(twin, place.store, source(300), slice_size=20, progress=progress))
    assert 20 <= place.size() < 300


@TWINS
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("count", [60, 45])
def test_what_the_store_wrote_when_it_was_interrupted_is_written_again(
    twin: str, make: Make, server: LocalServer, stop: type[BaseException], count: int
) -> None:
    class Interrupted(InMemoryVectorStore):
        writes = 0

        def add_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
            self.writes += 1
            if self.writes == 3:
                super().add_documents(documents[:5], ids=ids[:5])
                raise stop
            return super().add_documents(documents, ids=ids, **kwargs)

        async def aadd_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
            return self.add_documents(documents, ids=ids, **kwargs)

    store = Interrupted(make())
    with pytest.raises(stop):
        asyncio.run(add(twin, store, source(count), slice_size=20))
    assert {item["text"] for item in store.store.values()} == set(server.stats.received)
    assert store.writes == 4


@TWINS
def test_the_rest_of_a_refused_write_is_written_after_ctrl_c(twin: str, make: Make) -> None:
    stops = [KeyboardInterrupt]

    def progress(count: int) -> None:
        if stops:
            raise stops.pop()

    store = Picky(make())
    documents = source(20)
    documents[19].metadata["bad"] = True
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(add(twin, store, documents, progress=progress))
    assert len(store.store) == 19


@pytest.mark.parametrize("cancelled", ["its task", "all tasks"])
async def test_a_cancelled_task_waits_for_the_write_in_a_thread_and_writes_nothing_twice(
    make: Make, server: LocalServer, cancelled: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    written: list[str] = []

    class Appending(InMemoryVectorStore):
        def add_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
            begun.set()
            go_on.wait(20)
            written.extend(document.page_content for document in documents)
            return []

        async def aadd_documents(self, documents: Any, ids: Any = None, **kwargs: Any) -> list[str]:
            return await asyncio.to_thread(self.add_documents, documents)

    task = asyncio.create_task(aadd_documents(Appending(make()), source(20)))
    await asyncio.to_thread(begun.wait, 20)
    others = asyncio.all_tasks() - {task, asyncio.current_task()}
    for one in (task, *others) if cancelled == "all tasks" else (task,):
        one.cancel()  # as asyncio.run does at its end
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.get_running_loop().shutdown_default_executor()
    assert sorted(written) == sorted(server.stats.received)


@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_cancelled_task_does_not_wait_forever_for_a_store_that_hangs(
    make: Make, monkeypatch: pytest.MonkeyPatch, cancels: int
) -> None:
    monkeypatch.setattr(ingestion, "LAST_WRITE", 0.05 if cancels == 1 else 600)
    embeddings = make()
    store = InMemoryVectorStore(embeddings)
    begun, writes = asyncio.Event(), 0

    async def hangs(*_: Any, **__: Any) -> Any:
        nonlocal writes
        writes += 1
        begun.set()
        await asyncio.Event().wait()

    store.aadd_documents = hangs  # type: ignore[method-assign]
    task = asyncio.create_task(aadd_documents(store, source(20)))
    await begun.wait()
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert writes == 1
    assert embeddings._held == ()


def test_progress_counts_every_document_once(make: Make) -> None:
    steps: list[int] = []
    place = in_memory(make())
    add_documents(place.store, source(50, {3: " ", 9: REFUSED}), progress=steps.append)
    assert sum(steps) == 50
    add_documents(place.store, source(50, {3: " ", 9: REFUSED}), progress=steps.append)
    assert sum(steps) == 100


@pytest.mark.slow
def test_memory_stays_flat_however_many_documents_come(server: LocalServer) -> None:
    code = f"""
import resource, sys
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from nexusflow_integrations.langchain import NexusFlowEmbeddings, add_documents

class Sink(InMemoryVectorStore):
    def add_documents(self, documents, ids=None, **kwargs):
        self.embeddings.embed_documents([one.page_content for one in documents])
        return ids

def documents(count):
    for number in range(count):
        yield Document(f"{{number}} " * 20, id=str(number))

place = dict(api_key={server.api_key!r}, base_url={server.base_url!r})
store = Sink(NexusFlowEmbeddings(dimensions=1024, **place))
add_documents(store, documents(1500))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert add_documents(store, documents(6000)).added == 6000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12_000, "6,000 vectors alone are 24,000 kB"
