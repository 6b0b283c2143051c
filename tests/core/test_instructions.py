"""An instruction is put unchanged in front of every text of its role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.local import LocalServer

INSTRUCTIONS = {"query_instruction": "Q\n", "document_instruction": "D "}


@pytest.fixture
def told(server: LocalServer) -> dict[str, Any]:
    return {"api_key": server.api_key, "base_url": server.base_url, "dimensions": 64}


def test_documents_and_queries_get_their_own_in_calls_and_streams(
    told: dict[str, Any], server: LocalServer
) -> None:
    client = NexusFlow(**told, **INSTRUCTIONS)
    client.embed("a")
    client.embed(["b"])
    client.embed(["c"], role="query")
    list(client.embed_stream(["d"]))
    list(client.embed_stream(["e"], role="query"))
    assert [*server.stats.received] == ["D a", "D b", "Q\nc", "D d", "Q\ne"]


async def test_async_calls_and_streams_too(told: dict[str, Any], server: LocalServer) -> None:
    client = NexusFlow(**told, **INSTRUCTIONS)
    await client.aembed(["a"])
    await client.aembed("b", role="query")
    assert [item.error async for item in client.aembed_stream(["c"])] == [None]
    assert [*server.stats.received] == ["D a", "Q\nb", "D c"]


def test_the_same_text_with_another_instruction_is_another_text_in_the_cache(
    told: dict[str, Any], server: LocalServer, tmp_path: Path
) -> None:
    cache = tmp_path / "vectors.sqlite3"
    for instruction in ("one ", "two ", "one ", None):
        NexusFlow(**told, cache=cache, document_instruction=instruction).embed(["a text"])
    assert [*server.stats.received] == ["one a text", "two a text", "a text"]


def test_an_estimate_counts_the_instruction(told: dict[str, Any]) -> None:
    plain = NexusFlow(**told).estimate(["a text"]).tokens
    assert NexusFlow(**told, document_instruction="word " * 50).estimate(["a text"]).tokens > plain
