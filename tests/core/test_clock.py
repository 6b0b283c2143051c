"""The client works with tools that freeze time or forbid blocking calls on an event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

FROZEN = """
import httpx, time
from nexusflow_integrations import NexusFlow
import freezegun

answers = iter([503, 429, 200])

def answer(request):
    rows = [{"index": 0, "embedding": [1.0] * 64}]
    return httpx.Response(next(answers), json={"data": rows})

http = httpx.Client(transport=httpx.MockTransport(answer))
with freezegun.freeze_time("2020-01-01"):
    assert time.time() == time.time() == 1577836800.0
    client = NexusFlow("sk-air-frozen", http_client=http, deadline=50)
    print(client.embed("a text").shape, client.usage.retries)
"""


def test_two_retries_end_while_the_time_is_frozen() -> None:
    pytest.importorskip("freezegun")
    done = subprocess.run(
        [sys.executable, "-c", FROZEN], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout, done.returncode) == ("(64,) 2\n", 0), done.stderr[-2000:]


WAITING = """
import sys
import chromadb, freezegun
from nexusflow_integrations._core.one_writer import only_writer
from nexusflow_integrations.errors import CollectionError

one, two = (chromadb.PersistentClient(sys.argv[1] + end) for end in ("", "/."))
with only_writer(one, 0), freezegun.freeze_time("2020-01-01"):
    try:
        with only_writer(two, 0.2):
            print("two writers")
    except CollectionError as error:
        print("is writing" in str(error))
"""


def test_a_wait_for_another_writer_ends_while_the_time_is_frozen(tmp_path: Path) -> None:
    pytest.importorskip("freezegun")
    done = subprocess.run(
        [sys.executable, "-c", WAITING, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr[-2000:]


BLOCKED = """
import asyncio, sys
from blockbuster import blockbuster_ctx
from nexusflow_integrations import NexusFlow
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.llama_index import NexusFlowEmbedding

async def main():
    with blockbuster_ctx():
        for cache in ("relative.sqlite3", "~/x.sqlite3", "/tmp/x.sqlite3", True, None):
            NexusFlow("sk-air-key", cache=cache)
            NexusFlowEmbeddings(api_key="sk-air-key", cache=cache)
            NexusFlowEmbedding(api_key="sk-air-key", cache=cache)

asyncio.run(main())
print("done", "rich" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rich", [True, False])
def test_a_constructor_blocks_no_event_loop(tmp_path: Path, *, rich: bool) -> None:
    pytest.importorskip("blockbuster")
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    before = "import rich\n" if rich else "import sys; sys.modules['rich'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", before + BLOCKED],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.startswith("done"), done.stderr[-2000:]


CALLS = """
import asyncio, sys
from blockbuster import blockbuster_ctx
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.schema import TextNode
from nexusflow_integrations import NexusFlow
from nexusflow_integrations.langchain import NexusFlowEmbeddings, aadd_documents
from nexusflow_integrations.llama_index import NexusFlowEmbedding, aembed_nodes

async def main():
    texts = [f"text {number}" for number in range(30)]
    with blockbuster_ctx():
        for cache in (None, "vectors.sqlite3"):
            client = NexusFlow(dimensions=64, cache=cache)
            await client.aembed(texts)
            assert len([item async for item in client.aembed_stream(texts)]) == 30
            await client.aclose()
            langchain = NexusFlowEmbeddings(dimensions=64, cache=cache)
            await langchain.aembed_documents(texts)
            await langchain.aembed_query("a")
            documents = [Document("a", id="1"), Document(" ", id="2")]
            done = await aadd_documents(InMemoryVectorStore(langchain), documents)
            assert (done.added, len(done.left_out)) == (1, 1)
            llama_index = NexusFlowEmbedding(dimensions=64, cache=cache)
            await llama_index.aget_text_embedding_batch(texts)
            await aembed_nodes([TextNode(text="a")], llama_index)

asyncio.run(main())
print("done", "rich" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rich", [True, False])
def test_no_call_blocks_an_event_loop(tmp_path: Path, *, rich: bool) -> None:
    pytest.importorskip("blockbuster")
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    local = pytest.importorskip("nexusflow_integrations.local")
    before = "import rich\n" if rich else "import sys; sys.modules['rich'] = None\n"
    with local.LocalServer("hash") as server:
        where = {"NEXUSFLOW_API_KEY": server.api_key, "NEXUSFLOW_BASE_URL": server.base_url}
        done = subprocess.run(
            [sys.executable, "-c", before + CALLS],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **where},
        )
    assert done.stdout.startswith("done"), done.stderr[-4000:]


def test_a_relative_path_is_that_of_the_folder_where_the_client_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nexusflow_integrations import NexusFlow

    monkeypatch.chdir(tmp_path)
    made = NexusFlow("sk-air-key", cache="a/../b.sqlite3")
    assert made._cache == str(tmp_path / "b.sqlite3")
    assert NexusFlow("sk-air-key", cache=tmp_path / "c")._cache == str(tmp_path / "c")
    asyncio.run(made.aclose())
