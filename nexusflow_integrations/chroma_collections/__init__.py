"""Open a Chroma collection safely, and keep it true to its source; sync and async.

    collection = open_collection(client, "docs", NexusFlowEmbeddingFunction(dimensions=1024))
    done = sync_documents(collection, ids=ids, documents=texts)
    print(done.added, done.changed, done.unchanged, done.removed, done.left_out)

``sync_documents`` makes a collection hold what a source holds. ``add_documents`` only adds.
``aopen_collection``, ``async_documents`` and ``aadd_documents`` do the same with an
``AsyncHttpClient``, without blocking the event loop.
"""

from __future__ import annotations

# First: where Chroma is missing, this says what to install.
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction as _  # isort: split # noqa: F401
from nexusflow_integrations.chroma_collections.adding import Added, aadd_documents, add_documents
from nexusflow_integrations.chroma_collections.opening import aopen_collection, open_collection
from nexusflow_integrations.chroma_collections.syncing import (
    Synced,
    async_documents,
    sync_documents,
)

__all__ = [
    "Added",
    "Synced",
    "aadd_documents",
    "add_documents",
    "aopen_collection",
    "async_documents",
    "open_collection",
    "sync_documents",
]
