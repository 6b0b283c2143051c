"""NexusFlow embeddings for LangChain, LlamaIndex and Chroma, over one shared HTTP core.

``NexusFlow`` is the client. ``NexusFlowEmbeddings`` (LangChain), ``NexusFlowEmbedding``
(LlamaIndex) and ``NexusFlowEmbeddingFunction`` (Chroma) are imported when they are first asked for:
importing this package imports no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core.usage import Budget, Price, Usage
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import NexusFlowError

if TYPE_CHECKING:
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
    from nexusflow_integrations.langchain import NexusFlowEmbeddings
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "NexusFlow",
    "NexusFlowEmbedding",
    "NexusFlowEmbeddingFunction",
    "NexusFlowEmbeddings",
    "NexusFlowError",
    "Price",
    "Usage",
    "__version__",
]

_ADAPTERS = {
    "NexusFlowEmbeddings": "nexusflow_integrations.langchain",
    "NexusFlowEmbedding": "nexusflow_integrations.llama_index",
    "NexusFlowEmbeddingFunction": "nexusflow_integrations.chroma",
}


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        return getattr(importlib.import_module(_ADAPTERS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ADAPTERS])
