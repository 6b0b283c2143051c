"""The adapter works with Pydantic AI's ``Embedder``."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic_ai import Embedder, models
from pydantic_ai.embeddings import EmbeddingSettings

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import AuthenticationError, ConfigurationError, InvalidInputError
from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.pydantic_ai import NexusFlowEmbeddingModel

TEXTS = [
    "Red pandas climb trees.",
    "Submarines dive under the ice.",
    "Bread needs flour and water.",
]


async def test_an_embedder_finds_the_nearest_document() -> None:
    embedder = Embedder(NexusFlowEmbeddingModel())
    documents = await embedder.embed_documents(TEXTS)
    query = await embedder.embed_query("Which pandas climb?")
    scores = np.array(documents.embeddings) @ np.array(query.embeddings[0])
    assert TEXTS[int(scores.argmax())] == "Red pandas climb trees."


def test_an_embedder_works_synchronously() -> None:
    found = Embedder(NexusFlowEmbeddingModel()).embed_documents_sync(TEXTS)
    assert found["Bread needs flour and water."] == found.embeddings[2]


async def test_the_result_says_who_made_it_and_what_it_cost() -> None:
    client = NexusFlow()
    result = await Embedder(NexusFlowEmbeddingModel(client)).embed_documents(TEXTS)
    assert (result.model_name, result.provider_name) == ("text-embedding-v4", "nexusflow")
    assert result.usage.input_tokens == client.usage.tokens > 0
    assert result.inputs == TEXTS


async def test_only_queries_get_the_query_instruction(server: LocalServer) -> None:
    embedder = Embedder(NexusFlowEmbeddingModel(NexusFlow(query_instruction="Find: ")))
    await embedder.embed_documents("pandas")
    await embedder.embed_query("pandas")
    assert server.stats.received == ("pandas", "Find: pandas")


async def test_dimensions_are_those_of_the_call_else_the_models_else_the_clients() -> None:
    client = NexusFlow(dimensions=512)
    plain = Embedder(NexusFlowEmbeddingModel(client))
    told = Embedder(NexusFlowEmbeddingModel(client, settings=EmbeddingSettings(dimensions=256)))
    sizes = [
        await plain.embed_query("pandas"),
        await told.embed_query("pandas"),
        await told.embed_query("pandas", settings=EmbeddingSettings(dimensions=64)),
    ]
    assert [len(result.embeddings[0]) for result in sizes] == [512, 256, 64]
    with pytest.raises(ConfigurationError, match="dimensions"):
        await plain.embed_query("pandas", settings=EmbeddingSettings(dimensions=7))


async def test_one_call_has_many_requests_in_flight(slow_server: LocalServer) -> None:
    texts = [f"text number {number}" for number in range(120)]
    await Embedder(NexusFlowEmbeddingModel()).embed_documents(texts)
    assert slow_server.stats.requests == 12
    assert slow_server.stats.max_in_flight >= 4


async def test_no_request_is_made_where_pydantic_ai_forbids_them(
    monkeypatch: pytest.MonkeyPatch, server: LocalServer
) -> None:
    monkeypatch.setattr(models, "ALLOW_MODEL_REQUESTS", False)
    with pytest.raises(RuntimeError, match="ALLOW_MODEL_REQUESTS"):
        await Embedder(NexusFlowEmbeddingModel()).embed_query("pandas")
    assert server.stats.requests == 0


async def test_errors_are_ours(wrong_key: str) -> None:
    with pytest.raises(AuthenticationError) as refused:
        await Embedder(NexusFlowEmbeddingModel()).embed_query("pandas")
    assert wrong_key not in str(refused.value)


async def test_a_client_that_leaves_texts_out_raises_here(server: LocalServer) -> None:
    client = NexusFlow(
        server.api_key,
        base_url=server.base_url,
        dimensions=64,
        on_refused="collect",
        on_blank="collect",
        on_too_long="collect",
    )
    model = NexusFlowEmbeddingModel(client)
    with pytest.raises(InvalidInputError, match="is blank"):
        await model.embed(["a", " "], input_type="document")
    found = await model.embed(["a", "b"], input_type="document")
    assert len(found.embeddings) == 2
