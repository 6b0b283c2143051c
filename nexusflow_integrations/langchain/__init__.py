"""NexusFlow in LangChain: ``NexusFlowEmbeddings``."""

from nexusflow_integrations.langchain.embeddings import NexusFlowEmbeddings

__all__ = ["NexusFlowEmbeddings"]
