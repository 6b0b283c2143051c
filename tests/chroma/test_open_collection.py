"""Opening a collection: made if need be, refused where vectors would not be comparable."""

from __future__ import annotations

from typing import Any

import pytest
from chromadb.api import types
from chromadb.errors import NotFoundError

from nexusflow_integrations import errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import add_documents, open_collection
from nexusflow_integrations.local import LocalServer

from .test_embedding_function import Make


def stored(collection: Any) -> Any:
    return collection.configuration_json["embedding_function"]


def test_a_collection_that_does_not_exist_is_made(client: Any, make: Make, strict: None) -> None:
    collection = open_collection(
        client,
        "docs",
        make(),
        metadata={"about": "animals"},
        configuration={"hnsw": {"ef_search": 50}},
    )
    assert stored(collection) == {
        "type": "known",
        "name": "nexusflow",
        "config": make().get_config(),
    }
    assert collection.metadata == {"about": "animals"}
    assert collection.configuration_json["hnsw"]["space"] == "cosine"
    assert collection.configuration_json["hnsw"]["ef_search"] == 50


def test_a_configuration_is_not_written_into(client: Any, make: Make) -> None:
    configuration: Any = {"hnsw": {"space": "ip"}}
    for name in ("one", "two"):
        collection = open_collection(client, name + "-docs", make(), configuration=configuration)
        assert collection.configuration_json["hnsw"]["space"] == "ip"
    assert configuration == {"hnsw": {"space": "ip"}}


def test_it_is_not_made_where_that_is_not_wanted(client: Any, make: Make) -> None:
    with pytest.raises(NotFoundError):
        open_collection(client, "docs", make(), create=False)
    assert client.list_collections() == []


@pytest.mark.usefixtures("in_environment")
def test_without_a_function_it_takes_the_stored_one_or_the_default(client: Any, make: Make) -> None:
    open_collection(client, "docs", make(api_key=None, api_base=None))
    again = open_collection(client, "docs")
    again.add(ids=["1"], documents=["red pandas"])
    assert again.get(include=["embeddings"])["embeddings"].shape == (1, 64)
    assert stored(open_collection(client, "more-docs")) == {
        "type": "known",
        "name": "nexusflow",
        "config": NexusFlowEmbeddingFunction().get_config(),
    }


def test_opening_twice_is_the_same_collection(client: Any, make: Make, strict: None) -> None:
    first = open_collection(client, "docs", make())
    first.add(ids=["1"], documents=["red pandas"])
    second = open_collection(client, "docs", make())
    assert second.id == first.id
    assert second.query(query_texts=["red pandas"])["ids"] == [["1"]]


@pytest.mark.parametrize(
    ("other", "setting"),
    [
        ({"model_name": "another-model"}, "model_name"),
        ({"dimensions": 128}, "dimensions"),
        ({"dimensions": None}, "dimensions"),
    ],
)
@pytest.mark.parametrize("filled", [False, True])
def test_another_model_or_size_is_refused(
    client: Any, make: Make, other: dict[str, Any], setting: str, filled: bool
) -> None:
    collection = open_collection(client, "docs", make())
    if filled:
        collection.add(ids=["1"], documents=["red pandas"])
    before = stored(collection)
    with pytest.raises(errors.ConfigurationError, match=f"{setting}=") as caught:
        open_collection(client, "docs", make(**other))
    assert "docs" in str(caught.value)
    assert stored(client.get_collection("docs")) == before


def test_a_size_that_the_server_chose_is_known_once_there_are_vectors(
    client: Any, make: Make
) -> None:
    collection = open_collection(client, "docs", make(dimensions=None))
    with pytest.raises(errors.ConfigurationError, match="dimensions=None"):
        open_collection(client, "docs", make(dimensions=1024))
    collection.add(ids=["1"], documents=["red pandas"])
    assert open_collection(client, "docs", make(dimensions=1024)).count() == 1
    assert open_collection(client, "docs", make(dimensions=None)).count() == 1
    with pytest.raises(errors.ConfigurationError, match="dimensions=1024"):
        open_collection(client, "docs", make(dimensions=256))


def test_what_only_changes_queries_or_the_way_may_differ(
    client: Any, make: Make, server: LocalServer
) -> None:
    open_collection(client, "docs", make()).add(ids=["1"], documents=["red pandas"])
    collection = open_collection(client, "docs", make(query_instruction="Find: "))
    collection.query(query_texts=["pandas"])
    assert server.stats.received[-1] == "Find: pandas"


@pytest.mark.parametrize("other", ["none", "default"])
def test_a_collection_of_another_function_is_refused(client: Any, make: Make, other: str) -> None:
    if other == "none":
        client.create_collection("docs", embedding_function=None)
    else:
        client.create_collection("docs")
    with pytest.raises(errors.ConfigurationError, match="not 'nexusflow'"):
        open_collection(client, "docs", make())
    with pytest.raises(errors.ConfigurationError, match="not 'nexusflow'"):
        open_collection(client, "docs")


@pytest.mark.skipif(not hasattr(types, "Schema"), reason="this Chroma is older than schemas")
def test_a_collection_made_by_schema_is_opened_like_any_other(
    client: Any, make: Make, strict: None
) -> None:
    schema = types.Schema().create_index(config=types.VectorIndexConfig(embedding_function=make()))
    client.create_collection("docs", schema=schema)
    collection = open_collection(client, "docs", make())
    collection.add(ids=["1"], documents=["red pandas"])
    assert client.get_collection("docs").query(query_texts=["red pandas"])["ids"] == [["1"]]
    assert collection.configuration_json["hnsw"]["space"] == "cosine"
    with pytest.raises(errors.ConfigurationError, match="dimensions"):
        open_collection(client, "docs", make(dimensions=128))


def test_adding_to_a_collection_of_another_model_is_refused_before_paying(
    client: Any, make: Make, server: LocalServer
) -> None:
    open_collection(client, "docs", make())
    mixed = client.get_collection("docs", embedding_function=make(model_name="another-model"))
    with pytest.raises(errors.ConfigurationError, match="model_name"):
        add_documents(mixed, ids=["1"], documents=["red pandas"])
    client.create_collection("other-docs")
    with pytest.raises(errors.ConfigurationError, match="not 'nexusflow'"):
        add_documents(client.get_collection("other-docs"), ids=["1"], documents=["red pandas"])
    assert server.stats.requests == 0
