"""These tests build their own environments, and run only with CHROMA_SUITE=1."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nexusflow_integrations.local import LocalServer

from . import chroma_suite
from .conftest import KEY

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("CHROMA_SUITE"), reason="installs an environment: CHROMA_SUITE=1"
    ),
    pytest.mark.timeout(1800),
]


def test_chromas_own_tests_pass_with_our_function(tmp_path: Path) -> None:
    outcome = chroma_suite.run(tmp_path)
    assert outcome["failures"] == {}
    ours = outcome["ours"]
    assert isinstance(ours, dict)
    passed = {name for name, verdict in ours.items() if verdict == "passed"}
    assert {name.partition("[")[0] for name in passed if "[nexusflow]" in name} == {
        "test_embedding_function_config_roundtrip",
        "test_validate_config_with_schema",
    }
    assert len(passed) > 60
    # What is skipped needs a distributed Chroma.
    assert all("spann" in name for name in ours.keys() - passed)


THIN = """
import sys
import chromadb
from chromadb.is_thin_client import is_thin_client
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import add_documents, open_collection

port, key, base = sys.argv[1:]
assert is_thin_client
client = chromadb.HttpClient(host="127.0.0.1", port=int(port))
function = NexusFlowEmbeddingFunction(key, api_base=base, dimensions=64)
collection = open_collection(client, "thin-docs", function)
numbers = range(300)
add_documents(collection, ids=map(str, numbers), documents=(f"document {n}" for n in numbers))
print(client.get_collection("thin-docs").query(query_texts=["document 5"], n_results=1)["ids"])
"""


def test_the_thin_client_is_enough(tmp_path: Path, chroma_port: int, server: LocalServer) -> None:
    python = chroma_suite.make_environment(tmp_path, "chromadb-client>=1.5.9,<1.6")
    flags = ["-W", "error::UserWarning", "-W", "error::DeprecationWarning"]
    command = [str(python), *flags, "-c", THIN, str(chroma_port), KEY, server.base_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[['5']]\n", "")
