"""Input that is not a list of texts is refused before sending, and the error says what to pass."""

from __future__ import annotations

import array
import inspect
import sys
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.texts import check_texts
from nexusflow_integrations.errors import InvalidInputError


class Frame:
    """Iterates like a pandas DataFrame: over the names of its columns."""

    columns = ("id", "text")

    def __iter__(self) -> Any:
        return iter(self.columns)


class Proxy:
    """A mapping that is no ``Mapping``, like ``multiprocessing.Manager().dict()``."""

    def keys(self) -> list[str]:
        return ["a"]

    def values(self) -> list[str]:
        return ["b"]

    def __getitem__(self, name: str) -> str:
        return "b"

    def __iter__(self) -> Any:
        return iter(self.keys())


class Series(list[str]):
    """Like a column of pandas: it has ``keys``, but ``values`` is no method."""

    def keys(self) -> range:
        return range(len(self))

    @property
    def values(self) -> list[str]:
        return self


class Column:
    """Like an array of pyarrow: its items are not ``str``."""

    def __iter__(self) -> Any:
        return iter([object()])

    def to_pylist(self) -> list[str]:
        return ["a", "b"]


LETTERS = "w" if sys.version_info >= (3, 13) else "u"
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Frame(), "not Frame, which yields the names of its columns: pass one column of it"),
    (lambda: {"a": "b"}, "not dict: pass its values()"),
    (lambda: OrderedDict(a="b"), "not OrderedDict: pass its values()"),
    (lambda: UserDict(a="b"), "not UserDict: pass its values()"),
    (lambda: Proxy(), "not Proxy: pass its values()"),
    (lambda: {"a", "b"}, "not set, which has no order"),
    (lambda: frozenset({"a"}), "not frozenset, which has no order"),
    (lambda: b"a text", "not bytes: decode it"),
    (lambda: bytearray(b"a"), "not bytearray: decode it"),
    (lambda: memoryview(b"a"), "not memoryview: decode it"),
    (lambda: Path("texts.txt"), "Path: read the file first"),
    (lambda: SimpleNamespace(page_content="a"), "the text of this object is its page_content"),
    (lambda: SimpleNamespace(get_content=str), "the text of this object is its get_content()"),
    (lambda: 5, "not int"),
    (lambda: None, "not NoneType"),
    (lambda: object(), "not object"),
    (lambda: [["a", "b"]], "text 0 must be a string, not list"),
    (lambda: ["a", None], "text 1 is None"),
    (lambda: [b"a"], "text 0 must be a string, not bytes"),
    (lambda: np.array([["a", "b"]]), "text 0 must be a string, not ndarray"),
    (lambda: array.array("i", [1]), "not array, whose items are single letters or numbers"),
    (lambda: array.array(LETTERS, "ab"), "not array, whose items are single letters or numbers"),
    (lambda: [SimpleNamespace(page_content="a")], "not SimpleNamespace: pass its page_content"),
    (lambda: [SimpleNamespace(get_content=str)], "not SimpleNamespace: pass its get_content()"),
    (lambda: [SimpleNamespace(as_py=str)], "not SimpleNamespace: pass its as_py()"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=[said for _, said in REFUSED])
async def test_no_method_of_the_client_accepts_a_non_list(
    make: Callable[[], Any], said: str
) -> None:
    client = NexusFlow("key", base_url="http://127.0.0.1:1")
    doors: list[Callable[[Any], object]] = [client.embed, client.estimate]
    if not said.startswith(("text", "not Simple")):  # a stream yields the error of an item
        doors.append(lambda texts: list(client.embed_stream(texts)))
        with pytest.raises(InvalidInputError) as caught:
            _ = [item async for item in client.aembed_stream(make())]
        assert said in str(caught.value)
    for door in doors:
        with pytest.raises(InvalidInputError) as caught:
            door(make())
        assert said in str(caught.value)
    with pytest.raises(InvalidInputError) as caught:
        await client.aembed(make())
    assert said in str(caught.value)
    assert client.usage.requests == 0


@pytest.mark.parametrize(
    "texts",
    [
        ["a", "b"],
        ("a", "b"),
        deque(["a", "b"]),
        iter(["a", "b"]),
        map(str, ["a", "b"]),
        {"a": 0, "b": 0}.keys(),
        {0: "a", 1: "b"}.values(),
        np.array(["a", "b"]),
        np.array(["a", "b"], dtype=object),
        Column(),
        Series(["a", "b"]),
    ],
    ids=lambda texts: type(texts).__name__,
)
def test_any_iterable_of_texts_is_accepted(texts: Any) -> None:
    assert check_texts(texts) == ["a", "b"]


@pytest.mark.parametrize(("package", "table"), [("pandas", "DataFrame"), ("pyarrow", "table")])
def test_a_table_is_refused_and_its_column_accepted(package: str, table: str) -> None:
    made = getattr(pytest.importorskip(package), table)({"text": ["a", "b"]})
    with pytest.raises(InvalidInputError, match="pass one column of it"):
        check_texts(made)
    assert check_texts(made["text"]) == ["a", "b"]


SEVERAL: dict[str, Callable[[], Any]] = {
    "array": lambda: np.array(["a", "b"]),
    "array of objects": lambda: np.array(["a", "b"], dtype=object),
    "list of numpy strings": lambda: [np.str_("a"), np.str_("b")],
    "generator": lambda: (text for text in "ab"),
    "Series": lambda: pytest.importorskip("pandas").Series(["a", "b"], index=[7, 3]),
    "column": Column,
}


def by_client(key: str, base_url: str) -> list[Callable[[Any], Any]]:
    client = NexusFlow(key, base_url=base_url, dimensions=64)

    async def streamed(texts: Any) -> list[Any]:
        return [item.vector async for item in client.aembed_stream(texts)]

    return [
        client.embed,
        lambda texts: [item.vector for item in client.embed_stream(texts)],
        client.aembed,
        streamed,
    ]


def by_langchain(key: str, base_url: str) -> list[Callable[[Any], Any]]:
    pytest.importorskip("langchain_core")
    from nexusflow_integrations.langchain import NexusFlowEmbeddings

    made = NexusFlowEmbeddings(api_key=key, base_url=base_url, dimensions=64)
    return [made.embed_documents, made.aembed_documents]


def by_llama_index(key: str, base_url: str) -> list[Callable[[Any], Any]]:
    pytest.importorskip("llama_index.core")
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

    made = NexusFlowEmbedding(api_key=key, base_url=base_url, dimensions=64)
    return [made.get_text_embedding_batch, made.aget_text_embedding_batch]


def by_chroma(key: str, base_url: str) -> list[Callable[[Any], Any]]:
    pytest.importorskip("chromadb")
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    made = NexusFlowEmbeddingFunction(api_key=key, api_base=base_url, dimensions=64)
    return [made, made.embed_query]


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("by", [by_client, by_langchain, by_llama_index, by_chroma])
async def test_every_interface_embeds_arrays_columns_and_generators(
    by: Callable[[str, str], list[Callable[[Any], Any]]], kind: str, server: Any
) -> None:
    rows = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64).embed(["a", "b"])
    for embed in by(server.api_key, server.base_url):
        found = embed(SEVERAL[kind]())
        if inspect.isawaitable(found):
            found = await found
        np.testing.assert_allclose(np.array(list(found), np.float32), rows, atol=1e-6)
