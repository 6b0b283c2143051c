"""The async functions over collections do nothing that blocks the caller's event loop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from nexusflow_integrations.local import LocalServer

from .conftest import KEY

CALLS = """
import asyncio, sys
import chromadb
from blockbuster import blockbuster_ctx
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import (
    aadd_documents, acopy_collection, aexchange_names, aopen_collection, async_documents,
)

name, copy = sys.argv[2] + "-docs", sys.argv[2] + "-copy"
both = {"ids": [f"{n}" for n in range(300)], "documents": [f"text {n}" for n in range(300)]}
less = {"ids": both["ids"][:10], "documents": both["documents"][:10]}

async def later(values):
    for value in values:
        yield value

async def main():
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=int(sys.argv[1]))
    with blockbuster_ctx():
        function = NexusFlowEmbeddingFunction(dimensions=64, cache="vectors.sqlite3")
        docs = await aopen_collection(client, name, function)
        assert (await aadd_documents(docs, **both)).added == 300
        streamed = {key: later(column) for key, column in both.items()}
        assert (await aadd_documents(docs, **streamed)).present == 300
        assert (await async_documents(docs, **less, dry_run=True)).removed == 290
        assert (await async_documents(docs, **less)).removed == 290
        wider = NexusFlowEmbeddingFunction(dimensions=128)
        for dry_run in (True, False):
            done = await acopy_collection(client, name, copy, wider, dry_run=dry_run)
            assert done.embedded == 10, done
        await aexchange_names(client, name, copy)
        for dry_run in (True, False):
            done = await acopy_collection(client, name, copy + "-2", dry_run=dry_run)
            assert done.copied == 10, done

asyncio.run(main())
print("done")
"""


@pytest.mark.slow
def test_no_function_over_collections_blocks_an_event_loop(
    tmp_path: Path, chroma_port: int, server: LocalServer
) -> None:
    pytest.importorskip("blockbuster")
    done = subprocess.run(
        [sys.executable, "-c", CALLS, str(chroma_port), uuid4().hex],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "NEXUSFLOW_API_KEY": KEY, "NEXUSFLOW_BASE_URL": server.base_url},
    )
    assert done.stdout.startswith("done"), done.stderr[-4000:]
