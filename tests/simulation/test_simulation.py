"""A random seed controls clock, server and store in a simulation of the whole engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .run import Run, failure_of, failures, undisturbed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(0, 1000, 125))
def test_every_seed_keeps_all_invariants(first: int) -> None:
    broken = [report for _, report in failures(range(first, first + 125)) if report]
    assert not broken, "\n\n".join(broken)


@pytest.mark.parametrize("seed", [25577, 33642, 6135, 1135388])
def test_seeds_that_once_found_a_fault_keep_all_invariants(seed: int) -> None:
    """They had a pause while a stream waited, a batch out of order, and an early Ctrl-C."""
    assert [report for _, report in failures([seed]) if report] == []


@pytest.mark.slow
def test_a_seed_gives_the_same_run() -> None:
    """The seed runs twice in this process, and in others, where sets have another order."""
    here = _fingerprints()
    assert len(set(here)) == len(here)
    assert _fingerprints() == here
    for hash_seed in ("1", "2"):
        code = "from tests.simulation.test_simulation import _fingerprints; print(*_fingerprints())"
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        assert found.stdout.split() == here


def _fingerprints() -> list[str]:
    found = []
    with undisturbed() as folder:
        for seed in range(60):
            run = Run(seed, folder)
            failure_of(run)
            found.append(run.fingerprint)
    return found
