"""``NexusFlowTextEmbedder``: embeds the query of a pipeline."""

from typing import Any

from haystack import component

from nexusflow_integrations._core.call.results import EmbeddingArray
from nexusflow_integrations._core.texts import check_text
from nexusflow_integrations.haystack.embedder import Embedder


@component
class NexusFlowTextEmbedder(Embedder):
    """Embeds one text as a query; see ``Embedder`` for the settings."""

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Return ``embedding``, a list of floats, and ``meta``.

        Raises:
            NexusFlowError: The text cannot be sent, or any other failure.
        """
        return self._answer(self.client.embed(self._whole(text), role="query"))

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed like ``run``, without blocking the event loop."""
        return self._answer(await self.client.aembed(self._whole(text), role="query"))

    def _whole(self, text: str) -> str:
        return f"{self.prefix}{check_text(text)}{self.suffix}"

    def _answer(self, vector: EmbeddingArray) -> dict[str, Any]:
        return {"embedding": vector.tolist(), "meta": self.meta(vector)}
