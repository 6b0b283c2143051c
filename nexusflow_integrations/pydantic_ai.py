"""``NexusFlowEmbeddingModel`` for Pydantic AI's ``Embedder``; raises the errors of this package."""

from collections.abc import Mapping, Sequence

from nexusflow_integrations._core.checks import refuse
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.settings import Role
from nexusflow_integrations._core.texts import rows_of
from nexusflow_integrations.client import NexusFlow

with needed(__name__, "pydantic_ai", install="nexusflow-integrations[pydantic-ai]"):
    from pydantic_ai.embeddings import EmbeddingModel, EmbeddingResult, EmbeddingSettings
    from pydantic_ai.models import check_allow_model_requests
    from pydantic_ai.usage import RequestUsage

__all__ = ["NexusFlowEmbeddingModel"]


class NexusFlowEmbeddingModel(EmbeddingModel):
    """Embeds with ``client``, by default ``NexusFlow()``.

    Of ``EmbeddingSettings``, only ``dimensions`` has an effect.

    Raises:
        ConfigurationError: ``client`` or ``settings`` has the wrong type.
    """

    def __init__(
        self, client: NexusFlow | None = None, *, settings: EmbeddingSettings | None = None
    ) -> None:
        if client is not None and not isinstance(client, NexusFlow):
            raise refuse("client", "a NexusFlow or None", client)
        if settings is not None and not isinstance(settings, Mapping):
            raise refuse("settings", "EmbeddingSettings or None", settings)
        super().__init__(settings=settings)
        self.client = NexusFlow() if client is None else client

    @property
    def model_name(self) -> str:
        return self.client.model

    @property
    def system(self) -> str:
        return "nexusflow"

    @property
    def base_url(self) -> str:
        return self.client.base_url

    async def embed(
        self,
        inputs: str | Sequence[str],
        *,
        input_type: Role,
        settings: EmbeddingSettings | None = None,
    ) -> EmbeddingResult:
        """Embed in parallel; return lists of floats in ``embeddings``, tokens in ``usage``.

        Raises:
            NexusFlowError: A text cannot be sent or was refused, or the call failed.
        """
        check_allow_model_requests()
        if not isinstance(inputs, str):
            inputs = list(rows_of(inputs))
        texts, merged = self.prepare_embed(inputs, settings)
        client = self.client.resized(merged.get("dimensions", self.client.dimensions))
        kept = client.settings.on_too_long
        vectors = await client.aembed(
            texts,
            role=input_type,
            on_refused="raise",
            on_blank="raise",
            on_too_long="error" if kept == "collect" else kept,
        )
        return EmbeddingResult(
            vectors.tolist(),
            inputs=texts,
            input_type=input_type,
            usage=RequestUsage(input_tokens=vectors.usage.tokens if vectors.usage else 0),
            model_name=self.model_name,
            provider_name=self.system,
        )
