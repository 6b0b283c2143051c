"""A killed run can simply be started again, and pays only for the rest."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("ir_measures", reason="comes with the extra `tune`")

from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations.local import LocalServer

SCRIPT = Path(__file__).with_name("run_tune.py")
IN_FLIGHT = 2 * 5
"""``max_concurrency`` requests of ``batch_size`` texts."""


def _start(server: LocalServer, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), server.base_url, server.api_key, str(cache)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_while_it_embeds_pays_again_at_most_for_what_was_in_flight(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "vectors.db"
    with LocalServer("hash", latency_ms=50, concurrency=None, record_texts=True) as server:
        killed = _start(server, cache)
        with closing(VectorStore(cache)) as store:
            while store.info().vectors < 30:
                assert killed.poll() is None, "the run ended before it could be killed"
                time.sleep(0.005)
        killed.kill()
        killed.communicate()
        paid = server.stats.tokens

        again = _start(server, cache)
        output, _ = again.communicate(timeout=500)
        assert again.returncode == 0
        tokens, repaid = map(int, output.split())
        twice = server.stats.duplicates
        assert set(twice.values()) <= {2}
        assert len(twice) <= min(IN_FLIGHT, repaid)
        assert paid > 0
        # What was in flight may have been counted after the process had ended.
        billed = server.stats.tokens
        assert 0 < tokens <= billed - paid

        third = _start(server, cache)
        output, _ = third.communicate(timeout=500)
        assert (third.returncode, output.split()) == (0, ["0", "0"])
        assert server.stats.tokens == billed
