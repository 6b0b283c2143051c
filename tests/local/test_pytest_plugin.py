"""The pytest plugin works in another project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nexusflow_integrations

TESTS = """
import sys

SEEN = []

def test_nothing_heavy_is_imported_for_tests_that_ask_for_no_server():
    assert not {"numpy", "uvicorn", "starlette", "onnxruntime"} & set(sys.modules)

def test_a_server_is_there(nexusflow_hash_server):
    assert nexusflow_hash_server.base_url.startswith("http://127.0.0.1:")
    nexusflow_hash_server._api.counts.accepted(["x"], 1)
    SEEN.append(nexusflow_hash_server.port)
    assert nexusflow_hash_server.stats.texts == 1

def test_it_is_the_same_server_with_counts_at_zero(nexusflow_hash_server):
    assert SEEN == [nexusflow_hash_server.port]
    assert nexusflow_hash_server.stats.texts == 0

def test_the_other_server_runs_the_real_model(nexusflow_server):
    assert nexusflow_server.model == "minilm-use-gated"
"""

WITHOUT_EXTRAS = """
import sys

for name in ("starlette", "uvicorn"):
    sys.modules[name] = None

def test_that_asks_for_no_server():
    pass

def test_that_asks_for_one(nexusflow_server):
    pass
"""


def run(folder: Path, tests: str) -> str:
    (folder / "test_rag.py").write_text(tests)
    plugin = ["-p", "nexusflow_integrations.local.pytest_plugin"]
    # By name and without the plugins installed, so that it also runs where this one is not.
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(str(nexusflow_integrations.__file__)).parents[1]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env=environment,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_its_fixtures_serve_another_projects_tests(tmp_path: Path) -> None:
    assert "4 passed" in run(tmp_path, TESTS)


def test_without_the_extra_only_tests_that_ask_for_a_server_fail_and_say_what_to_type(
    tmp_path: Path,
) -> None:
    said = run(tmp_path, WITHOUT_EXTRAS)
    assert "1 passed, 1 error" in said
    assert 'pip install "nexusflow-integrations[local]"' in said
