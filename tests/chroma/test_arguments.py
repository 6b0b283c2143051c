"""An argument of the wrong type is refused by its name before anything is sent or changed.

Otherwise ``replace="no"`` would remove documents, and ``dry_run=""`` would write.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from decimal import Decimal
from numbers import Real
from typing import Any
from uuid import uuid4

import chromadb
import pytest

from nexusflow_integrations import chroma_collections
from nexusflow_integrations.chroma_collections import (
    aadd_documents,
    acopy_collection,
    add_documents,
    aexchange_names,
    aopen_collection,
    async_documents,
    copy_collection,
    exchange_names,
    hybrid_query,
    open_collection,
    sync_documents,
)
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.local import LocalServer

from .test_add_documents import numbered
from .test_embedding_function import Make
from .test_sync_documents import held

FLAGS: dict[Callable[..., Any], list[str]] = {
    open_collection: ["create", "address_changed", "verify", "adopt"],
    copy_collection: ["exchange", "replace", "embed_again", "dry_run", "verify"],
    add_documents: ["verify"],
    sync_documents: ["remove", "dry_run", "verify"],
}
TWINS = {
    aopen_collection: open_collection,
    acopy_collection: copy_collection,
    aadd_documents: add_documents,
    async_documents: sync_documents,
}
CASES = [(call, flag) for call, flags in FLAGS.items() for flag in flags]
ASYNC_CASES = [(call, flag) for call, twin in TWINS.items() for flag in FLAGS[twin]]


@pytest.fixture
def place(client: Any, make: Make, server: LocalServer) -> Callable[..., Any]:
    """Call a function of ``chroma_collections`` with two filled collections, ``docs`` first."""
    function = make()
    for name, count in (("docs", 3), ("other", 5)):
        add_documents(open_collection(client, name, function), **numbered(count))
    collection = open_collection(client, "docs", function)
    server.reset_stats()

    def call(work: Callable[..., Any], **arguments: Any) -> Any:
        if work in (add_documents, sync_documents):
            return work(collection, **numbered(1) | arguments)
        names = ["docs"] if work is open_collection else ["docs", "other"]
        return work(client, *names, function, **arguments)

    return call


def test_every_flag_is_tested() -> None:
    for name in chroma_collections.__all__:
        work = getattr(chroma_collections, name)
        if inspect.isfunction(work):
            flags = [
                parameter.name
                for parameter in inspect.signature(work).parameters.values()
                if isinstance(parameter.default, bool)
            ]
            assert flags == FLAGS.get(TWINS.get(work, work), [])


@pytest.mark.parametrize(("work", "flag"), CASES)
def test_a_flag_is_true_or_false_and_nothing_else(
    work: Callable[..., Any],
    flag: str,
    place: Callable[..., Any],
    client: Any,
    server: LocalServer,
    odd: Callable[[], list[Any]],
) -> None:
    before = {name: held(client.get_collection(name)) for name in ("docs", "other")}
    for value in [*odd(), "no", "false", "all ", 0, 1]:
        if isinstance(value, bool):
            continue
        with pytest.raises(ConfigurationError) as caught:
            place(work, **{flag: value})
        said = str(caught.value)
        assert said.startswith(f"{flag} must be True")
        assert len(said) < 200
        assert said.isascii()
        assert said.isprintable()
    assert {name: held(client.get_collection(name)) for name in before} == before
    assert server.stats.requests == 0


@pytest.mark.parametrize(("work", "flag"), ASYNC_CASES)
async def test_a_flag_of_an_async_function_is_true_or_false_and_nothing_else(
    work: Callable[..., Any], flag: str, chroma_port: int, make: Make, server: LocalServer
) -> None:
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)
    name = f"docs-{uuid4().hex}"
    collection = await aopen_collection(client, name, make())
    given: tuple[Any, ...] = (client, name)
    if work is acopy_collection:
        given = (client, name, f"{name}-2")
    arguments: dict[str, Any] = {}
    if work in (aadd_documents, async_documents):
        given, arguments = (collection,), numbered(3)
    for value in ("", "no", 0, 1, None):
        with pytest.raises(ConfigurationError, match=f"^{flag} must be True"):
            await work(*given, **arguments | {flag: value})
    assert await collection.count() == server.stats.requests == 0


NUMBERS = (Real, Decimal)
OTHERS = [
    (open_collection, "name", str),
    (open_collection, "metadata", (dict, type(None))),
    (open_collection, "configuration", (dict, type(None))),
    (open_collection, "settings", (str, os.PathLike, type(None))),
    (open_collection, "client", ()),
    (copy_collection, "client", ()),
    (copy_collection, "source", str),
    (copy_collection, "target", str),
    (copy_collection, "slice_size", NUMBERS),
    (copy_collection, "configuration", (dict, type(None))),
    (exchange_names, "client", ()),
    (exchange_names, "first", str),
    (exchange_names, "second", str),
    *((work, "where", (dict, type(None))) for work in (sync_documents, hybrid_query)),
    *((work, "slice_size", NUMBERS) for work in (sync_documents, add_documents)),
    *((work, "store_timeout", NUMBERS) for work in (sync_documents, copy_collection)),
    *((work, "store_timeout", NUMBERS) for work in (add_documents, exchange_names)),
    *((work, "writer_wait", NUMBERS) for work in (sync_documents, copy_collection)),
    *((work, "writer_wait", NUMBERS) for work in (add_documents, exchange_names)),
]


@pytest.mark.parametrize(("work", "name", "kinds"), OTHERS)
def test_an_argument_of_another_type_is_refused_by_its_name(
    work: Callable[..., Any],
    name: str,
    kinds: Any,
    client: Any,
    make: Make,
    server: LocalServer,
    odd: Callable[[], list[Any]],
) -> None:
    collection = open_collection(client, "docs", make())
    given: dict[str, Any] = {
        open_collection: {"client": client, "name": "docs"},
        copy_collection: {"client": client, "source": "docs", "target": "docs-2"},
        exchange_names: {"client": client, "first": "docs", "second": "docs-2"},
        hybrid_query: {"collection": collection, "text": "a"},
    }.get(work, {"collection": collection, **numbered(3)})
    for value in odd():
        if isinstance(value, kinds):
            continue
        with pytest.raises(ConfigurationError) as caught:
            work(**given | {name: value})
        said = str(caught.value)
        assert said.startswith(f"{name} must be ")
        assert len(said) < 200
        assert said.isascii()
        assert said.isprintable()
    assert [found.name for found in client.list_collections()] == ["docs"]
    assert collection.count() == server.stats.requests == 0


@pytest.mark.parametrize("work", [aopen_collection, acopy_collection, aexchange_names])
async def test_a_client_of_the_other_kind_is_refused(
    work: Callable[..., Any], client: Any, chroma_port: int
) -> None:
    names = ["docs"] if work is aopen_collection else ["docs", "docs-2"]
    with pytest.raises(ConfigurationError, match=r"^client must be an AsyncHttpClient of Chroma"):
        await work(client, *names)
    other: Any = await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)
    twin = TWINS.get(work, exchange_names)
    with pytest.raises(ConfigurationError, match=r"^client must be a synchronous client of Chroma"):
        twin(other, *names)
