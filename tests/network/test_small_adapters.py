"""The frameworks of small adapters connect to nothing (Haystack with its telemetry off)."""

from __future__ import annotations

import sys

import pytest

from .conftest import Newcomer

SERVER = """
import os
from nexusflow_integrations.local import LocalServer
server = LocalServer("hash").start()
os.environ["NEXUSFLOW_API_KEY"] = server.api_key
os.environ["NEXUSFLOW_BASE_URL"] = server.base_url
"""

USES = {
    "haystack": """
from haystack import Pipeline
from nexusflow_integrations.haystack import NexusFlowTextEmbedder
pipeline = Pipeline()
pipeline.add_component("embedder", NexusFlowTextEmbedder(dimensions=64))
assert len(pipeline.run({"embedder": {"text": "a text"}})["embedder"]["embedding"]) == 64
""",
    "lancedb": """
import lancedb
import nexusflow_integrations.lancedb
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector
function = get_registry().get("nexusflow").create(dimensions=64)
class Text(LanceModel):
    text: str = function.SourceField()
    vector: Vector(64) = function.VectorField()
table = lancedb.connect("texts").create_table("texts", schema=Text)
table.add([{"text": "a text"}])
assert table.search("a text").limit(1).to_list()[0]["text"] == "a text"
""",
    "llm": """
import llm
assert len(llm.get_embedding_model("nexusflow-64").embed("a text")) == 64
""",
    "pydantic_ai": """
from nexusflow_integrations.pydantic_ai import NexusFlowEmbeddingModel
from pydantic_ai import Embedder
embedder = Embedder(NexusFlowEmbeddingModel())
import asyncio
assert len(asyncio.run(embedder.embed_query("a text")).embeddings[0]) == 1024
""",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("framework", USES)
def test_an_embedding_through_it_stays_on_this_machine(framework: str, newcomer: Newcomer) -> None:
    pytest.importorskip(framework, reason="comes with its extra; nox -s small_adapters")
    code = f"{SERVER}{USES[framework]}server.stop()\n"
    did = newcomer.traced([sys.executable, "-c", code], HAYSTACK_TELEMETRY_ENABLED="False")
    assert did.distant == set()
    assert did.resolvers == set()
    assert newcomer.wrote_elsewhere(did) == set()
    assert newcomer.left() == set()
