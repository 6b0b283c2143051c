"""LangChain's Chroma works alone and with Chroma's own embedding function."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

import nexusflow_integrations
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

chromadb = pytest.importorskip("chromadb")
langchain_chroma = pytest.importorskip("langchain_chroma")

Make = Callable[..., NexusFlowEmbeddings]
COSINE = {"hnsw": {"space": "cosine"}}
DOCUMENTS = [
    Document("Red pandas climb trees in the Himalayas.", metadata={"source": "animals"}),
    Document("Submarines dive under the polar ice.", metadata={"source": "ships"}),
    Document("Sourdough bread needs flour, water and time."),
]


@pytest.fixture
def client(tmp_path: Path) -> Any:
    return chromadb.PersistentClient(path=str(tmp_path / "db"))


@pytest.fixture
def chroma(client: Any) -> Callable[..., Any]:
    """Make LangChain's Chroma over one collection of one database on disk."""

    def make(embeddings: NexusFlowEmbeddings | None, **options: Any) -> Any:
        return langchain_chroma.Chroma(
            collection_name="texts", client=client, embedding_function=embeddings, **options
        )

    return make


def test_chroma_finds_the_nearest_document_with_and_without_metadata(
    make: Make, chroma: Any
) -> None:
    store = chroma(make(dimensions=1024), collection_configuration=COSINE)
    store.add_documents(DOCUMENTS)
    (found,) = store.similarity_search("bread of flour and water", k=1)
    assert found.page_content.startswith("Sourdough")
    ((found, score),) = store.similarity_search_with_relevance_scores("pandas climb trees", k=1)
    assert found.metadata == {"source": "animals"}
    assert 0 < score <= 1
    assert store.max_marginal_relevance_search("polar ice", k=1)[0].metadata["source"] == "ships"


def test_chromas_calls_which_are_only_sync_run_concurrently(
    make: Make, chroma: Any, slow_server: LocalServer
) -> None:
    store = chroma(make(base_url=slow_server.base_url))
    store.add_texts([f"text number {number}" for number in range(120)])
    assert slow_server.stats.requests == 12
    assert slow_server.stats.max_in_flight >= 4


async def test_chroma_works_in_asynchronous_code_and_still_runs_concurrently(
    make: Make, chroma: Any, slow_server: LocalServer
) -> None:
    store = chroma(make(base_url=slow_server.base_url))
    texts = [f"text number {number}" for number in range(120)]
    await store.aadd_texts(texts)
    assert slow_server.stats.max_in_flight >= 4
    (found,) = await store.asimilarity_search("text number 77", k=1)
    assert found.page_content == "text number 77"
    (found,) = await store.as_retriever(search_kwargs={"k": 1}).ainvoke("text number 33")
    assert found.page_content == "text number 33"


def test_vectors_are_not_paid_for_again_when_chroma_refuses_a_large_batch(
    make: Make, chroma: Any, server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = chroma(make(cache=tmp_path / "vectors.db"))
    texts = [f"text number {number}" for number in range(30)]

    def too_large(**_: Any) -> None:
        raise ValueError("Batch size 30 exceeds maximum batch size 10")

    with monkeypatch.context() as patch:
        patch.setattr(store._collection, "upsert", too_large)
        with pytest.raises(ValueError, match="maximum batch size"):
            store.add_texts(texts)
    assert server.stats.texts == 30
    for start in range(0, 30, 10):
        store.add_texts(texts[start : start + 10])
    assert server.stats.texts == 30


@pytest.fixture
def wired(
    make: Make, client: Any, chroma: Any, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """LangChain's Chroma over a collection that stores our embedding function."""
    function = pytest.importorskip("nexusflow_integrations.chroma").NexusFlowEmbeddingFunction
    monkeypatch.setenv("NEXUSFLOW_API_KEY", server.api_key)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
    client.create_collection("texts", embedding_function=function(dimensions=1024))
    store = chroma(make(dimensions=1024))
    store.add_documents(DOCUMENTS)
    return store


def test_a_collection_that_stores_our_function_scores_by_cosine(wired: Any, make: Make) -> None:
    question = "pandas climb trees"
    embeddings = make(dimensions=1024)
    (document,) = embeddings.embed_documents([DOCUMENTS[0].page_content])
    cosine = sum(x * y for x, y in zip(embeddings.embed_query(question), document, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # LangChain warns of scores outside 0 to 1
        ((found, score),) = wired.similarity_search_with_relevance_scores(question, k=1)
        retriever = wired.as_retriever(
            search_type="similarity_score_threshold",
            search_kwargs={"k": 1, "score_threshold": cosine - 0.01},
        )
        assert retriever.invoke(question) == [found]
    assert found.metadata == {"source": "animals"}
    assert score == pytest.approx(cosine, abs=1e-5)


def test_a_collection_that_stores_our_function_answers_chroma_and_langchain_alike(
    wired: Any, client: Any
) -> None:
    question = "bread of flour and water"
    found = wired.similarity_search_with_score(question, k=3)
    natively = client.get_collection("texts").query(query_texts=[question], n_results=3)
    assert [document.page_content for document, _ in found] == natively["documents"][0]
    distances = [distance for _, distance in found]
    assert distances == pytest.approx(natively["distances"][0], abs=1e-5)


def test_langchain_may_leave_the_embedding_to_the_stored_function(wired: Any, chroma: Any) -> None:
    store = chroma(None)
    store.add_texts(["Penguins swim."])
    assert store.similarity_search("Penguins swim.", k=1)[0].page_content == "Penguins swim."
    assert wired.similarity_search("Penguins swim.", k=1)[0].page_content == "Penguins swim."


def test_another_process_reopens_what_langchain_filled(
    wired: Any, server: LocalServer, tmp_path: Path
) -> None:
    code = f"""
import chromadb
import nexusflow_integrations.chroma
collection = chromadb.PersistentClient(path={str(tmp_path / "db")!r}).get_collection("texts")
print(collection.query(query_texts=["submarines dive under ice"], n_results=1)["documents"][0][0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(nexusflow_integrations.__file__).parents[1]),
            "NEXUSFLOW_API_KEY": server.api_key,
            "NEXUSFLOW_BASE_URL": server.base_url,
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Submarines dive under the polar ice."
