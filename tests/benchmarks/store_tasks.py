"""Measurements of the cache: its share of a run, compared with other caches, and after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import vectors
from child import Timed
from contestants import KEY, MODEL, peer_langchain_embeddings, peer_llama_model

COLLECTION = "embeddings"


def share(spec: dict[str, Any]) -> dict[str, Any]:
    """The same number of texts without a store, and with none, all or half of them stored."""
    from nexusflow_integrations import NexusFlow

    count = spec["texts"]
    plain = NexusFlow(KEY, base_url=spec["url"])
    cached = NexusFlow(KEY, base_url=spec["url"], cache=Path(spec["folder"]) / "share.sqlite")
    for client in (plain, cached):
        client.embed(vectors.texts(20, first=50_000_000))
    first, second, third = (vectors.texts(count, first=part * count) for part in range(3))
    half = [
        text
        for pair in zip(second[: count // 2], third[: count // 2], strict=True)
        for text in pair
    ]
    figures: dict[str, Any] = {"checked": 0}
    runs = (("none", plain, first), ("misses", cached, second), ("hits", cached, second))
    for name, client, texts in (*runs, ("half", cached, half)):
        with Timed() as timed:
            found = client.embed(texts)
        figures["checked"] += vectors.check(texts, found)
        figures[name] = timed.figures
    figures["cached"] = cached.usage.cached
    return figures


def put_and_get(spec: dict[str, Any]) -> dict[str, Any]:
    """Store vectors in groups of ten, and read all of them as lists of floats."""
    return {
        "nexusflow": _ours,
        "CacheBackedEmbeddings": _cache_backed,
        "embeddings_cache": _llama_cache,
    }[spec["cache"]](spec["texts"], Path(spec["folder"]))


def _ours(count: int, folder: Path) -> dict[str, Any]:
    from nexusflow_integrations._core.cache.in_file import VectorStore
    from nexusflow_integrations.langchain import NexusFlowEmbeddings

    path, texts = folder / "put.sqlite", vectors.texts(count)
    rows = vectors.expected(texts)
    url = "http://127.0.0.1:9/v1"  # nothing listens there, and no request is sent
    store = VectorStore(path)
    with Timed() as put:
        keyer = store.keyer(base_url=url, model=MODEL, dimensions=None)
        for start in range(0, count, 10):
            keys = [keyer(text) for text in texts[start : start + 10]]
            store.claim(keys, None)
            store.put(list(zip(keys, rows[start : start + 10], strict=True)))
        store.close()
    embeddings = NexusFlowEmbeddings(api_key=KEY, base_url=url, cache=path)
    embeddings.embed_query(texts[0])  # lazy imports; sends nothing
    with Timed() as get:
        found = embeddings.embed_documents(texts)
    return _figures(put, get, sum(p.stat().st_size for p in folder.iterdir()), texts, found)


class _Known:
    """A service that answers immediately, so that only the caches are measured."""

    def __init__(self, texts: list[str]) -> None:
        self._rows = dict(zip(texts, vectors.expected(texts).tolist(), strict=True))

    def __call__(self, texts: list[str]) -> list[list[float]]:
        return [self._rows[text] for text in texts]


def _cache_backed(count: int, folder: Path) -> dict[str, Any]:
    from langchain_core.embeddings import Embeddings

    texts = vectors.texts(count)
    known = _Known(texts)

    class Underlying(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return known(texts)

        def embed_query(self, text: str) -> list[float]:
            return known([text])[0]

    embeddings = _backed(Underlying(), folder, batch_size=10)
    with Timed() as put:
        embeddings.embed_documents(texts)
    with Timed() as get:
        found = embeddings.embed_documents(texts)
    blocks = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    return _figures(put, get, blocks, texts, found)


def _backed(underlying: Any, folder: Path, batch_size: int | None) -> Any:
    from langchain_classic.embeddings import CacheBackedEmbeddings
    from langchain_classic.storage import LocalFileStore

    return CacheBackedEmbeddings.from_bytes_store(
        underlying,
        LocalFileStore(folder),
        namespace=MODEL,
        batch_size=batch_size,
        key_encoder="sha256",
    )


def _llama_cache(count: int, folder: Path) -> dict[str, Any]:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.storage.kvstore import SimpleKVStore

    texts = vectors.texts(count)
    known = _Known(texts)

    class Instant(BaseEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return known([query])[0]

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return known([query])[0]

        def _get_text_embedding(self, text: str) -> list[float]:
            return known([text])[0]

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return known(texts)

    path = folder / "cache.json"
    with Timed() as put:
        cache = SimpleKVStore()
        Instant(embed_batch_size=10, embeddings_cache=cache).get_text_embedding_batch(texts)
        cache.persist(str(path))
    with Timed() as get:
        cache = SimpleKVStore.from_persist_path(str(path))
        model = Instant(embed_batch_size=10, embeddings_cache=cache)
        found = model.get_text_embedding_batch(texts)
    return _figures(put, get, path.stat().st_size, texts, found)


def _figures(put: Timed, get: Timed, size: int, texts: list[str], found: Any) -> dict[str, Any]:
    return {
        "put": put.figures,
        "get": get.figures,
        "bytes": size / len(texts),
        "checked": vectors.check(texts, found),
    }


def until_killed(spec: dict[str, Any]) -> dict[str, Any]:
    """Embed through a cache that is kept on disk; the parent kills this process half-way."""
    texts = vectors.texts(spec["texts"])
    folder, url = Path(spec["folder"]), spec["url"]
    with _embedding(spec["cache"], folder, url) as embed:
        found = embed(texts)
    return {"checked": vectors.check(texts, found)}


@contextmanager
def _embedding(kind: str, folder: Path, url: str) -> Iterator[Any]:
    if kind == "nexusflow":
        from nexusflow_integrations import NexusFlow

        yield NexusFlow(KEY, base_url=url, cache=folder / "kill.sqlite").embed
    elif kind.startswith("CacheBackedEmbeddings"):
        size = 10 if "10" in kind else None
        backed = _backed(peer_langchain_embeddings(url), folder, size)
        yield backed.embed_documents
    else:
        from llama_index.core.storage.kvstore import SimpleKVStore

        path = folder / "cache.json"
        cache = SimpleKVStore.from_persist_path(str(path)) if path.exists() else SimpleKVStore()
        yield peer_llama_model(url, embeddings_cache=cache).get_text_embedding_batch
        cache.persist(str(path))


def soak(spec: dict[str, Any]) -> dict[str, Any]:
    """Stream many texts through a server with quotas and faults; watch memory and descriptors."""
    import os
    import sys

    from child import resident

    sys.path.insert(1, str(Path(__file__).parents[1]))
    from faults.server import expected_vector

    from nexusflow_integrations import NexusFlow

    client = NexusFlow(KEY, base_url=spec["url"], timeout=5.0, max_retries=20)
    count, every = spec["texts"], max(1, spec["texts"] // 40)
    samples: list[tuple[int, int]] = []
    wrong = done = 0
    texts = (vectors.text(number)[:200] for number in range(count))
    with Timed() as timed:
        for embedded in client.embed_stream(texts):
            wanted = expected_vector(vectors.text(embedded.index)[:200])
            wrong += embedded.index != done
            wrong += embedded.vector is None or not np.array_equal(embedded.vector, wanted)
            done += 1
            if done % every == 0:
                samples.append((resident(), len(os.listdir("/proc/self/fd"))))
    later = samples[len(samples) // 4 :]
    sizes, descriptors = [size for size, _ in later], [fds for _, fds in later]
    slope = np.polyfit(range(len(sizes)), sizes, 1)[0] * len(sizes)
    usage = client.usage
    return {
        **timed.figures,
        "checked": done,
        "wrong": wrong,
        "requests": usage.requests,
        "retries": usage.retries,
        "growth": float(slope),
        "samples": [size for size, _ in samples],
        "descriptors": [min(descriptors), max(descriptors)],
    }


TASKS = {
    "store_share": share,
    "store_put_and_get": put_and_get,
    "store_until_killed": until_killed,
    "soak": soak,
}
