"""A collection that one process made works in other processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations.local import LocalServer

from .conftest import KEY

STEPS = Path(__file__).parent / "steps.py"
ROOT = Path(__file__).parents[2]

Outcome = dict[str, Any]
Run = Callable[..., Outcome]


def run(step: str, folder: Path, *arguments: str, **environment: str) -> Outcome:
    """Do a step in a new process whose environment has only the given variables of ours."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NEXUSFLOW_")}
    paths = [str(ROOT), inherited.get("PYTHONPATH", "")]
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    process = subprocess.run(
        [sys.executable, str(STEPS), step, str(folder), *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    for secret in (KEY, "sk-air"):
        assert secret not in process.stdout + process.stderr
    outcome: Outcome = json.loads(process.stdout)
    return outcome


@pytest.fixture(scope="module")
def environment(running_server: LocalServer) -> dict[str, str]:
    return {"NEXUSFLOW_API_KEY": KEY, "NEXUSFLOW_BASE_URL": running_server.base_url}


@pytest.fixture(scope="module")
def created(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("created") / "db"
    return folder, run("create", folder, **environment)


@pytest.fixture
def folder(created: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A copy of the database of the first process."""
    return Path(shutil.copytree(created[0], tmp_path / "db"))


WORKS = {
    "count": 2,
    "get": ["red pandas"],
    "query_embeddings": 1,
    "query_texts": [["1"]],
    "add_documents": None,
    "add_vectors": None,
    "upsert": None,
    "update": None,
    "configuration": "NexusFlowEmbeddingFunction",
}


def test_a_stored_configuration_names_model_size_and_variable_but_no_key(
    created: tuple[Path, Outcome],
) -> None:
    folder, outcome = created
    assert outcome["stored"]["embedding_function"] == {
        "type": "known",
        "name": "nexusflow",
        "config": {
            "model_name": "text-embedding-v4",
            "dimensions": 64,
            "api_key_env_var": "NEXUSFLOW_API_KEY",
            "service": "localhost",
        },
    }
    assert outcome["stored"]["hnsw"]["space"] == "cosine"
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"nexusflow" in content
    assert KEY.encode() not in content


def test_importing_the_module_is_all_that_a_new_process_needs(
    folder: Path, environment: dict[str, str]
) -> None:
    assert run("reopen", folder, **environment) == WORKS


def test_the_key_may_also_be_an_argument(folder: Path, running_server: LocalServer) -> None:
    assert run("reopen_with_arguments", folder, KEY, running_server.base_url) == WORKS


def test_another_process_that_asks_another_service_does_not_mix_vectors(folder: Path) -> None:
    outcome = run("reopen", folder, NEXUSFLOW_API_KEY=KEY)
    for what in ("query_texts", "add_documents", "upsert", "update"):
        assert "come from localhost, and this process uses https://nexusflow.vip" in outcome[what]
    assert (outcome["count"], outcome["get"]) == (2, ["red pandas"])


def test_without_a_key_everything_except_embedding_works_without_a_warning(
    folder: Path, environment: dict[str, str]
) -> None:
    del (environment := dict(environment))["NEXUSFLOW_API_KEY"]
    outcome = run("reopen", folder, **environment)
    for what in ("query_texts", "add_documents", "upsert", "update"):
        assert outcome[what].startswith("ConfigurationError: no API key: ")
        assert "NEXUSFLOW_API_KEY" in outcome[what]
    working = {"count", "get", "query_embeddings", "add_vectors", "configuration"}
    assert {what: outcome[what] for what in working} == {what: WORKS[what] for what in working}


def test_without_our_module_chroma_says_that_the_function_is_unknown(folder: Path) -> None:
    outcome = run("reopen_without_us", folder)
    assert "nexusflow not found" in outcome["query_texts"]
    assert (outcome["count"], outcome["get"]) == (2, ["red pandas"])


def test_another_model_or_size_is_refused_on_opening_where_chroma_would_mix_them(
    folder: Path, environment: dict[str, str]
) -> None:
    outcome = run("reopen_with_others", folder, **environment)
    assert "dimension of 64, got 128" in outcome["larger, by Chroma"]
    assert outcome["larger"].startswith("ConfigurationError: collection 'docs' was made with dim")
    assert outcome["other"].startswith("ConfigurationError: collection 'docs' was made with model")
    assert outcome["same"] == [["1"]]
    assert outcome["none"] == [["1"]]
