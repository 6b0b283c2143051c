"""The guide's recipe for ``UPSERTS_AND_DELETE`` repairs what a stopped run left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.api.shared_system_client import SharedSystemClient

from nexusflow_integrations.local import LocalServer

from .test_snippets import ROOT, _run, _snippets

pytest.importorskip("llama_index.vector_stores.chroma")
from llama_index.core import Document
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection
from nexusflow_integrations.llama_index import EmbedNodes, NexusFlowEmbedding

PANDA, OTTER, BEAR = "Red pandas climb.", "Sea otters swim.", "Bears sleep."

Texts = dict[str, str]


class Stopped(BaseException):
    """Stands for Ctrl-C."""


@pytest.fixture
def recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[dict[str, Any]]:
    """The names of the snippet after it ran."""
    SharedSystemClient.clear_system_cache()
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "guides" / "llama-index.md"
    (snippet,) = [found for found in _snippets(page) if "def ingest(" in found.code]
    names: dict[str, Any] = {
        "chromadb": chromadb,
        "ChromaVectorStore": ChromaVectorStore,
        "Document": Document,
        "IngestionPipeline": IngestionPipeline,
        "NexusFlowEmbeddingFunction": NexusFlowEmbeddingFunction,
        "SentenceSplitter": SentenceSplitter,
        "open_collection": open_collection,
    }
    with LocalServer(model="hash") as server:
        monkeypatch.setenv("NEXUSFLOW_API_KEY", server.api_key)
        monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
        names["step"] = EmbedNodes(embed_model=NexusFlowEmbedding(dimensions=1024))
        _run(snippet.code, snippet.line, page, names)
        capsys.readouterr()
        yield names


@pytest.fixture
def ingest(recipe: dict[str, Any]) -> Callable[[Texts], int]:
    return recipe["ingest"]  # type: ignore[no-any-return]


@pytest.fixture
def stopped(
    ingest: Callable[[Texts], int], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Texts], None]:
    """Run the recipe up to the point where it saves the docstore."""

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    def run(texts: Texts) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(SimpleDocumentStore, "persist", stop)
            with pytest.raises(Stopped):
                ingest(texts)

    return run


def _held(recipe: dict[str, Any]) -> list[str]:
    return sorted(recipe["vectors"].client.get()["documents"])


def test_a_run_that_is_stopped_before_it_saves_leaves_no_node_twice(
    recipe: dict[str, Any],
    ingest: Callable[[Texts], int],
    stopped: Callable[[Texts], None],
) -> None:
    texts = {"panda": PANDA, "otter": OTTER}
    stopped(texts)
    assert ingest(texts) == 2
    assert _held(recipe) == [PANDA, OTTER]
    assert ingest(texts) == 0


def test_what_a_stopped_run_added_is_removed_if_the_source_no_longer_has_it(
    recipe: dict[str, Any],
    ingest: Callable[[Texts], int],
    stopped: Callable[[Texts], None],
) -> None:
    texts = {"panda": PANDA, "otter": OTTER}
    ingest(texts)
    stopped({**texts, "bear": BEAR})
    assert BEAR in _held(recipe)
    assert ingest(texts) == 0
    assert _held(recipe) == [PANDA, OTTER]


def test_what_a_stopped_run_removed_is_added_if_the_source_has_it_again(
    recipe: dict[str, Any],
    ingest: Callable[[Texts], int],
    stopped: Callable[[Texts], None],
) -> None:
    texts = {"panda": PANDA, "otter": OTTER}
    ingest(texts)
    stopped({"panda": PANDA})
    assert _held(recipe) == [PANDA]
    assert ingest(texts) == 1
    assert _held(recipe) == [PANDA, OTTER]


def test_documents_with_the_same_text_are_embedded_once_each(
    recipe: dict[str, Any], ingest: Callable[[Texts], int]
) -> None:
    texts = {"panda": PANDA, "copy": PANDA, "blank": " "}
    assert ingest(texts) >= 1
    assert _held(recipe) == [PANDA, PANDA]
    spent = recipe["step"].embed_model.usage.tokens
    ingest(texts)
    assert recipe["step"].embed_model.usage.tokens == spent
    assert _held(recipe) == [PANDA, PANDA]


@pytest.mark.parametrize("kept", ["panda", "copy", None])
def test_a_document_is_removed_although_another_one_has_the_same_text(
    recipe: dict[str, Any], ingest: Callable[[Texts], int], kept: str | None
) -> None:
    ingest({"panda": PANDA, "copy": PANDA, "otter": OTTER})
    texts = {**({kept: PANDA} if kept else {}), "otter": OTTER}
    for _ in range(2):
        assert ingest(texts) == 0
        nodes = recipe["vectors"].client.get()["metadatas"]
        assert {node["document_id"] for node in nodes} == texts.keys()


def test_a_run_that_is_stopped_while_it_saves_keeps_the_previous_state(
    recipe: dict[str, Any], ingest: Callable[[Texts], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SimpleDocumentStore.persist

    def half(self: SimpleDocumentStore, path: str) -> None:
        whole(self, path)
        Path(path).write_bytes(Path(path).read_bytes()[:100])
        raise Stopped

    ingest({"panda": PANDA, "otter": OTTER})
    with monkeypatch.context() as patch:
        patch.setattr(SimpleDocumentStore, "persist", half)
        with pytest.raises(Stopped):
            ingest({"panda": PANDA, "bear": BEAR})
    assert ingest({"panda": PANDA, "bear": BEAR}) == 1
    assert _held(recipe) == [BEAR, PANDA]
    assert [path.name for path in Path().glob("docstore*")] == ["docstore.json"]
