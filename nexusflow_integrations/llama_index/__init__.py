"""NexusFlow in LlamaIndex: ``NexusFlowEmbedding``."""

from nexusflow_integrations.llama_index.embedding import (
    NexusFlowEmbedding,
    NexusFlowEmbeddingEndEvent,
)

__all__ = ["NexusFlowEmbedding", "NexusFlowEmbeddingEndEvent"]
