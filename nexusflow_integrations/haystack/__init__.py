"""``NexusFlowTextEmbedder`` and ``NexusFlowDocumentEmbedder``: NexusFlow in Haystack's pipelines.

Errors are those of ``nexusflow_integrations.errors``; a failing call embeds no document at all.
"""

from nexusflow_integrations._core.needed import needed

with needed(__name__, "haystack", install="nexusflow-integrations[haystack]"):
    from nexusflow_integrations.haystack.document_embedder import NexusFlowDocumentEmbedder
    from nexusflow_integrations.haystack.text_embedder import NexusFlowTextEmbedder

__all__ = ["NexusFlowDocumentEmbedder", "NexusFlowTextEmbedder"]
