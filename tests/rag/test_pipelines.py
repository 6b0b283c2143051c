"""The pipelines of all frameworks pass the same tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.rag.pipeline import FRAMEWORKS, Pipeline, open_pipeline
from nexusflow_integrations.cli.rag.session import Meter

from .conftest import DOCUMENTS

Open = Callable[..., Pipeline]
Fill = Callable[..., Path]

each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


@each_framework
def test_stored_passages_are_found_with_source_url_and_cosine(
    framework: str, open_one: Open, endpoint: Endpoint
) -> None:
    pipeline = open_one(framework)
    assert pipeline.framework == FRAMEWORKS[framework]
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
def test_asking_for_more_passages_than_there_are_is_not_an_error(
    framework: str, fill: Fill, endpoint: Endpoint
) -> None:
    pipeline = open_pipeline(framework, fill(DOCUMENTS[:2]), endpoint)
    assert len(pipeline.search("panda", 5)) == 2


@each_framework
def test_the_cost_of_a_question_is_counted(framework: str, open_one: Open) -> None:
    meter = Meter()
    open_one(framework, on_usage=meter).search("panda", 1)
    assert meter.total.requests == 1
    assert meter.total.tokens > 0


@each_framework
def test_the_size_that_is_asked_for_reaches_the_server(
    framework: str, endpoint: Endpoint, fill: Fill
) -> None:
    small = Endpoint(endpoint.base_url, endpoint.api_key, 64, endpoint.local_model)
    pipeline = open_pipeline(framework, fill(DOCUMENTS[:3], dimensions=64), small)
    assert len(pipeline.search("panda", 3)) == 3


MODULES = {"langchain": "langchain_chroma", "llama-index": "llama_index.core", "chroma": "chromadb"}


@each_framework
def test_a_missing_framework_is_one_sentence_that_says_what_to_type(
    framework: str, fill: Fill, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill()
    monkeypatch.setitem(sys.modules, MODULES[framework], None)
    with pytest.raises(ImportError, match=r'pip install "nexusflow-integrations\[') as caught:
        open_pipeline(framework, folder, endpoint)
    assert "\n" not in str(caught.value)
    assert FRAMEWORKS[framework] in str(caught.value)


def test_an_unknown_framework_is_a_key_error(endpoint: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        open_pipeline("haystack", tmp_path, endpoint)
