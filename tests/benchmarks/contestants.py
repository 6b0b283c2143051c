"""The contestants: our clients and their peers, each with its best documented settings.

Ten texts a request, base64 where it can be had (the ``openai`` client asks for it by itself), no
tokenizing, no retries needed. A contestant is a function from the server's URL to two functions:
texts to vectors, and one query to its vector. Async ones return coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

MODEL = "text-embedding-v4"
KEY = "sk-benchmark"
IN_FLIGHT = 32

Texts = list[str]


@dataclass(frozen=True)
class Embedder:
    """``documents``: list of texts to vectors; ``query``: text to vector.

    ``read`` makes a vector of what ``query`` gives, and ``read_all`` vectors of what ``documents``
    gives, after the clock has stopped.
    """

    documents: Callable[[Texts], Any]
    query: Callable[[str], Any]
    read: Callable[[Any], Any] = lambda vector: vector
    read_all: Callable[[Any], Any] = lambda vectors: vectors


@dataclass(frozen=True)
class Contestant:
    """``gives`` is what a caller gets: ``lists`` of Python floats, or float32 ``arrays``.

    Or ``base64``, which nobody can compute with; such a contestant is not compared with others.
    """

    name: str
    make: Callable[..., Embedder]
    ours: bool
    gives: str
    is_async: bool = False
    one_by_one: bool = False  # one request at a time: nothing but the latency is measured


def _slices(texts: Texts) -> list[Texts]:
    return [texts[start : start + 10] for start in range(0, len(texts), 10)]


# -- ours ------------------------------------------------------------------------------------------


def _core(url: str, **settings: Any) -> Embedder:
    from nexusflow_integrations import NexusFlow

    client = NexusFlow(KEY, base_url=url, **settings)
    return Embedder(client.embed, lambda text: client.embed(text, role="query"))


def _core_async(url: str, **settings: Any) -> Embedder:
    from nexusflow_integrations import NexusFlow

    client = NexusFlow(KEY, base_url=url, **settings)
    return Embedder(client.aembed, lambda text: client.aembed(text, role="query"))


def _langchain(url: str, **settings: Any) -> Embedder:
    from nexusflow_integrations.langchain import NexusFlowEmbeddings

    embeddings = NexusFlowEmbeddings(api_key=KEY, base_url=url, **settings)
    return Embedder(embeddings.embed_documents, embeddings.embed_query)


def _langchain_async(url: str, **settings: Any) -> Embedder:
    from nexusflow_integrations.langchain import NexusFlowEmbeddings

    embeddings = NexusFlowEmbeddings(api_key=KEY, base_url=url, **settings)
    return Embedder(embeddings.aembed_documents, embeddings.aembed_query)


def _llama(url: str, **settings: Any) -> Embedder:
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

    model = NexusFlowEmbedding(api_key=KEY, api_base=url, **settings)
    return Embedder(model.get_text_embedding_batch, model.get_query_embedding)


def _llama_async(url: str, **settings: Any) -> Embedder:
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

    model = NexusFlowEmbedding(api_key=KEY, api_base=url, **settings)
    return Embedder(model.aget_text_embedding_batch, model.aget_query_embedding)


def _chroma(url: str, **settings: Any) -> Embedder:
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    function = NexusFlowEmbeddingFunction(KEY, api_base=url, **settings)
    return Embedder(function, lambda text: function.embed_query([text])[0])


# -- peers -----------------------------------------------------------------------------------------


def peer_langchain_embeddings(url: str) -> Any:
    from langchain_openai import OpenAIEmbeddings
    from pydantic import SecretStr

    return OpenAIEmbeddings(
        model=MODEL,
        api_key=SecretStr(KEY),
        base_url=url,
        chunk_size=10,
        check_embedding_ctx_length=False,  # or it sends tokens, which only OpenAI supports
    )


def _peer_langchain(url: str) -> Embedder:
    embeddings = peer_langchain_embeddings(url)
    return Embedder(embeddings.embed_documents, embeddings.embed_query)


def _peer_langchain_async(url: str) -> Embedder:
    embeddings = peer_langchain_embeddings(url)
    return Embedder(embeddings.aembed_documents, embeddings.aembed_query)


def peer_llama_model(url: str, num_workers: int | None = None, **settings: Any) -> Any:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    return OpenAILikeEmbedding(
        model_name=MODEL,
        api_key=KEY,
        api_base=url,
        embed_batch_size=10,
        num_workers=num_workers,
        **settings,
    )


def _peer_llama(url: str) -> Embedder:
    model = peer_llama_model(url)
    return Embedder(model.get_text_embedding_batch, model.get_query_embedding)


def _peer_llama_16(url: str) -> Embedder:
    model = peer_llama_model(url, num_workers=16)
    return Embedder(model.aget_text_embedding_batch, model.aget_query_embedding)


def peer_chroma_function(url: str) -> Any:
    from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

    return OpenAIEmbeddingFunction(api_key=KEY, api_base=url, model_name=MODEL)


def _peer_chroma(url: str) -> Embedder:
    function = peer_chroma_function(url)

    def documents(texts: Texts) -> Any:
        return [row for piece in _slices(texts) for row in function(piece)]

    return Embedder(documents, lambda text: function.embed_query([text])[0])


def _vectors(response: Any) -> list[list[float]]:
    return [item.embedding for item in response.data]


def _peer_openai(url: str) -> Embedder:
    from openai import OpenAI

    client = OpenAI(api_key=KEY, base_url=url)

    def ask(texts: Texts) -> list[list[float]]:
        return _vectors(client.embeddings.create(model=MODEL, input=texts))

    def documents(texts: Texts) -> Any:
        return [row for piece in _slices(texts) for row in ask(piece)]

    return Embedder(documents, lambda text: ask([text])[0])


def _peer_openai_threads(url: str) -> Embedder:
    from openai import OpenAI

    client = OpenAI(api_key=KEY, base_url=url)
    pool = ThreadPoolExecutor(IN_FLIGHT)

    def ask(texts: Texts) -> list[list[float]]:
        return _vectors(client.embeddings.create(model=MODEL, input=texts))

    def documents(texts: Texts) -> Any:
        return [row for rows in pool.map(ask, _slices(texts)) for row in rows]

    return Embedder(documents, lambda text: ask([text])[0])


def _peer_openai_async(url: str, max_concurrency: int = IN_FLIGHT) -> Embedder:
    from openai import AsyncOpenAI

    return _openai_async(AsyncOpenAI(api_key=KEY, base_url=url), max_concurrency)


def _peer_openai_aiohttp(url: str, max_concurrency: int = IN_FLIGHT) -> Embedder:
    from openai import AsyncOpenAI, DefaultAioHttpClient

    http_client = DefaultAioHttpClient()
    client = AsyncOpenAI(api_key=KEY, base_url=url, http_client=http_client)
    return _openai_async(client, max_concurrency)


def _openai_async(client: Any, in_flight: int) -> Embedder:

    async def ask(texts: Texts) -> list[list[float]]:
        return _vectors(await client.embeddings.create(model=MODEL, input=texts))

    async def documents(texts: Texts) -> Any:
        pieces = iter(list(enumerate(_slices(texts))))
        found: dict[int, list[list[float]]] = {}

        async def worker() -> None:
            for place, piece in pieces:
                found[place] = await ask(piece)

        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return [row for place in range(len(found)) for row in found[place]]

    async def query(text: str) -> Any:
        return (await ask([text]))[0]

    return Embedder(documents, query)


class RustClient:
    """``baseten-performance-client``, with what its user must add: decoding and checking."""

    def __init__(self, url: str, in_flight: int = IN_FLIGHT) -> None:
        from baseten_performance_client import PerformanceClient, RequestProcessingPreference

        self._client = PerformanceClient(url, api_key=KEY)
        self._asked: dict[str, Any] = {
            "model": MODEL,
            "encoding_format": "base64",
            "preference": RequestProcessingPreference(
                batch_size=10, max_concurrent_requests=in_flight, max_chars_per_request=100_000
            ),
        }

    def embed(self, texts: Texts) -> Any:
        return self._client.embed(input=texts, **self._asked)

    async def aembed(self, texts: Texts) -> Any:
        return await self._client.async_embed(input=texts, **self._asked)


def rust_array(response: Any, count: int) -> Any:
    """Return the answer of the Rust client as a float32 array (count, d), or raise ValueError."""
    import numpy as np
    from pybase64 import b64decode

    items = response.data
    if len(items) != count:
        raise ValueError(f"{len(items)} vectors for {count} texts")
    raw = [b64decode(item.embedding, validate=True) for item in items]
    if len(set(map(len, raw))) != 1:
        raise ValueError("vectors of different sizes")
    array = np.frombuffer(b"".join(raw), dtype="<f4").reshape(count, -1)
    if not np.einsum("ij,ij->", array, array) < np.inf or not array.any(axis=1).all():
        raise ValueError("a vector with NaN, infinity or nothing but zeros")
    return array


def _rust_raw(url: str) -> Embedder:
    client = RustClient(url)
    return Embedder(
        client.embed,
        lambda text: client.embed([text]),
        lambda response: rust_array(response, 1)[0],
        lambda response: rust_array(response, len(response.data)),
    )


def _rust(url: str) -> Embedder:
    client = RustClient(url)
    return Embedder(
        lambda texts: rust_array(client.embed(texts), len(texts)),
        lambda text: rust_array(client.embed([text]), 1)[0],
    )


def _rust_lists(url: str) -> Embedder:
    client = RustClient(url)
    return Embedder(
        lambda texts: rust_array(client.embed(texts), len(texts)).tolist(),
        lambda text: rust_array(client.embed([text]), 1)[0].tolist(),
    )


def _rust_async(url: str) -> Embedder:
    client = RustClient(url)

    async def documents(texts: Texts) -> Any:
        return rust_array(await client.aembed(texts), len(texts))

    async def query(text: str) -> Any:
        return rust_array(await client.aembed([text]), 1)[0]

    return Embedder(documents, query)


ALL = [
    Contestant("nexusflow", _core, True, "arrays"),
    Contestant("nexusflow, async", _core_async, True, "arrays", is_async=True),
    Contestant("nexusflow for LangChain", _langchain, True, "lists"),
    Contestant("nexusflow for LangChain, async", _langchain_async, True, "lists", is_async=True),
    Contestant("nexusflow for LlamaIndex", _llama, True, "lists"),
    Contestant("nexusflow for LlamaIndex, async", _llama_async, True, "lists", is_async=True),
    Contestant("nexusflow for Chroma", _chroma, True, "arrays"),
    Contestant("LangChain OpenAIEmbeddings", _peer_langchain, False, "lists", one_by_one=True),
    Contestant(
        "LangChain OpenAIEmbeddings, async",
        _peer_langchain_async,
        False,
        "lists",
        is_async=True,
        one_by_one=True,
    ),
    Contestant("LlamaIndex OpenAILikeEmbedding", _peer_llama, False, "lists", one_by_one=True),
    Contestant(
        "LlamaIndex OpenAILikeEmbedding, async, 16 workers",
        _peer_llama_16,
        False,
        "lists",
        is_async=True,
    ),
    Contestant(
        "Chroma OpenAIEmbeddingFunction, tens", _peer_chroma, False, "arrays", one_by_one=True
    ),
    Contestant("openai, sequential", _peer_openai, False, "lists", one_by_one=True),
    Contestant("openai, 32 threads", _peer_openai_threads, False, "lists"),
    Contestant("openai, async, 32", _peer_openai_async, False, "lists", is_async=True),
    Contestant(
        "openai, async, 32, its aiohttp client", _peer_openai_aiohttp, False, "lists", is_async=True
    ),
    Contestant("Rust client", _rust_raw, False, "base64"),
    Contestant("Rust client, decoded and checked", _rust, False, "arrays"),
    Contestant("Rust client, decoded, checked, to lists", _rust_lists, False, "lists"),
    Contestant(
        "Rust client, async, decoded and checked", _rust_async, False, "arrays", is_async=True
    ),
]


def _bare(url: str, *, lists: bool = False) -> Embedder:
    from floor import BareSockets, decoded

    bare = BareSockets(url, MODEL)
    return Embedder(bare.lists if lists else bare.arrays, bare.one, lambda body: decoded(body)[0])


FLOORS = [
    Contestant("bare sockets", _bare, False, "arrays"),
    Contestant("bare sockets, to lists", partial(_bare, lists=True), False, "lists"),
]
"""The lower bound, which is not a contestant."""

BY_NAME = {contestant.name: contestant for contestant in [*ALL, *FLOORS]}
