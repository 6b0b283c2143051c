"""Memory does not grow with the number of documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nexusflow_integrations.local import LocalServer

from .conftest import KEY

SYNC = f"""
import sys, tracemalloc
import chromadb
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection, sync_documents

folder, address = sys.argv[1:]
function = NexusFlowEmbeddingFunction({KEY!r}, api_base=address, dimensions=64)
collection = open_collection(chromadb.PersistentClient(path=folder), "docs", function)
COUNT = 20_000

def sync(version):
    return sync_documents(
        collection,
        ids=(f"id{{n}}" for n in range(COUNT)),
        documents=(f"document {{n}} " + "x" * 2_000 for n in range(COUNT)),
        metadatas=({{"version": version}} for n in range(COUNT)),
    )

tracemalloc.start()
for version, counts in ((1, (COUNT, 0, 0)), (1, (0, 0, COUNT)), (2, (0, COUNT, 0))):
    tracemalloc.reset_peak()
    done = sync(version)
    assert (done.added, done.changed, done.unchanged) == counts, done
    peak = tracemalloc.get_traced_memory()[1]
    assert peak < 30_000_000, (version, counts, peak)  # 16 to 21 MB seen; all texts are 40 MB
"""

READ = """
import resource, sys
from nexusflow_integrations.chroma_collections.calls import Calls
from nexusflow_integrations.chroma_collections.filling import Filling
from nexusflow_integrations.chroma_collections.records import rows
from nexusflow_integrations.chroma_collections.run import Run

class Stored:
    def get(self, *, ids, include):
        documents = [f"document {name}" for name in ids]
        return {"ids": ids, "documents": documents, "metadatas": [None] * len(ids)}

class Inline(Calls):
    def __call__(self, what, method, **fields):
        return method(**fields)

def read(count):
    run = Run(250, None, add_only=False)
    names = (f"id{n}" for n in range(count))
    documents = (f"document id{n}" for n in range(count))
    assert not list(Filling(run, Inline(Stored(), 60)).missing(rows([names, documents])))
    assert run.unchanged == count
    run.close()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

few = read(20_000)
many = read(1_000_000)
assert many - few < 30_000, (few, many)  # kilobytes; the ids alone are more than 60 MB
"""


def run(script: str, *arguments: str) -> None:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_sync_of_20_000_documents_holds_few_of_them(tmp_path: Path, server: LocalServer) -> None:
    run(SYNC, str(tmp_path), server.base_url)


@pytest.mark.slow
def test_a_source_of_a_million_documents_is_read_in_the_memory_of_a_few() -> None:
    run(READ)
