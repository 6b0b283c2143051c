"""Each framework's pipeline, held to the same facts."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.cli.rag.corpus import Document
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.rag.pipeline import FRAMEWORKS, Pipeline, fill, open_pipeline
from nexusflow_integrations.cli.rag.session import Meter
from nexusflow_integrations.local import LocalServer

Open = Callable[..., Pipeline]
DOCUMENTS = [
    Document(f"{animal} number {number} eats {food}.", f"zoo.{animal}{number}", f"file:///{number}")
    for number in range(8)
    for animal, food in (("panda", "bamboo"), ("otter", "fish"), ("finch", "seeds"))
]

each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


@each_framework
def test_what_was_added_is_found_with_source_url_and_cosine(
    framework: str, open_one: Open, endpoint: Endpoint
) -> None:
    pipeline = open_one(framework)
    assert pipeline.framework == FRAMEWORKS[framework]
    pipeline.add(DOCUMENTS)
    found = pipeline.search("otter number 3 eats fish.", 4)
    assert len(found) == 4
    assert found[0].source == "zoo.otter3"
    assert found[0].url == "file:///3"
    assert found[0].text == "otter number 3 eats fish."
    assert found[0].score == pytest.approx(1, abs=1e-4)
    client = NexusFlow(endpoint.api_key, base_url=endpoint.base_url)
    asked = np.asarray(client.embed("otter number 3 eats fish."))
    rows = np.asarray(client.embed([item.text for item in found]))
    cosines = rows @ asked / (np.linalg.norm(rows, axis=1) * np.linalg.norm(asked))
    assert [item.score for item in found] == pytest.approx(cosines.tolist(), abs=1e-4)


@each_framework
def test_exactly_the_text_is_embedded_and_no_metadata(
    framework: str, open_one: Open, server: LocalServer
) -> None:
    open_one(framework).add(DOCUMENTS)
    assert sorted(server.stats.received) == sorted(item.text for item in DOCUMENTS)


@each_framework
def test_many_texts_go_out_ten_a_request(
    framework: str, open_one: Open, server: LocalServer
) -> None:
    open_one(framework).add(DOCUMENTS)
    assert server.stats.requests == 3  # 24 texts


@each_framework
def test_filling_pays_only_for_what_is_missing_and_takes_out_what_is_gone(
    framework: str, open_one: Open, server: LocalServer
) -> None:
    pipeline = open_one(framework)
    assert fill(pipeline, DOCUMENTS[:20], at_once=10) == 20
    server.reset_stats()
    steps: list[int] = []
    assert fill(pipeline, DOCUMENTS[5:], at_once=3, progress=steps.append) == 4
    assert steps == [3, 1]
    assert sorted(server.stats.received) == sorted(item.text for item in DOCUMENTS[20:])
    assert pipeline.ids() == {item.id for item in DOCUMENTS[5:]}


@each_framework
def test_a_collection_outlives_the_pipeline_that_made_it(framework: str, open_one: Open) -> None:
    open_one(framework).add(DOCUMENTS)
    again = open_one(framework)
    assert again.ids() == {item.id for item in DOCUMENTS}
    assert again.search("finch number 7 eats seeds.", 1)[0].source == "zoo.finch7"


@each_framework
def test_more_passages_than_there_are_is_no_error(framework: str, open_one: Open) -> None:
    pipeline = open_one(framework)
    pipeline.add(DOCUMENTS[:2])
    assert len(pipeline.search("panda", 5)) == 2


@each_framework
def test_what_a_call_costs_reaches_the_meter(framework: str, open_one: Open) -> None:
    meter = Meter()
    pipeline = open_one(framework, on_usage=meter)
    pipeline.add(DOCUMENTS)
    indexed = meter.total
    assert indexed.requests == 3
    assert indexed.tokens > len(DOCUMENTS)
    pipeline.search("panda", 1)
    assert meter.total.requests == 4
    assert meter.total.tokens > indexed.tokens


@each_framework
def test_the_size_that_is_asked_for_reaches_the_server(
    framework: str, endpoint: Endpoint, tmp_path: pytest.TempPathFactory
) -> None:
    small = Endpoint(endpoint.base_url, endpoint.api_key, 64, endpoint.local_model)
    pipeline = open_pipeline(framework, tmp_path / "chroma", small)
    pipeline.add(DOCUMENTS[:3])
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(
        str(tmp_path / "chroma"),
        settings=Settings(anonymized_telemetry=False, is_persistent=True),
    )
    stored = client.get_collection(framework, embedding_function=None).get(include=["embeddings"])
    assert np.asarray(stored["embeddings"]).shape == (3, 64)


MODULES = {"langchain": "langchain_chroma", "llama-index": "llama_index.core", "chroma": "chromadb"}


@each_framework
def test_a_missing_framework_is_one_sentence_that_says_what_to_type(
    framework: str, open_one: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[framework], None)
    with pytest.raises(ImportError, match=r'pip install "nexusflow-integrations\[') as caught:
        open_one(framework)
    assert "\n" not in str(caught.value)
    assert FRAMEWORKS[framework] in str(caught.value)


def test_an_unknown_framework_is_a_key_error(open_one: Open) -> None:
    with pytest.raises(KeyError):
        open_one("haystack")
