"""Columns of a source that would yield keys, letters or no order are refused, and nothing changes.

Otherwise ``sync_documents`` would embed the names of columns and remove all other documents.
"""

from __future__ import annotations

import enum
from collections import ChainMap, UserDict, deque
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest

from nexusflow_integrations.chroma_collections import add_documents, open_collection, sync_documents
from nexusflow_integrations.errors import InvalidInputError
from nexusflow_integrations.local import LocalServer

from .test_add_documents import numbered
from .test_embedding_function import Make
from .test_sync_documents import held


class Frame:
    """Iterates like a pandas DataFrame: over the names of its columns."""

    columns = ("title", "text")

    def __iter__(self) -> Any:
        return iter(self.columns)


TWO = {"id1": "x", "id2": "y"}
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: "ab", "one string: write ["),
    (lambda: b"ab", "bytes: decode it"),
    (lambda: bytearray(b"ab"), "bytearray: decode it"),
    (lambda: dict(TWO), "dict: pass its values()"),
    (lambda: UserDict(TWO), "UserDict: pass its values()"),
    (lambda: ChainMap(TWO), "ChainMap: pass its values()"),
    (lambda: MappingProxyType(TWO), "mappingproxy: pass its values()"),
    (lambda: set(TWO), "set, which has no order: pass a list"),
    (lambda: frozenset(TWO), "frozenset, which has no order: pass a list"),
    (lambda: Frame(), "Frame, which yields the names of its columns: pass one column of it"),
]


@pytest.fixture
def collection(client: Any, make: Make) -> Any:
    made = open_collection(client, "docs", make())
    add_documents(made, **numbered(5))
    return made


@pytest.mark.parametrize("call", [sync_documents, add_documents])
@pytest.mark.parametrize("name", ["ids", "documents", "metadatas"])
@pytest.mark.parametrize(("column", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_column_of_the_wrong_kind_changes_nothing(
    collection: Any,
    server: LocalServer,
    call: Callable[..., Any],
    name: str,
    column: Callable[[], Any],
    said: str,
) -> None:
    before, sent = held(collection), server.stats.requests
    source: dict[str, Any] = {"ids": ["id1", "id2"], "documents": ["one", "two"]}
    with pytest.raises(InvalidInputError) as caught:
        call(collection, **source | {name: column()})
    words = f"{name} must have one value for each document, not "
    if name == "metadatas":
        assert str(caught.value) == f"{words}one {type(column()).__name__}: pass a list of dicts"
    else:
        assert str(caught.value).startswith(words + said)
    assert held(collection) == before
    assert server.stats.requests == sent


def test_a_table_is_refused_and_its_columns_are_accepted(collection: Any) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"id": ["id1", "id2"], "text": ["one", "two"]})
    with pytest.raises(InvalidInputError, match="DataFrame, which yields the names of its columns"):
        sync_documents(collection, ids=["id1", "id2"], documents=table)
    sync_documents(collection, ids=table["id"], documents=table["text"])
    assert held(collection) == {"id1": ("one", None), "id2": ("two", None)}


def test_columns_of_pyarrow_are_accepted(collection: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"id": ["id1", "id2"], "text": ["one", "two"], "notes": [{"n": 1}] * 2})
    done = sync_documents(
        collection, ids=table["id"], documents=table["text"], metadatas=table["notes"]
    )
    assert not done.left_out
    assert held(collection) == {"id1": ("one", {"n": 1}), "id2": ("two", {"n": 1})}


def test_an_id_is_stored_by_its_value(collection: Any) -> None:
    class Name(str, enum.Enum):
        X = "id1"

    pyarrow = pytest.importorskip("pyarrow")
    done = sync_documents(collection, ids=[Name.X, pyarrow.scalar("id2")], documents=["one", " "])
    assert held(collection)["id1"] == ("one", None)
    assert [(type(left.id), left.id) for left in done.left_out] == [(str, "id2")]
    with pytest.raises(InvalidInputError, match="id 'id1' appears twice"):
        sync_documents(collection, ids=[pyarrow.scalar("id1"), Name.X], documents=["one", "two"])


@pytest.mark.parametrize("column", [deque, iter, tuple, lambda items: dict.fromkeys(items).keys()])
def test_other_iterables_with_an_order_are_accepted(
    collection: Any, column: Callable[[Any], Any]
) -> None:
    sync_documents(collection, ids=column(["id1", "id2"]), documents=column(["one", "two"]))
    assert held(collection) == {"id1": ("one", None), "id2": ("two", None)}
