"""An index stays equal to its folder: whatever stops a run, no passage is lost or stale."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.cli.rag.collection import open_to_read, stored
from nexusflow_integrations.cli.rag.indexes import Indexes
from nexusflow_integrations.errors import CollectionError
from nexusflow_integrations.local import LocalServer

from .conftest import KEY, Command

pytestmark = pytest.mark.timeout(600)

Start = Callable[..., subprocess.Popen[str]]


def held(path: Path) -> set[str]:
    """Return the texts that the only index under ``path`` holds."""
    # Chroma keeps what it opened for as long as the process lives; a command is a process.
    SharedSystemClient.clear_system_cache()
    (index,) = Indexes(path).all()
    return {item.text for item in stored(open_to_read(index.chroma)).values()}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: None) -> Path:
    monkeypatch.setenv("NEXUSFLOW_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def wrong_key(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-wrong-very-secret")


PANDA = "Panda\n\nThe red panda eats bamboo and sleeps in trees."
OTTER = "The otter eats fish. It lives in rivers."
CHINESE = "小熊猫吃竹子。"
COMPARED = 3
"""Texts of the index that are embedded again before a run writes, at most."""


def test_a_key_that_is_refused_loses_nothing(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    store: Path,
    wrong_key: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = os.environ["NEXUSFLOW_API_KEY"]
    nexusflow("index", str(zoo))
    (zoo / "otter.txt").write_text("The otter eats crabs.")
    (zoo / "熊猫.md").unlink()
    (zoo / "finch.txt").write_text("The finch eats seeds.")
    wrong_key()
    for option in ((), ("--fresh",)):
        assert nexusflow.sentence("index", str(zoo), *option, code=4).startswith("401")
        assert held(store) == {PANDA, OTTER, CHINESE}
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    service.reset_stats()
    done = nexusflow.json("index", str(zoo))
    assert [done[name] for name in ("added", "changed", "unchanged", "removed")] == [1, 1, 1, 1]
    assert {"The finch eats seeds.", "The otter eats crabs."} < set(service.stats.received)
    assert service.stats.texts <= 2 + COMPARED
    assert held(store) == {PANDA, "The otter eats crabs.", "The finch eats seeds."}


def test_the_outcome_for_the_passages_is_shown(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    assert (
        "3 added, 0 changed, 0 unchanged, 0 removed, 0 left out." in nexusflow("index", str(zoo))[0]
    )
    shown, aside = nexusflow("index", str(zoo))
    assert "0 added, 0 changed, 3 unchanged, 0 removed, 0 left out." in shown
    assert "Up to date." in aside


def test_a_run_that_sends_nothing_does_not_change_the_address_of_the_index(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nexusflow("index", str(zoo))
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", service.base_url.removesuffix("/v1"))
    service.reset_stats()
    assert "Up to date." in nexusflow("index", str(zoo))[1]
    assert service.stats.requests == 0
    assert nexusflow.json("indexes")["indexes"][0]["base_url"] == service.base_url
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", service.base_url)
    assert "fish" in nexusflow("ask", "Who eats fish?", "-i", "zoo")[0]


def test_the_commands_to_try_next_use_the_index_of_another_store(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path, tmp_path: Path
) -> None:
    assert "--store" not in nexusflow("index", str(zoo))[0]
    other = tmp_path / "another store"
    shown, _ = nexusflow("index", str(zoo), "--store", str(other))
    command = f"nexusflow ask \"…\" --store '{other}'"
    # The terminal may be too narrow for it.
    assert "".join(command.split()) in "".join(shown.split())


def test_a_file_that_cannot_be_read_keeps_its_passages_and_is_named(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    nexusflow("index", str(zoo))
    (zoo / "otter.txt").write_bytes(b"The otter eats\ncaf\xe9s.")
    (zoo / "panda.md").write_bytes(b"%PDF-1.7")
    _, aside = nexusflow("index", str(zoo), code=5)
    assert "left out otter.txt: line 2 is not UTF-8" in aside
    assert "left out panda.md: not text: a PDF" in aside
    assert held(store) == {PANDA, OTTER, CHINESE}
    said = json.loads(nexusflow("index", str(zoo), "--fresh", "--estimate", "--json", code=5)[0])
    found = json.loads(nexusflow("index", str(zoo), "--fresh", "--json", code=5)[0])
    assert said["added"] == found["added"] == 3
    assert found["left_out"] == [
        {"source": "otter.txt", "reason": "line 2 is not UTF-8"},
        {"source": "panda.md", "reason": "not text: a PDF"},
    ]
    assert held(store) == {PANDA, OTTER, CHINESE}


def test_a_line_of_jsonl_without_text_is_named_and_the_others_are_indexed(
    nexusflow: Command, service: LocalServer, tmp_path: Path, store: Path
) -> None:
    file = tmp_path / "faq.jsonl"
    file.write_text('{"q": "How?", "answers": ["Hold the button."]}\n{"q": null}\n')
    shown, aside = nexusflow("index", str(file), code=5)
    assert "1 added, 0 changed, 0 unchanged, 0 removed, 1 left out." in shown
    assert "left out faq.jsonl:2: has no text" in aside
    assert held(store) == {"q: How?\nanswers: Hold the button."}


def test_files_that_need_a_missing_package_keep_their_passages_and_are_named(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("markitdown")
    (zoo / "fox.html").write_text("<p>The fox eats berries.</p>")
    nexusflow("index", str(zoo))
    before = held(store)
    assert "The fox eats berries." in before
    monkeypatch.setattr("nexusflow_integrations.cli.rag.corpus.can_convert", lambda: False)
    (zoo / "new.html").write_text("<p>Never read.</p>")  # only counted
    reason = 'needs pip install "nexusflow-integrations[files]"'
    for options in ((), ("--fresh",), ("--estimate",), ("--estimate", "--fresh")):
        said, aside = nexusflow("index", str(zoo), *options, "--json", code=5)
        assert f"left out fox.html: {reason}" in aside
        assert json.loads(said)["left_out"] == [{"source": "fox.html", "reason": reason}]
        assert json.loads(said)["removed"] == 0
        assert held(store) == before
    (zoo / "fox.html").unlink()
    nexusflow("index", str(zoo))
    assert held(store) == before - {"The fox eats berries."}


def test_a_passage_of_two_files_stays_if_one_is_deleted_and_one_cannot_be_read(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    (zoo / "second.md").write_text(PANDA)
    nexusflow("index", str(zoo))
    before = held(store)
    (zoo / "panda.md").unlink()
    (zoo / "second.md").write_bytes(b"caf\xe9s")
    command = ("index", str(zoo), "--json")
    found, aside = nexusflow(*command, code=5)
    assert "left out second.md: line 1 is not UTF-8" in aside
    assert (json.loads(found)["changed"], json.loads(found)["removed"]) == (1, 0)
    assert held(store) == before
    again, _ = nexusflow(*command, code=5)
    assert json.loads(again)["unchanged"] == len(before)
    found = nexusflow.json("search", PANDA, "-k", "1")["frameworks"]["chroma"]["passages"]
    assert [item["source"] for item in found] == ["second.md"]
    (zoo / "second.md").unlink()
    nexusflow("index", str(zoo))
    assert held(store) == before - {PANDA}


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_what_became_a_link_out_of_the_folder_keeps_its_passages_and_is_named(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path, tmp_path: Path
) -> None:
    (zoo / "birds" / "big").mkdir(parents=True)
    (zoo / "birds" / "big" / "owl.md").write_text("The owl hunts at night.")
    nexusflow("index", str(zoo))
    before = held(store)
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("birds", "otter.txt"):
        (zoo / name).rename(disk / name)
        (zoo / name).symlink_to(disk / name)
    link = "a link that leads out of the folder"
    _, aside = nexusflow("index", str(zoo), code=5)
    assert f"left out birds: {link}" in aside
    assert f"left out otter.txt: {link}" in aside
    assert "2 links that lead out of the folder skipped" in aside
    assert held(store) == before
    disk.rename(tmp_path / "away")  # the disk is not mounted
    _, aside = nexusflow("index", str(zoo), code=5)
    assert f"left out birds: {link}" in aside
    assert held(store) == before
    (zoo / "birds").unlink()
    (zoo / "otter.txt").unlink()
    nexusflow("index", str(zoo))
    assert held(store) == {PANDA, CHINESE}


def test_a_table_that_breaks_off_keeps_its_passages_in_every_run(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    table = zoo / "zoo.csv"
    table.write_text("animal,food\npanda,bamboo\notter,fish\n")
    nexusflow("index", str(zoo))
    before = held(store)
    table.write_text('animal,food\npanda,leaves\notter,fish\nbear,"honey\n')
    for _ in range(2):
        _, aside = nexusflow("index", str(zoo), code=5)
        assert "left out zoo.csv: not a table: line 4: " in aside
        assert held(store) == before


def test_an_estimate_counts_what_a_stopped_first_run_has_written(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    nexusflow("index", str(zoo))
    (described,) = store.glob("*/index.json")
    described.unlink()
    (zoo / "finch.txt").write_text("The finch eats seeds.")
    expected = "1 added, 0 changed, 3 unchanged, 0 removed"
    shown = nexusflow("index", str(zoo), "--estimate")[0]
    assert expected in shown
    assert "compared with zoo-" in shown
    assert "in a new index zoo-" in nexusflow("index", str(zoo), "--estimate", "--fresh")[0]
    assert "was never finished" in nexusflow.sentence("ask", "who climbs?", "-i", "zoo", code=1)
    assert expected in nexusflow("index", str(zoo))[0]


def test_control_characters_of_files_do_not_reach_the_terminal(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    (zoo / "\x1b[31mred\n.txt").write_text("The finch \x1b[32m eats seeds.")
    (zoo / "\x1b]0;bad.txt").write_bytes(b"\xff\xfe")
    nexusflow("index", str(zoo), code=5)
    for arguments in (["search"], ["ask", "-f", "all", "--bm25"], ["index", "--fresh"]):
        code, what = (5, str(zoo)) if arguments[0] == "index" else (0, "finch \x1b[33m seeds")
        shown, aside = nexusflow(*arguments, what, code=code)
        assert "\x1b" not in shown + aside
        assert r"\x1b[31mred\n.txt" in shown or r"\x1b]0;bad.txt" in aside


@pytest.mark.parametrize("command", [("ask",), ("search",), ("demo", "-q")])
def test_an_empty_question_is_wrong_usage(
    nexusflow: Command, service: LocalServer, command: tuple[str, ...]
) -> None:
    assert nexusflow.sentence(*command, " \n", code=2) == "the question is empty"
    assert nexusflow.sentence(*command, "\u200b", code=2) == "the question is empty"
    assert nexusflow.sentence(*command, "pan\udcff", code=2) == "the question is not UTF-8"
    assert service.stats.requests == 0


def test_a_folder_that_turns_out_empty_removes_nothing(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    nexusflow("index", str(zoo))
    for file in zoo.iterdir():
        file.unlink()
    for option in ((), ("--fresh",)):
        assert "holds no text" in nexusflow.sentence("index", str(zoo), *option, code=2)
    zoo.rmdir()
    assert "there is no file or folder" in nexusflow.sentence("index", str(zoo), code=2)
    assert held(store) == {PANDA, OTTER, CHINESE}


@pytest.mark.parametrize("command", [("index",), ("demo", "-c")])
def test_a_limit_removes_nothing(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path, command: tuple[str, ...]
) -> None:
    nexusflow("index", str(zoo))
    found = nexusflow.json(*command, str(zoo), "--limit", "1")
    assert found.get("indexed", found)["removed"] == 0
    assert held(store) == {PANDA, OTTER, CHINESE}
    said = nexusflow.sentence(*command, str(zoo), "--limit", "1", "--fresh", code=2)
    assert (
        said
        == "--fresh rebuilds the whole index and --limit reads only some texts: use one of the two"
    )


def test_a_trial_with_a_limit_does_not_answer_in_place_of_the_whole_index(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(zoo)
    monkeypatch.setenv("COLUMNS", "200")
    whole = nexusflow.json("index", str(zoo))["index"]
    trial = ("index", str(zoo), "--limit", "1", "--dimensions", "64")
    shown, _ = nexusflow(*trial)
    assert f"--index {whole}-64" in shown
    assert nexusflow.json("search", "fish")["index"] == whole
    shown, _ = nexusflow("ask", "Who eats fish?", "--index", f"{whole}-64")
    assert "; made with --limit, so some texts are missing\n" in shown
    assert ", of which --limit left out some" in nexusflow("indexes", "show", f"{whole}-64")[0]
    assert nexusflow.json("search", "fish")["index"] == whole
    for again in ((), ("--limit", "1")):  # the last run does not make the index smaller
        nexusflow("index", str(zoo), "--dimensions", "64", *again)
        shown, _ = nexusflow("ask", "Who eats fish?")
        assert f"Index {whole}-64, " in shown
        assert "--limit" not in shown
        assert "--limit" not in nexusflow("indexes", "show", f"{whole}-64")[0]


def test_a_limit_that_leaves_out_nothing_makes_a_whole_index(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    nexusflow("index", str(zoo), "--limit", "3")
    assert nexusflow.json("indexes", "show", "zoo")["complete"] is True
    nexusflow("index", "topics", "--limit", "2")
    assert nexusflow.json("indexes", "show", "topics")["complete"] is False


def test_an_estimate_sends_and_writes_nothing(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    found = nexusflow.json("index", str(zoo), "--estimate")
    assert (found["added"], found["requests"]) == (3, 1)
    assert found["list_price"] > 0
    assert not store.exists()
    nexusflow("index", str(zoo))
    service.reset_stats()
    (zoo / "otter.txt").write_text("The otter eats crabs.")
    shown, _ = nexusflow("index", str(zoo), "--estimate")
    assert "0 added, 1 changed, 2 unchanged, 0 removed, 0 left out." in shown
    assert "Nothing was sent." in shown
    assert service.stats.requests == 0
    assert held(store) == {PANDA, OTTER, CHINESE}


def test_an_estimate_names_what_would_be_left_out_and_ends_in_5(
    nexusflow: Command, zoo: Path, store: Path
) -> None:
    (zoo / "latin.txt").write_bytes(b"caf\xe9")
    shown, aside = nexusflow("index", str(zoo), "--estimate", code=5)
    assert "1 left out." in shown
    assert "left out latin.txt: line 1 is not UTF-8" in aside


def test_an_estimate_says_which_files_are_skipped(
    nexusflow: Command, zoo: Path, store: Path
) -> None:
    (zoo / "panda.png").write_bytes(b"")
    _, aside = nexusflow("index", str(zoo), "--estimate")
    assert "1 file of other types skipped: 1 .png" in aside


def test_an_estimate_needs_no_key(nexusflow: Command, zoo: Path, store: Path) -> None:
    found = nexusflow.json("index", str(zoo), "--estimate")
    assert (found["added"], found["paid"]) == (3, False)
    shown, _ = nexusflow("index", str(zoo), "--estimate")
    assert "the local model is used, which is free" in " ".join(shown.split())


def test_an_estimate_for_the_embedded_model_is_free(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    found = nexusflow.json("index", str(zoo), "--estimate", "--local")
    assert (found["added"], found["list_price"], found["paid"]) == (3, 0.0, False)
    shown, _ = nexusflow("index", str(zoo), "--estimate", "--local")
    assert "none; the local model is free" in shown
    assert "¥" not in shown


def test_a_budget_is_not_exceeded_and_paid_vectors_are_kept(
    nexusflow: Command, service: LocalServer, tmp_path: Path, store: Path
) -> None:
    texts = [f"Sentence {number} is about animal number {number}." for number in range(60)]
    (tmp_path / "zoo.md").write_text(
        "".join(f"# {n}\n\n{text}\n\n" for n, text in enumerate(texts))
    )
    said = nexusflow.sentence("index", str(tmp_path / "zoo.md"), "--budget", "300 tokens", code=1)
    assert "budget" in said
    assert 0 < service.stats.tokens <= 300
    nexusflow("index", str(tmp_path / "zoo.md"))
    assert service.stats.texts <= 60 + COMPARED
    assert len(held(store)) == 60


def test_a_source_in_which_every_passage_is_the_same_as_before_sends_nothing(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    nexusflow("index", str(zoo))
    service.reset_stats()
    (zoo / "otter.txt").write_text(f"\n\n\n{OTTER}\n")
    done = nexusflow.json("index", str(zoo))
    assert (done["changed"], done["unchanged"], service.stats.requests) == (1, 2, 0)
    found = nexusflow.json("search", OTTER, "-k", "1")["frameworks"]["chroma"]["passages"]
    assert found[0]["source"] == "otter.txt:4"


# -- damage --------------------------------------------------------------------------------------


def test_a_damaged_index_says_how_to_build_it_again_and_does_not_block_others(
    nexusflow: Command, service: LocalServer, zoo: Path, tmp_path: Path, store: Path
) -> None:
    nexusflow("index", str(zoo), "--dimensions", "64")
    (index,) = Indexes(store).all()
    shutil.rmtree(index.chroma)
    (index.directory / "chroma-1").mkdir()
    (index.directory / "chroma-1" / "chroma.sqlite3").write_bytes(b"no database" * 500)
    SharedSystemClient.clear_system_cache()
    command = f"nexusflow index {zoo} --dimensions 64 --fresh"
    for arguments in (("search", "fish"), ("index", str(zoo), "--dimensions", "64")):
        assert f"build it again with `{command}`" in nexusflow.sentence(*arguments, code=1)
    nexusflow(*command.split()[1:])
    assert held(store) == {PANDA, OTTER, CHINESE}

    (index.directory / "index.json").write_text("{")
    assert "no index yet" in nexusflow.sentence("search", "fish", code=2)
    assert "is damaged: run" in nexusflow.sentence("search", "fish", "-i", index.name, code=1)
    (tmp_path / "notes.txt").write_text("Rain on Monday.")
    nexusflow("index", str(tmp_path / "notes.txt"))
    assert nexusflow.json("search", "fish")["index"].startswith("notes-")


@pytest.mark.parametrize(
    ("allowed", "free", "advice"),
    [
        (False, 10**12, "you may not write to .*: get write permission, or use an index"),
        (
            True,
            266_000,
            r"the disk of .* has only 266\.0 kB free: free some more and run this again",
        ),
        (True, 10**12, "build it again with `nexusflow index .* --fresh`"),
    ],
)
def test_the_advice_fits_the_reason_why_chroma_fails(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    allowed: bool,
    free: int,
    advice: str,
) -> None:
    nexusflow("index", str(zoo))
    (index,) = Indexes(store).all()
    shutil.rmtree(index.chroma)
    (index.directory / "chroma-1").mkdir()
    (index.directory / "chroma-1" / "chroma.sqlite3").write_bytes(b"no database" * 500)
    SharedSystemClient.clear_system_cache()
    monkeypatch.setattr(os, "access", lambda _, mode: allowed or mode != os.W_OK)
    usage = shutil.disk_usage(store)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for command in (("search", "fish"), ("index", str(zoo))):
        assert re.search(advice, nexusflow.sentence(*command, code=1))
    (found,) = [
        item["text"]
        for item in json.loads(nexusflow("doctor", "--json", code=1)[0])["checks"]
        if item["name"] == "Index"
    ]
    assert re.search(advice, found)
    assert "Error:" not in found


def test_an_index_of_somebody_else_is_not_called_damaged(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nexusflow("index", str(zoo))
    (index,) = Indexes(store).all()
    read = Path.read_text

    def denied(path: Path, *arguments: str) -> str:
        if path.name == "index.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", denied)
    said = nexusflow.sentence("search", "fish", "--index", index.name, code=1)
    assert said.endswith(
        "cannot be read: " + str(index.directory / "index.json: Permission denied")
    )


def test_a_collection_that_cannot_be_written_is_one_sentence_without_a_class(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise CollectionError("writing 3 documents failed: InternalError: database or disk is full")

    monkeypatch.setattr("nexusflow_integrations.chroma_collections.sync_documents", full)
    said = nexusflow.sentence("index", str(zoo), code=1)
    assert said.endswith(
        "could not be updated, and nothing was lost: writing 3 documents failed: database or disk"
        " is full"
    )


def test_a_service_that_changed_its_model_is_found_and_the_sentence_says_what_to_type(
    nexusflow: Command, service: LocalServer, zoo: Path, store: Path
) -> None:
    nexusflow("index", str(zoo))
    (index,) = Indexes(store).all()
    collection = open_to_read(index.chroma)
    ids = collection.get(include=[])["ids"]
    collection.update(ids, embeddings=[[1.0, *[0.0] * 1023]] * len(ids))
    (zoo / "otter.txt").write_text("The otter eats crabs.")
    said = nexusflow.sentence("index", str(zoo), code=1)
    assert "the model or its settings changed" in said
    assert f"build it again with `nexusflow index {zoo} --fresh`" in said
    nexusflow("index", str(zoo), "--fresh")
    assert held(store) == {PANDA, "The otter eats crabs.", CHINESE}


def test_a_new_index_is_not_made_of_cached_vectors_of_a_former_model(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nexusflow("index", str(zoo))
    encoder = service._api.runner.encoder
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: -encode(texts))
    (zoo / "otter.txt").write_text("The otter eats crabs.")
    assert "--fresh" in nexusflow.sentence("index", str(zoo), code=1)
    said = nexusflow.sentence("index", str(zoo), "--fresh", code=2)
    assert said.endswith("or clear this one with `nexusflow cache clear`")
    SharedSystemClient.clear_system_cache()  # as in a new process
    nexusflow("cache", "clear", "--yes")
    nexusflow("index", str(zoo), "--fresh")
    (index,) = Indexes(store).all()
    found = open_to_read(index.chroma).get(include=["documents", "embeddings"])
    new = NexusFlow(base_url=service.base_url, dimensions=1024).embed(found["documents"])
    assert np.allclose(found["embeddings"], new, atol=1e-3)


# -- which index ---------------------------------------------------------------------------------


def test_the_index_of_the_current_folder_is_used_and_named(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    tmp_path: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "notes.txt").write_text("Rain on Monday.")
    nexusflow("index", str(zoo))
    nexusflow("index", str(tmp_path / "notes.txt"))
    monkeypatch.chdir(zoo)
    shown, _ = nexusflow("search", "fish")
    (name,) = re.findall(r"Index (zoo-\S+), model text-embedding-v4 at", shown)
    assert service.base_url in " ".join(shown.split())
    assert nexusflow.json("ask", "fish")["index"] == name


def test_an_index_of_the_local_model_is_named_as_such_if_a_key_is_set(
    nexusflow: Command,
    zoo: Path,
    store: Path,
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nexusflow("index", str(zoo), "--local")
    assert "the local model" not in nexusflow("search", "fish")[1]
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
    _, aside = nexusflow("search", "fish")
    said = " ".join(aside.split())
    assert "was made with the local model, so the service is not used." in said
    assert f"`nexusflow index {zoo}` makes one with the service." in said
    nexusflow("index", str(zoo))
    shown, aside = nexusflow("search", "fish")
    assert "model text-embedding-v4" in shown
    assert "the local model" not in aside


# -- processes -----------------------------------------------------------------------------------


@pytest.fixture
def start(slow_server: LocalServer, store: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start ``nexusflow`` in a process, against a server that takes 200 ms an answer."""
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-one")
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", slow_server.base_url)

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "nexusflow_integrations.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


def write(folder: Path, version: str, count: int) -> set[str]:
    """Write files of which each second passage differs between versions; return the passages."""
    texts = [
        f"Passage {n} of {version if n % 2 == 0 else 'all versions'}, about the animal number {n}."
        for n in range(count)
    ]
    folder.mkdir(exist_ok=True)
    for start in range(0, count, 50):
        part = texts[start : start + 50]
        sections = [f"# S{start + n}\n\n{text}\n\n" for n, text in enumerate(part)]
        (folder / f"f{start}.md").write_text("".join(sections))
    return {f"S{n}\n\n{text}" for n, text in enumerate(texts)}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
@pytest.mark.parametrize("option", [(), ("--fresh",)])
def test_a_killed_index_loses_nothing_and_the_next_one_pays_for_the_rest(
    nexusflow: Command,
    start: Start,
    slow_server: LocalServer,
    tmp_path: Path,
    store: Path,
    option: tuple[str, ...],
) -> None:
    zoo = tmp_path / "zoo"
    old = write(zoo, "one", 1600)
    nexusflow("index", str(zoo))
    new = write(zoo, "two", 1600)
    slow_server.reset_stats()
    for requests in (1, 50):
        process = start("index", str(zoo), *option)
        wait_for(slow_server, requests, process)
        process.kill()
        process.communicate(timeout=60)
        there = held(store)
        assert there >= old & new
        assert there == old if option else len(there) >= len(old)
    nexusflow("index", str(zoo), *option)
    assert held(store) == new
    assert len(list(store.glob("*/chroma-*"))) == 1
    stats = slow_server.stats
    in_flight = 10 * (stats.max_in_flight + 4)
    assert stats.texts <= len(new - old) + 2 * in_flight + 3 * COMPARED


def wait_for(server: LocalServer, requests: int, process: subprocess.Popen[str]) -> None:
    before, until = server.stats.requests, time.monotonic() + 200
    while server.stats.requests < before + requests and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_of_two_processes_one_writes_and_the_other_reports_the_first(
    start: Start, slow_server: LocalServer, tmp_path: Path, store: Path
) -> None:
    zoo = tmp_path / "zoo"
    new = write(zoo, "one", 400)
    processes = [start("index", str(zoo)) for _ in range(2)]
    results = [ended(process) for process in processes]
    assert sorted(code for code, _ in results)[0] == 0
    for code, stderr in results:
        assert code == 0 or "another process is updating the index" in stderr, stderr
    assert held(store) == new
    assert slow_server.stats.texts == len(new)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_keeps_what_was_paid_for(
    nexusflow: Command, start: Start, slow_server: LocalServer, tmp_path: Path, store: Path
) -> None:
    zoo = tmp_path / "zoo"
    new = write(zoo, "one", 1200)
    process = start("index", str(zoo))
    wait_for(slow_server, 5, process)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    nexusflow("index", str(zoo))
    assert held(store) == new
    assert slow_server.stats.texts <= 1200 + 10 * slow_server.stats.max_in_flight + COMPARED
