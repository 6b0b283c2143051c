"""Fixtures: collections to report on, with vectors from a server without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
import pytest

pytest.importorskip("sklearn")

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.local import LocalServer

KEY = "sk-air-very-secret"
"""The key of ``server``, for code outside of tests."""

EVIL = "panda </script><img src=x onerror=\"document.title='owned'\"><!-- <script> & \u2028 @DATA@"
ANIMALS = ("otter", "panda", "finch", "beetle")
HABITS = ("eats", "sleeps near", "looks for", "plays with", "hides")


def documents(count: int) -> list[str]:
    """Return texts about animals. The texts about one animal are similar."""
    return [
        f"The {ANIMALS[number % 4]} {HABITS[number // 4 % 5]} thing number {number}."
        for number in range(count)
    ]


@pytest.fixture
def function(server: LocalServer) -> NexusFlowEmbeddingFunction:
    return NexusFlowEmbeddingFunction(KEY, api_base=server.base_url, dimensions=128)


def fill(folder: Path, function: NexusFlowEmbeddingFunction, count: int) -> Any:
    """Return a collection ``zoo`` in ``folder``, with ``count`` documents and one with markup."""
    client = chromadb.PersistentClient(str(folder))
    collection: Any = client.create_collection("zoo", embedding_function=function)  # type: ignore[arg-type]
    texts = [*documents(count), EVIL]
    collection.add(
        ids=[f"id-{number}" for number in range(count)] + ["evil"],
        documents=texts,
        metadatas=[
            {"source": f"{text.split()[1]}.md:{n}", "url": f"https://zoo.example/{n}"}
            for n, text in enumerate(texts[:-1])
        ]
        + [{"source": "<b>evil</b>"}],
    )
    return collection


@pytest.fixture
def collection(tmp_path: Path, function: NexusFlowEmbeddingFunction) -> Any:
    return fill(tmp_path / "chroma", function, 120)
