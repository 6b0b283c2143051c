"""NexusFlow in LangChain: ``NexusFlowEmbeddings``, and ``add_documents`` into any vector store.

from nexusflow_integrations.langchain import NexusFlowEmbeddings, add_documents

done = add_documents(InMemoryVectorStore(NexusFlowEmbeddings()), documents, ids=ids)
print(done.added, done.left_out, done.usage.cost)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nexusflow_integrations.langchain.embeddings import NexusFlowEmbeddings

if TYPE_CHECKING:
    from nexusflow_integrations.langchain.ingestion import Added, aadd_documents, add_documents

__all__ = ["Added", "NexusFlowEmbeddings", "aadd_documents", "add_documents"]

_INGESTION = "nexusflow_integrations.langchain.ingestion"


def __getattr__(name: str) -> Any:
    # Import on first use: LangChain's vector stores take longer to import than everything else
    # here.
    if name in __all__:
        return getattr(importlib.import_module(_INGESTION), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
