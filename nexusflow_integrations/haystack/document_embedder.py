"""``NexusFlowDocumentEmbedder``: embeds the documents of a pipeline."""

from dataclasses import dataclass, field, replace
from typing import Any

from haystack import Document, component

from nexusflow_integrations._core.call.results import EmbeddingArray
from nexusflow_integrations.haystack.embedder import Embedder


@component
@dataclass(eq=False)
class NexusFlowDocumentEmbedder(Embedder):
    """Embeds documents, of any number, many requests in flight; see ``Embedder`` for the settings.

    Values of ``meta_fields_to_embed`` that a document has stand before its content, one
    ``embedding_separator`` between each.
    """

    meta_fields_to_embed: list[str] = field(default_factory=list)
    embedding_separator: str = "\n"

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return ``documents``, copies with their embeddings in the same order, and ``meta``.

        Raises:
            InvalidInputError: A document has nothing to embed; ``index`` says which.
            NexusFlowError: Any other failure; its ``finished`` holds the vectors so far.
        """
        vectors = self.client.embed(map(self._text, documents))
        return self._answer(documents, vectors)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed like ``run``, without blocking the event loop."""
        vectors = await self.client.aembed(map(self._text, documents))
        return self._answer(documents, vectors)

    def _text(self, document: Document) -> str:
        values = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [*(str(value) for value in values if value is not None), document.content or ""]
        return self.prefix + self.embedding_separator.join(parts) + self.suffix

    def _answer(self, documents: list[Document], vectors: EmbeddingArray) -> dict[str, Any]:
        pairs = zip(documents, vectors.tolist(), strict=True)
        embedded = [replace(document, embedding=vector) for document, vector in pairs]
        return {"documents": embedded, "meta": self.meta(vectors)}
