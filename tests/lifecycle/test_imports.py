"""No thread of this package imports anything during a call; only the caller's thread does."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from .scene import KEY, run

HEAD = """
    import asyncio, json, os, sys, numpy
    from tests.import_watch import watch

    found = watch()
    url, key, place, redis, codes = sys.argv[1:]
    texts = [f"text {n}" for n in range(25)]

    def client(**options):
        from nexusflow_integrations import NexusFlow
        return NexusFlow(key, base_url=url, dimensions=64, **options)

    def failing(call, *arguments, **options):
        try:
            call(*arguments, **options)
        except Exception as error:
            return error
        raise AssertionError("it did not fail")
"""
EACH = """
    # Each in its own fork, which has not imported any of our modules yet.
    children = []
    for name, code in json.loads(codes).items():
        if (pid := os.fork()) == 0:
            failed = True
            try:
                exec(code)
                print(*(f"{name}: {each}" for each in found), sep="\\n", end="", flush=True)
                failed = False
            finally:
                os._exit(failed)
        children.append((name, pid))
    for name, pid in children:
        if os.waitpid(pid, 0)[1]:
            print(name, "failed")
"""

PATHS = {
    "sync": "client().embed(texts)",
    "async": "asyncio.run(client().aembed(texts))",
    "stream": "list(client().embed_stream(texts))",
    "async stream": """
    async def stream():
        return [each async for each in client().aembed_stream(texts)]
    asyncio.run(stream())
    """,
    "nothing": "client().embed([])",
    "estimate": "client().estimate(texts)",
    "names": """
    from nexusflow_integrations import NexusFlow
    NexusFlow(key, base_url=url.replace("127.0.0.1", "localhost")).embed(texts)
    far = NexusFlow(key, base_url="https://xn--nxasmq6b.invalid/v1", max_retries=0, deadline=5)
    failing(far.embed, texts)
    """,
    "cache file": """
    import os
    from nexusflow_integrations import Budget
    cached = client(cache=place + "/c.db", requests_per_minute=60_000, budget=Budget(money=1.0))
    for _ in range(2):
        cached.embed(texts)
        cached.estimate(texts)
    failing(client(cache=place).embed, texts)
    client(cache="/proc/no/c.db").embed(texts)
    """,
    "estimate of a cache file": "client(cache=place + '/c.db').estimate(texts)",
    "limits of several processes": """
    class Limits:
        requests_per_minute, tokens_per_minute, processes = 60_000.0, None, 1
        def lease(self, count, tokens, *, owed_tokens=0.0, late=0.0):
            return [0.0] * count
        def adjust(self, tokens, late=0.0): ...
        def throttled(self, ago): ...

    client(pacer=Limits()).embed(texts)
    """,
    "budget of several processes": """
    from nexusflow_integrations._core.shared_budget import Grant

    class Budget:
        tokens = 1_000_000
        def draw(self, least, wanted, unused, kept):
            return Grant(wanted, 1_000_000, False)

    spender = client(budget=Budget())
    spender.embed(texts)
    spender.close()
    """,
    "httpx": """
    import httpx
    with httpx.Client() as own:
        client(http_client=own).embed(texts)
    """,
    "async httpx": """
    import httpx
    async def embed():
        async with httpx.AsyncClient() as own:
            await client(async_http_client=own).aembed(texts)
    asyncio.run(embed())
    """,
}
FRAMEWORKS = {
    "LangChain": """
    from nexusflow_integrations import NexusFlowEmbeddings
    given = dict(api_key=key, base_url=url, dimensions=64, show_progress_bar=True)
    failing(NexusFlowEmbeddings(**given).embed_documents, [5])
    NexusFlowEmbeddings(**given).embed_documents(texts)
    asyncio.run(NexusFlowEmbeddings(**given).aembed_documents(texts))
    """,
    "LangChain with a rate limiter": """
    from langchain_core.rate_limiters import InMemoryRateLimiter
    from nexusflow_integrations import NexusFlowEmbeddings
    limiter = InMemoryRateLimiter(requests_per_second=1000, check_every_n_seconds=0.01)
    given = dict(api_key=key, base_url=url, dimensions=64, rate_limiter=limiter)
    NexusFlowEmbeddings(**given).embed_documents(texts)
    """,
    "LlamaIndex": """
    from nexusflow_integrations import NexusFlowEmbedding
    made = NexusFlowEmbedding(api_key=key, base_url=url, dimensions=64)
    made.get_text_embedding_batch(texts, show_progress=True)
    """,
    "Chroma": """
    from nexusflow_integrations import NexusFlowEmbeddingFunction
    NexusFlowEmbeddingFunction(api_key=key, api_base=url, dimensions=64)(texts)
    """,
}
NEEDS = {"LangChain": "langchain_core", "LlamaIndex": "llama_index.core", "Chroma": "chromadb"}
REDIS = {
    "cache": """
    cached = client(cache=redis, requests_per_minute=60_000)
    for _ in range(2):
        cached.embed(texts)
        cached.estimate(texts)
    """,
    "limits": """
    from nexusflow_integrations.redis import RedisLimits
    client(pacer=RedisLimits(redis, requests_per_minute=60_000)).embed(texts)
    """,
    "no server": "client(cache='redis://127.0.0.1:1/0').embed(texts)",
}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def imported(paths: Mapping[str, str], *places: str) -> str:
    """Take each path in a process of its own; return what was imported where it must not be."""
    codes = {name: textwrap.dedent(code) for name, code in paths.items()}
    code, out, err = run(HEAD + EACH, *places, json.dumps(codes), warnings=False, seconds=200)
    assert code == 0, err
    return out + (err if "failed" in out else "")


@pytest.mark.slow
def test_no_thread_of_ours_imports_anything(server: Any, tmp_path: Path) -> None:
    assert imported(PATHS, server.base_url, KEY, str(tmp_path), "") == ""


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_no_thread_of_ours_imports_anything_for_a_framework(framework: str, server: Any) -> None:
    pytest.importorskip(NEEDS[framework.split()[0]])
    assert imported({framework: FRAMEWORKS[framework]}, server.base_url, KEY, "", "") == ""


@pytest.mark.slow
def test_no_thread_of_ours_imports_anything_for_redis(server: Any, redis_server: Any) -> None:
    assert imported(REDIS, server.base_url, KEY, "", redis_server.url) == ""
