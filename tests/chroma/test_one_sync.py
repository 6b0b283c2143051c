"""Two syncs of one collection at the same time do not remove each other's documents."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import uuid4

import chromadb
import pytest

from nexusflow_integrations import errors
from nexusflow_integrations.chroma_collections import (
    aopen_collection,
    async_documents,
    one_sync,
    open_collection,
    sync_documents,
)

from .test_embedding_function import Make


def source(name: str, count: int = 5) -> dict[str, Any]:
    ids = [f"{name}{number}" for number in range(count)]
    return {
        "ids": ids,
        "documents": [f"the text of {one}" for one in ids],
        "metadatas": [{"source": name}] * count,
    }


def ids_in(collection: Any) -> set[str]:
    return set(collection.get(include=[])["ids"])


def test_a_second_sync_that_may_remove_the_same_documents_is_refused(
    client: Any, make: Make
) -> None:
    collection = open_collection(client, "docs", make())
    refused: list[str] = []

    def ids() -> Iterator[str]:
        for where in (None, {"source": "b"}):
            with pytest.raises(errors.CollectionError, match="another sync") as caught:
                sync_documents(collection, **source("b"), where=where)
            refused.append(str(caught.value))
        yield from source("a")["ids"]

    done = sync_documents(collection, **source("a") | {"ids": ids()})
    assert (done.added, done.removed, len(refused)) == (5, 0, 2)
    assert ids_in(collection) == set(source("a")["ids"])
    assert sync_documents(collection, **source("b")).removed == 5


def test_a_second_sync_may_wait_for_the_first_one(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = open_collection(client, "docs", make())
    begins, waits = one_sync._Turn.begins, threading.Event()
    patience: Any = Decimal(120)  # any number of seconds is accepted

    def begin(self: Any, until: float) -> bool:
        has_begun = begins(self, until)
        if not has_begun:
            waits.set()
        return has_begun

    monkeypatch.setattr(one_sync._Turn, "begins", begin)
    with ThreadPoolExecutor(1) as threads:

        def ids() -> Iterator[str]:
            waiting.append(
                threads.submit(sync_documents, collection, **source("b"), writer_wait=patience)
            )
            assert waits.wait(60)
            yield from source("a")["ids"]

        waiting: list[Any] = []
        first = sync_documents(collection, **source("a") | {"ids": ids()})
        second = waiting[0].result(120)
    assert (first.added, second.added, second.removed) == (5, 5, 5)
    assert ids_in(collection) == set(source("b")["ids"])


@pytest.mark.parametrize("how", ["other documents", "nothing is removed"])
def test_syncs_that_cannot_remove_the_same_documents_may_run_at_once(
    client: Any, make: Make, how: str
) -> None:
    collection = open_collection(client, "docs", make())
    own: dict[str, Any] = {"where": {"source": "b"}}
    if how == "nothing is removed":
        own = {"remove": False}

    def ids() -> Iterator[str]:
        sync_documents(collection, **source("b"), **own)
        yield from source("a")["ids"]

    sync_documents(collection, **source("a") | {"ids": ids()}, where={"source": "a"})
    assert ids_in(collection) == {*source("a")["ids"], *source("b")["ids"]}


def test_a_sync_that_failed_leaves_the_way_free(client: Any, make: Make) -> None:
    collection = open_collection(client, "docs", make())

    def ids() -> Iterator[str]:
        yield "a0"
        raise RuntimeError("the database is gone")

    with pytest.raises(RuntimeError):
        sync_documents(collection, **source("a") | {"ids": ids()})
    assert sync_documents(collection, **source("b")).added == 5


async def test_the_async_function_does_the_same(chroma_port: int, make: Make) -> None:
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)
    collection = await aopen_collection(client, f"docs-{uuid4()}", make())

    async def ids() -> AsyncIterator[str]:
        with pytest.raises(errors.CollectionError, match="another sync"):
            await async_documents(collection, **source("b"))
        waiting.append(
            asyncio.create_task(async_documents(collection, **source("b"), writer_wait=120.0))
        )
        for one in source("a")["ids"]:
            yield one

    waiting: list[Any] = []
    first = await async_documents(collection, **source("a") | {"ids": ids()})
    second = await waiting[0]
    assert (first.added, second.added, second.removed) == (5, 5, 5)
    found = await collection.get(include=[])
    assert set(found["ids"]) == set(source("b")["ids"])
