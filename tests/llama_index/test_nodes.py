"""``embed_nodes`` works over a real server, and errors name nodes."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, MockEmbedding, Settings, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore

from nexusflow_integrations import LeftOut
from nexusflow_integrations.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    InvalidInputError,
    RefusedTextsError,
)
from nexusflow_integrations.llama_index import (
    EmbeddedNodes,
    EmbedNodes,
    NexusFlowEmbedding,
    aembed_nodes,
    embed_nodes,
)
from nexusflow_integrations.local import LocalServer

REFUSED = "!?" * 4500
"""9,000 tokens for the server, which refuses it, and far fewer by the estimate."""


def nodes_of(count: int, bad: dict[int, str] | None = None) -> list[TextNode]:
    """Nodes of documents that were read from files."""
    nodes = []
    for place in range(count):
        text = (bad or {}).get(place, f"text number {place}")
        node = TextNode(
            text=text,
            id_=f"node-{place}",
            metadata={"file_path": f"{place % 3}.pdf"},
            excluded_embed_metadata_keys=["file_path"],
        )
        source = RelatedNodeInfo(node_id=f"document-{place % 3}")
        node.relationships[NodeRelationship.SOURCE] = source
        nodes.append(node)
    return nodes


def run(way: str, nodes: Any, model: Any = None, **options: Any) -> EmbeddedNodes:
    if way == "sync":
        return embed_nodes(nodes, model, **options)
    return asyncio.run(aembed_nodes(nodes, model, **options))


def test_two_refused_of_500_leave_498_embedded(
    way: str, embedding: NexusFlowEmbedding, server: LocalServer, tmp_path: Any
) -> None:
    embedding.cache = str(tmp_path / "vectors.sqlite3")
    done = run(way, nodes_of(500, {77: REFUSED, 402: REFUSED + "!"}), embedding)
    assert len(done.nodes) == 498
    assert [(left.id, left.document, left.source, left.place) for left in done.left_out] == [
        ("node-77", "document-2", "2.pdf", 77),
        ("node-402", "document-0", "0.pdf", 402),
    ]
    assert {left.reason for left in done.left_out} == {"refused"}
    assert isinstance(done.left_out[0], LeftOut)
    assert isinstance(done.left_out[0].error, BadRequestError)
    assert (done.usage.texts, done.usage.refused) == (500, 2)
    assert done.usage.tokens == server.stats.tokens
    right = embedding.get_text_embedding("text number 123")
    assert np.allclose(done.nodes[122].embedding, right)
    index = VectorStoreIndex(done.nodes, embed_model=MockEmbedding(embed_dim=64))
    assert len(index.index_struct.nodes_dict) == 498

    server.reset_stats()
    again = run(way, nodes_of(500, {77: REFUSED, 402: REFUSED + "!"}), embedding)
    assert again.usage.cached == 498
    assert server.stats.received == (), "only the two were sent, and refused again"


def test_blank_nodes_and_halves_of_characters_are_left_out(
    way: str, embedding: NexusFlowEmbedding, server: LocalServer
) -> None:
    done = run(way, iter(nodes_of(5, {1: " ", 3: "half \ud800"})), embedding)
    assert [node.node_id for node in done.nodes] == ["node-0", "node-2", "node-4"]
    assert [(left.place, left.reason) for left in done.left_out] == [
        (1, "blank"),
        (3, "invalid text"),
    ]
    assert str(done.left_out[0]) == "'node-1' (1.pdf): the text is blank"
    assert len(server.stats.received) == 3


def test_a_node_that_is_too_long_is_left_out_or_split_as_the_model_says(
    way: str, embedding: NexusFlowEmbedding
) -> None:
    long = "word " * 20_000
    done = run(way, nodes_of(30, {4: long, 20: long, 29: REFUSED}), embedding)
    assert len(done.nodes) == 27
    assert [(left.place, left.reason) for left in done.left_out] == [
        (4, "too long"),
        (20, "too long"),
        (29, "refused"),
    ]
    assert done.left_out[0].message.startswith("the text is too long: it has about 2")
    assert run(way, nodes_of(1, {0: long}), embedding).nodes == []
    embedding.on_too_long = "split"
    assert len(run(way, nodes_of(5, {4: long}), embedding).nodes) == 5


def test_on_too_long_overrides_the_model_for_one_call(
    way: str, embedding: NexusFlowEmbedding, server: LocalServer
) -> None:
    nodes = nodes_of(3, {1: "word " * 20_000})
    with pytest.raises(
        InvalidInputError, match=r"^node 1 is too long: .*: node 'node-1' of"
    ) as one:
        run(way, nodes, embedding, on_too_long="error")
    assert one.value.index == 1
    assert server.stats.requests == 0
    done = run(way, nodes, embedding, on_too_long="split")
    assert (len(done.nodes), done.usage.split) == (3, 1)
    assert done.usage.tokens == embedding.usage.tokens > 0
    assert embedding.on_too_long == "error"
    embedding.on_too_long = "truncate"
    assert [left.reason for left in run(way, nodes, embedding, on_too_long="collect").left_out] == [
        "too long"
    ]
    step = EmbedNodes(embed_model=embedding, on_too_long="collect")
    assert len(step(nodes)) == 2
    with pytest.raises(ConfigurationError, match=r"^on_too_long must be"):
        run(way, nodes, embedding, on_too_long="raise")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_or_only_bad_nodes_are_no_error(
    way: str, embedding: NexusFlowEmbedding, count: int
) -> None:
    assert run(way, nodes_of(count), embedding).nodes == nodes_of(count)[:count] or count
    done = run(way, nodes_of(count, dict.fromkeys(range(count), REFUSED)), embedding)
    assert done.nodes == []
    assert [left.place for left in done.left_out] == list(range(count))


def test_on_refused_and_on_blank_raise(
    way: str, embedding: NexusFlowEmbedding, server: LocalServer
) -> None:
    with pytest.raises(InvalidInputError, match="node 1 is blank: node 'node-1' of") as blank:
        run(way, nodes_of(3, {1: ""}), embedding, on_blank="raise")
    assert blank.value.index == 1
    assert server.stats.requests == 0
    with pytest.raises(
        RefusedTextsError, match=r"1 of 20 nodes \(node 'node-7' of document 'document-1' \(1.pdf\)"
    ) as refused:
        run(way, nodes_of(20, {2: " ", 7: REFUSED}), embedding, on_refused="raise")
    assert set(refused.value.refused) == {7}
    assert set(refused.value.finished) == set(range(20)) - {2, 7}
    with pytest.raises(ConfigurationError, match="on_blank"):
        run(way, nodes_of(1), embedding, on_blank="skip")


def test_vectors_that_were_ready_when_the_service_failed_are_in_the_error(
    way: str, upstream: Any
) -> None:
    upstream.answer = lambda asked: (
        (*upstream.UNAUTHORIZED, 0.05) if "text number 25" in asked else 0.1
    )
    with pytest.raises(AuthenticationError) as caught:
        run(way, nodes_of(41, {0: " "}), upstream.embedding(max_concurrency=4))
    finished = caught.value.finished
    assert len(finished) >= 10
    assert 0 not in finished
    for place, row in finished.items():
        assert np.array_equal(row, np.float32(upstream.vector_of(f"text number {place}")))


def test_items_that_are_not_nodes_and_other_models_are_refused(
    way: str, embedding: NexusFlowEmbedding, server: LocalServer
) -> None:
    with pytest.raises(ConfigurationError, match="not MockEmbedding"):
        run(way, nodes_of(2), MockEmbedding(embed_dim=3))
    with pytest.raises(InvalidInputError, match="item 1 is not a LlamaIndex node but a str"):
        run(way, [*nodes_of(1), "text"], embedding)
    with pytest.raises(InvalidInputError, match="expected a list of nodes"):
        run(way, nodes_of(1)[0], embedding)
    assert server.stats.requests == 0


@pytest.mark.parametrize("value", ["no", "", 0, None])
def test_show_progress_is_true_or_false(
    way: str, embedding: NexusFlowEmbedding, server: LocalServer, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"^show_progress must be True or False"):
        run(way, nodes_of(2), embedding, show_progress=value)
    assert server.stats.requests == 0


def test_the_model_of_the_settings_is_the_default(way: str, embedding: NexusFlowEmbedding) -> None:
    Settings.embed_model = embedding
    assert len(run(way, nodes_of(3)).nodes) == 3


class Prefixed(NexusFlowEmbedding):
    """A subclass with hooks of its own."""

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return super()._get_text_embeddings([f"passage: {text}" for text in texts])

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await super()._aget_text_embeddings([f"passage: {text}" for text in texts])


def test_hooks_of_a_subclass_are_used(way: str, server: LocalServer) -> None:
    model = Prefixed(api_key=server.api_key, api_base=server.base_url, dimensions=64)
    done = run(way, nodes_of(31, {30: REFUSED}), model)
    assert [left.place for left in done.left_out] == [30]
    assert sorted(server.stats.received) == sorted(f"passage: text number {n}" for n in range(30))
    assert done.usage.texts == 31


# -- in a pipeline ---------------------------------------------------------------------------------


def piped(way: str, pipeline: IngestionPipeline, **given: Any) -> Any:
    return pipeline.run(**given) if way == "sync" else asyncio.run(pipeline.arun(**given))


def test_a_pipeline_goes_on_without_what_is_left_out(
    way: str,
    embedding: NexusFlowEmbedding,
    server: LocalServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    step = EmbedNodes(embed_model=embedding)
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=20_000), step])
    documents = [Document(text=f"Number {n}.", id_=f"d{n}") for n in range(30)]
    documents[4] = Document(text=REFUSED, id_="refused", metadata={"file_name": "odd.pdf"})
    nodes = piped(way, pipeline, documents=documents)
    assert {node.ref_doc_id for node in nodes} == {f"d{n}" for n in range(30)} - {"d4"}
    assert all(len(node.embedding) == 64 for node in nodes)
    (left,) = step.left_out
    assert (left.document, left.source, left.reason) == ("refused", "odd.pdf", "refused")
    assert step.usage.texts == 30
    assert "1 of 30 nodes left out" in caplog.text

    server.reset_stats()
    assert len(piped(way, pipeline, documents=documents)) == 29
    assert server.stats.requests == 0, "the pipeline's own cache answers"


def test_a_step_is_stored_and_sent_without_the_key(
    embedding: NexusFlowEmbedding, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = EmbedNodes(embed_model=embedding, on_blank="raise")
    assert step.to_dict()["embed_model"] == embedding.to_dict()
    for shown in (repr(step), str(step.to_dict()), str(pickle.dumps(step))):
        assert server.api_key not in shown
    monkeypatch.setenv("NEXUSFLOW_API_KEY", server.api_key)
    twin = pickle.loads(pickle.dumps(step))
    assert twin.on_blank == "raise"
    assert len(twin(nodes_of(2))) == 2


def test_the_hash_of_a_step_changes_with_what_changes_a_vector(
    embedding: NexusFlowEmbedding,
) -> None:
    told = EmbedNodes(embed_model=embedding).to_dict()
    assert EmbedNodes(embed_model=embedding, on_refused="raise").to_dict() == told
    other = NexusFlowEmbedding(api_base=embedding.api_base, dimensions=128)
    assert EmbedNodes(embed_model=other).to_dict() != told


def test_the_cache_of_a_pipeline_keeps_what_was_split_and_what_was_cut_apart(
    embedding: NexusFlowEmbedding,
) -> None:
    cache = IngestionCache()
    text = "the beginning " * 9000 + "something else " * 9000
    found = []
    for policy in ("split", "truncate", "collect"):
        step = EmbedNodes(embed_model=embedding, on_too_long=policy)
        pipeline = IngestionPipeline(transformations=[step], cache=cache)
        found.append(pipeline.run(nodes=[TextNode(text=text, id_="long")]))
    split, cut, left = found
    assert split[0].embedding != cut[0].embedding
    assert list(left) == []


# -- errors that say which -------------------------------------------------------------------------


def test_a_pipelines_error_names_node_document_and_file(
    way: str, embedding: NexusFlowEmbedding
) -> None:
    pipeline = IngestionPipeline(transformations=[embedding])
    with pytest.raises(RefusedTextsError) as refused:
        piped(way, pipeline, nodes=nodes_of(30, {17: REFUSED}))
    said = str(refused.value)
    assert "1 of 30 nodes (node 'node-17' of document 'document-2' (2.pdf): 400 " in said
    assert set(refused.value.refused) == {17}
    assert len(refused.value.finished) == 29
    with pytest.raises(InvalidInputError) as blank:
        piped(way, pipeline, nodes=nodes_of(30, {17: " "}))
    assert str(blank.value) == "text 17 is blank: node 'node-17' of document 'document-2' (2.pdf)"
    with pytest.raises(BadRequestError, match="node 'node-0' of document 'document-0'") as alone:
        piped(way, pipeline, nodes=nodes_of(1, {0: REFUSED}))
    assert alone.value.status_code == 400


@pytest.mark.slow
@pytest.mark.parametrize("use_async", [False, True])
def test_an_error_from_an_index_quotes_the_text_after_the_first_2048(
    embedding: NexusFlowEmbedding, use_async: bool
) -> None:
    nodes = nodes_of(2300, {2250: "the  odd\none " + REFUSED})
    for node in nodes:
        node.excluded_embed_metadata_keys = []
    with pytest.raises(RefusedTextsError) as caught:
        VectorStoreIndex(nodes, embed_model=embedding, use_async=use_async)
    assert 'text 202: "file_path: 0.pdf the odd one !?!?' in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.refused[202].status_code == 400


def test_a_half_character_is_quoted_in_a_form_that_prints(
    batch: Callable[..., Any], embedding: NexusFlowEmbedding
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        batch(embedding, ["fine", "half \ud800 of it"])
    assert str(caught.value).endswith('where the text is read: "half \\ud800 of it"')
    str(caught.value).encode()


def test_the_cause_of_an_error_stays(batch: Callable[..., Any], server: LocalServer) -> None:
    class Broken:
        def acquire(self, **_: Any) -> None:
            raise OSError("gone")

        async def async_acquire(self, **_: Any) -> None:
            raise OSError("gone")

    model = NexusFlowEmbedding(
        api_key=server.api_key, api_base=server.base_url, rate_limiter=Broken()
    )
    with pytest.raises(Exception, match="the rate limiter failed") as caught:
        batch(model, ["a", "b"])
    assert isinstance(caught.value.__cause__, OSError)


def test_nothing_is_logged_where_nothing_is_left_out(
    embedding: NexusFlowEmbedding, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        EmbedNodes(embed_model=embedding)(nodes_of(3))
    assert caplog.text == ""


@pytest.mark.parametrize("strategy", list(DocstoreStrategy))
def test_a_document_deleted_from_the_docstore_is_tried_again(
    embedding: NexusFlowEmbedding, strategy: DocstoreStrategy, way: str
) -> None:
    step = EmbedNodes(embed_model=embedding)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=20_000), step],
        docstore=SimpleDocumentStore(),
        vector_store=SimpleVectorStore(),
        docstore_strategy=strategy,
        disable_cache=True,
    )
    documents = [Document(text="fine", id_="d0"), Document(text=REFUSED, id_="d1")]
    piped(way, pipeline, documents=documents)
    (left,) = step.left_out
    assert left.document == "d1"
    assert piped(way, pipeline, documents=documents) == []
    pipeline.docstore.delete_document(left.document)
    assert step.left_out == ()
    piped(way, pipeline, documents=documents)
    assert [again.document for again in step.left_out] == ["d1"]


class Halves(TransformComponent):
    """Cuts each document in two, at a bar."""

    def __call__(self, nodes: Any, **_: Any) -> Any:
        return [
            TextNode(
                text=text,
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=node.node_id)},
            )
            for node in nodes
            for text in node.get_content().split("|")
        ]


def test_a_document_that_is_tried_again_as_the_guide_says_is_not_stored_twice(
    embedding: NexusFlowEmbedding, way: str
) -> None:
    step = EmbedNodes(embed_model=embedding)
    store = SimpleVectorStore()
    pipeline = IngestionPipeline(
        transformations=[Halves(), step],
        docstore=SimpleDocumentStore(),
        vector_store=store,
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        disable_cache=True,
    )
    documents = [Document(text="a|b", id_="d0"), Document(text=f"c|{REFUSED}", id_="d1")]
    for _ in range(3):
        piped(way, pipeline, documents=documents)
        for left in step.left_out:
            pipeline.docstore.delete_document(left.document, raise_error=False)
            store.delete(left.document)
        assert len(store.data.embedding_dict) == 2
    documents[1] = Document(text="c|d", id_="d1")
    piped(way, pipeline, documents=documents)
    assert step.left_out == ()
    assert len(store.data.embedding_dict) == 4


def test_another_size_for_one_call_over_nodes_is_refused(embedding: NexusFlowEmbedding) -> None:
    nodes = [TextNode(text="a")]
    for size in (128, 3):
        with pytest.raises(ConfigurationError, match=r"^dimensions must be set on the model"):
            embedding(nodes, dimensions=size)
        with pytest.raises(ConfigurationError, match=r"^dimensions must be set on the model"):
            asyncio.run(embedding.acall(nodes, dimensions=size))
    assert embedding.usage.requests == 0
    (node,) = embedding(nodes, dimensions=64)
    assert len(node.embedding or []) == 64
