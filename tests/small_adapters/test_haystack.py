"""The adapter works in Haystack's pipelines."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import haystack
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

from nexusflow_integrations.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidInputError,
)
from nexusflow_integrations.haystack import NexusFlowDocumentEmbedder, NexusFlowTextEmbedder
from nexusflow_integrations.local import LocalServer

DOCUMENTS = [
    Document(content="Red pandas climb trees.", meta={"title": "Animals"}),
    Document(content="Submarines dive under the ice.", meta={"title": "Ships", "year": 1954}),
    Document(content="Bread needs flour and water.", meta={"title": None}),
]
# Haystack 3 rebuilds only what the caller trusts; Haystack 2 does not ask.
TRUST: dict[str, Any] = (
    {} if haystack.__version__.startswith("2.") else {"allowed_modules": ["nexusflow_integrations"]}
)


def _search(store: InMemoryDocumentStore, **settings: Any) -> Pipeline:
    search = Pipeline()
    search.add_component("embedder", NexusFlowTextEmbedder(**settings))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    search.connect("embedder.embedding", "retriever.query_embedding")
    return search


def test_a_pipeline_finds_the_nearest_document() -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    fill = Pipeline()
    fill.add_component("embedder", NexusFlowDocumentEmbedder(dimensions=256))
    fill.add_component("writer", DocumentWriter(store))
    fill.connect("embedder.documents", "writer.documents")
    fill.run({"embedder": {"documents": DOCUMENTS}})
    found = _search(store, dimensions=256).run({"embedder": {"text": "Which pandas climb?"}})
    assert found["retriever"]["documents"][0].content == "Red pandas climb trees."


async def test_documents_may_come_from_a_generator() -> None:
    embedder = NexusFlowDocumentEmbedder(dimensions=64)
    for answer in (
        embedder.run(documents=iter(DOCUMENTS)),
        await embedder.run_async(documents=iter(DOCUMENTS)),
    ):
        assert [made.id for made in answer["documents"]] == [given.id for given in DOCUMENTS]


def test_documents_come_back_in_order_as_copies_with_their_embeddings() -> None:
    answer = NexusFlowDocumentEmbedder(dimensions=64).run(documents=DOCUMENTS)
    assert [document.id for document in answer["documents"]] == [given.id for given in DOCUMENTS]
    assert all(len(document.embedding) == 64 for document in answer["documents"])
    assert all(given.embedding is None for given in DOCUMENTS)
    assert answer["meta"]["model"] == "text-embedding-v4"
    assert answer["meta"]["usage"]["total_tokens"] > 0


def test_no_documents_send_nothing(server: LocalServer) -> None:
    assert NexusFlowDocumentEmbedder().run(documents=[])["documents"] == []
    assert server.stats.requests == 0


async def test_both_embedders_run_asynchronously() -> None:
    query = NexusFlowTextEmbedder(dimensions=64)
    assert await query.run_async(text="pandas") == query.run(text="pandas")
    documents = NexusFlowDocumentEmbedder(dimensions=64)
    answer = await documents.run_async(documents=DOCUMENTS)
    assert answer["documents"] == documents.run(documents=DOCUMENTS)["documents"]


def test_meta_fields_stand_before_the_content(server: LocalServer) -> None:
    NexusFlowDocumentEmbedder(
        meta_fields_to_embed=["title", "year", "absent"],
        embedding_separator=" | ",
        prefix="<",
        suffix=">",
    ).run(documents=DOCUMENTS)
    assert server.stats.received == (
        "<Animals | Red pandas climb trees.>",
        "<Ships | 1954 | Submarines dive under the ice.>",
        "<Bread needs flour and water.>",
    )


def test_only_queries_get_the_query_instruction(server: LocalServer) -> None:
    told = {"options": {"query_instruction": "Find: "}}
    NexusFlowDocumentEmbedder(**told).run(documents=DOCUMENTS[:1])
    NexusFlowTextEmbedder(**told).run(text="pandas")
    assert server.stats.received == ("Red pandas climb trees.", "Find: pandas")


def test_one_call_has_many_requests_in_flight(slow_server: LocalServer) -> None:
    documents = [Document(content=f"text number {number}") for number in range(120)]
    NexusFlowDocumentEmbedder(dimensions=64).run(documents=documents)
    assert slow_server.stats.requests == 12
    assert slow_server.stats.max_in_flight >= 4


def test_a_pipeline_is_stored_without_the_key_and_runs_when_loaded(key: str) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents(NexusFlowDocumentEmbedder().run(documents=DOCUMENTS)["documents"])
    pipeline = _search(store, dimensions=1024, options={"timeout": 30.0})
    pipeline.run({"embedder": {"text": "flour"}})
    stored = pipeline.dumps()
    assert key not in stored
    assert "NEXUSFLOW_API_KEY" in stored
    loaded = Pipeline.loads(stored, **TRUST)
    embedder = loaded.get_component("embedder")
    assert embedder.client.settings.timeout == 30.0
    assert len(embedder.run(text="flour")["embedding"]) == 1024


@pytest.mark.parametrize("kind", [NexusFlowTextEmbedder, NexusFlowDocumentEmbedder])
def test_an_embedder_is_rebuilt_from_its_dictionary(kind: Any) -> None:
    embedder = kind(Secret.from_env_var("OTHER"), dimensions=64, prefix="a", options={"timeout": 3})
    assert kind.from_dict(embedder.to_dict()).to_dict() == embedder.to_dict()


def test_a_key_given_as_a_token_is_neither_stored_nor_shown(key: str) -> None:
    embedder = NexusFlowTextEmbedder(Secret.from_token(key), dimensions=64)
    assert len(embedder.run(text="pandas")["embedding"]) == 64
    assert key not in repr(embedder)
    with pytest.raises(ValueError, match="Cannot serialize token"):
        embedder.to_dict()


def test_a_key_of_the_environment_is_not_pickled(key: str) -> None:
    embedder = NexusFlowTextEmbedder(dimensions=64)
    embedder.run(text="pandas")
    assert key.encode() not in pickle.dumps(embedder)


def test_a_key_given_as_a_token_is_not_pickled(
    wrong_key: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = NexusFlowTextEmbedder(Secret.from_token(key), dimensions=64)
    embedder.run(text="pandas")
    pickled = pickle.dumps(embedder)
    assert key.encode() not in pickled
    for twin in (copy.copy(embedder), copy.deepcopy(embedder)):
        assert len(twin.run(text="pandas")["embedding"]) == 64  # in this process, with the key
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    assert len(pickle.loads(pickled).run(text="pandas")["embedding"]) == 64


def test_a_worker_reads_the_variable_that_was_given(
    wrong_key: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER", key)
    embedder = NexusFlowTextEmbedder(Secret.from_env_var("OTHER"), dimensions=64)
    embedder.run(text="pandas")
    worker = pickle.loads(pickle.dumps(embedder))
    assert len(worker.run(text="pandas")["embedding"]) == 64


def test_without_its_variable_no_other_key_is_sent(server: LocalServer) -> None:
    with pytest.raises(ConfigurationError, match="OTHER or ANOTHER"):
        NexusFlowTextEmbedder(Secret.from_env_var(["OTHER", "ANOTHER"], strict=False)).run("pandas")
    assert server.stats.requests == 0


def test_a_key_that_was_replaced_is_read_again(
    wrong_key: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = NexusFlowTextEmbedder(dimensions=64)
    with pytest.raises(AuthenticationError):
        embedder.run(text="pandas")
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    assert len(embedder.run(text="pandas")["embedding"]) == 64


def test_errors_are_ours(wrong_key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AuthenticationError) as refused:
        NexusFlowTextEmbedder().run(text="pandas")
    assert wrong_key not in str(refused.value)
    with pytest.raises(InvalidInputError, match="text 1 is blank"):
        NexusFlowDocumentEmbedder().run(documents=[DOCUMENTS[0], Document(content="")])
    with pytest.raises(ConfigurationError, match="dimensions"):
        NexusFlowTextEmbedder(dimensions=7).run(text="pandas")
    monkeypatch.delenv("NEXUSFLOW_API_KEY")
    with pytest.raises(ConfigurationError, match="NEXUSFLOW_API_KEY"):
        NexusFlowTextEmbedder().run(text="pandas")
