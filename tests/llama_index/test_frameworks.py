"""LlamaIndex's indices, pipelines, retrievers and Chroma store work, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.vector_stores.chroma")

import chromadb
from llama_index.core import (
    Document,
    PropertyGraphIndex,
    QueryBundle,
    Settings,
    StorageContext,
    VectorStoreIndex,
)
from llama_index.core.indices.property_graph import SimpleLLMPathExtractor
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SemanticSplitterNodeParser, SentenceSplitter
from llama_index.core.postprocessor import SentenceEmbeddingOptimizer
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from nexusflow_integrations.errors import AuthenticationError, InvalidInputError
from nexusflow_integrations.llama_index import NexusFlowEmbedding
from nexusflow_integrations.local import LocalServer

Texts = Callable[..., list[str]]

FACTS = [
    "Red pandas eat bamboo and sleep in trees.",
    "The harbour crane lifts forty containers an hour.",
    "Sourdough rises slowly because wild yeast is slow.",
    "Comets grow tails when the sun warms their ice.",
]


@pytest.fixture
def collection(tmp_path: Any) -> Any:
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    return client.create_collection("facts", configuration={"hnsw": {"space": "cosine"}})


@pytest.fixture
def chroma(collection: Any) -> ChromaVectorStore:
    return ChromaVectorStore(chroma_collection=collection)


def _documents(count: int) -> list[Document]:
    return [
        Document(text=FACTS[n] if n < len(FACTS) else f"Filler number {n}.", doc_id=str(n))
        for n in range(count)
    ]


def _found(nodes: list[NodeWithScore]) -> str:
    return nodes[0].get_content()


# -- VectorStoreIndex ------------------------------------------------------------------------------


def test_an_index_over_chroma_finds_what_was_asked_for(
    embedding: NexusFlowEmbedding, chroma: ChromaVectorStore, collection: Any
) -> None:
    index = VectorStoreIndex.from_documents(
        _documents(60),
        storage_context=StorageContext.from_defaults(vector_store=chroma),
        embed_model=embedding,
    )
    assert collection.count() == 60
    retriever = index.as_retriever(similarity_top_k=3)
    assert _found(retriever.retrieve("What do red pandas eat?")) == FACTS[0]
    assert _found(asyncio.run(retriever.aretrieve("Why do comets grow tails?"))) == FACTS[3]


def test_an_index_opened_again_over_the_same_collection_finds_the_same(
    embedding: NexusFlowEmbedding, chroma: ChromaVectorStore
) -> None:
    storage = StorageContext.from_defaults(vector_store=chroma)
    VectorStoreIndex.from_documents(_documents(12), storage_context=storage, embed_model=embedding)
    again = VectorStoreIndex.from_vector_store(chroma, embed_model=embedding)
    assert _found(again.as_retriever().retrieve("slow wild yeast sourdough")) == FACTS[2]


def test_documents_are_inserted_refreshed_and_deleted(
    embedding: NexusFlowEmbedding, server: LocalServer
) -> None:
    Settings.embed_model = embedding
    index = VectorStoreIndex.from_documents(_documents(4))
    index.insert(Document(text="Owls turn their heads far.", doc_id="owls"))
    assert _found(index.as_retriever().retrieve("owls heads")) == "Owls turn their heads far."
    server.reset_stats()
    changed = [*_documents(3), Document(text="Tides follow the moon.", doc_id="3")]
    assert index.refresh_ref_docs(changed) == [False, False, False, True]
    assert server.stats.received == ("Tides follow the moon.",)
    index.delete_ref_doc("owls")
    assert "Owls" not in _found(index.as_retriever().retrieve("owls heads"))


def test_three_event_loops_in_a_row_index_and_retrieve(
    embedding: NexusFlowEmbedding, chroma: ChromaVectorStore, collection: Any
) -> None:
    async def round_(number: int) -> str:
        index = VectorStoreIndex.from_vector_store(chroma, embed_model=embedding)
        await index.ainsert_nodes([TextNode(text=FACTS[number], id_=str(number))], use_async=True)
        return _found(await index.as_retriever().aretrieve(FACTS[number]))

    assert [asyncio.run(round_(number)) for number in range(3)] == FACTS[:3]
    assert collection.count() == 3


def test_use_async_works_inside_a_running_loop_again_and_again(
    embedding: NexusFlowEmbedding,
) -> None:
    async def inside() -> list[str]:
        found = []
        for _ in range(3):
            index = VectorStoreIndex.from_documents(
                _documents(40), embed_model=embedding, use_async=True
            )
            found.append(_found(index.as_retriever().retrieve("harbour crane containers")))
        return found

    assert asyncio.run(inside()) == [FACTS[1]] * 3


def test_use_async_works_without_a_loop_and_after_one(embedding: NexusFlowEmbedding) -> None:
    for _ in range(2):
        index = VectorStoreIndex.from_documents(
            _documents(40), embed_model=embedding, use_async=True
        )
        assert _found(index.as_retriever().retrieve("harbour crane containers")) == FACTS[1]
        asyncio.run(asyncio.sleep(0))


def test_another_size_than_the_collections_is_an_error_not_a_wrong_answer(
    embedding: NexusFlowEmbedding, chroma: ChromaVectorStore
) -> None:
    storage = StorageContext.from_defaults(vector_store=chroma)
    VectorStoreIndex.from_documents(_documents(4), storage_context=storage, embed_model=embedding)
    other = embedding.model_copy(update={"dimensions": 128})
    index = VectorStoreIndex.from_vector_store(chroma, embed_model=other)
    with pytest.raises(chromadb.errors.InvalidArgumentError, match="dimension"):
        index.as_retriever().retrieve("red pandas")


def test_a_query_goes_out_with_the_instruction_and_documents_without(
    embedding: NexusFlowEmbedding, server: LocalServer
) -> None:
    asking = embedding.model_copy(update={"query_instruction": "Find: "})
    index = VectorStoreIndex.from_documents(_documents(2), embed_model=asking)
    index.as_retriever().retrieve("comets")
    assert server.stats.received == (FACTS[0], FACTS[1], "Find: comets")


def test_the_mean_of_several_queries_is_taken(embedding: NexusFlowEmbedding) -> None:
    both = embedding.get_agg_embedding_from_queries(["one", "two"])
    one, two = embedding.client.embed(["one", "two"], role="query").tolist()
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(one, two, strict=True)])
    assert asyncio.run(embedding.aget_agg_embedding_from_queries(["one", "two"])) == both


# -- IngestionPipeline -----------------------------------------------------------------------------


def _pipeline(embedding: NexusFlowEmbedding, **options: Any) -> IngestionPipeline:
    return IngestionPipeline(transformations=[SentenceSplitter(), embedding], **options)


def _run(
    way: str, pipeline: IngestionPipeline, documents: list[Document] | None = None, **given: Any
) -> Any:
    if way == "sync":
        return pipeline.run(documents=documents, **given)
    return asyncio.run(pipeline.arun(documents=documents, **given))


def test_a_pipeline_fills_chroma(
    way: str, embedding: NexusFlowEmbedding, chroma: ChromaVectorStore, collection: Any
) -> None:
    nodes = _run(way, _pipeline(embedding, vector_store=chroma), _documents(45))
    assert len(nodes) == collection.count() == 45
    index = VectorStoreIndex.from_vector_store(chroma, embed_model=embedding)
    assert _found(index.as_retriever().retrieve("red pandas bamboo")) == FACTS[0]


def test_three_event_loops_in_a_row_run_one_pipeline(
    embedding: NexusFlowEmbedding, chroma: ChromaVectorStore, collection: Any
) -> None:
    pipeline = _pipeline(embedding, vector_store=chroma, disable_cache=True)
    for number in range(3):
        asyncio.run(pipeline.arun(documents=_documents(30)[number * 10 : number * 10 + 10]))
    assert collection.count() == 30


def test_a_pipeline_run_again_is_served_by_its_cache_even_with_a_new_key(
    way: str, embedding: NexusFlowEmbedding, server: LocalServer, tmp_path: Any
) -> None:
    first = _pipeline(embedding, cache=IngestionCache())
    _run(way, first, _documents(25))
    first.persist(str(tmp_path / "pipeline"))
    server.reset_stats()
    rotated = embedding.model_copy(update={"api_key": "sk-air-rotated", "timeout": 5.0})
    second = _pipeline(rotated)
    second.load(str(tmp_path / "pipeline"))
    nodes = _run(way, second, _documents(25))
    assert server.stats.requests == 0
    assert all(len(node.embedding) == 64 for node in nodes)


def test_a_pipeline_with_another_size_is_not_served_by_the_cache(
    way: str, embedding: NexusFlowEmbedding
) -> None:
    cache = IngestionCache()
    _run(way, _pipeline(embedding, cache=cache), _documents(5))
    other = embedding.model_copy(update={"dimensions": 128})
    nodes = _run(way, _pipeline(other, cache=cache), _documents(5))
    assert {len(node.embedding) for node in nodes} == {128}


def test_a_docstore_sends_only_what_has_changed(
    way: str, embedding: NexusFlowEmbedding, server: LocalServer, chroma: ChromaVectorStore
) -> None:
    pipeline = _pipeline(
        embedding,
        docstore=SimpleDocumentStore(),
        vector_store=chroma,
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )
    _run(way, pipeline, _documents(8))
    server.reset_stats()
    changed = [*_documents(7), Document(text="A changed one.", doc_id="7")]
    _run(way, pipeline, changed)
    assert server.stats.received == ("A changed one.",)


def test_upserts_of_a_failed_run_are_sent_again(
    way: str, upstream: Any, chroma: ChromaVectorStore, collection: Any
) -> None:
    pipeline = _pipeline(
        upstream.embedding(),
        docstore=SimpleDocumentStore(),
        vector_store=chroma,
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )
    upstream.answer = lambda asked: upstream.UNAUTHORIZED
    with pytest.raises(AuthenticationError):
        _run(way, pipeline, _documents(3))
    upstream.answer = lambda asked: None
    _run(way, pipeline, _documents(3))
    assert collection.count() == 3


def test_a_passing_fault_loses_no_document_under_duplicates_only(
    way: str,
    upstream: Any,
    chroma: ChromaVectorStore,
    collection: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # LlamaIndex marks documents as done before it embeds them: here a failure would be a loss.
    monkeypatch.setattr("nexusflow_integrations._core.request.retry.BASE_FAULT", 0.01)
    faults = iter([(503, {"error": {"message": "overloaded"}})])
    upstream.answer = lambda asked: next(faults, None)
    pipeline = _pipeline(
        upstream.embedding(max_retries=3),
        docstore=SimpleDocumentStore(),
        vector_store=chroma,
        docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
    )
    _run(way, pipeline, _documents(3))
    assert len(upstream.requests) == 2
    assert collection.count() == 3


def test_an_empty_node_is_named_and_nothing_is_sent(
    way: str, embedding: NexusFlowEmbedding, server: LocalServer
) -> None:
    pipeline = IngestionPipeline(transformations=[embedding])
    nodes = [TextNode(text="fine"), TextNode(text="")]
    with pytest.raises(InvalidInputError, match="text 1 is blank"):
        _run(way, pipeline, nodes=nodes)
    assert server.stats.requests == 0


# -- those that use the model otherwise ------------------------------------------------------------


def _fusion(index: VectorStoreIndex) -> QueryFusionRetriever:
    return QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=2), index.as_retriever(similarity_top_k=1)],
        llm=MockLLM(),
        num_queries=1,
        use_async=True,
    )


def test_a_fusion_retriever_works_again_and_again(embedding: NexusFlowEmbedding) -> None:
    fusion = _fusion(VectorStoreIndex.from_documents(_documents(8), embed_model=embedding))
    assert [_found(fusion.retrieve("comets tails")) for _ in range(3)] == [FACTS[3]] * 3


def test_a_fusion_retriever_works_inside_a_running_loop(embedding: NexusFlowEmbedding) -> None:
    fusion = _fusion(VectorStoreIndex.from_documents(_documents(8), embed_model=embedding))

    async def inside() -> list[str]:
        return [_found(fusion.retrieve("comets tails")) for _ in range(3)]

    assert asyncio.run(inside()) == [FACTS[3]] * 3


def test_the_sentence_optimizer_may_pass_any_number_of_sentences(upstream: Any) -> None:
    optimizer = SentenceEmbeddingOptimizer(
        embed_model=upstream.embedding(),
        percentile_cutoff=0.5,
        context_before=0,
        context_after=0,
        tokenizer_fn=lambda text: text.split("|"),
    )
    text = "|".join(f"sentence {number}" for number in range(40))
    (node,) = optimizer.postprocess_nodes(
        [NodeWithScore(node=TextNode(text=text), score=1.0)], QueryBundle("sentence 7")
    )
    assert "sentence 7" in node.get_content()
    assert sorted(map(len, upstream.requests)) == [1, 10, 10, 10, 10]


def test_the_semantic_splitter_sends_ten_at_most(way: str, upstream: Any) -> None:
    splitter = SemanticSplitterNodeParser(
        embed_model=upstream.embedding(embed_batch_size=100),
        sentence_splitter=lambda text: text.split("|"),
    )
    document = Document(text="|".join(f"sentence {number}" for number in range(33)))
    if way == "sync":
        nodes = splitter.get_nodes_from_documents([document])
    else:
        nodes = asyncio.run(splitter.aget_nodes_from_documents([document]))
    assert nodes
    assert sorted(map(len, upstream.requests)) == [3, 10, 10, 10]


def test_a_property_graph_is_embedded_in_its_own_loops(
    embedding: NexusFlowEmbedding, chroma: ChromaVectorStore, collection: Any
) -> None:
    index = PropertyGraphIndex.from_documents(
        _documents(12),
        llm=MockLLM(),
        kg_extractors=[
            SimpleLLMPathExtractor(
                llm=MockLLM(),
                parse_fn=lambda said: [("Comets", "grow", "tails"), ("Owls", "turn", "heads")],
            )
        ],
        embed_model=embedding,
        vector_store=chroma,
    )
    index.insert(Document(text="One more.", doc_id="more"))
    assert collection.count() >= 4
    found = index.as_retriever(include_text=False).retrieve("Owls")
    assert any("Owls -> turn -> heads" in node.get_content() for node in found)


def test_the_global_setting_is_used_everywhere(
    embedding: NexusFlowEmbedding, server: LocalServer
) -> None:
    Settings.embed_model = embedding
    assert Settings.embed_model is embedding
    index = VectorStoreIndex.from_documents(_documents(4))
    assert _found(index.as_retriever().retrieve("harbour crane")) == FACTS[1]
    assert server.stats.requests == 2
