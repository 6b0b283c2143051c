"""The embedding models ``nexusflow`` and ``nexusflow-64`` to ``nexusflow-2048`` of ``llm``.

``llm`` finds this module by its entry point. The key is the one of ``llm keys set nexusflow``, else
of ``NEXUSFLOW_API_KEY``; ``llm`` does not tell queries from documents, so neither is marked.
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
    """One size of the model; ``None`` takes the server's, under the plain name ``nexusflow``."""

    needs_key = "nexusflow"
    key_env_var = "NEXUSFLOW_API_KEY"

    def __init__(self, dimensions: int | None = None) -> None:
        dimensions = check_dimensions(dimensions)
        self.model_id = "nexusflow" if dimensions is None else f"nexusflow-{dimensions}"
        self.dimensions = dimensions

    def embed_batch(
        self, items: Iterable[str | bytes], *, key: str | None = None
    ) -> Iterator[list[float]]:
        """Yield a vector for each text, in order, reading no more texts than are in flight.

        Raises:
            NexusFlowError: A text cannot be sent or was refused, or any other failure.
        """
        # Building a client costs nothing; the pool and the pace are the process's.
        try:
            client = NexusFlow(key or self.get_key(), dimensions=self.dimensions)
        finally:
            del key  # an error must not leave with it, since its frames may be shown
        for result in client.embed_stream(cast("Iterable[str]", items)):
            if result.vector is None:
                raise cast(NexusFlowError, result.error)
            yield result.vector.tolist()


@hookimpl
def register_embedding_models(register: Callable[[EmbeddingModel], None]) -> None:
    """Tell ``llm`` of one model for each size."""
    for dimensions in (None, *DIMENSIONS):
        register(NexusFlowEmbeddingModel(dimensions))
