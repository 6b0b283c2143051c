"""Ratios are tested with the best of several rounds, and with wide margins for noise.

docs/benchmarks.md has the real figures. These tests accept figures that are half as good.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ratios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("benchmarks")
    command = [sys.executable, str(HERE / "run.py"), "--quick", "--only", "ratios", "--no-plots"]
    done = subprocess.run(
        [*command, "--out", str(folder)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())["cases"]["ratios"]
    return found


def test_every_vector_that_was_timed_is_the_right_one(ratios: dict[str, Any]) -> None:
    assert ratios["checked"] == 4 * 3 * 500 + 2 * 3 * 500 + 5000


def test_lists_cost_less_cpu_than_with_the_openai_client(ratios: dict[str, Any]) -> None:
    assert ratios["cpu_lists"] > 1.3


def test_arrays_cost_less_than_half_the_cpu_of_the_openai_client(ratios: dict[str, Any]) -> None:
    assert ratios["cpu_arrays"] > 2


def test_many_requests_are_in_flight_by_default(ratios: dict[str, Any]) -> None:
    """Fifty requests, each of which waits 50 ms for its answer."""
    assert ratios["in_flight"] > 4


def test_no_more_connections_are_opened_than_requests_in_flight(ratios: dict[str, Any]) -> None:
    assert ratios["connections"] <= 32


def test_a_stream_needs_hardly_more_memory_than_its_result(ratios: dict[str, Any]) -> None:
    assert ratios["beyond_array"] < 80e6


def test_the_langchain_adapter_imports_no_http_client_and_no_openai() -> None:
    listing = (
        "import sys, langchain_core.embeddings, nexusflow_integrations.langchain;"
        "print(*(n for n in ('openai', 'aiohttp', 'httpx2', 'tiktoken') if n in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.split() == []
