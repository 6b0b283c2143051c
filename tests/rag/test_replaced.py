"""A search that starts while another process replaces or removes the index."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations.cli.rag import session as sessions
from nexusflow_integrations.cli.rag.collection import DamagedError, open_to_compare, open_to_read
from nexusflow_integrations.cli.rag.corpus import Corpus
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.rag.indexes import Index, UnusableIndexError
from nexusflow_integrations.cli.rag.pipeline import FRAMEWORKS, open_pipeline
from nexusflow_integrations.cli.rag.session import Session

from .conftest import DOCUMENTS

KINDS = [*((name, False) for name in FRAMEWORKS), ("chroma", True)]
each_kind = pytest.mark.parametrize(("framework", "hybrid"), KINDS)


@pytest.fixture
def index(endpoint: Endpoint, tmp_path: Path) -> Index:
    """An index of the pandas, otters and finches."""
    place = Index(tmp_path / "zoo@x")
    rebuild(place, endpoint)
    return place


def rebuild(index: Index, endpoint: Endpoint) -> None:
    zoo = Corpus("zoo", "zoo", DOCUMENTS)
    Session(endpoint, index, ("chroma",), cache=False).update(zoo, "/zoo", fresh=True)


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen once between the choice of the folder and its opening."""
    events = [happens]

    def slowly(*arguments: Any, **settings: Any) -> Any:
        while events:
            events.pop()()
        return open_pipeline(*arguments, **settings)

    monkeypatch.setattr(sessions, "open_pipeline", slowly)


@each_kind
def test_a_search_uses_the_new_folder_if_a_rebuild_ends_meanwhile(
    framework: str,
    hybrid: bool,
    index: Index,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meanwhile(monkeypatch, lambda: rebuild(index, endpoint))
    opened = Session(endpoint, index, (framework,), cache=False)
    found = opened.search(framework, "otter number 3 eats fish.", 2, hybrid=hybrid)
    assert found.passages[0].source == "zoo.otter3"
    assert [path.name for path in index.directory.glob("chroma-*")] == ["chroma-2"]


@each_kind
def test_an_open_index_is_opened_again_if_its_folder_was_replaced(
    framework: str,
    hybrid: bool,
    index: Index,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Session(endpoint, index, (framework,), cache=False)
    pipeline = opened.open(framework)

    def fail(*_: object) -> None:
        rebuild(index, endpoint)
        raise DamagedError("no such table: collections")

    monkeypatch.setattr(pipeline, "search_hybrid" if hybrid else "search", fail)
    found = opened.search(framework, "otter number 3 eats fish.", 2, hybrid=hybrid)
    assert found.passages[0].source == "zoo.otter3"


@each_kind
def test_a_search_does_not_bring_back_an_index_that_is_removed_meanwhile(
    framework: str,
    hybrid: bool,
    index: Index,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meanwhile(monkeypatch, index.remove)
    opened = Session(endpoint, index, (framework,), cache=False)
    with pytest.raises(UnusableIndexError, match="has just been removed") as caught:
        opened.search(framework, "otter", 2, hybrid=hybrid)
    assert "PATH" not in str(caught.value)
    assert not index.directory.exists()


def test_a_folder_that_fails_without_being_replaced_is_reported_once(
    index: Index, endpoint: Endpoint
) -> None:
    shutil.rmtree(index.chroma)
    (index.directory / "chroma-1").mkdir()
    opened = Session(endpoint, index, ("chroma",), cache=False)
    with pytest.raises(UnusableIndexError, match=r"cannot be read .* build it again"):
        opened.search("chroma", "otter", 2)
    assert not list(index.chroma.iterdir())


def test_reading_creates_no_folder(tmp_path: Path, endpoint: Endpoint) -> None:
    settings = {"api_key": endpoint.api_key, "api_base": endpoint.base_url}
    with pytest.raises(DamagedError, match="does not exist"):
        open_to_read(tmp_path / "gone")
    with pytest.raises(DamagedError, match="does not exist"):
        open_to_compare(tmp_path / "gone", **settings)
    assert not (tmp_path / "gone").exists()


def test_use_does_not_bring_back_a_description_that_was_removed(index: Index) -> None:
    (index.directory / "index.json").unlink()
    index.touch()
    assert not (index.directory / "index.json").exists()
