"""The embedding models ``nexusflow`` and ``nexusflow-64`` to ``nexusflow-2048`` for ``llm``.

``llm`` finds this module through its entry point. The key comes from ``llm keys set nexusflow`` or
``NEXUSFLOW_API_KEY``. ``llm`` does not distinguish queries from documents, so all texts are
embedded as documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.settings import DIMENSIONS, check_dimensions
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import NexusFlowError

with needed(__name__, "llm", install="nexusflow-integrations[llm]"):
    from llm import EmbeddingModel, hookimpl

__all__ = ["NexusFlowEmbeddingModel", "register_embedding_models"]


class NexusFlowEmbeddingModel(EmbeddingModel):
    """The model at one size; ``None``, named ``nexusflow``, is the server's default size."""

    needs_key = "nexusflow"
    key_env_var = "NEXUSFLOW_API_KEY"

    def __init__(self, dimensions: int | None = None) -> None:
        dimensions = check_dimensions(dimensions)
        self.model_id = "nexusflow" if dimensions is None else f"nexusflow-{dimensions}"
        self.dimensions = dimensions

    def embed_batch(
        self, items: Iterable[str | bytes], *, key: str | None = None
    ) -> Iterator[list[float]]:
        """Yield a vector for each text, in order; a text is read only when it can be sent.

        Raises:
            NexusFlowError: A text cannot be sent or was refused, or the call failed.
        """
        # A client per call is cheap: connections and limits belong to the process.
        try:
            client = NexusFlow(key or self.get_key(), dimensions=self.dimensions)
        finally:
            del key  # keep the key out of the frames of an error
        for result in client.embed_stream(cast("Iterable[str]", items)):
            if result.vector is None:
                raise cast(NexusFlowError, result.error)
            yield result.vector.tolist()


@hookimpl
def register_embedding_models(register: Callable[[EmbeddingModel], None]) -> None:
    """Register one model for each size."""
    for dimensions in (None, *DIMENSIONS):
        register(NexusFlowEmbeddingModel(dimensions))
