"""Move a collection to another model or size while it stays in use: copy, then exchange names."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import chromadb
import numpy as np
import pytest
from chromadb.api.types import validate_metadata
from chromadb.errors import NotFoundError

from nexusflow_integrations import Budget, errors
from nexusflow_integrations import chroma as adapter
from nexusflow_integrations._core.settings import DIMENSIONS
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import (
    Copied,
    acopy_collection,
    add_documents,
    aexchange_names,
    aopen_collection,
    calls,
    copy_collection,
    exchange_names,
    open_collection,
    sync_documents,
)
from nexusflow_integrations.chroma_collections.filling import ESTIMATED
from nexusflow_integrations.local import LocalServer

from .test_add_documents import numbered
from .test_embedding_function import Make, answering

SIZES = {"docs": 64, "docs-2": 128}


@pytest.fixture(params=["folder", "server"])
def either(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of a folder, and one of a server, without the collections of other tests."""
    if request.param == "folder":
        yield request.getfixturevalue("client")
        return
    http = chromadb.HttpClient(host="127.0.0.1", port=request.getfixturevalue("chroma_port"))
    clear(http)
    yield http
    clear(http)


def clear(client: Any) -> None:
    for collection in client.list_collections():
        client.delete_collection(collection.name)


def filled(client: Any, make: Make, count: int = 30, **settings: Any) -> Any:
    collection = open_collection(client, "docs", make(), **settings)
    add_documents(collection, **numbered(count), metadatas=[{"n": n} for n in range(count)])
    return collection


def content(client: Any, name: str) -> dict[str, tuple[Any, Any, int]]:
    found = client.get_collection(name, embedding_function=None).get(
        include=["documents", "metadatas", "embeddings"]
    )
    return {
        key: (document, metadata, len(row))
        for key, document, metadata, row in zip(
            found["ids"], found["documents"], found["metadatas"], found["embeddings"], strict=True
        )
    }


def expected(count: int, size: int) -> dict[str, tuple[Any, Any, int]]:
    return {f"id{n}": (f"document {n}", {"n": n}, size) for n in range(count)}


def test_another_size_is_embedded_again_and_takes_the_name(
    either: Any, make: Make, server: LocalServer
) -> None:
    filled(either, make)
    server.reset_stats()
    done = copy_collection(either, "docs", "docs-2", make(dimensions=128))
    assert (done.embedded, done.copied, done.exchanged, done.left_out) == (30, 0, True, ())
    assert done.usage.texts == server.stats.texts == 30
    assert content(either, "docs") == expected(30, 128)
    assert content(either, "docs-2") == expected(30, 64)
    collection = open_collection(either, "docs", make(dimensions=128))
    assert collection.query(query_texts=["document 7"], n_results=1)["ids"] == [["id7"]]
    assert {c.name for c in either.list_collections()} == {"docs", "docs-2"}


def test_the_same_vector_space_is_copied_without_a_request(
    either: Any, make: Make, server: LocalServer
) -> None:
    filled(either, make)
    collection = either.get_collection("docs", embedding_function=None)
    collection.add(ids=["v"], embeddings=[[0.5] * 64], uris=["file://v"])
    server.reset_stats()
    other = make(query_instruction="Find: ")
    done = copy_collection(either, "docs", "copy", other, configuration={"hnsw": {"space": "l2"}})
    assert (done.copied, done.embedded, done.exchanged) == (31, 0, True)
    assert server.stats.requests == 0
    include: Any = ["documents", "metadatas", "embeddings", "uris"]
    old, new = (either.get_collection(name, embedding_function=None) for name in ("copy", "docs"))
    before, after = (
        dict(zip(found["ids"], zip(*(found[key] for key in include[:2]), strict=True), strict=True))
        for found in (old.get(include=include), new.get(include=include))
    )
    assert before == after
    np.testing.assert_array_equal(
        *(c.get(ids=["v", "id3"], include=include)["embeddings"] for c in (old, new))
    )
    assert new.get(ids=["v"], include=include)["uris"] == ["file://v"]
    assert new.configuration_json["hnsw"]["space"] == "l2"
    assert new.configuration_json["embedding_function"]["config"] == other.get_config()


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "another-model"},
        {"document_instruction": "Passage: "},
        {"extra_body": {"truncate": "end"}},
        {"dimensions": 128},
    ],
    ids=str,
)
def test_a_setting_that_changes_document_vectors_embeds_the_documents_again(
    client: Any, make: Make, server: LocalServer, change: dict[str, Any]
) -> None:
    filled(client, make, 5)
    server.reset_stats()
    function = make(**change)
    said = copy_collection(client, "docs", "docs-2", function, dry_run=True)
    assert (said.embedded, said.copied) == (5, 0)
    if "model_name" not in change:  # which the local server does not have
        assert copy_collection(client, "docs", "docs-2", function).embedded == 5
        assert server.stats.texts == 5
        assert open_collection(client, "docs", function).count() == 5


def test_the_copy_is_indexed_and_described_like_its_source(client: Any, make: Make) -> None:
    filled(client, make, metadata={"about": "x"}, configuration={"hnsw": {"space": "ip"}})
    copy_collection(client, "docs", "docs-2", make(dimensions=128))
    new, old = client.get_collection("docs"), client.get_collection("docs-2")
    assert new.metadata == old.metadata == {"about": "x"}
    assert new.configuration_json["hnsw"] == old.configuration_json["hnsw"]


def test_a_collection_of_another_function_moves_over(client: Any, make: Make) -> None:
    foreign = client.create_collection("docs", metadata={"hnsw:space": "l2"})
    foreign.add(ids=["a"], embeddings=[[1.0] * 384], documents=["red pandas"])
    with pytest.raises(errors.ConfigurationError, match="so it is not known"):
        copy_collection(client, "docs", "docs-2")
    assert copy_collection(client, "docs", "docs-2", make()).embedded == 1
    assert open_collection(client, "docs", make()).configuration_json["hnsw"]["space"] == "l2"
    assert copy_collection(client, "docs", "docs-2", make()).exchanged


def test_copying_vectors_needs_no_key(client: Any, make: Make, monkeypatch: Any) -> None:
    filled(client, make, 5)
    monkeypatch.setattr(adapter, "_made_here", {})
    function = make(api_key=None)
    assert copy_collection(client, "docs", "docs-2", function).copied == 5
    assert copy_collection(client, "docs", "docs-3").copied == 5


def test_a_source_that_is_written_to_meanwhile_is_caught_up_with(either: Any, make: Make) -> None:
    collection = filled(either, make, 40)

    def write(count: int) -> None:
        if not written:
            written.append(count)
            collection.add(ids=["new"], documents=["a new one"], metadatas=[{"n": 40}])
            collection.delete(ids=["id3"])

    written: list[int] = []
    copy_collection(either, "docs", "docs-2", make(dimensions=128), progress=write, slice_size=10)
    new, old = content(either, "docs"), content(either, "docs-2")
    assert new.keys() == old.keys() == ({*expected(40, 64), "new"} - {"id3"})


def test_a_source_that_keeps_changing_keeps_its_name(client: Any, make: Make) -> None:
    collection = filled(client, make, 5)
    numbers = itertools.count()

    class Written(NexusFlowEmbeddingFunction):
        def __call__(self, input: Any) -> Any:  # noqa: A002
            n = next(numbers)
            collection.add(ids=[f"new{n}"], documents=[f"new {n}"])
            return super().__call__(input)

    plain = make(dimensions=128)
    function = Written(
        **{**plain._options, "api_key": plain._api_key},
        dimensions=128,
        api_base=plain._config["api_base"],
    )
    with pytest.raises(errors.CollectionError, match="stop what writes"):
        copy_collection(client, "docs", "docs-2", function)
    assert content(client, "docs")["id0"] == expected(1, 64)["id0"]


def test_a_dry_run_touches_nothing_and_says_what_it_would_cost(
    either: Any, make: Make, server: LocalServer
) -> None:
    filled(either, make)
    before, paid = content(either, "docs"), server.stats.requests
    said = copy_collection(either, "docs", "docs-2", make(dimensions=128), dry_run=True)
    free = copy_collection(either, "docs", "docs-2", dry_run=True)
    assert (free.copied, free.usage.requests, free.exchanged) == (30, 0, False)
    assert [c.name for c in either.list_collections()] == ["docs"]
    assert (content(either, "docs"), server.stats.requests) == (before, paid)
    done = copy_collection(either, "docs", "docs-2", make(dimensions=128), exchange=False)
    assert (said.embedded, said.usage.texts) == (done.embedded, done.usage.texts) == (30, 30)
    assert said.usage.tokens >= done.usage.tokens > 0
    again = copy_collection(either, "docs", "docs-2", make(dimensions=128), dry_run=True)
    assert (again.embedded, again.present, again.usage.tokens) == (0, 30, 0)


async def test_a_dry_run_counts_the_comparison_of_sizes_once(
    chroma_port: int, make: Make, server: LocalServer, tmp_path: Path
) -> None:
    http = chromadb.HttpClient(host="127.0.0.1", port=chroma_port)
    name = f"docs-{uuid4()}"
    add_documents(open_collection(http, name, make()), **numbered(ESTIMATED + 50))
    function = make(dimensions=128, cache=str(tmp_path / "vectors.db"), derive=True)
    paid = server.stats.requests
    said = copy_collection(http, name, f"{name}-2", function, dry_run=True)
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)
    also = await acopy_collection(client, name, f"{name}-2", function, dry_run=True)
    http.delete_collection(name)
    assert server.stats.requests == paid
    sizes = sum(size >= 128 for size in DIMENSIONS)
    assert said.usage.requests == also.usage.requests == sizes + ESTIMATED // 10 + 50 // 10


def test_a_budget_that_runs_out_leaves_the_old_one_and_the_next_run_pays_for_the_rest(
    client: Any, make: Make, server: LocalServer
) -> None:
    filled(client, make, 400)
    server.reset_stats()
    poor = make(dimensions=128, budget=Budget(tokens=300), max_concurrency=1)
    with pytest.raises(errors.BudgetExceededError):
        copy_collection(client, "docs", "docs-2", poor)
    assert content(client, "docs") == expected(400, 64)
    paid = server.stats.texts
    assert 0 < paid < 400
    done = copy_collection(client, "docs", "docs-2", make(dimensions=128), verify=False)
    assert (done.embedded, done.present, done.exchanged) == (400 - paid, paid, True)
    assert server.stats.texts == 400


def test_a_target_with_other_documents_is_not_changed_unless_it_may_be_replaced(
    client: Any, make: Make, server: LocalServer
) -> None:
    filled(client, make, 3)
    other = open_collection(client, "docs-2", make())
    add_documents(other, ids=["id0", "x"], documents=["of another", "of another, too"])
    before = content(client, "docs-2")
    for dry_run in (True, False):
        with pytest.raises(
            errors.ConfigurationError, match="'docs-2' has 2 documents that 'docs' does"
        ):
            copy_collection(client, "docs", "docs-2", dry_run=dry_run)
    assert content(client, "docs-2") == before
    done = copy_collection(client, "docs", "docs-2", replace=True)
    assert (done.copied, done.removed, done.exchanged) == (3, 1, True)


def test_the_target_follows_what_changed_in_the_source_meanwhile(client: Any, make: Make) -> None:
    collection = filled(client, make, 10)
    copy_collection(client, "docs", "docs-2", make(dimensions=128), exchange=False)
    documents = {**numbered(9), "metadatas": [{"m": 1}] * 9}
    documents["documents"][3] = "a new text"
    sync_documents(collection, **documents)
    done = copy_collection(client, "docs", "docs-2", make(dimensions=128), replace=True)
    assert (done.embedded, done.removed) == (9, 1)
    assert done.usage.texts == 1 + 3  # with the three that are compared
    assert content(client, "docs") == {
        key: (document, metadata, 128)
        for key, (document, metadata, _) in content(client, "docs-2").items()
    }


def test_the_target_follows_a_number_in_a_list_that_becomes_a_truth_value(
    client: Any, make: Make
) -> None:
    try:
        validate_metadata({"l": [1]})
    except ValueError:
        pytest.skip("this version of Chroma takes no lists")
    collection = filled(client, make, 2)
    collection.update(ids=["id0"], metadatas=[{"l": [1]}])
    copy_collection(client, "docs", "docs-2", make(dimensions=128), exchange=False)
    collection.update(ids=["id0"], metadatas=[{"l": [True]}])
    assert copy_collection(client, "docs", "docs-2", make(dimensions=128), replace=True).exchanged
    copied = client.get_collection("docs", embedding_function=None)
    assert copied.get(where={"l": {"$contains": True}})["ids"] == ["id0"]


def test_documents_that_cannot_be_embedded_are_left_out_and_keep_the_names(
    client: Any, make: Make
) -> None:
    def refuse(request: Any) -> Any:
        if any("document 7" in text for text in request["input"]):
            return 400, {"error": {"code": "data_inspection_failed", "message": "no"}}
        return 200

    collection = filled(client, make, 10)
    collection.add(ids=["v"], embeddings=[[0.5] * 64])
    function = answering(status=refuse)
    done = copy_collection(client, "docs", "docs-2", function)
    assert {(item.id, item.reason) for item in done.left_out} == {
        ("id7", "refused"),
        ("v", "invalid text"),
    }
    assert (done.embedded, done.exchanged) == (9, False)
    assert client.get_collection("docs-2").count() == 9
    assert client.get_collection("docs").count() == 11
    done = copy_collection(client, "docs", "docs-2", function, exchange="anyway")
    assert (done.present, done.exchanged, len(done.left_out)) == (9, True, 2)
    assert client.get_collection("docs").count() == 9
    done = copy_collection(client, "docs", "docs-2", function, exchange="anyway")
    assert done == Copied(present=9, exchanged=True)


@pytest.mark.parametrize("size", [128, 64], ids=["embedded again", "copied"])
def test_documents_that_the_store_refuses_are_left_out_and_keep_the_names(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    filled(client, make)
    upsert = chromadb.Collection.upsert

    def refuse(self: Any, ids: Any, **fields: Any) -> None:
        if "id7" in ids:
            raise ValueError("Payload Too Large")
        upsert(self, ids=ids, **fields)

    monkeypatch.setattr(chromadb.Collection, "upsert", refuse)
    counts: list[int] = []
    for left in ({}, {"exchange": "anyway"}):
        done = copy_collection(
            client, "docs", "docs-2", make(dimensions=size), progress=counts.append, **left
        )
        assert [(item.id, item.reason) for item in done.left_out] == [
            ("id7", "refused by the store")
        ]
        assert (done.copied + done.embedded + done.present, done.exchanged) == (29, bool(left))
    assert sum(counts) == 60
    assert client.get_collection("docs").count() == 29


@pytest.mark.parametrize("size", [128, 64], ids=["embedded again", "copied"])
def test_the_limits_of_chroma_cloud_stop_no_copy(
    client: Any, make: Make, cloud: None, size: int
) -> None:
    filled(client, make, 600)
    for exchange in (False, True):
        done = copy_collection(
            client, "docs", "docs-2", make(dimensions=size), exchange=exchange, slice_size=500
        )
    assert (done.present, done.exchanged) == (600, True)


def test_calling_again_after_the_exchange_does_nothing(
    either: Any, make: Make, server: LocalServer
) -> None:
    filled(either, make)
    copy_collection(either, "docs", "docs-2", make(dimensions=128))
    before = [content(either, name) for name in SIZES]
    server.reset_stats()
    again = copy_collection(either, "docs", "docs-2", make(dimensions=128))
    assert again == Copied(present=30, exchanged=True)
    assert [content(either, name) for name in SIZES] == before
    assert server.stats.requests == 0


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_target_of_another_size_that_is_not_the_former_source_is_refused(
    client: Any, make: Make, server: LocalServer, dry_run: bool
) -> None:
    collection = filled(client, make, 5)
    other = open_collection(client, "news", make(dimensions=128))
    every: dict[str, Any]
    for every in (numbered(1), numbered(7), {"ids": [], "documents": []}):
        sync_documents(other, **every, remove="all")
        server.reset_stats()
        for function in (None, make()):
            with pytest.raises(errors.ConfigurationError, match="name another target"):
                copy_collection(client, "docs", "news", function, dry_run=dry_run)
        assert server.stats.requests == 0
    sync_documents(collection, ids=[], documents=[], remove="all")
    sync_documents(other, **numbered(2))
    with pytest.raises(errors.ConfigurationError, match="name another target"):
        copy_collection(client, "docs", "news", exchange="anyway", dry_run=dry_run)


@pytest.mark.parametrize("size", [128, 64], ids=["embedded again", "copied"])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_target_with_its_own_metadata_is_not_overwritten(
    client: Any, make: Make, server: LocalServer, size: int, dry_run: bool
) -> None:
    filled(client, make, 5)
    target = open_collection(client, "docs-2", make(dimensions=size))
    sync_documents(target, **numbered(5), metadatas=[{"note": "mine"}] * 5)
    before = content(client, "docs-2")
    server.reset_stats()
    fields: dict[str, Any] = {"exchange": False, "dry_run": dry_run}
    with pytest.raises(errors.ConfigurationError, match="replace=True"):
        copy_collection(client, "docs", "docs-2", make(dimensions=size), **fields)
    assert (content(client, "docs-2"), server.stats.requests) == (before, 0)
    copy_collection(client, "docs", "docs-2", make(dimensions=size), **fields, replace=True)
    after = content(client, "docs-2")
    assert after == (before if dry_run else expected(5, size))


def test_a_target_with_its_own_vectors_is_not_overwritten(client: Any, make: Make) -> None:
    filled(client, make, 5)
    copy_collection(client, "docs", "docs-2", exchange=False)
    target = client.get_collection("docs-2")
    target.update(ids=["id3"], embeddings=[[0.5] * 64])
    with pytest.raises(errors.ConfigurationError, match=r"1 document .* or vector is different"):
        copy_collection(client, "docs", "docs-2", exchange=False)
    assert target.get(ids=["id3"], include=["embeddings"])["embeddings"][0][0] == 0.5


@pytest.mark.parametrize("size", [128, 64], ids=["embedded again", "copied"])
@pytest.mark.parametrize("kind", ["new", "empty"])
def test_an_interrupted_copy_goes_on_although_the_source_has_changed(
    either: Any, make: Make, server: LocalServer, size: int, kind: str
) -> None:
    metadata = {"hnsw:space": "cosine", "about": "x"}
    collection = filled(either, make, 100, metadata=metadata)
    if kind == "empty":
        open_collection(either, "docs-2", make(dimensions=size))

    def end(count: int) -> None:
        raise KeyboardInterrupt

    fields: dict[str, Any] = {"slice_size": 20}
    with pytest.raises(KeyboardInterrupt):
        copy_collection(either, "docs", "docs-2", make(dimensions=size), **fields, progress=end)
    copied = either.get_collection("docs-2", embedding_function=None).count()
    assert 0 < copied < 100
    source: dict[str, Any] = numbered(100)
    source["documents"][0] = "changed meanwhile"
    source = {name: column[:1] + column[2:] for name, column in source.items()}
    sync_documents(collection, **source, metadatas=[{"n": n} for n in range(99)])
    server.reset_stats()
    done = copy_collection(either, "docs", "docs-2", make(dimensions=size), **fields)
    assert (done.exchanged, done.removed) == (True, 1)
    assert server.stats.texts <= (100 - copied + 1 + 3 if size == 128 else 0)
    new, old = content(either, "docs"), content(either, "docs-2")
    assert new == {key: (text, data, size) for key, (text, data, _) in old.items()}
    assert new["id0"] == ("changed meanwhile", {"n": 0}, size)
    kept = either.get_collection("docs", embedding_function=None).metadata
    assert kept == (metadata if kind == "new" else None)


def test_a_complete_copy_is_the_users_own(client: Any, make: Make) -> None:
    filled(client, make, 5)
    copy_collection(client, "docs", "docs-2", make(dimensions=128), exchange=False)
    client.get_collection("docs-2").add(ids=["mine"], documents=["mine"])
    with pytest.raises(errors.ConfigurationError, match="replace=True"):
        copy_collection(client, "docs", "docs-2", make(dimensions=128))


def test_exchanging_the_names_again_is_the_way_back(either: Any, make: Make) -> None:
    filled(either, make)
    copy_collection(either, "docs", "docs-2", make(dimensions=128))
    exchange_names(either, "docs", "docs-2")
    assert content(either, "docs") == expected(30, 64)
    assert content(either, "docs-2") == expected(30, 128)


def test_a_target_of_another_size_is_refused_before_anything_is_sent(
    client: Any, make: Make, server: LocalServer
) -> None:
    filled(client, make, 3)
    open_collection(client, "docs-2", make(dimensions=256))
    server.reset_stats()
    with pytest.raises(errors.ConfigurationError, match="dimensions=256"):
        copy_collection(client, "docs", "docs-2", make(dimensions=128))
    with pytest.raises(errors.ConfigurationError, match="twice"):
        copy_collection(client, "docs", "docs", make(dimensions=128))
    with pytest.raises(errors.ConfigurationError, match="exchange must be"):
        copy_collection(client, "docs", "x-docs", make(), exchange="yes")  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigurationError, match="characters"):
        copy_collection(client, "docs", "x" * 500, make(dimensions=128))
    with pytest.raises(NotFoundError):
        copy_collection(client, "none", "x-docs", make())
    with pytest.raises(NotFoundError):
        exchange_names(client, "docs", "none")
    assert {c.name for c in client.list_collections()} == {"docs", "docs-2"}
    assert server.stats.requests == 0


# -- killed ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


FOREVER = 1 << 30


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Callable[[], int]]:
    """Let so many calls of Chroma be made, then none; what it returns tells how many were."""
    left = [FOREVER]
    call = calls._in_thread

    def counting(method: Any, fields: Any, limit: float) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return call(method, fields, limit)

    def kill_after(count: int) -> Callable[[], int]:
        left[0] = count
        return lambda: count - left[0]

    monkeypatch.setattr(calls, "_in_thread", counting)
    return kill_after


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 64], ids=["embedded again", "copied"])
def test_killed_at_any_call_one_of_the_two_answers_and_calling_again_completes_it(
    client: Any, make: Make, kill_after: Callable[[int], Callable[[], int]], size: int
) -> None:
    old, new = expected(12, 64), expected(12, size)
    settings: Any = {"configuration": {"hnsw": {"space": "ip"}}, "slice_size": 5}

    def begin() -> Any:
        clear(client)
        filled(client, make, 12)
        return make(dimensions=size)

    function = begin()
    made = kill_after(FOREVER)
    copy_collection(client, "docs", "docs-2", function, **settings)
    last = made()
    assert last > 15
    gaps = 0
    for count in (*range(1, last - 4, 4), *range(last - 4, last)):
        function = begin()
        kill_after(count)
        with pytest.raises(Killed):
            copy_collection(client, "docs", "docs-2", function, **settings)
        kill_after(FOREVER)
        names = {c.name for c in client.list_collections()}
        gaps += "docs" not in names
        if count % 2:  # a program that opens it by its name
            assert content(client, open_collection(client, "docs", create=False).name) in (old, new)
        copy_collection(client, "docs", "docs-2", function, **settings)
        assert {c.name for c in client.list_collections()} == {"docs", "docs-2"}
        assert (content(client, "docs"), content(client, "docs-2")) == (new, old)
    assert gaps == 1


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_exchange_is_completed_by_the_next_call(
    either: Any, make: Make, kill_after: Callable[[int], Any], after: int
) -> None:
    filled(either, make)
    copy_collection(either, "docs", "docs-2", make(dimensions=128), exchange=False)
    looked_up = 4  # the list and its end, and both collections
    kill_after(looked_up + after)
    with pytest.raises(Killed):
        exchange_names(either, "docs", "docs-2")
    kill_after(FOREVER)
    if after == 1:
        with pytest.raises(NotFoundError):
            either.get_collection("docs")
        assert open_collection(either, "docs", make(dimensions=128)).count() == 30
    else:
        assert open_collection(either, "docs-2", make()).count() == 30
    exchange_names(either, "docs-2", "docs")
    exchange_names(either, "docs-2", "docs")
    assert content(either, "docs") == expected(30, 128)
    assert content(either, "docs-2") == expected(30, 64)


def test_a_collection_made_in_the_gap_is_named_and_nothing_is_lost(
    client: Any, make: Make, kill_after: Callable[[int], Any]
) -> None:
    filled(client, make)
    copy_collection(client, "docs", "docs-2", make(dimensions=128), exchange=False)
    kill_after(5)
    with pytest.raises(Killed):
        exchange_names(client, "docs", "docs-2")
    kill_after(FOREVER)
    client.create_collection("docs")
    with pytest.raises(errors.CollectionError, match=r"'docs-2.exchanged-with.docs'.*modify"):
        copy_collection(client, "docs", "docs-2", make(dimensions=128))
    assert len(client.list_collections()) == 3


def test_a_rename_that_fails_is_undone(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(client, make)
    copy_collection(client, "docs", "docs-2", make(dimensions=128), exchange=False)
    modify, names = chromadb.Collection.modify, []

    def failing(self: Any, name: Any = None, **fields: Any) -> None:
        names.append(name)
        if len(names) == 2:
            raise RuntimeError("the disk is full")
        modify(self, name=name, **fields)

    monkeypatch.setattr(chromadb.Collection, "modify", failing)
    with pytest.raises(errors.CollectionError, match="disk is full"):
        copy_collection(client, "docs", "docs-2", make(dimensions=128))
    assert content(client, "docs") == expected(30, 64)
    assert content(client, "docs-2") == expected(30, 128)


COPYING = """
import sys, chromadb
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import copy_collection
client = chromadb.PersistentClient(sys.argv[1])
function = NexusFlowEmbeddingFunction(
    "sk-air-very-secret", api_base=sys.argv[2], dimensions=128, max_concurrency=2
)
print("ready", flush=True)
copy_collection(
    client, "docs", "docs-2", function, slice_size=20, progress=lambda n: print(n, flush=True)
)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_copies_loses_nothing_and_pays_little_twice(
    make: Make, server: LocalServer, tmp_path: Path
) -> None:
    folder = str(tmp_path / "killed")
    client = chromadb.PersistentClient(folder)
    filled(client, make, 300)
    server.reset_stats()
    command = [sys.executable, "-c", COPYING, folder, server.base_url]
    copying = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert copying.stdout
    lines = [copying.stdout.readline() for _ in range(4)]  # ready, then three slices written
    copying.kill()
    assert all(lines), copying.communicate(timeout=60)
    copying.communicate(timeout=60)
    paid = server.stats.texts
    assert paid >= 60
    assert "docs" in {c.name for c in client.list_collections()}
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    # A slice that was not written, what was in flight or waited for its turn, and the three that
    # are compared.
    assert server.stats.texts <= 300 + 20 + 2 * 10 * 4 + 3
    assert [client.get_collection(name, embedding_function=None).count() for name in SIZES] == [
        300
    ] * 2


# -- other processes ------------------------------------------------------------------------------

READER = """
import json, sys, chromadb
import nexusflow_integrations.chroma
place = sys.argv[1]
if place.isdigit():
    client = chromadb.HttpClient(host="127.0.0.1", port=int(place))
else:
    client = chromadb.PersistentClient(place)
held = client.get_collection(sys.argv[2], embedding_function=None)
vector = [[1.0] * 64]
for line in sys.stdin:
    try:
        if line.strip() == "held":
            found = held.query(query_embeddings=vector, n_results=1)["ids"]
            answer = [len(held.get()["ids"]), len(found[0])]
        else:
            named = client.get_collection(line.strip())
            answer = len(named.get(include=["embeddings"], limit=1)["embeddings"][0])
    except Exception as error:
        answer = type(error).__name__
    print(json.dumps(answer), flush=True)
"""


def test_readers_of_another_process_go_on_with_the_former_collection_until_it_is_deleted(
    either: Any, make: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    filled(either, make)
    if "server" in request.node.name:
        place = str(request.getfixturevalue("chroma_port"))
    else:
        place = str(tmp_path / "db")
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, place, "docs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def asked(what: str) -> Any:
        assert reader.stdin
        assert reader.stdout
        reader.stdin.write(f"{what}\n")
        reader.stdin.flush()
        return json.loads(reader.stdout.readline())

    try:
        assert (asked("held"), asked("docs")) == ([30, 1], 64)
        copy_collection(either, "docs", "docs-2", make(dimensions=128))
        assert (asked("held"), asked("docs"), asked("docs-2")) == ([30, 1], 128, 64)
        either.delete_collection("docs-2")
        assert (asked("held"), asked("docs")) == ("NotFoundError", 128)
    finally:
        reader.communicate(timeout=60)


OPENING = """
import sys, time, chromadb
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection
client = chromadb.PersistentClient(sys.argv[1])
function = NexusFlowEmbeddingFunction("k", api_base=sys.argv[2], dimensions=64)
print("ready", flush=True)
opened = 0
while opened < 300:
    open_collection(client, "docs", function, create=False).count()
    opened += 1
print(opened)
"""


@pytest.mark.slow
def test_a_collection_is_found_while_its_name_is_exchanged(
    client: Any, make: Make, server: LocalServer, tmp_path: Path
) -> None:
    filled(client, make, 5)
    copy_collection(client, "docs", "docs-2", exchange=False)
    opening = subprocess.Popen(
        [sys.executable, "-c", OPENING, str(tmp_path / "db"), server.base_url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert opening.stdout
    opening.stdout.readline()
    exchanges = 0
    while opening.poll() is None:
        exchange_names(client, "docs", "docs-2", writer_wait=60)
        exchanges += 1
        time.sleep(0.01)
    out, err = opening.communicate(timeout=60)
    assert (out.strip(), exchanges > 3) == ("300", True), err[-1000:]


async def test_the_async_functions_do_the_same(
    chroma_port: int, make: Make, server: LocalServer
) -> None:
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)
    http = chromadb.HttpClient(host="127.0.0.1", port=chroma_port)
    one, two = f"docs-{uuid4()}", f"docs-{uuid4()}"
    add_documents(open_collection(http, one, make()), **numbered(30))
    said = await acopy_collection(client, one, two, make(dimensions=128), dry_run=True)
    server.reset_stats()
    done = await acopy_collection(client, one, two, make(dimensions=128))
    assert (said.embedded, done.embedded, done.exchanged) == (30, 30, True)
    assert said.usage.texts == done.usage.texts == server.stats.texts == 30
    assert (await aopen_collection(client, one, make(dimensions=128))).name == one
    assert await acopy_collection(client, one, two, make(dimensions=128)) == Copied(
        present=30, exchanged=True
    )
    await aexchange_names(client, one, two)
    assert await (await aopen_collection(client, one, make())).count() == 30
    free = await acopy_collection(client, one, f"{one}-copy")
    assert (free.copied, free.usage.requests) == (30, 0)
    assert server.stats.texts == 30
