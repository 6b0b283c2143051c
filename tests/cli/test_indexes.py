"""``nexusflow indexes`` lists and removes indexes."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexusflow_integrations.cli.rag.collection import open_to_read
from nexusflow_integrations.cli.rag.indexes import Indexes
from nexusflow_integrations.local import LocalServer

from .conftest import KEY, Command


@pytest.fixture
def filled(nexusflow: Command, service: LocalServer, zoo: Path, tmp_path: Path) -> Indexes:
    """The indexes of ``zoo`` and of one file, and one that was never finished."""
    (tmp_path / "notes.txt").write_text("Rain on Monday.")
    nexusflow("index", str(zoo), "--dimensions", "64")
    nexusflow("index", str(tmp_path / "notes.txt"))
    indexes = Indexes()
    (indexes.folder / "half@x" / "chroma-1").mkdir(parents=True)
    return indexes


def test_all_are_listed_also_one_that_was_never_finished(
    nexusflow: Command, filled: Indexes, zoo: Path, service: LocalServer
) -> None:
    rows = nexusflow.json("indexes")["indexes"]
    assert [row["name"].partition("-")[0] for row in rows] == ["notes", "zoo", "half@x"]
    assert rows[1] == {
        **rows[1],
        "usable": True,
        "corpus": str(zoo.resolve()),
        "passages": 3,
        "model": "text-embedding-v4",
        "embedded": False,
        "base_url": service.base_url,
        "dimensions": 64,
    }
    assert rows[1]["bytes"] > 10_000
    assert (rows[2]["usable"], rows[2]["state"]) == (False, "unfinished")
    shown, _ = nexusflow("indexes", "list")
    assert nexusflow("indexes")[0] == shown
    assert "unfinished\n" in "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"
    assert max(map(len, shown.splitlines())) <= 80


def test_an_index_is_shown(nexusflow: Command, filled: Indexes, service: LocalServer) -> None:
    shown, _ = nexusflow("indexes", "show", "zoo")
    assert "3 passages, " in shown
    assert "text-embedding-v4, 64 numbers" in shown
    assert service.base_url in shown
    assert "index its texts again, or remove it" in nexusflow("indexes", "show", "half")[0]


def test_an_empty_name_removes_nothing_even_if_there_is_one_index(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    nexusflow("index", str(zoo))
    said = nexusflow.sentence("indexes", "remove", "", "--yes", code=2)
    assert said == "the name of the index is empty"
    assert len(Indexes().all()) == 1


def test_removing_asks_first(nexusflow: Command, filled: Indexes, zoo: Path) -> None:
    said = nexusflow.sentence("indexes", "remove", "zoo", code=2)
    assert said.endswith("confirm with --yes")
    assert len(filled.all()) == 3
    shown, _ = nexusflow("indexes", "remove", "zoo", "--yes")
    assert shown.startswith("Removed zoo-")
    assert "3 passages, " in shown
    nexusflow("indexes", "remove", "half", "-y")
    (left,) = filled.all()
    assert left.name.startswith("notes-")
    assert (zoo / "otter.txt").exists()


def test_a_question_before_the_first_run_has_ended_names_the_command_that_continues_it(
    nexusflow: Command,
) -> None:
    (Indexes().folder / "docs-3217c9@x" / "chroma-1").mkdir(parents=True)
    said = nexusflow.sentence("ask", "fish", code=2)
    assert "the first run for docs-3217c9@x did not end" in said
    assert "run the same `nexusflow index` command again" in said
    (Indexes().folder / "docs-3217c9@x" / "chroma-1").rmdir()
    (Indexes().folder / "stdlib@x" / "chroma-1").mkdir(parents=True)
    said = nexusflow.sentence("ask", "fish", code=2)
    assert "run the same `nexusflow demo` or `nexusflow index` command again" in said


def test_an_unfinished_index_makes_a_name_ambiguous_for_removal_but_not_for_showing(
    nexusflow: Command, filled: Indexes
) -> None:
    (filled.folder / "zoo-old@x" / "chroma-1").mkdir(parents=True)
    said = nexusflow.sentence("indexes", "remove", "zoo", "--yes", code=2)
    assert "several indexes begin with 'zoo'" in said
    assert "zoo-old@x" in said
    assert len(filled.all()) == 4
    assert "3 passages, " in nexusflow("indexes", "show", "zoo")[0]


def test_an_index_whose_folder_was_moved_says_so(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    nexusflow("index", str(zoo))
    assert "no longer there" not in nexusflow("indexes")[0]
    zoo.rename(zoo.with_name("moved"))
    for command in (["indexes"], ["indexes", "show", "zoo"]):
        assert "no longer there" in " ".join(nexusflow(*command)[0].split())


def test_without_indexes_the_commands_say_so(nexusflow: Command) -> None:
    assert nexusflow("indexes", "list")[0].startswith("There is no index in ")
    assert "there is no index" in nexusflow.sentence("indexes", "show", "zoo", code=2)


def test_a_first_run_that_fails_before_it_pays_leaves_nothing(
    nexusflow: Command, service: LocalServer, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-wrong-very-secret")
    nexusflow("index", str(zoo), code=4)
    assert nexusflow.json("indexes")["indexes"] == []
    assert list(Indexes().folder.iterdir()) == []
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    nexusflow("index", str(zoo))
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-wrong-very-secret")
    for file in zoo.iterdir():
        file.write_text(f"{file.stem} eats crabs.", "utf-8")
    nexusflow("index", str(zoo), "--fresh", code=4)
    (index,) = Indexes().all()
    assert [path.name for path in index.directory.glob("chroma-*")] == ["chroma-1"]
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    assert nexusflow.json("search", "fish")["frameworks"]["chroma"]["passages"]


def test_an_index_that_another_process_builds_is_not_called_unfinished(
    nexusflow: Command, filled: Indexes
) -> None:
    half = filled.find("half")
    (filled.find("notes").directory / "index.json").write_text("{")
    for index in (half, filled.find("notes")):
        told = index.state
        with index.alone():
            for command in (("ask", "fish"), ("search", "fish"), ("report",)):
                said = nexusflow.sentence(*command, "-i", index.name, code=1)
                assert said == (
                    f"another process is building the index {index.name!r}: run this again when it"
                    " is done"
                )
            assert "building: another process is" in nexusflow("indexes", "show", index.name)[0]
            states = [row.get("state") for row in nexusflow.json("indexes")["indexes"]]
            assert "building" in states
        assert index.state == told
        with index.alone():  # asking left no lock behind
            pass
    assert "was never finished" in nexusflow.sentence("ask", "fish", "-i", "half", code=1)


def test_doctor_names_indexes_that_cannot_be_used(
    nexusflow: Command, service: LocalServer, filled: Indexes
) -> None:
    (check,) = [item for item in nexusflow.json("doctor")["checks"] if "half@x" in item["text"]]
    assert check["ok"] is None
    assert "was never finished" in check["text"]
    (filled.find("notes").directory / "index.json").write_text("{")
    shown, _ = nexusflow("doctor", code=1)
    assert "is damaged" in " ".join(shown.split())
    assert "damaged" in nexusflow("indexes")[0]


def test_doctor_compares_the_indexes_of_the_service_that_is_asked(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    nexusflow("index", str(zoo))
    found = nexusflow.json("doctor")
    (check,) = [check for check in found["checks"] if check["name"] == "Index"]
    assert check["ok"]
    assert check["text"].startswith("zoo-")
    assert "passages, and the service returns the same vectors" in check["text"]
    (index,) = Indexes().all()
    collection = open_to_read(index.chroma)
    held = collection.get(include=[])["ids"]
    collection.update(ids=held, embeddings=[[1.0] * 1024] * len(held))
    shown, _ = nexusflow("doctor", code=1)
    assert "differently" in shown
    assert "zoo-" in shown
    assert "--fresh" in shown
    (questions := zoo.parent / "questions.txt").write_text("Who climbs?\n")
    page = str(zoo.parent / "page.html")
    said = nexusflow.sentence("report", "-q", str(questions), "-o", page, code=1)
    assert "differently" in said
    assert said.endswith(f"build it again with `nexusflow index {zoo} --fresh`")
