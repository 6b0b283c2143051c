"""Chroma rebuilds embedding functions several times per call, so rebuilding must cost nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.local import LocalServer

from .test_embedding_function import Make

COUNT = """
import json, sys, threading
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction as Function

config = Function(dimensions=64, api_base="https://nexusflow.vip/v1").get_config()
Function.build_from_config(config).is_legacy()
events = []
sys.addaudithook(lambda event, args: events.append(event))
threads = threading.active_count()
for _ in range(1000):
    Function(dimensions=64)
    function = Function.build_from_config(config)
    function.is_legacy(), function.validate_config(config), function.default_space()
print(json.dumps({
    "touched": sorted({e for e in events if e.startswith(("socket", "open", "os.", "import"))}),
    "threads": threading.active_count() - threads,
    "engine": "nexusflow_integrations._core.call.engine" in sys.modules,
}))
"""


def test_making_thousands_opens_no_socket_file_module_or_thread() -> None:
    out = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, timeout=600, check=True
    )
    assert json.loads(out.stdout) == {"touched": [], "threads": 0, "engine": False}


def fastest(work: Callable[[], Any], times: int) -> float:
    """CPU seconds of this thread in the fastest of a few runs of ``times`` times the work."""
    seconds = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(times):
            work()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def test_rebuilding_a_hundred_costs_less_than_one_http_client() -> None:
    config = NexusFlowEmbeddingFunction(dimensions=64).get_config()
    rebuild = fastest(lambda: NexusFlowEmbeddingFunction.build_from_config(config), 100)
    assert rebuild < fastest(lambda: httpx.Client().close(), 1)


def test_rebuilt_functions_share_the_connections(
    client: Any, make: Make, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_collection("docs", embedding_function=make()).add(
        ids=["1"], documents=["red pandas"]
    )
    rebuilt = 0
    build = NexusFlowEmbeddingFunction.build_from_config

    def counting(config: dict[str, Any]) -> NexusFlowEmbeddingFunction:
        nonlocal rebuilt
        rebuilt += 1
        return build(config)

    monkeypatch.setattr(NexusFlowEmbeddingFunction, "build_from_config", staticmethod(counting))
    server.reset_stats()
    for n in range(20):
        found = client.get_collection("docs").query(query_texts=[f"question {n}"])
        assert found["ids"] == [["1"]]
    assert rebuilt >= 20
    assert server.stats.requests == 20
    assert server.stats.connections <= 1  # a calling thread opens one of its own
