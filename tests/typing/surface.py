# ruff: noqa: F401 - names inside the quoted types of assert_type
"""What a type checker must see of the public names; checked by mypy and pyright, never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING

import httpx
from typing_extensions import assert_type

from nexusflow_integrations import Budget, NexusFlow, NexusFlowError, Price, Usage
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.errors import RateLimitError, RefusedTextsError
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.llama_index import NexusFlowEmbedding

if TYPE_CHECKING:
    from chromadb.api.types import Documents, EmbeddingFunction
    from langchain_core.embeddings import Embeddings
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from nexusflow_integrations._core.call.results import EmbeddingArray, EmbeddingList
    from nexusflow_integrations._core.call.streaming import Embedded


def core(client: NexusFlow) -> None:
    assert_type(client.embed("text"), "EmbeddingArray")
    assert_type(client.embed(["text"]), "EmbeddingArray")
    assert_type(client.embed(["text"], on_refused="collect"), "EmbeddingList")
    assert_type(client.embed(["text"], on_blank="collect"), "EmbeddingList")
    assert_type(client.embed(["text"], on_too_long="collect"), "EmbeddingList")
    assert_type(client.embed(["text"], on_too_long="split"), "EmbeddingArray")
    assert_type(client.embed_stream(["text"]), "Generator[Embedded, None, None]")
    assert_type(client.aembed_stream(["text"]), "AsyncGenerator[Embedded, None]")
    assert_type(client.usage, Usage)
    assert_type(client.usage.cost, float)
    assert_type(client.embed("text").usage, "Usage | None")


async def core_async(client: NexusFlow) -> None:
    assert_type(await client.aembed("text"), "EmbeddingArray")
    assert_type(await client.aembed(["text"], on_refused="collect"), "EmbeddingList")


def settings() -> NexusFlow:
    return NexusFlow(
        "key",
        dimensions=512,
        requests_per_minute=600,
        cache="vectors.sqlite3",
        budget=Budget(money=1.0),
        price=Price(0.5, "CNY"),
    )


def errors(error: NexusFlowError) -> None:
    if isinstance(error, RefusedTextsError):
        assert_type([*error.refused], list[int])
    if isinstance(error, RateLimitError):
        assert_type(error.retry_after, float | None)


def adapters() -> None:
    langchain: Embeddings = NexusFlowEmbeddings(dimensions=512)
    assert_type(langchain.embed_documents(["text"]), list[list[float]])
    assert_type(langchain.embed_query("text"), list[float])
    llama_index: BaseEmbedding = NexusFlowEmbedding(dimensions=512)
    assert_type(llama_index.get_text_embedding_batch(["text"]), list[list[float]])
    NexusFlowEmbedding(model="text-embedding-v4", base_url="https://nexusflow.vip/v1")
    NexusFlowEmbedding(model_name="text-embedding-v4", api_base=None, timeout=httpx.Timeout(5))
    NexusFlowEmbeddings(nexusflow_api_key="key", nexusflow_api_base=None, request_timeout=3.0)
    NexusFlowEmbeddings(
        openai_api_key="key",
        openai_api_base=None,
        chunk_size=10,
        timeout=(3.0, 5.0),
        headers={"X-Team": "red"},
        model_kwargs={"user": "me"},
        check_embedding_ctx_length=False,
        organization=None,
    )
    chroma: EmbeddingFunction[Documents] = NexusFlowEmbeddingFunction(dimensions=512)
    chroma(["text"])


def main() -> None:
    core(settings())
    asyncio.run(core_async(settings()))
