"""What the processes of ``test_persistence`` do: ``python steps.py STEP FOLDER``, outcome as JSON.

Every step is a process of its own; what it needs of ours it imports itself.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import chromadb

Outcome = dict[str, Any]


def seen(work: Callable[[], Any]) -> Any:
    """The result of ``work``, or its error as text; and the warnings, if there were any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = work()
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
    messages = [f"{warning.category.__name__}: {warning.message}" for warning in caught]
    return {"result": result, "warnings": messages} if messages else result


def uses(collection: Any) -> Outcome:
    """Everything one does with an opened collection."""
    vector = [[1.0] * 64]
    return {
        "count": seen(collection.count),
        "get": seen(lambda: collection.get(ids=["1"])["documents"]),
        "query_embeddings": seen(lambda: len(collection.query(query_embeddings=vector)["ids"])),
        "query_texts": seen(
            lambda: collection.query(query_texts=["red pandas"], n_results=1)["ids"]
        ),
        "add_documents": seen(lambda: collection.add(ids=["3"], documents=["green frogs"])),
        "add_vectors": seen(lambda: collection.add(ids=["4"], embeddings=vector, documents=["x"])),
        "upsert": seen(lambda: collection.upsert(ids=["4"], documents=["yellow birds"])),
        "update": seen(lambda: collection.update(ids=["4"], documents=["yellow bees"])),
        "configuration": seen(
            lambda: type(collection.configuration["embedding_function"]).__name__
        ),
    }


def create(client: Any) -> Outcome:
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    function = NexusFlowEmbeddingFunction(dimensions=64)
    collection = client.create_collection("docs", embedding_function=function)
    collection.add(ids=["1", "2"], documents=["red pandas", "blue whales"])
    return {"stored": collection.configuration_json}


def reopen_without_us(client: Any) -> Outcome:
    assert not [name for name in sys.modules if name.startswith("nexusflow")]
    return uses(client.get_collection("docs"))


def reopen(client: Any) -> Outcome:
    import nexusflow_integrations.chroma  # noqa: F401 - registers it

    return uses(client.get_collection("docs"))


def reopen_with_arguments(client: Any) -> Outcome:
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    function = NexusFlowEmbeddingFunction(sys.argv[3], api_base=sys.argv[4], dimensions=64)
    return uses(client.get_collection("docs", embedding_function=function))


def reopen_with_others(client: Any) -> Outcome:
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
    from nexusflow_integrations.chroma_collections import open_collection

    def query(collection: Any) -> Any:
        return collection.query(query_texts=["red pandas"], n_results=1)["ids"]

    larger = NexusFlowEmbeddingFunction(dimensions=128)
    other = NexusFlowEmbeddingFunction(model_name="another-model", dimensions=64)
    return {
        "larger, by Chroma": seen(
            lambda: query(client.get_collection("docs", embedding_function=larger))
        ),
        "larger": seen(lambda: query(open_collection(client, "docs", larger))),
        "other": seen(lambda: query(open_collection(client, "docs", other))),
        "same": seen(lambda: query(open_collection(client, "docs"))),
        "none": seen(lambda: query(client.get_collection("docs", embedding_function=None))),
    }


if __name__ == "__main__":
    step, folder = sys.argv[1:3]
    print(json.dumps(globals()[step](chromadb.PersistentClient(path=folder))))
