"""Four tools that make a collection equal to its source, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import tee
from operator import itemgetter
from pathlib import Path
from typing import Any

import chromadb
import pytest

KEY = "sk-air-life"
DIMENSIONS = 64

Row = tuple[Any, Any, Any]
"""Id, text and metadata of one document."""


class System(ABC):
    """A collection in a folder, and the tool that makes it equal to its source."""

    name: str

    def __init__(self, folder: Path, address: str, **options: Any) -> None:
        self.folder = folder
        self.address = address
        self.options = options
        self.client = chromadb.PersistentClient(path=str(folder / "chroma"))

    @abstractmethod
    def sync(self, rows: Iterable[Row], *, part: bool = False) -> None:
        """Make the collection, or with ``part`` this source's documents, equal to the source."""

    @property
    def collection(self) -> Any:
        """The collection, whichever tool created it."""
        return self.client.get_collection("docs", embedding_function=None)

    def texts(self) -> dict[str, str]:
        """Texts of the collection by the id that the source gave them."""
        found = self.collection.get(include=["documents", "metadatas"])
        return {
            self._id(name, metadata): document
            for name, document, metadata in zip(
                found["ids"], found["documents"], found["metadatas"], strict=True
            )
        }

    def _id(self, name: str, metadata: Any) -> str:
        return name

    def forget(self) -> None:  # noqa: B027 - two of the four have none
        """Delete the record manager or docstore, if there is one."""


class SyncDocuments(System):
    name = "`sync_documents`"

    def __init__(self, folder: Path, address: str, **options: Any) -> None:
        from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
        from nexusflow_integrations.chroma_collections import open_collection

        super().__init__(folder, address, **options)
        function = NexusFlowEmbeddingFunction(api_base=address, **_settings(options, "model_name"))
        self._open = lambda: open_collection(self.client, "docs", function)

    def sync(self, rows: Iterable[Row], *, part: bool = False) -> None:
        from nexusflow_integrations.chroma_collections import sync_documents

        ids, documents, metadatas = _columns(rows)
        sync_documents(
            self._open(),
            ids=ids,
            documents=documents,
            metadatas=metadatas,
            where={"v": 1} if part else None,
        )


class LangChain(System):
    name = "LangChain `index`"

    def __init__(self, folder: Path, address: str, **options: Any) -> None:
        pytest.importorskip("langchain_chroma")
        indexes = pytest.importorskip("langchain_classic.indexes")
        from langchain_chroma import Chroma

        from nexusflow_integrations.langchain import NexusFlowEmbeddings

        super().__init__(folder, address, **options)
        embeddings = NexusFlowEmbeddings(base_url=address, **_settings(options, "model"))
        self._store = lambda: Chroma("docs", embeddings, client=self.client)
        self._store()
        self._notes = folder / "record_manager.sqlite3"
        self._manager = lambda: indexes.SQLRecordManager("docs", db_url=f"sqlite:///{self._notes}")

    def sync(self, rows: Iterable[Row], *, part: bool = False) -> None:
        from langchain_core.documents import Document
        from langchain_core.indexing import index

        def documents() -> Iterator[Any]:
            for name, text, metadata in rows:
                yield Document(page_content=text, metadata={**(metadata or {}), "source": name})

        manager = self._manager()
        manager.create_schema()
        try:
            index(
                documents(),
                manager,
                self._store(),
                cleanup="full",
                source_id_key="source",
                key_encoder="sha256",
            )
        finally:
            manager.engine.dispose()

    def _id(self, name: str, metadata: Any) -> str:
        return str(metadata.get("source"))

    def forget(self) -> None:
        self._notes.unlink()


class LlamaIndex(System):
    name = "LlamaIndex `IngestionPipeline`"

    def __init__(self, folder: Path, address: str, **options: Any) -> None:
        pytest.importorskip("llama_index.vector_stores.chroma")
        from nexusflow_integrations.llama_index import NexusFlowEmbedding

        super().__init__(folder, address, **options)
        self._model = NexusFlowEmbedding(api_base=address, **_settings(options, "model_name"))
        self.client.get_or_create_collection("docs", embedding_function=None)
        self._notes = folder / "docstore.json"

    def sync(self, rows: Iterable[Row], *, part: bool = False) -> None:
        from llama_index.core import Document
        from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
        from llama_index.core.node_parser import SentenceSplitter
        from llama_index.core.storage.docstore import SimpleDocumentStore
        from llama_index.vector_stores.chroma import ChromaVectorStore

        kept = self._notes.exists()
        store = (
            SimpleDocumentStore.from_persist_path(str(self._notes))
            if kept
            else SimpleDocumentStore()
        )
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(include_metadata=False), self._model],
            docstore=store,
            vector_store=ChromaVectorStore(
                chroma_collection=self.client.get_or_create_collection(
                    "docs", embedding_function=None
                )
            ),
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        )
        pipeline.disable_cache = True
        documents = [
            Document(
                text=text,
                id_=name,
                metadata=metadata or {},
                excluded_embed_metadata_keys=list(metadata or ()),
            )
            for name, text, metadata in rows
        ]
        pipeline.run(documents=documents)
        store.persist(str(self._notes))

    def _id(self, name: str, metadata: Any) -> str:
        return str(metadata.get("doc_id"))

    def forget(self) -> None:
        self._notes.unlink()


class Plain(System):
    name = "Chroma's `upsert` and `delete`"

    def __init__(self, folder: Path, address: str, **options: Any) -> None:
        from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

        super().__init__(folder, address, **options)
        self._function = NexusFlowEmbeddingFunction(
            api_base=address, **_settings(options, "model_name")
        )
        self.client.get_or_create_collection("docs", embedding_function=self._function)

    def sync(self, rows: Iterable[Row], *, part: bool = False) -> None:
        collection = self.client.get_or_create_collection("docs", embedding_function=self._function)
        ids, documents, metadatas = (list(column) for column in _columns(rows))
        if ids:
            collection.upsert(ids=ids, documents=documents, metadatas=metadatas)
        if gone := set(collection.get(include=[])["ids"]) - set(ids):
            collection.delete(ids=sorted(gone))


SYSTEMS: dict[str, type[System]] = {
    system.name: system for system in (SyncDocuments, LangChain, LlamaIndex, Plain)
}


def _settings(options: dict[str, Any], model: str) -> dict[str, Any]:
    settings = {"api_key": KEY, "dimensions": DIMENSIONS, "max_retries": 0} | options
    settings[model] = settings.pop("model", "text-embedding-v4")
    return settings


def _columns(rows: Iterable[Row]) -> list[Iterator[Any]]:
    return [map(itemgetter(place), copy) for place, copy in enumerate(tee(rows, 3))]
