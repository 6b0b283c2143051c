"""The client's CPU time by stage, on the same texts, and the remainder."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import vectors
from child import cpu_seconds, touch_memory
from contestants import IN_FLIGHT, KEY, MODEL


def breakdown(spec: dict[str, Any]) -> dict[str, Any]:
    """Return CPU microseconds a text for each stage of ``embed`` and ``tolist``."""
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations._core.request import batching, wire
    from nexusflow_integrations._core.texts import check_texts

    count = spec["texts"]
    texts = vectors.texts(count)
    client = NexusFlow(KEY, base_url=spec["url"])
    client.embed(vectors.texts(20, first=50_000_000))
    touch_memory()
    gc.collect()
    began = cpu_seconds()
    found = client.embed(texts)
    first = cpu_seconds() - began
    warm = min(_spent(lambda: client.embed(texts)) for _ in range(5))
    checked = vectors.check(texts, found)

    def plan() -> None:
        items = (batching.item_of(place, text) for place, text in enumerate(texts))
        for batch in batching.plan_batches(items, max_texts=10):
            wire.encode_request(batch, model=MODEL, encoding_format="base64", dimensions=None)

    body = _response(texts[:10])
    requests = count // 10

    def decode() -> None:
        for _ in range(requests):
            wire.decode_response(body, count=10, dimensions=None)

    stages = {
        "checking the texts": _best(lambda: check_texts(texts)),
        "requests as JSON": _best(plan),
        "HTTP: sockets, kernel, parser": _http(spec["url"], texts[:10], requests),
        "the first call: connections, fresh memory": max(0.0, first - warm),
        "responses: JSON, base64, checks": _best(decode),
    }
    stages["retries, pace, gathering: the rest"] = max(0.0, first - sum(stages.values()))
    # Measured batch by batch, as the client makes the lists.
    lister = NexusFlow(KEY, base_url=spec["url"])
    kept: list[Any] = []
    stages["lists of floats"] = (
        _spent(lambda: kept.append(lister._embed(texts, lists=True).tolist())) - warm
    )
    checked += vectors.check(texts, kept[0])
    return {
        "stages": {name: spent / count * 1e6 for name, spent in stages.items()},
        "checked": checked,
    }


def _spent(work: Callable[[], object]) -> float:
    began = cpu_seconds()
    work()
    return cpu_seconds() - began


def _best(work: Callable[[], object]) -> float:
    return min(_spent(work) for _ in range(5))


def _response(texts: list[str]) -> bytes:
    encoder = vectors.Encoder()
    items = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}'
        % (place, encoder.embedding(text, "base64"))
        for place, text in enumerate(texts)
    )
    usage = b'{"prompt_tokens":2750,"total_tokens":2750}'
    return b'{"object":"list","data":[%b],"model":"%b","usage":%b}' % (
        items,
        MODEL.encode(),
        usage,
    )


def _http(url: str, texts: list[str], requests: int) -> float:
    """Send requests through the client's sender alone."""
    from nexusflow_integrations._core.call.engine import _target
    from nexusflow_integrations._core.request import batching, wire
    from nexusflow_integrations._core.request.pool import LoopSender, Pool
    from nexusflow_integrations._core.secret import ApiKey, Headers

    items = [batching.item_of(place, text) for place, text in enumerate(texts)]
    body = wire.encode_request(items, model=MODEL, encoding_format="base64", dimensions=None)

    async def run() -> float:
        pool = Pool()
        sender = LoopSender(pool, _target(url, ApiKey(KEY), Headers()))

        async def some(times: int) -> None:
            for _ in range(times):
                answer = await sender.send(body, 60.0)
                assert getattr(answer, "status", None) == 200, answer

        async def all_together(times: int) -> None:
            await asyncio.gather(*(some(times) for _ in range(IN_FLIGHT)))

        await all_together(2)
        each = max(1, requests // IN_FLIGHT)
        spent = []
        for _ in range(5):
            began = cpu_seconds()
            await all_together(each)
            spent.append((cpu_seconds() - began) / (each * IN_FLIGHT))
        await pool.close()
        return min(spent) * requests

    return asyncio.run(run())


TASKS = {"breakdown": breakdown}
