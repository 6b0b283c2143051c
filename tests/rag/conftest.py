"""Fixtures: a shared index of the real corpus with the real model, and a server without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nexusflow_integrations.cli.rag.collection import (
    Updated,
    open_to_write,
    plan,
    stored,
    update,
)
from nexusflow_integrations.cli.rag.corpus import Corpus, Document, stdlib
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.rag.indexes import Index
from nexusflow_integrations.cli.rag.keywords import Keywords
from nexusflow_integrations.cli.rag.pipeline import FRAMEWORKS, Pipeline, open_pipeline
from nexusflow_integrations.cli.rag.session import Session, session
from nexusflow_integrations.local import LocalServer


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """The corpus of the demo: 500 docstrings."""
    return stdlib(500)


@pytest.fixture(scope="session")
def keywords(corpus: Corpus) -> Keywords:
    """BM25 over the same documents."""
    return Keywords(corpus.documents)


@pytest.fixture(scope="session")
def real(
    corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Session, Updated]]:
    """An index filled with the real model and opened by all frameworks, and the update's result."""
    folder = tmp_path_factory.mktemp("index")
    with session(lambda _: Index(folder), tuple(FRAMEWORKS), local=True) as opened:
        done = opened.update(corpus, "stdlib")
        for name in FRAMEWORKS:
            opened.open(name)
        yield opened, done


@pytest.fixture
def endpoint(server: LocalServer) -> Endpoint:
    """The server as an endpoint."""
    return Endpoint(server.base_url, server.api_key, None, server.model)


DOCUMENTS = tuple(
    Document(f"{animal} number {number} eats {food}.", f"zoo.{animal}{number}", f"file:///{number}")
    for number in range(8)
    for animal, food in (("panda", "bamboo"), ("otter", "fish"), ("finch", "seeds"))
)


@pytest.fixture
def fill(endpoint: Endpoint, tmp_path: Path) -> Callable[..., Path]:
    """Write documents to a Chroma folder of this test."""

    def fill(documents: Sequence[Document] = DOCUMENTS, **settings: object) -> Path:
        collection = open_to_write(
            tmp_path / "chroma",
            api_key=endpoint.api_key,
            api_base=endpoint.base_url,
            **settings,
        )
        update(collection, plan(Corpus("zoo", "zoo", tuple(documents)), stored(collection)))
        return tmp_path / "chroma"

    return fill


@pytest.fixture
def open_one(endpoint: Endpoint, fill: Callable[..., Path]) -> Callable[..., Pipeline]:
    """Open a filled folder of this test with a framework."""

    def open_one(framework: str, **settings: object) -> Pipeline:
        return open_pipeline(framework, fill(), endpoint, **settings)

    return open_one
