"""``nexusflow tune`` shows its plan before it pays, prints a table and writes its files."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import chromadb
import numpy as np
import pytest

pytest.importorskip("ir_measures", reason="comes with the extra `tune`")

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection
from nexusflow_integrations.cli.screen import Screen
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.tune import TunedSettings

from .conftest import Command

pytestmark = pytest.mark.timeout(600)

_EVIL = "<script>alert(1)</script>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Texts about animals, and questions with their answers."""
    texts = tmp_path / "texts"
    texts.mkdir()
    questions = []
    for number, animal in enumerate(("panda", "otter", "heron", "lynx", "viper", "mole")):
        lines = [f"# The {animal}", ""]
        for part in ("sleeps", "eats", "hides"):
            filler = f"There is much more to be said of the {part[:-1]}ing of it. " * 8
            lines += [f"## How it {part}", "", f"It {part} at the {animal}'s pool. {filler}", ""]
            questions.append(
                {"question": f"{part} {animal[:3]} {_EVIL}", "quote": f"at the {animal}'s pool."}
            )
        (texts / f"{number}.md").write_text("\n".join(lines))
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return texts


def _ask(folder: Path) -> tuple[str, ...]:
    return ("tune", str(folder), "-q", str(folder.parent / "q.jsonl"), "--yes")


def test_the_estimate_sends_and_writes_nothing(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tuned.json"
    said, _ = nexusflow(*_ask(folder), "--estimate", "-o", str(output))
    assert said.startswith("18 questions about 6 texts")
    assert re.search(r"at most +[\d,]+ ±15% tokens", said)
    plan = nexusflow.json(*_ask(folder), "--estimate", "-o", str(output))
    assert plan["tokens"] == sum(stage["tokens"] for stage in plan["stages"]) > 0
    assert service.stats.requests == 0
    assert not output.exists()


def test_the_choice_is_written_and_the_page_and_plot_show_it(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("tuned.json", "page.html", "plot.svg")]
    options = [
        f"--{name}={file}" for name, file in zip(("output", "page", "plot"), files, strict=True)
    ]
    found = nexusflow.json(*_ask(folder), *options)
    assert found["choice"] | {"version": 1} == json.loads(files[0].read_text())
    settings = TunedSettings.load(files[0])
    chosen = [row for row in found["settings"] if row["chosen"]]
    assert [row["dimensions"] for row in chosen] == [settings.dimensions]
    assert found["tokens"] == service.stats.tokens
    assert found["sentence"].startswith(("Take ", "The questions are too few"))
    for row in found["settings"]:
        score = row["scores"]["nDCG@10"]
        assert score["low"] <= score["value"] <= score["high"]

    page = files[1].read_text("utf-8")
    assert _EVIL not in page
    HTMLParser().feed(page)
    assert "<script" not in page
    assert "http" not in re.sub(r'content="[^"]*"|xmlns="[^"]*"|http-equiv', "", page)
    assert chosen[0]["setting"] in page
    own, _, others = page.partition("<h3>Passages of other lengths</h3>")
    assert "400 characters</td>" not in own
    assert "400 characters</td>" in others
    assert "800 characters</td>" not in others.partition("</table>")[0]
    assert "tokens were billed" in page
    assert found["paid"]
    root = ElementTree.fromstring(files[2].read_text("utf-8"))
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(found["settings"]) + 3 + 1, "three for the legend, one ring"


@pytest.mark.slow
def test_no_price_is_shown_for_the_embedded_model(
    nexusflow: Command, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    page = tmp_path / "page.html"
    found = nexusflow.json(*_ask(folder), f"--output={tmp_path / 't.json'}", f"--page={page}")
    assert (found["paid"], found["list_price"]) == (False, 0.0)
    assert "a local model, which is free" in page.read_text("utf-8")
    assert "billed" not in page.read_text("utf-8")
    assert found["choice"]["local_model"]


def test_vectors_of_the_local_model_do_not_lower_the_price_at_the_service(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    ask = (*_ask(folder), "--local", "-o", str(tmp_path / "tuned.json"))
    before = nexusflow.json(*ask, "--estimate")
    nexusflow(*ask)
    after = nexusflow.json(*ask, "--estimate")
    assert after["tokens"] < before["tokens"]
    assert after["list_price"] == before["list_price"] > 0


def test_an_estimate_names_what_would_be_left_out_and_ends_in_5(
    nexusflow: Command, service: LocalServer, folder: Path
) -> None:
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    _, aside = nexusflow(*_ask(folder), "--estimate", code=5)
    assert "left out: latin.txt: line 1 is not UTF-8" in aside
    shown, _ = nexusflow(*_ask(folder), "--estimate", "--json", code=5)
    assert json.loads(shown)["left_out"][0]["source"] == "latin.txt"


def test_settings_measured_with_the_local_model_are_not_applied_to_the_service(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    TunedSettings(dimensions=64, local_model="minilm").save(file := tmp_path / "tuned.json")
    applied = ["index", str(folder), "--settings", str(file), "--estimate"]
    assert "measured with the local model" in nexusflow.sentence(*applied, code=2)
    nexusflow(*applied, "--local")


def test_without_a_terminal_nothing_is_paid_unless_that_is_confirmed(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    asked = [*_ask(folder)[:-1], f"--output={tmp_path / 'tuned.json'}"]
    assert "--yes or --budget" in nexusflow.sentence(*asked, code=2)
    assert service.stats.requests == 0
    nexusflow(*asked, "--budget", "1000000 tokens")
    assert service.stats.requests


def test_a_second_run_pays_nothing(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    output = f"--output={tmp_path / 'tuned.json'}"
    first = nexusflow.json(*_ask(folder), output)
    service.reset_stats()
    again = nexusflow.json(*_ask(folder), output)
    assert (again["tokens"], service.stats.requests) == (0, 0)
    assert again["choice"] == first["choice"]
    assert again["plan"]["tokens"] < first["plan"]["tokens"]


def test_a_file_that_is_left_out_is_named_without_escapes_and_in_json(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    (folder / "a\x1b[31mb.md").write_bytes(b"\xff\xfe not UTF-8")
    _, told = nexusflow(*_ask(folder), f"--output={tmp_path / 't.json'}", code=5)
    assert "left out: a\\x1b[31mb.md: " in told
    assert "\x1b[31m" not in told
    found, _ = nexusflow(*_ask(folder), f"--output={tmp_path / 't.json'}", "--json", code=5)
    (left_out,) = json.loads(found)["left_out"]
    assert left_out["source"] == "a\x1b[31mb.md"


@pytest.mark.parametrize("failing", ["save", "page"])
def test_a_full_disk_does_not_lose_the_result(
    failing: str,
    nexusflow: Command,
    service: LocalServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, page = tmp_path / "tuned.json", tmp_path / "page.html"

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(page))

    if failing == "save":
        monkeypatch.setattr(TunedSettings, "save", fail)
    else:
        monkeypatch.setattr("nexusflow_integrations.tune.page.write_page", fail)
    said, problem = nexusflow(*_ask(folder), f"--output={output}", f"--page={page}", code=1)
    assert problem.rstrip().endswith("page.html: No space left on device")
    assert "The questions are too few" in " ".join(said.split())
    assert ("Written to" in said) is output.exists() is (failing == "page")
    found, _ = nexusflow(*_ask(folder), f"--output={output}", f"--page={page}", "--json", code=1)
    assert json.loads(found)["path"] == (str(output) if failing == "page" else None)


def test_pages_of_tune_and_report_in_the_folder_are_not_texts(
    nexusflow: Command, service: LocalServer, folder: Path
) -> None:
    ask = *_ask(folder), f"--output={folder / 'tuned.json'}"
    first = nexusflow.json(*ask, f"--page={folder / 'tuned.html'}")
    nexusflow("index", str(folder))
    nexusflow("report", "-o", str(folder / "report.html"))
    again = nexusflow.json(*ask)
    assert again["plan"]["documents"] == first["plan"]["documents"] == 6
    said, noted = nexusflow("index", str(folder))
    assert "2 pages of report or tune skipped" in " ".join(f"{said} {noted}".split()), (said, noted)
    (folder / "other.html").write_text("<p>This page is about badgers that dig.</p>")
    assert nexusflow.json(*ask)["plan"]["documents"] == 7


def test_the_table_names_every_measure_and_the_file(
    nexusflow: Command,
    service: LocalServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    said, _ = nexusflow(*_ask(folder), f"--output={tmp_path / 'tuned.json'}")
    plan, _, table = said.partition("Measured")
    assert "Plan" in plan
    for word in ("nDCG@10", "recall@5", "hit@1", "tokens", "Choice", "Written to"):
        assert word in table, word
    own, _, others = table.partition("other lengths:")
    assert "keywords, 400 characters" not in own
    assert "keywords, 400 characters" in others


def test_every_file_that_was_written_is_named(
    nexusflow: Command,
    service: LocalServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    monkeypatch.chdir(tmp_path)
    said, _ = nexusflow(*_ask(folder))
    assert "--page and --json show all." in said
    assert [line.strip() for line in said.splitlines()][-1] == "Written to tuned.json."
    said, _ = nexusflow(*_ask(folder), "--page=p.html", "--plot=p.svg")
    assert "--page" not in said
    assert "The page shows all." in said
    assert [line.strip() for line in said.splitlines()][-3:] == [
        "Written to tuned.json.",
        "Page written to p.html.",
        "Plot written to p.svg.",
    ]


@pytest.mark.parametrize("columns", ["60", "80", "130", "180"])
def test_no_interval_is_broken(
    nexusflow: Command,
    service: LocalServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    said, _ = nexusflow(*_ask(folder), f"--output={tmp_path / 'tuned.json'}")
    table = said.partition("Measured")[2].partition("Choice")[0]
    assert table.count("[") > 5
    whole = re.findall(r"\[[+-]\d+\.\d, [+-]\d+\.\d\]", table)
    assert len(whole) == table.count("["), table


def test_the_settings_that_the_budget_did_not_allow_are_named(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    output = f"--output={tmp_path / 'tuned.json'}"
    plan = nexusflow.json(*_ask(folder), output, "--estimate")
    most = plan["tokens"] * 65 // 100
    said, _ = nexusflow(*_ask(folder), output, f"--budget={most} tokens", code=5)
    assert "Not tried: " in said
    assert service.stats.tokens <= most


def test_a_terminal_shows_what_is_waited_for(
    nexusflow: Command,
    service: LocalServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []

    @contextmanager
    def waiting(_: Screen, what: str) -> Iterator[None]:
        shown.append(what)
        yield

    monkeypatch.setattr(Screen, "waiting", waiting)
    nexusflow(*_ask(folder), "--estimate", "-o", str(tmp_path / "tuned.json"))
    nexusflow("doctor")
    assert shown == [f"reading {folder} …", "planning …", "checking …"]


def test_a_line_says_how_many_texts_are_embedded(
    nexusflow: Command,
    service: LocalServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    @contextmanager
    def reporting(_: Screen, line: Callable[[], str]) -> Iterator[None]:
        yield
        said.append(line())

    monkeypatch.setattr(Screen, "reporting", reporting)
    nexusflow(*_ask(folder), "-o", str(tmp_path / "tuned.json"))
    assert re.fullmatch(r"embedding: (\d+)/\1 (passages|questions)", said[-1]), said


def test_the_rows_of_jsonl_are_measured(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    file, asked = tmp_path / "faq.jsonl", tmp_path / "asked.jsonl"
    file.write_text("".join(f'{{"q": "{n}?", "a": ["{n}.", "Yes."]}}\n' for n in range(9)))
    asked.write_text(
        '{"question": "5", "source": "faq.jsonl:6"}\n{"question": "7", "quote": "a: 7., Yes."}\n'
    )
    found = nexusflow.json("tune", str(file), "-q", str(asked), "--estimate")
    assert (found["documents"], found["questions"]) == (9, 2)


def test_errors_are_raised_before_anything_is_sent(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('\n{"question": "What?", "source": "9.md"}')
    for arguments, said in (
        (("tune", str(tmp_path / "none")), "there is no file or folder"),
        (("tune", str(folder), "-q", str(tmp_path / "none")), "does not exist"),
        (
            ("tune", str(folder), "-q", str(bad)),
            "bad.jsonl, line 2 ('What?'): there is no document",
        ),
        ((*_ask(folder), "-o", str(tmp_path / "no" / "x")), "does not exist"),
        ((*_ask(folder), "--budget", "much"), "is not a budget"),
        ((*_ask(folder), "--budget", "3 tokens"), "the first stage needs about"),
    ):
        code = 1 if said == "the first stage needs about" else 2
        assert said in nexusflow.sentence(*arguments, code=code)
    assert service.stats.requests == 0


def test_an_index_is_made_and_asked_with_the_settings_of_the_file(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    file, store = tmp_path / "tuned.json", f"--store={tmp_path / 'store'}"
    TunedSettings(dimensions=64, passage_characters=200, query_instruction="ask: ").save(file)
    usual = nexusflow.json("index", str(folder), store)
    tuned = nexusflow.json("index", str(folder), store, "--settings", str(file))
    assert tuned["index"] != usual["index"], "vectors of other settings are kept apart"
    assert tuned["added"] > usual["added"], "shorter passages"
    again = nexusflow.json("index", str(folder), store, "--settings", str(file))
    assert (again["index"], again["added"]) == (tuned["index"], 0)
    service.reset_stats()
    found = nexusflow.json("search", "who sleeps?", store, "--index", tuned["index"])
    assert found["endpoint"]["dimensions"] == 64
    assert service.stats.tokens > len("who sleeps?") // 4, "the instruction is sent, too"
    assert all(len(item["text"]) <= 200 for item in found["frameworks"]["chroma"]["passages"])


def test_doctor_and_report_use_the_settings_of_the_index(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    file, store = tmp_path / "tuned.json", f"--store={tmp_path / 'store'}"
    questions = tmp_path / "questions.txt"
    questions.write_text("who sleeps?\n")
    TunedSettings(dimensions=64, query_instruction="ask: ", document_instruction="text: ").save(
        file
    )
    nexusflow("index", str(folder), store, "--settings", str(file))
    (found,) = [
        item for item in nexusflow.json("doctor", store)["checks"] if item["name"] == "Index"
    ]
    assert found["ok"], found["text"]
    assert found["text"].endswith("and the service returns the same vectors")
    service.reset_stats()
    nexusflow("report", store, "-q", str(questions), "-o", str(tmp_path / "report.html"))
    assert "ask: who sleeps?" in service.stats.received


def test_settings_and_a_size_cannot_be_combined(
    nexusflow: Command, service: LocalServer, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tuned.json"
    TunedSettings(dimensions=64).save(file)
    arguments = ("index", str(folder), "--settings", str(file), "--dimensions", "128")
    assert "leave out --dimensions" in nexusflow.sentence(*arguments, code=2)
    assert service.stats.requests == 0


def test_a_collection_opens_with_the_settings_of_the_file(
    service: LocalServer, tmp_path: Path
) -> None:
    file = tmp_path / "tuned.json"
    TunedSettings(dimensions=64).save(file)
    collection = open_collection(chromadb.EphemeralClient(), "tuned-by-file", settings=file)
    collection.add(ids=["a"], documents=["one text"])
    assert np.shape(collection.get(include=["embeddings"])["embeddings"]) == (1, 64)
    with pytest.raises(ConfigurationError, match="leave out embedding_function"):
        open_collection(
            chromadb.EphemeralClient(),
            "tuned-by-file",
            NexusFlowEmbeddingFunction(dimensions=64),
            settings=file,
        )
