"""Every public way to pass a key, with the argument names of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

KEY = "sk-air-Zq7pVw2LkT9sXb4Rm6Yd1Hn8"
HEADER = "gateway-Jd83kLqPz0W5vNc2"
PASSWORD = "pw-Tg5sHw9xQm1B"
HEADERS = {"api-key": HEADER, "Cookie": f"session={HEADER}"}


@dataclass(frozen=True)
class Entry:
    """One way in: ``make`` takes the client's names, ``embed`` texts.

    ``names`` are the entry's own names of settings that it names otherwise, and ``lacks`` those
    that it does not take.
    """

    name: str
    make: Callable[..., Any]
    embed: Callable[[Any, list[str]], object]
    names: Mapping[str, str] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()
    packages: tuple[str, ...] = ()

    def made(self, **settings: Any) -> Any:
        missing = self.lacks & settings.keys()
        if missing:
            pytest.skip(f"{self.name} does not take {', '.join(sorted(missing))}")
        for package in self.packages:
            pytest.importorskip(package)
        return self.make(**{self.names.get(name, name): value for name, value in settings.items()})


def _core(**settings: Any) -> Any:
    from nexusflow_integrations import NexusFlow

    return NexusFlow(**settings)


def _langchain(**settings: Any) -> Any:
    from nexusflow_integrations.langchain import NexusFlowEmbeddings

    return NexusFlowEmbeddings(**settings)


def _llama_index(**settings: Any) -> Any:
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

    return NexusFlowEmbedding(**settings)


def _chroma(**settings: Any) -> Any:
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    return NexusFlowEmbeddingFunction(**settings)


def _haystack(api_key: Any = None, base_url: Any = None, **options: Any) -> Any:
    from haystack.utils import Secret

    from nexusflow_integrations.haystack import NexusFlowDocumentEmbedder

    shared = {name: options.pop(name) for name in ("model", "dimensions") if name in options}
    embedder = NexusFlowDocumentEmbedder(
        api_key=Secret.from_token(api_key), api_base_url=base_url, options=options, **shared
    )
    assert embedder.client is not None  # made at the first use; it says what is wrong with the key
    return embedder


def _in_haystack(embedder: Any, texts: list[str]) -> object:
    from haystack import Document

    return embedder.run([Document(content=text) for text in texts])


def _ray(api_key: Any, **settings: Any) -> Any:
    from nexusflow_integrations.ray import DriverKey, EmbedBatch

    return EmbedBatch(DriverKey(api_key), **settings)


def _in_ray(batches: Any, texts: list[str]) -> object:
    import asyncio

    return asyncio.run(batches({"text": texts}))


def _stream(client: Any, texts: Iterable[str]) -> object:
    return list(client.embed_stream(texts))


def _later(method: str) -> Callable[[Any, list[str]], object]:
    def embed(client: Any, texts: list[str]) -> object:
        import asyncio

        async def work() -> object:
            return await getattr(client, method)(texts)

        return asyncio.run(work())

    return embed


def _astream(client: Any, texts: list[str]) -> object:
    import asyncio

    async def work() -> object:
        return [item async for item in client.aembed_stream(texts)]

    return asyncio.run(work())


LLAMA = {"base_url": "api_base", "model": "model_name", "batch_size": "embed_batch_size"}
CHROMA = {"base_url": "api_base", "model": "model_name"}
ENTRIES = [
    Entry("embed", _core, lambda made, texts: made.embed(texts)),
    Entry("aembed", _core, _later("aembed")),
    Entry("embed_stream", _core, _stream),
    Entry("aembed_stream", _core, _astream),
    Entry(
        "langchain",
        _langchain,
        lambda made, texts: made.embed_documents(texts),
        packages=("langchain_core",),
    ),
    Entry("langchain-async", _langchain, _later("aembed_documents"), packages=("langchain_core",)),
    Entry(
        "llama_index",
        _llama_index,
        lambda made, texts: made.get_text_embedding_batch(texts),
        LLAMA,
        packages=("llama_index.core",),
    ),
    Entry(
        "llama_index-async",
        _llama_index,
        _later("aget_text_embedding_batch"),
        LLAMA,
        packages=("llama_index.core",),
    ),
    Entry("chroma", _chroma, lambda made, texts: made(texts), CHROMA, packages=("chromadb",)),
    Entry("chroma-async", _chroma, _later("aembed"), CHROMA, packages=("chromadb",)),
    Entry("haystack", _haystack, _in_haystack, packages=("haystack",)),
    Entry("ray", _ray, _in_ray, packages=("ray.data", "pyarrow")),
]
