"""Opens Chroma collections safely and keeps them in sync with their sources; sync and async.

    collection = open_collection(client, "docs", NexusFlowEmbeddingFunction(dimensions=1024))
    done = sync_documents(collection, ids=ids, documents=texts)
    print(done.added, done.changed, done.unchanged, done.removed, done.left_out)

``sync_documents`` makes a collection match its source. ``add_documents`` only adds.
``copy_collection`` moves a collection to another model or size while the old collection stays in
use, and ``exchange_names`` undoes that. ``hybrid_query`` searches by vectors and keywords at once.
``aopen_collection``, ``async_documents``, ``aadd_documents``, ``acopy_collection`` and
``aexchange_names`` do the same with an ``AsyncHttpClient``, without blocking the event loop.
"""

from __future__ import annotations

# Import this first: if Chroma is missing, its error says what to install.
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction as _  # isort: split # noqa: F401
from nexusflow_integrations.chroma_collections.adding import Added, aadd_documents, add_documents
from nexusflow_integrations.chroma_collections.copying import (
    Copied,
    acopy_collection,
    copy_collection,
)
from nexusflow_integrations.chroma_collections.exchanging import aexchange_names, exchange_names
from nexusflow_integrations.chroma_collections.hybrid import Hit, ahybrid_query, hybrid_query
from nexusflow_integrations.chroma_collections.opening import aopen_collection, open_collection
from nexusflow_integrations.chroma_collections.records import SameIdTwiceError
from nexusflow_integrations.chroma_collections.syncing import (
    Synced,
    async_documents,
    sync_documents,
)

__all__ = [
    "Added",
    "Copied",
    "Hit",
    "SameIdTwiceError",
    "Synced",
    "aadd_documents",
    "acopy_collection",
    "add_documents",
    "aexchange_names",
    "ahybrid_query",
    "aopen_collection",
    "async_documents",
    "copy_collection",
    "exchange_names",
    "hybrid_query",
    "open_collection",
    "sync_documents",
]
