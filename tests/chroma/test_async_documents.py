"""``async_documents`` keeps the promises of ``sync_documents`` on a real server."""

from __future__ import annotations

from collections import UserDict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any
from uuid import uuid4

import chromadb
import pytest

from nexusflow_integrations import Budget, errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import (
    SameIdTwiceError,
    aadd_documents,
    aopen_collection,
    async_documents,
    sync_documents,
)
from nexusflow_integrations.local import LocalServer

from .test_sync_documents import BAD, numbered

Make = Callable[..., NexusFlowEmbeddingFunction]


@pytest.fixture
async def collection(chroma_port: int, make: Make) -> Any:
    return await opened(chroma_port, make())


async def opened(port: int, function: Any, name: str | None = None) -> Any:
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=port)
    return await aopen_collection(client, name or f"docs-{uuid4().hex}", function)


async def held(collection: Any) -> dict[str, tuple[str, Any]]:
    found = await collection.get()
    rows = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
    return {name: (text, metadata) for name, text, metadata in rows}


async def later(values: Iterable[Any]) -> AsyncIterator[Any]:
    for value in values:
        yield value


async def test_only_what_changed_is_paid_for_and_what_is_gone_is_removed(
    collection: Any, server: LocalServer
) -> None:
    first = await async_documents(collection, **numbered(20), metadatas=[{"v": 1}] * 20)
    assert (first.added, server.stats.texts) == (20, 20)
    documents = [*numbered(10)["documents"], "other", "new"]
    wanted: dict[str, Any] = {
        "ids": [*numbered(10)["ids"], "id10", "fresh"],
        "documents": documents,
        "metadatas": [{"v": 2}, *([{"v": 1}] * 11)],
    }
    said = await async_documents(collection, **wanted, dry_run=True)
    streamed = {name: later(column) for name, column in wanted.items()}
    done = await async_documents(collection, **streamed)
    for found in (said, done):
        assert (found.added, found.changed, found.unchanged, found.removed) == (1, 2, 9, 9)
    assert said.usage.requests == done.usage.requests == 1
    assert server.stats.texts == 22
    assert await held(collection) == {
        name: (text, metadata) for name, text, metadata in zip(*wanted.values(), strict=True)
    }


async def test_a_dry_run_leaves_out_a_text_that_is_too_long_as_the_run_does(
    collection: Any, server: LocalServer
) -> None:
    wanted = {"ids": ["long", "short"], "documents": ["word " * 20_000, "word"]}
    said = await async_documents(collection, **wanted, dry_run=True)
    assert server.stats.requests == 0
    done = await async_documents(collection, **wanted)
    for found in (said, done):
        assert (found.added, found.usage.texts) == (1, 1)
        assert [(left.id, left.reason) for left in found.left_out] == [("long", "too long")]


async def test_bad_documents_are_left_out_and_named_and_all_others_are_written(
    collection: Any, server: LocalServer
) -> None:
    ids = ["first", *(name for name, *_ in BAD), "last"]
    documents = ["one", *(text for _, text, *_ in BAD), "two"]
    metadatas = [None, *(metadata for *_, metadata, _ in BAD), None]
    done = await async_documents(collection, ids=ids, documents=documents, metadatas=metadatas)
    assert [(left.place, left.reason) for left in done.left_out] == [
        (place, reason) for place, (*_, reason) in enumerate(BAD, 1)
    ]
    assert set(await held(collection)) == {"first", "last"}
    assert server.stats.texts == 2


async def test_a_source_that_fails_removes_nothing(collection: Any) -> None:
    await async_documents(collection, **numbered(20))

    async def failing() -> AsyncIterator[str]:
        for text in numbered(10)["documents"]:
            yield text
        raise OSError("the share is gone")

    with pytest.raises(OSError, match="share"):
        await async_documents(collection, ids=numbered(20)["ids"], documents=failing())
    assert len(await held(collection)) == 20


async def test_a_budget_that_runs_out_removes_nothing_and_the_next_run_pays_for_the_rest(
    chroma_port: int, make: Make, server: LocalServer
) -> None:
    name = f"docs-{uuid4().hex}"
    await async_documents(await opened(chroma_port, make(), name), **numbered(5))
    new = {"ids": [f"n{n}" for n in range(60)], "documents": [f"word {n}" for n in range(60)]}
    limited = await opened(chroma_port, make(budget=Budget(tokens=60)), name)
    with pytest.raises(errors.BudgetExceededError):
        await async_documents(limited, **new)
    collection = await opened(chroma_port, make(), name)
    assert {f"id{n}" for n in range(5)} <= set(await held(collection))
    written, paid = len(await held(collection)) - 5, server.stats.texts
    done = await async_documents(collection, **new, verify=False)
    assert (done.added, done.unchanged, done.removed) == (60 - written, written, 5)
    assert server.stats.texts - paid == 60 - written


async def test_a_source_changes_and_removes_only_its_own_part(collection: Any) -> None:
    for source in ("one", "two"):
        await async_documents(
            collection,
            ids=[f"{source}-{n}" for n in range(5)],
            documents=[f"{source} {n}" for n in range(5)],
            metadatas=[{"source": source}] * 5,
            where={"source": source},
        )
    done = await async_documents(
        collection, ids=[], documents=[], where={"source": "one"}, remove="all"
    )
    assert done.removed == 5
    assert set(await held(collection)) == {f"two-{n}" for n in range(5)}


async def test_the_same_id_twice_is_an_error_with_both_places(
    collection: Any, server: LocalServer
) -> None:
    ids = [*(f"id{n}" for n in range(1_990)), "id3"]
    with pytest.raises(SameIdTwiceError, match=r"'id3'.*at positions 3 and 1990"):
        await async_documents(collection, ids=ids, documents=[f"text {n}" for n in range(1_991)])
    assert server.stats.texts == 0


async def test_the_wrong_variant_is_refused_by_name(collection: Any, server: LocalServer) -> None:
    with pytest.raises(errors.ConfigurationError, match="use async_documents"):
        sync_documents(collection, **numbered(1))
    local = chromadb.EphemeralClient().get_or_create_collection(f"docs-{uuid4().hex}")
    with pytest.raises(errors.ConfigurationError, match="use sync_documents"):
        await async_documents(local, **numbered(1))  # type: ignore[arg-type]
    assert server.stats.requests == 0


@pytest.mark.parametrize("call", [async_documents, aadd_documents])
@pytest.mark.parametrize("name", ["ids", "documents", "metadatas"])
async def test_a_column_of_the_wrong_kind_changes_nothing(
    collection: Any, server: LocalServer, call: Callable[..., Any], name: str
) -> None:
    await async_documents(collection, **numbered(5))
    before, sent = await held(collection), server.stats.requests
    for column, words in ((UserDict(id1="a", id2="b"), "UserDict"), ({"id1", "id2"}, "set")):
        source = {"ids": ["id1", "id2"], "documents": ["one", "two"], name: column}
        with pytest.raises(errors.InvalidInputError, match=f"^{name} must have .*{words}"):
            await call(collection, **source)
    assert await held(collection) == before
    assert server.stats.requests == sent
