"""NexusFlow in LlamaIndex: ``NexusFlowEmbedding``, and ``embed_nodes``, which leaves out bad nodes.

from llama_index.core import Settings
from nexusflow_integrations.llama_index import NexusFlowEmbedding, embed_nodes

Settings.embed_model = NexusFlowEmbedding(dimensions=1024)
done = embed_nodes(nodes)
print(len(done.nodes), done.left_out, done.usage.cost)
"""

from nexusflow_integrations.llama_index.embedding import NexusFlowEmbedding
from nexusflow_integrations.llama_index.events import NexusFlowEmbeddingEndEvent
from nexusflow_integrations.llama_index.nodes import (
    EmbeddedNodes,
    EmbedNodes,
    aembed_nodes,
    embed_nodes,
)

__all__ = [
    "EmbedNodes",
    "EmbeddedNodes",
    "NexusFlowEmbedding",
    "NexusFlowEmbeddingEndEvent",
    "aembed_nodes",
    "embed_nodes",
]
