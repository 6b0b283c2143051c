"""One index of the real corpus by the real model, shared; and a server without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nexusflow_integrations.cli.rag.corpus import Corpus, stdlib
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.rag.indexes import Index
from nexusflow_integrations.cli.rag.keywords import Keywords
from nexusflow_integrations.cli.rag.pipeline import FRAMEWORKS, Pipeline, open_pipeline
from nexusflow_integrations.cli.rag.session import Filled, Session, session
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
) -> Iterator[tuple[Session, dict[str, Filled]]]:
    """All three collections filled with the real model, and what filling each took."""
    folder = tmp_path_factory.mktemp("index")
    with session(lambda _: Index(folder), tuple(FRAMEWORKS), local=True) as opened:
        yield opened, {name: opened.fill(name, corpus) for name in FRAMEWORKS}


@pytest.fixture
def endpoint(server: LocalServer) -> Endpoint:
    """That server as an endpoint."""
    return Endpoint(server.base_url, server.api_key, None, server.model)


@pytest.fixture
def open_one(endpoint: Endpoint, tmp_path: Path) -> Callable[..., Pipeline]:
    """Open a framework's pipeline in this test's folder."""

    def open_one(framework: str, **settings: object) -> Pipeline:
        return open_pipeline(framework, tmp_path / "chroma", endpoint, **settings)

    return open_one
