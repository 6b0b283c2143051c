"""An indexing run that was killed can simply be started again, and pays only for the rest."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations.local import LocalServer

SCRIPT = Path(__file__).with_name("index_corpus.py")
COUNT = 900
IN_FLIGHT = 32 * 10
"""The documented promise: max_concurrency requests of batch_size texts."""


def _start(framework: str, server: LocalServer, folder: Path) -> subprocess.Popen[str]:
    arguments = [framework, server.base_url, server.api_key, str(folder / "vectors.sqlite3")]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments, str(folder / "chroma"), str(COUNT)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["langchain", "llama_index", "chroma"])
@pytest.mark.timeout(1200)
def test_a_run_killed_half_way_pays_again_at_most_for_what_was_in_flight(
    framework: str, tmp_path: Path
) -> None:
    if framework == "langchain":
        pytest.importorskip("langchain_chroma")
    if framework == "llama_index":
        pytest.importorskip("llama_index.vector_stores.chroma")
    with LocalServer(model="hash", latency_ms=150, concurrency=None, record_texts=True) as server:
        killed = _start(framework, server, tmp_path)
        with closing(VectorStore(tmp_path / "vectors.sqlite3")) as store:
            # A third may be on its way before the first of it is kept.
            while server.stats.texts < COUNT / 3 or not store.info().vectors:
                assert killed.poll() is None, "the run ended before it could be killed"
                time.sleep(0.005)
        killed.kill()
        killed.communicate()

        again = _start(framework, server, tmp_path)
        output, _ = again.communicate(timeout=500)
        assert again.returncode == 0
        stored, cached, repaid = map(int, output.split()[-3:])
        assert stored == COUNT
        assert cached > 0
        paid_twice = server.stats.texts - COUNT
        assert 0 <= paid_twice <= IN_FLIGHT
        assert paid_twice == len(server.stats.duplicates)
        assert paid_twice <= repaid
