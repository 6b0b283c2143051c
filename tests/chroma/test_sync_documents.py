"""``sync_documents`` makes a collection equal to its source, and pays for no text twice."""

from __future__ import annotations

import enum
import itertools
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import chromadb
import httpx
import numpy as np
import pytest
from chromadb.api.types import validate_metadata
from chromadb.errors import ChromaError, InvalidArgumentError

from nexusflow_integrations import Budget, LeftOut, errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import (
    add_documents,
    aopen_collection,
    async_documents,
    embedding,
    filling,
    open_collection,
    ownership,
    run,
    sync_documents,
)
from nexusflow_integrations.chroma_collections.verifying import SAMPLE
from nexusflow_integrations.local import LocalServer

from .test_add_documents import numbered
from .test_embedding_function import Make, answering


@pytest.fixture
def collection(client: Any, make: Make) -> Any:
    return open_collection(client, "docs", make())


def held(collection: Any, **where: Any) -> dict[str, tuple[str, Any]]:
    found = collection.get(include=["documents", "metadatas"], **where)
    return {
        name: (document, metadata)
        for name, document, metadata in zip(
            found["ids"], found["documents"], found["metadatas"], strict=True
        )
    }


def test_a_second_run_over_the_same_source_pays_and_writes_nothing(
    collection: Any, server: LocalServer
) -> None:
    done = sync_documents(collection, **numbered(600))
    assert (done.added, done.changed, done.unchanged, done.removed) == (600, 0, 0, 0)
    assert done.usage.tokens == server.stats.tokens
    assert done.usage.requests == server.stats.requests
    again = sync_documents(collection, **numbered(600))
    assert (again.added, again.changed, again.unchanged, again.removed) == (0, 0, 600, 0)
    assert again.usage.requests == 0
    assert server.stats.texts == 600


def test_changed_texts_are_paid_for_changed_metadata_is_not_and_what_is_gone_is_removed(
    collection: Any, server: LocalServer, make: Make
) -> None:
    sync_documents(
        collection,
        ids=["a", "b", "c", "d"],
        documents=["one", "two", "three", "four"],
        metadatas=[{"v": 1, "old": "x"}, {"v": 1}, None, {"v": 1}],
    )
    paid = server.stats.texts
    done = sync_documents(
        collection,
        ids=["a", "b", "c", "e"],
        documents=["ONE", "two", "three", "five"],
        metadatas=[{"v": 2}, {"w": 2}, {"v": 1}, None],
    )
    assert (done.added, done.changed, done.unchanged, done.removed) == (1, 3, 0, 1)
    assert server.stats.texts - paid == 2
    assert held(collection) == {
        "a": ("ONE", {"v": 2}),
        "b": ("two", {"w": 2}),
        "c": ("three", {"v": 1}),
        "e": ("five", None),
    }
    vector = collection.get(ids=["a"], include=["embeddings"])["embeddings"][0]
    assert vector == pytest.approx(make()(["ONE"])[0], abs=1e-6)
    third = sync_documents(
        collection,
        ids=["a", "b", "c", "e"],
        documents=["ONE", "two", "three", "five"],
        metadatas=[{"v": 2}, {"w": 2}, {"v": 1}, None],
    )
    assert (third.unchanged, third.changed) == (4, 0)


@pytest.mark.parametrize(("remove", "left"), [(True, 3), (False, 3), ("all", 0)])
def test_an_empty_source_removes_nothing_unless_remove_is_all(
    collection: Any, remove: Any, left: int
) -> None:
    sync_documents(collection, **numbered(3))
    done = sync_documents(collection, ids=iter([]), documents=iter([]), remove=remove)
    assert collection.count() == left
    assert done.removed == 3 - left


@pytest.mark.parametrize(("remove", "left"), [(True, 3), ("all", 0)])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_source_of_blank_texts_removes_nothing_unless_remove_is_all(
    collection: Any, remove: Any, left: int, dry_run: bool
) -> None:
    sync_documents(collection, **numbered(3))
    blank = {"ids": ["x", "y"], "documents": ["", " "]}
    done = sync_documents(collection, **blank, remove=remove, dry_run=dry_run)
    assert [item.reason for item in done.left_out] == ["blank"] * 2
    assert done.removed == 3 - left
    assert collection.count() == (3 if dry_run else left)


def test_without_remove_what_is_gone_stays(collection: Any) -> None:
    sync_documents(collection, **numbered(3))
    assert sync_documents(collection, **numbered(1), remove=False).removed == 0
    assert collection.count() == 3


def test_a_source_that_fails_removes_nothing(collection: Any) -> None:
    sync_documents(collection, **numbered(600))

    def documents() -> Iterator[str]:
        yield from (f"new text {n}" for n in range(300))
        raise OSError("the disk is gone")

    ids = (f"new{n}" for n in itertools.count())
    with pytest.raises(OSError, match="disk is gone"):
        sync_documents(collection, ids=ids, documents=documents())
    assert set(numbered(600)["ids"]) <= set(held(collection))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (
            (401, {"error": {"code": "invalid_api_key", "message": "no"}}),
            errors.AuthenticationError,
        ),
        ((402, {"error": {"code": "Arrearage", "message": "pay"}}), errors.PermissionDeniedError),
    ],
)
def test_a_refused_key_leaves_the_old_passages(
    client: Any, status: Any, error: type[Exception]
) -> None:
    replies: list[Any] = [200]
    function = answering(status=lambda _: replies[0])
    collection = open_collection(client, "docs", function)
    sync_documents(collection, **numbered(100))
    before = held(collection)
    replies[0] = status
    with pytest.raises(error):
        sync_documents(collection, ids=numbered(100)["ids"], documents=["other"] * 100)
    assert held(collection) == before


def test_a_budget_that_runs_out_removes_nothing_and_the_next_run_pays_for_the_rest(
    client: Any, make: Make, server: LocalServer
) -> None:
    sync_documents(open_collection(client, "docs", make()), **numbered(50))
    poor = open_collection(client, "docs", make(budget=Budget(tokens=300), max_concurrency=1))
    with pytest.raises(errors.BudgetExceededError):
        sync_documents(poor, **numbered(400, start=50))
    kept = held(poor)
    assert set(numbered(50)["ids"]) <= set(kept)
    paid = server.stats.texts
    rest = sync_documents(open_collection(client, "docs", make()), **numbered(400, start=50))
    assert rest.added == 400 - (len(kept) - 50)
    assert server.stats.texts - paid == rest.usage.texts == rest.added + SAMPLE
    assert rest.removed == 50


BAD: list[tuple[Any, Any, Any, str]] = [
    ("blank", " \n", None, "blank"),
    ("none", None, None, "invalid text"),
    ("surrogate", "half \ud800", None, "invalid text"),
    ("", "no id", None, "invalid id"),
    (None, "no id", None, "invalid id"),
    (7, "no id", None, "invalid id"),
    ("half\udc00", "no id", None, "invalid id"),
    ("none value", "text", {"a": None}, "invalid metadata"),
    ("empty key", "text", {"": 1}, "invalid metadata"),
    ("reserved", "text", {"chroma:document": "x"}, "invalid metadata"),
    ("hash", "text", {"#embedding": "x"}, "invalid metadata"),
    ("dropped by Chroma", "text", {"chroma:source": "x"}, "invalid metadata"),
    ("empty", "text", {}, "invalid metadata"),
    ("nested", "text", {"a": {"b": 1}}, "invalid metadata"),
    ("nan", "text", {"a": float("nan")}, "invalid metadata"),
    ("nan in a list", "text", {"a": [1.0, float("inf")]}, "invalid metadata"),
    ("large", "text", {"a": 1 << 63}, "invalid metadata"),
    ("half a character", "text", {"a": "\ud800"}, "invalid metadata"),
]


@pytest.mark.parametrize(("name", "text", "metadata", "reason"), BAD, ids=lambda v: str(v)[:12])
def test_one_bad_document_is_left_out_and_named_and_all_others_are_written(
    collection: Any, server: LocalServer, name: Any, text: Any, metadata: Any, reason: str
) -> None:
    ids: list[Any] = ["first", name, "last"]
    done = sync_documents(
        collection, ids=ids, documents=["one", text, "two"], metadatas=[{"a": 1}, metadata, None]
    )
    (left,) = done.left_out
    assert (left.place, left.reason) == (1, reason)
    assert left.id == (None if reason == "invalid id" else name)
    assert left.message
    assert "text 0" not in left.message
    assert set(held(collection)) == {"first", "last"}
    assert server.stats.texts == 2
    assert isinstance(left, LeftOut)


class Number(enum.IntEnum):
    SEVEN = 7


class Key(str, enum.Enum):
    A = "a"


def test_values_of_user_defined_types_are_accepted_as_their_base_types(collection: Any) -> None:
    wanted: dict[str, Any] = {"ids": ["one"], "documents": ["text"]}
    metadata: dict[Any, Any] = {Key.A: Number.SEVEN, "b": Key.A}
    assert sync_documents(collection, **wanted, metadatas=[metadata]).added == 1
    assert held(collection) == {"one": ("text", {"a": 7, "b": "a"})}
    assert sync_documents(collection, **wanted, metadatas=[metadata]).unchanged == 1


def test_refused_documents_are_left_out_and_keep_their_old_text(client: Any) -> None:
    def refuse(request: Any) -> Any:
        if any("forbidden" in text for text in request["input"]):
            return 400, {"error": {"code": "data_inspection_failed", "message": "no"}}
        return 200

    collection = open_collection(client, "docs", answering(status=refuse))
    sync_documents(collection, **numbered(30))
    documents = numbered(30)["documents"]
    documents[7] = "forbidden"
    done = sync_documents(collection, ids=numbered(30)["ids"], documents=documents)
    (left,) = done.left_out
    assert (left.id, left.place, left.reason) == ("id7", 7, "refused")
    assert isinstance(left.error, errors.APIStatusError)
    assert held(collection)["id7"][0] == "document 7"
    assert (done.unchanged, done.removed) == (29, 0)


def test_a_document_without_an_id_stops_removal(collection: Any) -> None:
    sync_documents(collection, **numbered(3))
    ids: list[Any] = ["id0", None]
    done = sync_documents(collection, ids=ids, documents=["document 0", "?"])
    assert done.removed == 0
    assert collection.count() == 3


@pytest.mark.parametrize("kind", [list, iter])
def test_the_same_id_twice_is_an_error_with_both_places(
    collection: Any, server: LocalServer, kind: Any
) -> None:
    batch = numbered(2_000)
    batch["ids"][1_990] = "id3"
    with pytest.raises(errors.InvalidInputError, match=r"'id3'.*at positions 3 and 1990"):
        sync_documents(collection, ids=kind(batch["ids"]), documents=kind(batch["documents"]))
    if kind is list:
        assert server.stats.texts == 0


def test_a_dry_run_touches_nothing_and_says_what_a_run_would_do(
    collection: Any, server: LocalServer
) -> None:
    sync_documents(collection, **numbered(20), metadatas=[{"v": 1}] * 20)
    before, paid = held(collection), server.stats.requests
    documents = [*numbered(10)["documents"], "other", "new"]
    wanted: dict[str, Any] = {
        "ids": [*numbered(10)["ids"], "id10", "fresh"],
        "documents": documents,
        "metadatas": [{"v": 2}, *([{"v": 1}] * 11)],
    }
    said = sync_documents(collection, **wanted, dry_run=True)
    assert held(collection) == before
    assert server.stats.requests == paid
    assert (said.added, said.changed, said.unchanged, said.removed) == (1, 2, 9, 9)
    assert said.usage.tokens > 0
    done = sync_documents(collection, **wanted)
    assert (done.added, done.changed, done.unchanged, done.removed) == (1, 2, 9, 9)
    assert said.usage.requests == done.usage.requests == 1


def test_a_dry_run_leaves_out_a_text_that_is_too_long_as_the_run_does(
    collection: Any, server: LocalServer
) -> None:
    wanted: dict[str, Any] = numbered(1_500)
    wanted["documents"][1_200] = "word " * 20_000
    said = sync_documents(collection, **wanted, dry_run=True)
    assert server.stats.requests == 0
    done = sync_documents(collection, **wanted)
    for found in (said, done):
        assert (found.added, found.usage.texts) == (1_499, 1_499)
        (left,) = found.left_out
        assert (left.id, left.place, left.reason) == ("id1200", 1_200, "too long")
    assert said.left_out[0].message == done.left_out[0].message


@pytest.mark.parametrize("wrong", [{"progress": True}, {"writer_wait": "5"}, {"writer_wait": -1}])
def test_a_wrong_argument_is_refused_before_anything_is_sent(
    collection: Any, server: LocalServer, wrong: dict[str, Any]
) -> None:
    for call in (sync_documents, add_documents):
        with pytest.raises(errors.ConfigurationError, match=next(iter(wrong))):
            call(collection, **numbered(3), **wrong)
    assert server.stats.requests == 0


def test_a_source_changes_and_removes_only_its_own_part(collection: Any) -> None:
    for source in ("one", "two"):
        sync_documents(
            collection,
            ids=[f"{source}-{n}" for n in range(5)],
            documents=[f"{source} {n}" for n in range(5)],
            metadatas=[{"source": source}] * 5,
            where={"source": source},
        )
    done = sync_documents(
        collection,
        ids=["one-0", "two-0"],
        documents=["one 0", "taken over"],
        metadatas=[{"source": "one"}] * 2,
        where={"source": "one"},
    )
    assert (done.unchanged, done.removed) == (1, 4)
    assert [item.id for item in done.left_out] == ["two-0"]
    assert held(collection)["two-0"] == ("two 0", {"source": "two"})
    assert collection.count() == 6


@pytest.mark.parametrize(
    "where", [{}, {"$foo": 1}, {"a": {"$x": 1}}, {"a": None}, "a", {"$and": [{"a": 1}]}], ids=str
)
def test_a_filter_that_chroma_refuses_is_an_error_before_anything_is_paid_for(
    collection: Any, server: LocalServer, where: Any
) -> None:
    with suppress(ValueError, TypeError, AttributeError, ChromaError):
        collection.get(where=where)
        pytest.skip("this version of Chroma takes it")
    with pytest.raises((errors.ConfigurationError, errors.CollectionError)):
        sync_documents(collection, **numbered(3), where=where)
    assert server.stats.requests == 0


def test_a_document_outside_of_the_filter_of_its_own_source_is_left_out(collection: Any) -> None:
    done = sync_documents(
        collection,
        **numbered(3),
        metadatas=[{"source": "one"}, {"source": "two"}, None],
        where={"source": "one"},
    )
    assert [(item.place, item.reason) for item in done.left_out] == [
        (1, "invalid metadata"),
        (2, "invalid metadata"),
    ]
    assert set(held(collection)) == {"id0"}


FILTERS: list[Any] = [
    {"s": "one"}, {"s": {"$ne": "one"}}, {"s": {"$in": ["one", "x"]}}, {"s": {"$nin": ["one"]}},
    {"n": 1}, {"n": 1.0}, {"n": {"$gt": 0.5}}, {"n": {"$gte": 2}}, {"n": {"$lt": 2}},
    {"n": {"$lte": 1}}, {"n": {"$ne": 2}}, {"b": True}, {"b": {"$ne": True}},
    {"$and": [{"s": "one"}, {"n": {"$gt": 5}}]}, {"$or": [{"s": "two"}, {"n": 1}]},
    {"$and": [{"s": "one"}, {"$or": [{"n": 7}, {"b": False}]}]},
]  # fmt: skip


LISTS: list[Any] = [
    {"l": "one"}, {"l": {"$ne": "one"}}, {"l": {"$in": ["one"]}}, {"l": {"$nin": ["one"]}},
    {"l": 1}, {"l": {"$gt": 0}}, {"l": {"$contains": "one"}}, {"l": {"$not_contains": "one"}},
    {"l": {"$contains": "on"}}, {"l": {"$contains": 1}}, {"l": {"$contains": 1.0}},
    {"l": {"$not_contains": 1}}, {"l": {"$contains": True}}, {"s": {"$contains": "one"}},
    {"s": {"$not_contains": "one"}}, {"$or": [{"s": "one"}, {"l": {"$contains": "two"}}]},
]  # fmt: skip


def takes_lists() -> bool:
    """Return whether this version of Chroma takes lists as metadata."""
    try:
        validate_metadata({"l": ["one"]})
    except ValueError:
        return False
    return True


@pytest.mark.skipif(not takes_lists(), reason="this version of Chroma takes no lists")
def test_a_document_whose_list_does_not_match_is_left_out(
    collection: Any, server: LocalServer
) -> None:
    for where in ({"owners": {"$contains": "handbook"}}, {"owners": "handbook"}):
        done = sync_documents(
            collection, ids=["a"], documents=["one"], metadatas=[{"owners": ["wiki"]}], where=where
        )
        assert [item.reason for item in done.left_out] == ["invalid metadata"]
    assert (server.stats.texts, collection.count()) == (0, 0)


@pytest.mark.skipif(not takes_lists(), reason="this version of Chroma takes no lists")
@pytest.mark.parametrize(
    ("before", "after"),
    [([1], [True]), ([False, True], [0, 1]), ([1], [1.0]), ([2.0], [2]), ([1, 2], [1, 2, 2])],
)
def test_a_list_whose_items_become_another_kind_of_value_is_written(
    collection: Any, before: list[Any], after: list[Any]
) -> None:
    def sync(items: list[Any]) -> Any:
        return sync_documents(collection, ids=["a"], documents=["one"], metadatas=[{"l": items}])

    def found(item: Any) -> list[str]:
        return collection.get(where={"l": {"$contains": item}})["ids"]  # type: ignore[no-any-return]

    sync(before)
    done = sync(after)
    assert (done.changed, done.usage.texts) == (1, 0)
    assert found(after[-1]) == ["a"]
    assert found(before[-1]) == (["a"] if type(before[-1]) is type(after[-1]) else [])
    assert sync(after).unchanged == 1


def test_a_number_that_becomes_an_equal_one_is_not_written(collection: Any) -> None:
    for number in (1, 1.0, 1):
        done = sync_documents(collection, ids=["a"], documents=["one"], metadatas=[{"n": number}])
        assert done.changed == 0
        assert collection.get(where={"n": number})["ids"] == ["a"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_filter_on_texts_is_refused_before_anything_is_paid_for(
    collection: Any, server: LocalServer, nested: bool
) -> None:
    where: Any = {"#document": {"$contains": "one"}}
    where = {"$and": [{"a": 1}, where]} if nested else where
    with pytest.raises(errors.ConfigurationError, match="where m"):
        sync_documents(collection, **numbered(3), where=where)
    assert server.stats.requests == 0


def test_our_filter_matches_what_the_filter_of_chroma_matches(collection: Any) -> None:
    metadatas: list[Any] = [
        None, {"s": "one"}, {"s": "two", "n": 1}, {"n": 2}, {"n": 2.5, "s": "one"},
        {"b": True}, {"b": False, "s": "one"}, {"n": 7, "s": "one"}, {"s": "1"}, {"b": 1},
    ]  # fmt: skip
    if takes_lists():
        metadatas += [
            {"l": ["one", "two"]}, {"l": ["two"]}, {"l": [1, 2]}, {"l": [1.0]}, {"l": [True]},
            {"l": "one"}, {"l": 1},
        ]  # fmt: skip
    ids = [f"id{n}" for n in range(len(metadatas))]
    collection.add(ids=ids, documents=ids, embeddings=[[1.0] * 64] * len(ids), metadatas=metadatas)
    for where in FILTERS + (LISTS if takes_lists() else []):
        found = set(collection.get(where=where)["ids"])
        ours = {
            name for name, data in zip(ids, metadatas, strict=True) if ownership.finds(where, data)
        }
        assert ours == found, where


def test_changed_metadata_is_written_while_the_source_is_read(
    collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_documents(collection, **numbered(1000), metadatas=[{"v": 1}] * 1000)
    read, written, ahead = 0, 0, []
    update = collection.update

    def noting(**fields: Any) -> None:
        nonlocal written
        update(**fields)
        written += len(fields["ids"])
        ahead.append(read - written)

    def metadatas() -> Iterator[Any]:
        nonlocal read
        for read in range(1, 1001):  # noqa: B007
            yield {"v": 2}

    monkeypatch.setattr(collection, "update", noting)
    done = sync_documents(collection, **numbered(1000), metadatas=metadatas(), slice_size=100)
    assert (done.changed, written) == (1000, 1000)
    assert max(ahead) <= 100


def test_vectors_in_an_error_of_the_users_own_code_are_not_taken_for_ours(collection: Any) -> None:
    wrong = errors.BudgetExceededError("of another client")
    wrong.finished = {0: np.full(64, 9, np.float32)}

    def documents() -> Iterator[str]:
        yield from numbered(5)["documents"]
        raise wrong

    with pytest.raises(errors.BudgetExceededError):
        sync_documents(collection, ids=iter(numbered(9)["ids"]), documents=documents())

    def handler(*_: object) -> None:
        raise wrong

    def progress(count: int) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(errors.BudgetExceededError):
            sync_documents(collection, **numbered(600), slice_size=100, progress=progress)
    finally:
        signal.signal(signal.SIGTERM, before)
    vectors = collection.get(include=["embeddings"])["embeddings"]
    assert len(vectors)
    assert max(map(max, vectors)) < 9


def test_vectors_of_a_sample_that_was_refused_in_part_reach_no_document(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_documents(open_collection(client, "docs", make()), **numbered(3))

    def again(self: Any, texts: Any) -> Any:
        error = errors.RefusedTextsError("no", refused={})
        error.finished = {0: np.full(64, 9, np.float32)}
        raise error

    monkeypatch.setattr(embedding.Embedder, "again", again)
    collection = open_collection(client, "docs", make(max_concurrency=7))
    with pytest.raises(errors.RefusedTextsError) as caught:
        sync_documents(collection, **numbered(3, start=3))
    assert caught.value.finished == {}
    assert set(held(collection)) == set(numbered(3)["ids"])


def test_a_write_that_meets_a_lock_is_tried_again_and_pays_nothing_twice(
    collection: Any, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert, fails = (
        collection.upsert,
        [httpx.ReadTimeout("slow"), RuntimeError("database is locked")],
    )

    def failing(**fields: Any) -> None:
        if fails:
            raise fails.pop()
        upsert(**fields)

    monkeypatch.setattr(collection, "upsert", failing)
    assert sync_documents(collection, **numbered(20)).added == 20
    assert server.stats.texts == 20


def test_the_vectors_of_a_failed_write_are_in_the_error_by_place(
    collection: Any, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    def failing(**fields: Any) -> None:
        raise RuntimeError("attempt to write a readonly database")

    monkeypatch.setattr(collection, "upsert", failing)
    with pytest.raises(errors.CollectionError, match="readonly") as caught:
        sync_documents(collection, **numbered(30))
    finished = caught.value.finished
    assert set(finished) == set(range(30))
    assert finished[3] == pytest.approx(make()(["document 3"])[0])


def test_vectors_in_flight_when_a_write_failed_are_in_the_error_too(
    collection: Any, monkeypatch: pytest.MonkeyPatch, server: LocalServer
) -> None:
    upsert = collection.upsert

    def failing(**fields: Any) -> None:
        if "id250" in fields["ids"]:
            raise RuntimeError("attempt to write a readonly database")
        upsert(**fields)

    monkeypatch.setattr(collection, "upsert", failing)
    with pytest.raises(errors.CollectionError, match="readonly") as caught:
        sync_documents(collection, **numbered(5_000))
    written = {int(name.removeprefix("id")) for name in held(collection)}
    assert len(written) >= 250
    assert server.stats.texts == len(written) + len(caught.value.finished) < 5_000


def test_no_call_of_chroma_is_waited_for_without_end(
    client: Any, collection: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hanging(**fields: Any) -> None:
        time.sleep(30)

    monkeypatch.setattr(collection, "upsert", hanging)
    began = time.monotonic()
    with pytest.raises(errors.CollectionError, match="times: TimeoutError"):
        sync_documents(collection, **numbered(5), store_timeout=1.5)
    hurried = open_collection(client, "docs", make(deadline=1.5))
    monkeypatch.setattr(hurried, "upsert", hanging)
    with pytest.raises(errors.CollectionError, match="times: TimeoutError"):
        sync_documents(hurried, **numbered(5))
    assert time.monotonic() - began < 25


def test_large_vectors_go_in_smaller_writes(client: Any, make: Make) -> None:
    collection: Any = open_collection(client, "docs", make(dimensions=2048))
    sizes: list[int] = []
    upsert = collection.upsert

    def noting(**fields: Any) -> None:
        sizes.append(len(fields["ids"]))
        upsert(**fields)

    collection.upsert = noting
    sync_documents(collection, **numbered(300), slice_size=5_000)
    assert sum(sizes) == 300
    assert max(sizes) * 2048 * run.NUMBER_BYTES <= run.SLICE_BYTES


def refusing(collection: Any, names: set[str], error: Exception) -> None:
    """Let the store refuse each write that has one of the documents."""

    def refused(method: Any, **fields: Any) -> None:
        if names & set(fields["ids"]):
            raise error
        method(**fields)

    for name in ("upsert", "update"):
        setattr(collection, name, partial(refused, getattr(collection, name)))


def of_a_proxy(status: int) -> Exception:
    """Return the error of Chroma's client for an answer that is not its server's."""
    error = Exception("<html>no</html>")
    request = httpx.Request("POST", "http://127.0.0.1")
    error.__context__ = httpx.HTTPStatusError(
        "no", request=request, response=httpx.Response(status)
    )
    return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("413 Payload Too Large"),
        InvalidArgumentError("Quota exceeded: 'Document size bytes'"),
        of_a_proxy(413),
        of_a_proxy(422),
        TypeError("no"),
    ],
    ids=repr,
)
def test_documents_that_the_store_refuses_are_left_out_and_all_others_are_written(
    collection: Any, error: Exception, server: LocalServer
) -> None:
    refused = {"id0", "id300", "id599"}
    refusing(collection, refused, error)
    counts: list[int] = []
    done = sync_documents(collection, **numbered(600), progress=counts.append)
    assert (done.added, sum(counts)) == (597, 600)
    assert [(item.id, item.place, item.reason) for item in done.left_out] == [
        (name, int(name[2:]), "refused by the store") for name in sorted(refused)
    ]
    assert all("the store refused it: " in item.message for item in done.left_out)
    assert {item.error for item in done.left_out} == {error}
    assert server.stats.texts == 600
    again = sync_documents(collection, **numbered(600))
    assert (again.unchanged, again.removed, len(again.left_out)) == (597, 0, 3)
    assert held(collection).keys() == set(numbered(600)["ids"]) - refused


def test_a_metadata_that_the_store_refuses_is_left_out(collection: Any) -> None:
    sync_documents(collection, **numbered(20))
    refusing(collection, {"id7"}, ValueError("no"))
    done = sync_documents(collection, **numbered(20), metadatas=[{"a": 1}] * 20)
    assert (done.changed, [item.id for item in done.left_out]) == (19, ["id7"])
    assert held(collection)["id7"] == ("document 7", None)


def test_the_limits_of_chroma_cloud_leave_out_only_what_is_larger(
    collection: Any, cloud: None
) -> None:
    assert sync_documents(collection, **numbered(600)).added == 600
    source = numbered(400)
    source["documents"][7] = "word " * 4_000
    said = sync_documents(collection, **source, dry_run=True)
    done = sync_documents(collection, **source)
    assert (said.removed, done.removed, done.unchanged) == (200, 200, 399)
    assert [(item.id, item.reason) for item in done.left_out] == [("id7", "refused by the store")]


def test_large_documents_at_the_beginning_do_not_end_the_run(collection: Any) -> None:
    # Each is a write of its own.
    documents = {f"large{n}": "word " * 3_000 for n in range(3)} | {"small": "text"}
    refusing(collection, {"large0", "large1", "large2"}, ValueError("Payload Too Large"))
    done = sync_documents(
        collection, ids=documents.keys(), documents=documents.values(), slice_size=1
    )
    assert (done.added, len(done.left_out)) == (1, 3)


def test_a_store_that_refuses_everything_ends_the_run_with_its_error(
    collection: Any, monkeypatch: pytest.MonkeyPatch, server: LocalServer
) -> None:
    every = numbered(5_000)
    refusing(collection, set(every["ids"]), InvalidArgumentError("no more records"))
    for count in (1, 20, 5_000):
        server.reset_stats()
        with pytest.raises(errors.CollectionError, match="no more records") as caught:
            sync_documents(collection, **numbered(count))
        assert len(caught.value.finished) == server.stats.texts
        assert server.stats.texts < 2_000


def test_a_store_that_refuses_everything_from_some_document_on_ends_the_run(
    collection: Any, server: LocalServer
) -> None:
    refusing(collection, set(numbered(5_000)["ids"][300:]), InvalidArgumentError("no more records"))
    with pytest.raises(errors.CollectionError, match="no more records") as caught:
        sync_documents(collection, **numbered(5_000))
    assert 300 in caught.value.finished
    assert len(caught.value.finished) + 300 == server.stats.texts < 2_000
    assert collection.count() == 300


@pytest.mark.parametrize("method", ["upsert", "delete"])
def test_after_an_error_the_vectors_of_refused_documents_are_kept(
    collection: Any, method: str, make: Make
) -> None:
    def fail(**fields: Any) -> None:
        if method == "delete" or "id9" in fields["ids"]:
            raise OSError("the disk is full")
        write(**fields)

    sync_documents(collection, ids=["gone"], documents=["old"])
    refusing(collection, {"id3"}, ValueError("no"))
    write = collection.upsert
    setattr(collection, method, fail)
    with pytest.raises(errors.CollectionError, match="the disk is full") as caught:
        sync_documents(collection, **numbered(10), slice_size=1)
    finished = caught.value.finished
    assert set(finished) == {
        int(name[2:]) for name in set(numbered(10)["ids"]) - {*held(collection)}
    }
    assert 3 in finished
    assert finished[3] == pytest.approx(make()(["document 3"])[0])


async def test_async_documents_leaves_out_what_the_store_refuses(
    chroma_port: int, make: Make
) -> None:
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)
    collection: Any = await aopen_collection(client, f"docs-{uuid4()}", make())
    upsert = collection.upsert

    async def refuse(**fields: Any) -> None:
        if "id7" in fields["ids"]:
            raise InvalidArgumentError("no")
        await upsert(**fields)

    collection.upsert = refuse
    done = await async_documents(collection, **numbered(20))
    assert (done.added, [item.id for item in done.left_out]) == (19, ["id7"])


def test_an_error_that_names_413_by_chance_is_not_taken_for_a_large_body(collection: Any) -> None:
    def failing(**fields: Any) -> None:
        raise ValueError("Collection 1f413a77-0c9e-4d6b-a413-5b7c9d1e2f3a does not exist.")

    collection.upsert = failing
    with pytest.raises(errors.CollectionError, match="does not exist"):
        sync_documents(collection, **numbered(20))


def test_a_server_that_takes_no_large_body_gets_halves(collection: Any) -> None:
    upsert = collection.upsert

    def small(**fields: Any) -> None:
        if len(fields["ids"]) > 7:
            raise ValueError("Payload Too Large: length limit exceeded")
        upsert(**fields)

    collection.upsert = small
    assert sync_documents(collection, **numbered(60)).added == 60
    assert collection.count() == 60


def test_a_subclass_with_its_own_call_is_used_as_it_is(client: Any, make: Make) -> None:
    class Lowered(NexusFlowEmbeddingFunction):
        def __call__(self, input: Any) -> Any:  # noqa: A002
            return super().__call__([text.lower() for text in input])

    plain = make()
    own = Lowered(**{**plain._options, "api_key": plain._api_key}, dimensions=64,
                  api_base=plain._config["api_base"])  # fmt: skip
    collection = open_collection(client, "docs", own)
    done = sync_documents(collection, ids=["a"], documents=["LOUD"])
    assert done.usage.requests == 1
    vector = collection.get(ids=["a"], include=["embeddings"])["embeddings"][0]
    assert vector == pytest.approx(plain(["loud"])[0], abs=1e-6)


def test_one_bad_document_of_a_subclass_takes_no_other_along(client: Any, make: Make) -> None:
    class Own(NexusFlowEmbeddingFunction):
        def __call__(self, input: Any) -> Any:  # noqa: A002
            return super().__call__(input)

    plain = make()
    own = Own(**{**plain._options, "api_key": plain._api_key}, dimensions=64,
              api_base=plain._config["api_base"])  # fmt: skip
    collection = open_collection(client, "docs", own)
    batch = numbered(251)
    batch["documents"][3] = "word " * 20_000
    batch["documents"][250] = "!?" * 4500  # alone in its call; the server counts more tokens
    done = sync_documents(collection, **batch)
    assert [(left.place, left.reason) for left in done.left_out] == [
        (3, "too long"),
        (250, "refused"),
    ]
    assert collection.count() == done.added == 249


def test_a_subclass_that_gives_too_few_vectors_is_refused_by_name(client: Any, make: Make) -> None:
    class Short(NexusFlowEmbeddingFunction):
        def __call__(self, input: Any) -> Any:  # noqa: A002
            return super().__call__(input)[:-1]

    plain = make()
    own = Short(**{**plain._options, "api_key": plain._api_key}, dimensions=64,
                api_base=plain._config["api_base"])  # fmt: skip
    collection = open_collection(client, "docs", own)
    with pytest.raises(errors.ConfigurationError, match="Short gave 4 vectors for 5 documents"):
        sync_documents(collection, **numbered(5))
    assert collection.count() == 0


def test_the_wrong_variant_and_a_wrong_collection_are_refused_by_name(collection: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match="takes a Collection of Chroma, not str"):
        sync_documents("docs", **numbered(1))  # type: ignore[arg-type]

    async def texts() -> Any:
        yield "text"

    with pytest.raises(errors.InvalidInputError, match="use async_documents"):
        sync_documents(collection, ids=["a"], documents=texts())  # type: ignore[arg-type]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    import tracemalloc

    from nexusflow_integrations.chroma_collections.records import Record, SeenIds

    tracemalloc.start()
    seen = SeenIds()
    seen.add(Record(n, f"id-{n}", "text", None) for n in range(1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    with pytest.raises(errors.InvalidInputError, match="at positions 999999 and 1000000"):
        seen.add([Record(1_000_000, "id-999999", "text", None)])
    seen.close()


def _removing_before_each_page(
    collection: Any, monkeypatch: pytest.MonkeyPatch, most: int
) -> list[list[str]]:
    """Let another program remove 20 documents of the first page, before up to ``most`` pages."""
    read, removed = collection.get, []

    def get(**fields: Any) -> Any:
        if fields.get("offset") and len(removed) < most:
            removed.append([f"old-{len(removed) * 20 + number}" for number in range(20)])
            collection.delete(ids=removed[-1])
        return read(**fields)

    monkeypatch.setattr(collection, "get", get)
    return removed


def _old(collection: Any, count: int = 2_500) -> None:
    ids = [f"old-{number}" for number in range(count)]
    texts, row = [f"text {one}" for one in ids], [1.0] + [0.0] * 63
    collection.add(ids=ids, documents=texts, embeddings=[row] * count)


def test_no_document_is_skipped_if_another_program_removes_some_meanwhile(
    collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _old(collection)
    removed = _removing_before_each_page(collection, monkeypatch, 2)
    done = sync_documents(collection, **numbered(10), verify=False)
    assert len(removed) == 2
    assert done.removed == 2_500 - 20 * len(removed)
    assert set(held(collection)) == set(numbered(10)["ids"])


def test_a_collection_whose_ids_cannot_be_read_is_an_error_and_nothing_is_removed(
    collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _old(collection)
    removed = _removing_before_each_page(collection, monkeypatch, 1_000)
    with pytest.raises(errors.CollectionError, match="keeps removing documents"):
        sync_documents(collection, **numbered(10), verify=False)
    assert len(removed) == filling.READINGS
    assert collection.count() == 2_510 - 20 * len(removed)
