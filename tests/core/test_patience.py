"""A query may have a shorter timeout and deadline than documents."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import APITimeoutError

_accounts = count()


@pytest.fixture
def hung() -> Callable[..., NexusFlow]:
    """Make a client of a server that answers documents, and never a query."""

    async def answer(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        if "query" in texts:
            await asyncio.sleep(60)
        rows = [{"index": place, "embedding": [1.0] * 64} for place in range(len(texts))]
        return httpx.Response(200, json={"data": rows})

    def make(**settings: Any) -> NexusFlow:
        http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        return NexusFlow(f"sk-air-hung-{next(_accounts)}", async_http_client=http, **settings)

    return make


async def test_a_query_ends_at_its_own_deadline(hung: Callable[..., NexusFlow]) -> None:
    client = hung(query_deadline=0.3, deadline=50)
    began = time.monotonic()
    with pytest.raises(APITimeoutError, match=r"deadline of 0\.3 s"):
        await client.aembed("query", role="query")
    with pytest.raises(APITimeoutError):
        _ = [item async for item in client.aembed_stream(["query"], role="query")]
    assert time.monotonic() - began < 20
    assert (await client.aembed(["a", "b"])).shape == (2, 64)


async def test_a_query_has_a_timeout_of_its_own(hung: Callable[..., NexusFlow]) -> None:
    client = hung(query_timeout=0.2, max_retries=0)
    with pytest.raises(APITimeoutError, match=r"within 0\.2 s"):
        await client.aembed("query", role="query")


def test_without_query_limits_a_query_has_the_limits_of_documents() -> None:
    settings = NexusFlow(timeout=3, deadline=4).settings
    assert settings.of("query") is settings
    assert settings.of("document") is settings
    told = NexusFlow(timeout=3, deadline=4, query_timeout=1).settings
    assert (told.of("query").timeout, told.of("query").deadline) == (1, 4)
    assert told.of("document") is told
    assert told.of("query") is told.of("query")
    assert NexusFlow(query_deadline=1).resized(64).settings.of("query").dimensions == 64
