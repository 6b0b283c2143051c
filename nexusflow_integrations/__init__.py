"""NexusFlow embeddings for LangChain, LlamaIndex and Chroma, over one shared HTTP core.

``NexusFlow`` is the client. The other types in this package are its arguments and results.
``NexusFlowEmbeddings`` (LangChain), ``NexusFlowEmbedding`` (LlamaIndex) and
``NexusFlowEmbeddingFunction`` (Chroma) are imported on first use, so importing this package imports
no framework.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core.clock import Real
from nexusflow_integrations._core.usage import Budget, Price, Usage
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import NexusFlowError

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.estimate import Estimate
    from nexusflow_integrations._core.call.results import EmbeddingArray, EmbeddingList
    from nexusflow_integrations._core.call.streaming import Embedded
    from nexusflow_integrations._core.left_out import LeftOut
    from nexusflow_integrations._core.pace.shared import SharedLimits
    from nexusflow_integrations._core.shared_budget import Grant, SharedBudget
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
    from nexusflow_integrations.langchain import NexusFlowEmbeddings
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Embedded",
    "EmbeddingArray",
    "EmbeddingList",
    "Estimate",
    "Grant",
    "LeftOut",
    "NexusFlow",
    "NexusFlowEmbedding",
    "NexusFlowEmbeddingFunction",
    "NexusFlowEmbeddings",
    "NexusFlowError",
    "Price",
    "SharedBudget",
    "SharedLimits",
    "Usage",
    "__version__",
]

_OF_FRAMEWORKS = ("NexusFlowEmbedding", "NexusFlowEmbeddingFunction", "NexusFlowEmbeddings")
_LAZY = {
    "Embedded": "nexusflow_integrations._core.call.streaming",
    "EmbeddingArray": "nexusflow_integrations._core.call.results",
    "EmbeddingList": "nexusflow_integrations._core.call.results",
    "Estimate": "nexusflow_integrations._core.call.estimate",
    "Grant": "nexusflow_integrations._core.shared_budget",
    "LeftOut": "nexusflow_integrations._core.left_out",
    "SharedBudget": "nexusflow_integrations._core.shared_budget",
    "SharedLimits": "nexusflow_integrations._core.pace.shared",
    "NexusFlowEmbeddings": "nexusflow_integrations.langchain",
    "NexusFlowEmbedding": "nexusflow_integrations.llama_index",
    "NexusFlowEmbeddingFunction": "nexusflow_integrations.chroma",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        # freezegun looks up every name of every module, and frameworks cannot be imported while it
        # has frozen the time.
        if time.time is not Real.wall and name in _OF_FRAMEWORKS and _LAZY[name] not in sys.modules:
            raise AttributeError(f"{name} must be imported before the time is frozen")
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
