"""The embeddings work in LangChain's stores, chains, cache and indexing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]
DOCUMENTS = [
    Document("Red pandas climb trees in the Himalayas.", metadata={"source": "animals"}),
    Document("Submarines dive under the polar ice.", metadata={"source": "ships"}),
    Document("Sourdough bread needs flour, water and time.", metadata={"source": "food"}),
]


def test_it_is_langchains_embeddings() -> None:
    assert issubclass(NexusFlowEmbeddings, Embeddings)


def test_an_in_memory_store_finds_the_nearest_document(make: Make) -> None:
    store = InMemoryVectorStore.from_documents(DOCUMENTS, make(dimensions=1024))
    ((found, score), *_) = store.similarity_search_with_score("Which pandas climb trees?", k=2)
    assert found.metadata == {"source": "animals"}
    assert 0.1 < score <= 1.0


async def test_an_in_memory_store_works_asynchronously(make: Make) -> None:
    store = InMemoryVectorStore(make(dimensions=1024))
    await store.aadd_documents(DOCUMENTS)
    (found,) = await store.asimilarity_search("bread of flour and water", k=1)
    assert found.metadata == {"source": "food"}


async def test_a_retriever_works_in_a_chain(make: Make) -> None:
    store = InMemoryVectorStore.from_documents(DOCUMENTS, make(dimensions=1024))
    retriever = store.as_retriever(search_kwargs={"k": 1})
    chain = {
        "context": retriever | (lambda found: found[0].metadata["source"]),
        "question": RunnablePassthrough(),
    } | RunnablePassthrough()
    question = "submarines under polar ice"
    expected = {"context": "ships", "question": question}
    assert chain.invoke(question) == expected
    assert await chain.ainvoke(question) == expected
    assert [answer["context"] for answer in chain.batch([question, "red pandas climb"])] == [
        "ships",
        "animals",
    ]


def test_a_store_is_searched_with_the_query_instruction(make: Make, server: LocalServer) -> None:
    store = InMemoryVectorStore.from_documents(DOCUMENTS, make(query_instruction="Find: "))
    store.similarity_search("pandas")
    assert server.stats.received[-1] == "Find: pandas"
    assert server.stats.received[:3] == tuple(document.page_content for document in DOCUMENTS)


# -- CacheBackedEmbeddings -------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> Callable[[NexusFlowEmbeddings], Any]:
    """Put LangChain's cache, in one folder of files, before embeddings."""
    classic = pytest.importorskip("langchain_classic.embeddings")
    storage = pytest.importorskip("langchain_classic.storage")
    files = storage.LocalFileStore(tmp_path / "vectors")

    def cached(embeddings: NexusFlowEmbeddings, **options: Any) -> Any:
        return classic.CacheBackedEmbeddings.from_bytes_store(
            embeddings,
            files,
            namespace=embeddings.cache_namespace,
            key_encoder="blake2b",
            **options,
        )

    return cached


async def test_langchains_cache_pays_once(make: Make, server: LocalServer, cached: Any) -> None:
    texts = [f"text number {number}" for number in range(25)]
    embeddings = make()
    first = cached(embeddings).embed_documents(texts)
    server.reset_stats()
    assert cached(make()).embed_documents(texts) == first
    assert await cached(make()).aembed_documents(texts) == first
    assert server.stats.requests == 0


def test_langchains_cache_keeps_sizes_models_and_instructions_apart(
    make: Make, cached: Any
) -> None:
    small, large = cached(make()), cached(make(dimensions=128))
    small.embed_documents(["a", "b"])
    assert [len(row) for row in large.embed_documents(["a", "c"])] == [128, 128]
    assert [len(row) for row in small.embed_documents(["a", "c"])] == [64, 64]


def test_a_namespace_is_made_of_all_that_changes_a_vector_and_of_nothing_else(
    make: Make,
) -> None:
    plain = make().cache_namespace
    different = [
        make(dimensions=128),
        make(dimensions=None),
        make(model="another"),
        make(model="text:embedding/v4"),
        make(model="text/embedding:v4"),
        make(query_instruction="Find: "),
        make(document_instruction="Find: "),
        make(extra_body={"a": 1}),
        make(default_query={"a": 1}),
        make(base_url="https://example.com/v1"),
    ]
    assert len({plain, *(embeddings.cache_namespace for embeddings in different)}) == 11
    same = make(api_key="sk-air-another", chunk_size=2, timeout=1, encoding_format="float")
    assert same.cache_namespace == plain
    assert make(base_url=f"{make().client.base_url}/").cache_namespace == plain


def test_a_namespace_is_a_path_that_a_file_store_takes(make: Make, cached: Any) -> None:
    odd = cached(make(model="text/embedding:v4 ü"))
    odd.document_embedding_store.mset([("a", [1.0])])
    assert odd.document_embedding_store.mget(["a"]) == [[1.0]]


# -- index() ---------------------------------------------------------------------------------------


def counts(result: Any) -> tuple[int, int, int, int]:
    return (
        result["num_added"],
        result["num_updated"],
        result["num_skipped"],
        result["num_deleted"],
    )


def test_indexing_with_a_record_manager_embeds_only_what_is_new(
    make: Make, server: LocalServer
) -> None:
    store = InMemoryVectorStore(make())
    records = InMemoryRecordManager("tests")
    records.create_schema()
    options: dict[str, Any] = {
        "cleanup": "full",
        "source_id_key": "source",
        "key_encoder": "blake2b",
    }
    assert counts(index(DOCUMENTS, records, store, **options)) == (3, 0, 0, 0)
    server.reset_stats()
    assert counts(index(DOCUMENTS, records, store, **options)) == (0, 0, 3, 0)
    assert server.stats.requests == 0
    changed = [Document("Rye bread is dark.", metadata={"source": "food"}), *DOCUMENTS[:2]]
    assert counts(index(changed, records, store, **options)) == (1, 0, 2, 1)
    assert server.stats.received == ("Rye bread is dark.",)


async def test_indexing_works_asynchronously_and_many_at_once(
    make: Make, slow_server: LocalServer
) -> None:
    store = InMemoryVectorStore(make(base_url=slow_server.base_url))
    records = InMemoryRecordManager("tests")
    await records.acreate_schema()
    documents = [Document(f"text number {number}") for number in range(120)]
    result = await aindex(documents, records, store, cleanup=None, key_encoder="blake2b")
    assert counts(result) == (120, 0, 0, 0)
    assert slow_server.stats.requests == 12
    assert slow_server.stats.max_in_flight >= 4
