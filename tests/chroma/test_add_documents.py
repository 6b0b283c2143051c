"""``add_documents`` adds any number of documents, pays for each once, and loses no paid vector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from chromadb.errors import DuplicateIDError

from nexusflow_integrations import Budget, errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import (
    Added,
    add_documents,
    open_collection,
    sync_documents,
)
from nexusflow_integrations.local import LocalServer

from .conftest import KEY
from .test_embedding_function import Make, answering


def numbered(count: int, start: int = 0) -> dict[str, list[str]]:
    numbers = range(start, start + count)
    return {"ids": [f"id{n}" for n in numbers], "documents": [f"document {n}" for n in numbers]}


@pytest.fixture
def collection(client: Any, make: Make) -> Any:
    return open_collection(client, "docs", make())


def test_all_documents_arrive_with_their_own_vector_and_metadata(
    collection: Any, make: Make, strict: None
) -> None:
    batch = numbered(1234)
    metadatas: list[Any] = [{"number": n} if n % 3 else None for n in range(1234)]
    assert add_documents(collection, **batch, metadatas=metadatas) == Added(1234, 0)
    found = collection.get(include=["documents", "metadatas", "embeddings"])
    place = {name: n for n, name in enumerate(found["ids"])}
    order = [place[name] for name in batch["ids"]]
    assert [found["documents"][n] for n in order] == batch["documents"]
    assert [found["metadatas"][n] for n in order] == metadatas
    vectors = np.asarray(make()(batch["documents"]))
    np.testing.assert_allclose(found["embeddings"][order], vectors, atol=1e-6)


@pytest.mark.slow
def test_more_than_the_clients_maximum_is_split(
    collection: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Exception, match="5461"):
        collection.add(**numbered(5462), embeddings=np.ones((5462, 64), np.float32))
    sizes = written_sizes(collection, monkeypatch)
    assert add_documents(collection, **numbered(5462), slice_size=100_000).added == 5462
    assert sizes == [5461, 1]
    assert collection.count() == 5462


def written_sizes(collection: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many documents each write brings."""
    sizes: list[int] = []
    add = collection.add

    def noting(**fields: Any) -> None:
        sizes.append(len(fields["ids"]))
        add(**fields)

    monkeypatch.setattr(collection, "add", noting)
    return sizes


def test_a_client_with_a_smaller_maximum_gets_smaller_slices(
    collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = written_sizes(collection, monkeypatch)
    monkeypatch.setattr(collection._client, "get_max_batch_size", lambda: 166)
    add_documents(collection, **numbered(400))
    assert sizes == [166, 166, 68]


def test_only_missing_ids_are_paid_for(collection: Any, server: LocalServer) -> None:
    add_documents(collection, **numbered(30))
    server.reset_stats()
    assert add_documents(collection, **numbered(50, start=10)) == Added(added=30, present=20)
    assert server.stats.received == tuple(numbered(30, start=30)["documents"])
    server.reset_stats()
    assert add_documents(collection, **numbered(60)) == Added(added=0, present=60)
    assert server.stats.requests == 0


def test_no_documents_are_no_request_and_no_error(collection: Any, server: LocalServer) -> None:
    assert add_documents(collection, ids=[], documents=[]) == Added()
    assert server.stats.requests == 0


def test_iterators_are_read_as_they_are_needed(collection: Any, make: Make) -> None:
    read = 0

    def documents() -> Iterator[str]:
        nonlocal read
        for n in range(3000):
            read += 1
            yield f"document {n}"

    ahead: list[int] = []
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        ahead.append(read - done)

    added = add_documents(
        collection, ids=(f"id{n}" for n in range(3000)), documents=documents(), progress=progress
    )
    assert added == Added(3000, 0)
    assert max(ahead) < 1500


def test_progress_counts_every_document_once_in_this_thread(collection: Any) -> None:
    add_documents(collection, **numbered(100))
    counts: list[int] = []
    threads = set()

    def progress(count: int) -> None:
        counts.append(count)
        threads.add(threading.current_thread())

    add_documents(collection, **numbered(700), progress=progress)
    assert sum(counts) == 700
    assert min(counts) > 0
    assert len(counts) > 2
    assert threads == {threading.current_thread()}


def test_embedding_goes_on_while_a_slice_is_written(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalServer("hash", latency_ms=100) as distant:
        function = NexusFlowEmbeddingFunction(KEY, api_base=distant.base_url, dimensions=64)
        collection = open_collection(client, "docs", function)
        in_flight: list[int] = []
        add = collection.add

        def noting(**fields: Any) -> None:
            in_flight.append(distant.stats.in_flight)
            add(**fields)

        monkeypatch.setattr(collection, "add", noting)
        add_documents(collection, **numbered(1500), slice_size=100)
    assert max(in_flight) > 0


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"documents": 299 * ["fine"] + [""]}, errors.InvalidInputError, "text 299 is blank"),
        ({"documents": 299 * ["fine"] + [None]}, errors.InvalidInputError, "text 299 is None"),
        ({"ids": ["same"] * 300}, DuplicateIDError, "same"),
        ({"ids": [*map(str, range(299)), 5]}, ValueError, "5"),
        ({"metadatas": [{"fine": 1}] * 299 + [{"bad": object()}]}, ValueError, "metadata value"),
        ({"metadatas": [{"fine": 1}] * 299 + [{}]}, ValueError, "non-empty"),
        ({"documents": ["fine"] * 299}, ValueError, "only 299 items in documents, but more in ids"),
        ({"ids": ["one"]}, ValueError, "only 1 item in ids, but more in documents"),
        ({"metadatas": []}, ValueError, "no items in metadatas, but some in ids and"),
        ({"documents": "one string"}, errors.InvalidInputError, "not one string"),
        ({"slice_size": 0}, errors.ConfigurationError, "slice_size"),
        ({"slice_size": "many"}, errors.ConfigurationError, "slice_size"),
        ({"store_timeout": float("nan")}, errors.ConfigurationError, "store_timeout"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_lists_are_refused_before_anything_is_sent(
    collection: Any, server: LocalServer, change: dict[str, Any], error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        add_documents(collection, **numbered(300) | change)
    assert server.stats.requests == 0
    assert collection.count() == 0


def test_documents_before_a_bad_one_in_an_iterator_are_kept(
    collection: Any, server: LocalServer
) -> None:
    batch = numbered(600)
    batch["documents"][500] = " "
    with pytest.raises(errors.InvalidInputError, match="text 500 is blank") as caught:
        add_documents(
            collection, ids=iter(batch["ids"]), documents=iter(batch["documents"]), slice_size=200
        )
    assert caught.value.index == 500
    assert collection.count() == server.stats.texts == 400


def test_documents_before_an_error_of_the_iterator_are_kept(collection: Any) -> None:
    def documents() -> Iterator[str]:
        yield from numbered(450)["documents"]
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="ends here"):
        add_documents(collection, ids=map(str, range(9999)), documents=documents(), slice_size=200)
    assert collection.count() == 400


def test_an_id_that_an_iterator_brings_twice_is_an_error_with_both_places(
    collection: Any, server: LocalServer
) -> None:
    batch = numbered(25)
    twice = [*batch["ids"], *batch["ids"]]
    message = "'id0' appears twice: at positions 0 and 25"
    with pytest.raises(errors.InvalidInputError, match=message):
        add_documents(collection, ids=iter(twice), documents=iter(twice), slice_size=25)
    assert server.stats.texts == collection.count() == 25


# -- trouble -------------------------------------------------------------------------------------


def test_refused_documents_are_named_and_all_others_added(client: Any) -> None:
    def refuse(request: Any) -> Any:
        texts = request["input"]
        bad = [text for text in texts if text in ("document 3", "document 42")]
        return (400, {"error": {"code": "data_inspection_failed", "message": "no"}}) if bad else 200

    function = answering(status=refuse)
    collection = open_collection(client, "docs", function)
    counts: list[int] = []
    with pytest.raises(errors.RefusedTextsError, match="id42") as caught:
        add_documents(collection, **numbered(60), progress=counts.append)
    assert set(caught.value.refused) == {3, 42}
    assert sum(counts) == 60
    assert collection.count() == 58
    assert "id3" not in collection.get()["ids"]


def test_documents_that_the_store_refuses_are_named_and_all_others_added(
    collection: Any, make: Make
) -> None:
    add = collection.add

    def refuse(**fields: Any) -> None:
        if {"id3", "id4"} & set(fields["ids"]):
            raise ValueError("Payload Too Large")
        add(**fields)

    collection.add = refuse
    with pytest.raises(errors.CollectionError, match=r"refused 2 documents \('id3': ") as caught:
        add_documents(collection, **numbered(600))
    assert collection.count() == 598
    assert sorted(caught.value.finished) == [3, 4]
    assert caught.value.finished[3] == pytest.approx(make()(["document 3"])[0], abs=1e-6)


def test_a_refused_document_is_named_even_if_all_others_differ(collection: Any) -> None:
    add_documents(collection, **numbered(3))
    batch = numbered(4)
    batch["documents"] = [f"another {text}" for text in batch["documents"]]

    def refuse(**fields: Any) -> None:
        raise ValueError("Payload Too Large")

    collection.add = refuse
    with pytest.raises(errors.CollectionError, match=r"refused 1 document \('id3': .*others were"):
        add_documents(collection, **batch)


def test_a_second_sync_leaves_out_what_the_store_refused_in_the_first(
    collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexusflow_integrations.chroma_collections.run.MOST_REFUSED", 3)
    bad = {f"id{number}" for number in range(0, 60, 10)}
    upsert, add = collection.upsert, collection.add

    def refusing(write: Any) -> Any:
        def write_good(**fields: Any) -> None:
            if bad & set(fields["ids"]):
                raise ValueError("Payload Too Large")
            write(**fields)

        return write_good

    collection.upsert, collection.add = refusing(upsert), refusing(add)
    for _ in range(2):
        done = sync_documents(collection, **numbered(60))
        assert {left.id for left in done.left_out} == bad
        assert collection.count() == 54
    with pytest.raises(errors.CollectionError, match="the store refused 3 documents, one by one"):
        sync_documents(collection, ids=sorted(bad), documents=["text"] * 6, remove=False)


def test_a_document_that_is_too_long_is_named_and_all_others_added(collection: Any) -> None:
    batch = numbered(30)
    batch["documents"][7] = "word " * 20_000
    add_documents(collection, **numbered(5))
    with pytest.raises(errors.RefusedTextsError, match="'id7': the text is too long") as caught:
        add_documents(collection, **batch)
    assert set(caught.value.refused) == {7}
    assert collection.count() == 29
    (left,) = sync_documents(collection, **batch).left_out
    assert (left.id, left.reason) == ("id7", "too long")
    assert left.message.startswith("the text is too long")


def test_when_the_budget_is_used_up_paid_vectors_are_kept(
    client: Any, make: Make, server: LocalServer
) -> None:
    tokens = 2 * 95
    function = make(budget=Budget(tokens=tokens), max_concurrency=1)
    collection = open_collection(client, "docs", function)
    with pytest.raises(errors.BudgetExceededError):
        add_documents(collection, **numbered(1000))
    assert 0 < collection.count() == server.stats.texts < 1000
    server.reset_stats()
    paid = collection.count()
    again = client.get_collection("docs", embedding_function=make())
    assert add_documents(again, **numbered(1000)) == Added(1000 - paid, paid)


def test_when_the_key_expires_what_was_embedded_is_kept_and_named(client: Any) -> None:
    answered = 0

    def expire(request: Any) -> Any:
        nonlocal answered
        answered += len(request["input"])
        return 200 if answered <= 20 else (401, {"error": {"code": "invalid_api_key"}})

    collection = open_collection(client, "docs", answering(status=expire, max_concurrency=1))
    present = {"ids": ["id0"], "documents": ["document 0"], "embeddings": [[1.0] * 64]}
    collection.add(**present)
    with pytest.raises(errors.AuthenticationError) as caught:
        add_documents(collection, **numbered(40), verify=False)
    assert collection.get()["ids"] == numbered(21)["ids"]
    assert sorted(caught.value.finished) == list(range(1, 21))


def test_when_a_write_fails_no_vector_is_lost(
    collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    add = collection.add

    def failing(**fields: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 2:
            raise RuntimeError("the disk is full")
        add(**fields)

    monkeypatch.setattr(collection, "add", failing)
    with pytest.raises(errors.CollectionError, match="disk is full") as caught:
        add_documents(collection, **numbered(1000), slice_size=100)
    kept = {int(name.removeprefix("id")) for name in collection.get(include=[])["ids"]}
    assert len(kept) >= 100
    assert not kept & set(caught.value.finished)


def test_ctrl_c_keeps_what_is_ready(collection: Any, server: LocalServer) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_documents(collection, **numbered(1000), slice_size=100, progress=interrupt)
    assert collection.count() >= 100
