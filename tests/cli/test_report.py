"""``nexusflow report`` finds the collection, pays nothing unexpected, and refuses bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.api.shared_system_client import SharedSystemClient

pytest.importorskip("sklearn")

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.local import LocalServer

from .conftest import Command

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def zoo_with_lines(tmp_path: Path) -> Path:
    folder = tmp_path / "animals"
    folder.mkdir()
    (folder / "otters.md").write_text(
        "Otters swim.\n\n# Otters\n## Food\nThey eat sea urchins.\n", encoding="utf-8"
    )
    (folder / "pandas.md").write_text("Pandas climb in the trees.\n", encoding="utf-8")
    return folder


@pytest.fixture
def chroma(service: LocalServer, tmp_path: Path) -> Path:
    """A Chroma folder with the collections ``zoo`` and ``town``."""
    folder = tmp_path / "chroma"
    client = chromadb.PersistentClient(str(folder))
    for name in ("zoo", "town"):
        collection: Any = client.create_collection(
            name,
            embedding_function=NexusFlowEmbeddingFunction(dimensions=64),  # type: ignore[arg-type]
        )
        collection.add(
            ids=[f"{name}-{number}" for number in range(30)],
            documents=[f"{name} text number {number}" for number in range(30)],
        )
    # Chroma keeps what it opened for as long as the process lives; a command is a process.
    SharedSystemClient.clear_system_cache()
    service.reset_stats()
    return folder


def test_a_report_of_a_chroma_folder_costs_nothing_without_questions(
    nexusflow: Command, service: LocalServer, chroma: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.html"
    shown, _ = nexusflow("report", "zoo", "--path", str(chroma), "-o", str(out))
    assert shown.startswith("30 texts, map by ")
    assert "\nzoo, vectors of" in shown
    said = "vectors of text-embedding-v4 on this machine (the server there gave this name)"
    assert said in " ".join(shown.split())
    assert out.read_text("utf-8").startswith("<!doctype html>")
    assert service.stats.requests == 0


@pytest.mark.parametrize("found", [True, False])
def test_open_says_if_no_browser_could_be_opened(
    nexusflow: Command, chroma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or found)
    out = tmp_path / "out.html"
    _, aside = nexusflow("report", "zoo", "--path", str(chroma), "-o", str(out), "--open")
    assert opened == [out.as_uri()]
    assert ("No browser could be opened" in aside) is not found


def test_hit_rates_in_a_sample_are_not_said_to_be_those_of_the_collection(
    nexusflow: Command, chroma: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "q.jsonl", tmp_path / "out.html"
    file.write_text('{"question": "zoo text number 7", "expected": "zoo-7"}')
    arguments = ("report", "zoo", "-p", str(chroma), "-o", str(out), "-q", str(file))
    shown, _ = nexusflow(*arguments, "--limit", "3")
    found = nexusflow.json(*arguments, "--limit", "3")
    sampled = f"over 1 question, among the {found['points']} texts of the sample; among all"
    assert sampled in " ".join(shown.split())
    assert "the sample" not in nexusflow(*arguments)[0]


@pytest.mark.slow
def test_questions_are_asked_and_judged(
    nexusflow: Command, service: LocalServer, chroma: Path, tmp_path: Path
) -> None:
    file = tmp_path / "questions.jsonl"
    lines = [
        {"question": "zoo text number 7", "expected": ["zoo-7"]},
        {"question": "zoo text number 8", "expected": "zoo-8"},
        {"question": "what else?"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    arguments = ("report", "zoo", "-p", str(chroma), "-o", str(tmp_path / "out.html"))
    found = nexusflow.json(*arguments, "--questions", str(file))
    assert found["ranks"] == [1, 1]
    assert found["tokens"] == service.stats.tokens > 0
    assert set(service.stats.received[:3]) == {str(item["question"]) for item in lines}
    assert len(service.stats.received) == 6  # and three documents, to compare the model
    shown, _ = nexusflow(*arguments, "--questions", str(file))
    assert "hit@1 1.00, hit@3 1.00, hit@5 1.00 over 2 questions" in shown


def test_an_expected_id_that_does_not_exist_is_an_error(
    nexusflow: Command, service: LocalServer, chroma: Path, tmp_path: Path
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "zoo?", "expected": ["zoo-99"]}))
    out = tmp_path / "out.html"
    arguments = ("report", "zoo", "-p", str(chroma), "-o", str(out), "-q", str(file))
    assert "expects the id 'zoo-99'" in nexusflow.sentence(*arguments, code=2)
    assert service.stats.requests == 0
    assert not out.exists()


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ({"source": "otters.md"}, [1]),
        ({"source": "otters.md:5"}, [1]),
        ({"source": "otters.md:1"}, [2]),
        ({"source": ["pandas.md", "otters.md"]}, [1]),
        ({"quote": "They eat sea urchins."}, [1]),
        ({"source": "otters.md", "quote": "Otters swim."}, [2]),
        ({}, []),
    ],
    ids=str,
)
def test_an_answer_may_be_a_source_a_line_or_a_quote_as_for_tune(
    nexusflow: Command,
    service: LocalServer,
    zoo_with_lines: Path,
    tmp_path: Path,
    line: dict[str, Any],
    ranks: list[int],
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "# Otters > Food They eat sea urchins.", **line}))
    nexusflow("index", str(zoo_with_lines))
    found = nexusflow.json("report", "-o", str(tmp_path / "out.html"), "-q", str(file))
    assert found["ranks"] == ranks


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            {"source": "lions.md"},
            "questions.jsonl, line 1: no text of the collection has the source 'lions.md'; if"
            " several files have the same text, `index` stores only the first",
        ),
        ({"quote": "Lions roar."}, "line 1: no text of the collection contains the whole quote"),
        ({"source": 5}, "line 1: has a value in 'source' that is not text"),
    ],
    ids=str,
)
def test_an_answer_that_is_not_in_the_collection_is_an_error(
    nexusflow: Command,
    service: LocalServer,
    zoo_with_lines: Path,
    tmp_path: Path,
    line: dict[str, Any],
    problem: str,
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "What do they eat?", **line}))
    nexusflow("index", str(zoo_with_lines))
    service.reset_stats()
    out = tmp_path / "out.html"
    assert problem in nexusflow.sentence("report", "-o", str(out), "-q", str(file), code=2)
    assert service.stats.requests == 0
    assert not out.exists()


@pytest.mark.slow
def test_without_a_path_it_takes_an_index_and_asks_its_fixed_questions(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    nexusflow("index", "stdlib", "--limit", "60")
    service.reset_stats()
    found = nexusflow.json("report", "stdlib", "-o", str(tmp_path / "out.html"))
    assert found["points"] == 60
    assert len(found["ranks"]) > 0
    assert service.stats.requests > 0


def test_an_index_of_a_folder_has_no_questions_of_its_own(
    nexusflow: Command, service: LocalServer, zoo: Path, tmp_path: Path
) -> None:
    nexusflow("index", str(zoo))
    service.reset_stats()
    found = nexusflow.json("report", "-o", str(tmp_path / "out.html"))
    assert (found["points"], found["ranks"]) == (3, [])
    again = nexusflow.json("report", "-i", "zoo", "-o", str(tmp_path / "out.html"))
    assert again == found
    assert service.stats.requests == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("nothing", "-p", "chroma"),
            "there is no collection named 'nothing'; there are: town, zoo",
        ),
        (("-p", "chroma"), "which collection? there are: town, zoo"),
        (("-p", "chroma", "-i", "zoo"), "leave out COLLECTION and --path"),
        (("zoo", "-p", "empty"), "holds no Chroma collections"),
        (("zoo", "-p", "chroma", "-o", "no/such/out.html"), "does not exist"),
        (("zoo", "-p", "chroma", "-q", "no-such.txt"), "does not exist"),
        (("zoo", "-p", "chroma", "-q", "empty.txt"), "empty.txt has no questions"),
        (("zoo", "-p", "chroma", "-q", "bad.jsonl"), "bad.jsonl, line 2: has no field 'question'"),
    ],
)
def test_wrong_usage_is_one_sentence(
    nexusflow: Command,
    service: LocalServer,
    chroma: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n{"quest": "b"}\n')
    assert said in nexusflow.sentence("report", *arguments, code=2)
    assert service.stats.requests == 0
    assert not (tmp_path / "report.html").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_without_scikit_learn_it_ends_in_3(
    nexusflow: Command, chroma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    out = str(tmp_path / "out.html")
    said = nexusflow.sentence("report", "zoo", "-p", str(chroma), "-o", out, code=3)
    assert 'pip install "nexusflow-integrations[report]"' in said
