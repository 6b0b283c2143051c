"""Each command prints, pays, refuses and exits as documented."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from nexusflow_integrations import __version__
from nexusflow_integrations.cli.app import LocalModel
from nexusflow_integrations.cli.ask_screen import AskScreen
from nexusflow_integrations.cli.doctor import Check, Findings, show
from nexusflow_integrations.cli.screen import Screen
from nexusflow_integrations.local import MODELS, LocalServer

from .conftest import Command

COMMANDS = (
    *("demo", "index", "indexes", "ask", "search", "embed", "report", "cache", "serve", "doctor"),
    "tune",
)
ALL = {"langchain", "llama-index", "chroma"}
QUESTION = ("--question", "Who eats bamboo?")

pytestmark = pytest.mark.timeout(600)


# -- help ----------------------------------------------------------------------------------------


def test_help_names_every_command_and_the_exit_codes(nexusflow: Command) -> None:
    shown, _ = nexusflow("--help")
    for command in COMMANDS:
        assert f" {command} " in shown
    assert "130 stopped by Ctrl-C" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        *("cache info", "cache prune", "cache clear"),
        *("indexes list", "indexes show", "indexes remove"),
    ],
)
def test_every_command_has_help_that_fits_80_columns(nexusflow: Command, command: str) -> None:
    shown, _ = nexusflow(*command.split(), "--help")
    assert "Usage:" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_version(nexusflow: Command) -> None:
    assert nexusflow("--version")[0].strip() == f"nexusflow-integrations {__version__}"


def test_serve_offers_every_local_model() -> None:
    assert {model.value for model in LocalModel} == set(MODELS)


# -- demo ----------------------------------------------------------------------------------------


def test_demo_shows_question_passages_answer_agreement_and_cost(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    shown, aside = nexusflow("demo", "-c", str(zoo), *QUESTION)
    assert "Who eats bamboo?" in shown
    assert "[1] 0." in shown
    assert "panda.md:3" in shown
    assert "extracted from the passages; no chat model used" in shown
    assert "“The red panda eats bamboo and sleeps in trees.” [1]" in shown
    assert "The three agree: the same passages with the same scores." in shown
    assert f"{service.stats.tokens} tokens in {service.stats.requests} requests" in shown
    assert "¥0.5 per million tokens" in shown
    assert "3 passages written" in aside
    assert max(map(len, shown.splitlines())) <= 80


def test_what_to_try_next_names_the_index_where_another_one_would_be_used(
    nexusflow: Command, service: LocalServer, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (zoo.parent / "notes.txt").write_text("Rain on Monday.")
    monkeypatch.chdir(zoo)
    assert 'nexusflow ask "…"  ' in nexusflow("index", ".")[0]
    shown, _ = nexusflow("demo", "--corpus", "stdlib", "--limit", "3", "-f", "chroma")
    assert re.search(r'nexusflow ask ".+" --index stdlib ', shown)
    shown, _ = nexusflow("index", "../notes.txt")
    (name,) = re.findall(r'nexusflow ask "…" --index (\S+)', shown)
    assert nexusflow.json("ask", "rain", "--index", name)["index"].startswith("notes")


def test_demo_pays_for_each_text_once_for_all_three_frameworks(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    nexusflow("demo", "-c", str(zoo), *QUESTION)
    assert service.stats.duplicates == {}


def test_a_second_run_pays_nothing(nexusflow: Command, service: LocalServer, zoo: Path) -> None:
    nexusflow("demo", "-c", str(zoo), *QUESTION)
    service.reset_stats()
    again = nexusflow.json("demo", "-c", str(zoo), *QUESTION)
    assert service.stats.requests == 0
    assert again["cost"]["tokens"] == 0
    assert again["indexed"]["added"] == 0
    assert again["indexed"]["unchanged"] == 3


def test_fresh_builds_a_new_index(nexusflow: Command, service: LocalServer, zoo: Path) -> None:
    nexusflow("demo", "-c", str(zoo), "-f", "chroma")
    again = nexusflow.json("demo", "-c", str(zoo), "-f", "chroma", "--fresh")
    assert again["indexed"]["added"] == 3


def test_demo_json_says_the_same_in_one_object(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    found = nexusflow.json("demo", "-c", str(zoo), *QUESTION, "--bm25", "-k", "2")
    assert found["question"] == "Who eats bamboo?"
    assert set(found["frameworks"]) == ALL
    assert found["agree"] is True
    assert found["endpoint"]["embedded"] is False
    assert found["endpoint"]["model"] == "text-embedding-v4"
    for framework in found["frameworks"].values():
        assert len(framework["passages"]) == 2
        assert set(framework["passages"][0]) == {"text", "source", "url", "score"}
    assert found["bm25"][0]["source"] == "panda.md:3"
    (answer,) = found["answers"]
    assert answer["kind"] == "quoted"
    assert answer["quotes"][0]["passage"] == 1
    assert found["cost"]["tokens"] == service.stats.tokens
    assert found["cost"]["requests"] == service.stats.requests
    assert found["cost"]["list_price"] == pytest.approx(service.stats.tokens * 0.5 / 1e6)
    assert found["cost"]["paid"] is True


def test_one_framework_imports_no_other(
    nexusflow: Command, service: LocalServer, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("llama_index.core", "langchain_chroma", "nexusflow_integrations.llama_index"):
        monkeypatch.setitem(sys.modules, module, None)
    found = nexusflow.json("demo", "-c", str(zoo), "-f", "chroma")
    assert set(found["frameworks"]) == {"chroma"}


def test_bm25_is_shown_beside_our_results(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    shown, _ = nexusflow("demo", "-c", str(zoo), "-f", "chroma", *QUESTION, "--bm25")
    assert "Compared with BM25" in shown
    assert (
        "Compared with BM25" not in nexusflow("demo", "-c", str(zoo), "-f", "chroma", *QUESTION)[0]
    )


def test_the_size_is_asked_for_and_has_an_index_of_its_own(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    small = nexusflow.json("demo", "-c", str(zoo), "-f", "chroma", "--dimensions", "64")
    assert small["endpoint"]["dimensions"] == 64
    assert small["index"].endswith("-64")
    plain = nexusflow.json("demo", "-c", str(zoo), "-f", "chroma")
    assert plain["index"] != small["index"]
    assert plain["indexed"]["added"] == 3


def test_evaluate_scores_the_fixed_questions_beside_bm25(
    nexusflow: Command, service: LocalServer
) -> None:
    found = nexusflow.json("demo", "--evaluate", "-f", "chroma")
    assert set(found["hit_rates"]) == {"BM25", "Chroma"}
    rates = found["hit_rates"]["Chroma"]["en"]
    assert 0 < rates["hit@1"] <= rates["hit@3"] <= rates["hit@5"] < 1  # the encoder is no model
    assert 0.4 < found["hit_rates"]["BM25"]["en"]["hit@3"] < 0.7
    shown, _ = nexusflow("demo", "--evaluate", "-f", "chroma")
    assert "Hit rates  hit@1, hit@3, hit@5: a correct passage among the first 1, 3, 5" in shown
    assert "English (26)" in shown
    assert "Chinese (8)" in shown


# -- a chat model --------------------------------------------------------------------------------


def test_a_chat_model_without_a_key_is_wrong_usage(nexusflow: Command) -> None:
    said = nexusflow.sentence("demo", "--chat-model", "qwen3.5-plus", code=2)
    assert said == "the local server has no chat model: set NEXUSFLOW_API_KEY for one"


# -- index, ask, search --------------------------------------------------------------------------


def test_ask_and_search_use_the_index_that_index_made(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    shown, _ = nexusflow("index", str(zoo))
    assert "3 passages of" in shown
    answered, _ = nexusflow("ask", "Who eats fish?")
    assert "“The otter eats fish.” [1]" in answered
    found = nexusflow.json("search", "Who eats fish?", "-k", "1")
    assert found["frameworks"]["chroma"]["passages"][0]["source"] == "otter.txt:1"
    assert "answers" not in found


def test_a_hit_is_shown_with_its_headings_apart_and_a_quote_without_marks(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    (tmp_path / "leave.md").write_text("# Leave\n\n**Every employee** has [28 days](b.md).\n")
    nexusflow("index", str(tmp_path / "leave.md"))
    shown, _ = nexusflow("ask", "How many days has an employee?")
    assert "Leave | **Every employee** has [28 days](b.md)." in shown
    assert "“Every employee has 28 days.” [1]" in shown
    (answer,) = nexusflow.json("ask", "How many days has an employee?")["answers"]
    assert answer["quotes"][0]["text"] == "**Every employee** has [28 days](b.md)."


def test_ask_takes_the_index_that_was_used_last_or_the_one_named(
    nexusflow: Command, service: LocalServer, zoo: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("Rain on Monday.")
    nexusflow("index", str(zoo))
    nexusflow("index", str(tmp_path / "notes.txt"))
    assert nexusflow.json("search", "x")["index"].startswith("notes-")
    assert nexusflow.json("search", "x", "--index", "zoo")["index"].startswith("zoo-")
    assert nexusflow.json("search", "x")["index"].startswith("zoo-")


def test_indexing_again_pays_only_for_what_is_new(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    nexusflow("index", str(zoo))
    (zoo / "finch.txt").write_text("The finch eats seeds.")
    (zoo / "otter.txt").unlink()
    service.reset_stats()
    nexusflow("index", str(zoo))
    assert service.stats.received[-1] == "The finch eats seeds."
    assert service.stats.texts <= 1 + 3  # up to three are compared with what is stored
    sources = nexusflow.json("search", "Who eats fish?")["frameworks"]["chroma"]["passages"]
    assert {item["source"] for item in sources} == {"finch.txt:1", "panda.md:3", "熊猫.md:1"}


def test_an_index_can_be_asked_through_each_framework(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    nexusflow("index", str(zoo))
    for framework in ALL:
        found = nexusflow.json("search", "Who eats fish?", "-f", framework)
        assert set(found["frameworks"]) == {framework}
    assert nexusflow.json("search", "Who eats fish?", "-f", "all")["agree"] is True


def test_bm25_beside_a_search_reads_the_index_and_not_the_folder(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    nexusflow("index", str(zoo), "-f", "llama-index")
    for file in zoo.iterdir():
        file.unlink()
    found = nexusflow.json("search", "fish", "--bm25")
    assert [item["source"] for item in found["bm25"]] == ["otter.txt:1"]


def test_a_hybrid_search_also_finds_by_keywords(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    (zoo / "form.txt").write_text("Form QX-7731 is for visitors.")
    nexusflow("index", str(zoo))

    def hits(*options: str) -> tuple[bool, list[tuple[str, float]]]:
        found = nexusflow.json("search", "form QX-7731 for visitors", *options)
        passages = found["frameworks"]["chroma"]["passages"]
        return found["hybrid"], [(item["source"], item["score"]) for item in passages]

    assert hits()[0] is False
    on, found = hits("--hybrid")
    assert on
    assert found[0] == ("form.txt:1", 1.0)
    assert all(0 < score < 1 for _, score in found[1:])
    service.reset_stats()
    nexusflow("index", str(zoo), "--hybrid")
    assert service.stats.texts == 0
    for _ in range(2):
        assert hits() == (True, found)
        assert hits("--no-hybrid")[0] is False
        nexusflow("index", str(zoo))  # follows the folder, and remembers
    answered, _ = nexusflow("ask", "form QX-7731 for visitors")
    assert "by rank in the searches by vectors and by keywords" in answered
    assert "“Form QX-7731 is for visitors.” [1]" in answered
    assert nexusflow.json("search", "form", "-f", "langchain")["hybrid"] is False
    nexusflow("index", str(zoo), "--no-hybrid")
    assert hits()[0] is False


def test_a_hybrid_search_through_another_framework_is_wrong_usage(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    nexusflow("index", str(zoo))
    said = nexusflow.sentence("search", "x", "--hybrid", "-f", "langchain", code=2)
    assert "leave out --framework" in said


# -- failures ------------------------------------------------------------------------------------


MISSING = "/no/such/thing"


@pytest.mark.parametrize(
    "arguments",
    [
        ("index", MISSING),
        ("index", MISSING, "--estimate"),
        ("demo", "-c", MISSING),
        ("tune", MISSING),
        ("embed", MISSING),
        ("embed", MISSING, "--estimate"),
        ("index", "zoo", "--settings", MISSING),
        ("tune", "zoo", "-q", MISSING),
        ("report", "-p", MISSING),
        ("report", "-q", MISSING),
        ("report", MISSING),
        ("ask", "Who?", "-i", MISSING),
        ("search", "Who?", "-i", MISSING),
        ("indexes", "show", MISSING),
        ("indexes", "remove", MISSING),
    ],
    ids=" ".join,
)
def test_an_input_that_is_not_there_ends_in_2_in_every_command(
    nexusflow: Command, zoo: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(zoo.parent)
    nexusflow(*arguments, code=2)


@pytest.mark.parametrize("command", [("index",), ("tune",), ("embed",), ("tune", "zoo", "-q")])
def test_an_input_without_text_ends_in_2_in_every_command(
    nexusflow: Command, zoo: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(zoo.parent)
    Path("a.txt").write_bytes(b"%PDF-1.7\n")
    assert "a PDF" in nexusflow.sentence(*command, "a.txt", code=2)


def test_no_index_yet(nexusflow: Command) -> None:
    assert "run `nexusflow demo`" in nexusflow.sentence("ask", "anything", code=2)


def test_an_index_of_another_name(nexusflow: Command, service: LocalServer, zoo: Path) -> None:
    nexusflow("index", str(zoo))
    assert "there is no index named 'x'" in nexusflow.sentence("ask", "y", "--index", "x", code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("demo", "--nonsense"),
        ("demo", "--framework", "haystack"),
        ("demo", "--top-k", "0"),
        ("demo", "--limit", "-1"),
        ("ask",),
        ("serve", "--model", "text-embedding-v4"),
        ("serve", "--port", "70000"),
        ("serve", "--sizes", "both"),
        ("--nonsense",),
        ("cache", "nonsense"),
        ("indexes", "show"),
    ],
)
def test_wrong_usage_ends_in_2_and_the_last_line_says_why(
    nexusflow: Command, arguments: tuple[str, ...]
) -> None:
    _, aside = nexusflow(*arguments, code=2)
    assert "Usage" in aside
    said = nexusflow.sentence(*arguments, code=2)
    assert said.startswith(("no such", "invalid value for '-", "missing argument '"))
    assert "Value error" not in said  # pydantic's words, in newer versions of Typer


def test_an_impossible_size_is_wrong_usage(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    said = nexusflow.sentence("demo", "-c", str(zoo), "--dimensions", "100", code=2)
    assert said.startswith("dimensions must be one of 2048,")


def test_evaluating_another_corpus_is_wrong_usage(nexusflow: Command, zoo: Path) -> None:
    said = nexusflow.sentence("demo", "-c", str(zoo), "--evaluate", code=2)
    assert "--corpus stdlib" in said


def test_a_url_without_a_key(nexusflow: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "https://proxy.example/v1")
    assert "NEXUSFLOW_API_KEY is not" in nexusflow.sentence("demo", code=2)


@pytest.mark.parametrize("framework", sorted(ALL))
def test_a_key_that_is_refused_ends_in_4_through_every_framework(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    framework: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-wrong-very-secret")
    said = nexusflow.sentence("index", str(zoo), "-f", framework, code=4)
    assert said.startswith("401 invalid_api_key")
    assert " in add." not in said


def test_a_key_that_goes_missing_ends_in_4(
    nexusflow: Command, service: LocalServer, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nexusflow("index", str(zoo))
    monkeypatch.delenv("NEXUSFLOW_API_KEY")
    assert "no API key" in nexusflow.sentence("ask", "Who eats fish?", code=4)


def test_a_missing_key_is_not_reported_as_a_python_error(nexusflow: Command) -> None:
    said = nexusflow.sentence("cache", "verify", code=4)
    assert said == "no API key: set the environment variable NEXUSFLOW_API_KEY"


def test_a_missing_package_ends_in_3(
    nexusflow: Command, service: LocalServer, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "chromadb", None)
    said = nexusflow.sentence("index", str(zoo), code=3)
    assert 'pip install "nexusflow-integrations[chroma]"' in said


def test_a_missing_bm25_ends_in_3_before_anything_is_embedded(
    nexusflow: Command, service: LocalServer, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "nexusflow_integrations.cli.rag.keywords", raising=False)
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    assert "pip install" in nexusflow.sentence("demo", "-c", str(zoo), "--bm25", code=3)
    assert "pip install" in nexusflow.sentence("index", str(zoo), "--hybrid", code=3)
    assert service.stats.requests == 0


def test_a_missing_chat_package_ends_in_3_before_anything_is_sent(
    nexusflow: Command, service: LocalServer, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nexusflow("index", str(zoo))
    monkeypatch.setitem(sys.modules, "openai", None)
    before = service.stats.requests
    chat = ("--chat-model", "qwen3.5-plus")
    for command in (("ask", "fish"), ("demo", "-c", str(zoo), "-f", "chroma", "--fresh")):
        shown, _ = nexusflow(*command, *chat, code=3)
        assert not shown
        said = nexusflow.sentence(*command, *chat, code=3)
        assert said.endswith('Chroma needs openai: pip install "nexusflow-integrations[chat]"')
    assert service.stats.requests == before


def test_an_unexpected_error_is_one_sentence_too(
    nexusflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setattr("nexusflow_integrations.cli.rag.corpus.load", explode)
    said = nexusflow.sentence("demo", code=1)
    assert said == "ZeroDivisionError: by nothing (NEXUSFLOW_DEBUG=1 shows where)"


def test_a_taken_port_is_one_sentence(nexusflow: Command, service: LocalServer) -> None:
    said = nexusflow.sentence("serve", "--model", "hash", "--port", str(service.port), code=1)
    assert said == (
        f"port {service.port} of 127.0.0.1 is in use: choose another port, or 0 for a free one"
    )


# -- how it looks --------------------------------------------------------------------------------


def test_colour_is_used_where_possible_and_no_color_turns_it_off(
    nexusflow: Command, service: LocalServer, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    nexusflow("index", str(zoo))
    assert "\x1b[36m" in nexusflow("search", "Who eats fish?")[0]
    monkeypatch.setenv("NO_COLOR", "1")
    shown, _ = nexusflow("search", "Who eats fish?")
    assert "otter.txt:1" in shown
    assert not any(f"\x1b[{colour}m" in shown for colour in range(30, 38))


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_nothing_is_wider_than_the_terminal(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown, _ = nexusflow("demo", "-c", str(zoo), "-f", "chroma", "--bm25")
    assert max(map(len, shown.splitlines())) <= columns


def test_names_are_whole_in_a_narrow_terminal(
    nexusflow: Command, service: LocalServer, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for name in ("panda.md", "otter.txt"):
        (zoo / name).rename(zoo / f"a-topic-with-a-long-name-{name}")
    shown, _ = nexusflow("demo", "-c", str(zoo), "-f", "chroma", *QUESTION, "--bm25")
    table = shown.partition("Compared with BM25")[2].partition("Answer")[0]
    assert "…" not in table
    assert "a-topic" in table
    monkeypatch.setenv("COLUMNS", "54")
    shown, _ = nexusflow("demo", "--evaluate", "-f", "chroma")
    table = shown.partition("Hit rates")[2]
    assert "…" not in table
    assert re.findall(r"^  (\w+) .*[01]\.\d\d *$", table, re.MULTILINE) == ["BM25", "Chroma"] * 2


def test_a_pipe_gets_whole_lines_without_padding(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS")
    folder = zoo.rename(tmp_path / ("zoo" * 30))
    nexusflow("index", str(folder))
    shown, _ = nexusflow("indexes")
    (line,) = [line for line in shown.splitlines() if "zoozoo" in line]
    (name,) = [row["name"] for row in nexusflow.json("indexes")["indexes"]]
    assert line.split()[0] == name
    assert line.endswith(folder.name)
    for command in (("ask", "fish"), ("search", "fish"), ("index", str(folder)), ("doctor",)):
        for said in nexusflow(*command):
            assert not [line for line in said.splitlines() if line != line.rstrip()]
            assert max(map(len, said.splitlines()), default=0) < 500


def test_square_brackets_of_a_text_are_shown_as_they_are(
    nexusflow: Command, service: LocalServer, zoo: Path
) -> None:
    (zoo / "code.txt").write_text("Write x[red] and [/] to paint :smile: the fence.")
    nexusflow("index", str(zoo))
    shown, _ = nexusflow("ask", "Write x[red] and [/] to paint :smile: the fence.")
    assert "Write x[red] and [/] to paint :smile: the fence." in shown


# -- doctor --------------------------------------------------------------------------------------


def test_doctor_finds_a_working_service_well(nexusflow: Command, service: LocalServer) -> None:
    found = nexusflow.json("doctor")
    assert found["healthy"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["Key"]["text"] == "NEXUSFLOW_API_KEY is set, 18 characters, begins with sk-air-"
    assert checks["Endpoint"]["text"] == f"{service.base_url}, from NEXUSFLOW_BASE_URL"
    assert checks["Vectors"]["text"] == "1024 numbers, unit length"
    assert "chromadb" in checks["Chroma"]["text"]
    assert "No problems found." in nexusflow("doctor")[0]


def test_folders_that_cannot_be_written_are_named_with_what_to_do(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (file := tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file / "cache"))
    monkeypatch.delenv("NEXUSFLOW_STORE", raising=False)
    found = json.loads(nexusflow("doctor", "--json", code=1)[0])
    checks = {check["name"]: check for check in found["checks"]}
    assert not checks["Cache"]["ok"]
    assert checks["Cache"]["text"].endswith(f"because {file} cannot be written: nothing is cached")
    assert not checks["Indexes"]["ok"]
    assert checks["Indexes"]["text"].endswith(
        f"{file} cannot be written: name another folder with --store"
    )
    _, aside = nexusflow("index", str(zoo), code=1)
    assert "cannot be written: " in aside
    assert "Not a directory; name another folder with --store" in aside


def test_doctor_tells_good_from_bad_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    checks = [Check("Key", True, "one"), Check("URL", False, "two"), Check("Proxy", None, "three")]
    show(Screen(), Findings(checks))
    stdout.flush()
    shown = stdout.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert [line.split()[:2] for line in shown.splitlines()[:3]] == [
        ["ok", "Key"],
        ["FAIL", "URL"],
        ["-", "Proxy"],
    ]


def test_doctor_ends_in_4_where_the_key_is_refused(
    nexusflow: Command, service: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-wrong-very-secret")
    shown, _ = nexusflow("doctor", code=4)
    assert "✗" in shown
    assert "401 invalid_api_key" in shown


def test_doctor_does_not_send_a_key_that_cannot_be_one(
    nexusflow: Command, service: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-very-secret\nX: 1")
    shown, _ = nexusflow("doctor", code=1)
    assert "was anything copied with the key?" in " ".join(shown.split())
    assert service.stats.requests == 0


def test_doctor_shows_a_proxy_without_its_password(
    nexusflow: Command, service: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:very-secret@proxy.example:8080")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shown, _ = nexusflow("doctor")
    assert "HTTPS_PROXY proxy.example" in shown


@pytest.mark.parametrize("command", ["embed", "index", "tune", "demo"])
def test_the_lines_of_a_help_text_are_filled(nexusflow: Command, command: str) -> None:
    shown, _ = nexusflow(command, "--help")
    about = "\n".join(line.strip() for line in shown.partition("╭─")[0].splitlines())
    *lines, _last = about.strip().split("\n\n")[-1].splitlines()
    assert lines
    assert all(len(line) > 60 for line in lines)


def test_help_names_arguments_as_the_docs_do_and_shows_no_type_for_a_switch(
    nexusflow: Command,
) -> None:
    shown, _ = nexusflow("index", "--help")
    assert "index [OPTIONS] PATH " in shown
    assert "bool" not in shown


def test_help_shows_brackets(nexusflow: Command) -> None:
    shown, _ = nexusflow("report", "--help")
    words = " ".join(shown.replace("│", " ").split())
    assert '"expected": [ids]}' in words


@pytest.mark.parametrize("word", ["When ", "什么时候"])
def test_a_long_question_is_shown_whole_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for times in range(10, 40):
        AskScreen().question(word * times)
        assert (word * times).strip() in capsys.readouterr().out


@pytest.mark.parametrize("command", ["index", "tune"])
@pytest.mark.parametrize("name", ["stdlib", "topics"])
def test_a_folder_with_the_name_of_a_sample_must_be_named_clearly(
    nexusflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    said = nexusflow.sentence(command, name, "--estimate", code=2)
    assert said.startswith(f"{name!r} is both a sample and a path in this folder: write ./{name}")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("index",), "there is no file or folder {!r}: addresses are not read; download"),
        (("index", "--estimate"), "there is no file or folder {!r}: addresses are not read"),
        (("demo", "-c"), "there is no file or folder {!r}: addresses are not read; download"),
        (("tune",), "there is no file or folder {!r}: addresses are not read; download"),
        (("embed",), "the input {!r} does not exist: addresses are not read; download"),
        (("report", "-p"), "the folder {!r} holds no Chroma collections: only folders are read"),
    ],
)
def test_an_address_in_place_of_a_path_is_shown_as_typed_and_refused(
    nexusflow: Command, command: tuple[str, ...], said: str
) -> None:
    for address in ("https://docs.python.org/3", "s3://bucket/a.txt"):
        assert nexusflow.sentence(*command, address, code=2).startswith(said.format(address))


def test_a_path_that_does_not_exist_is_shown_as_typed(nexusflow: Command) -> None:
    for path in ("./gone/", "a:/b", "https://docs.python.org/3/"):
        said = nexusflow.sentence("index", path, code=2)
        assert said.startswith(f"there is no file or folder {path!r}")
        assert ("addresses" in said) == path.startswith("https:")


@pytest.mark.parametrize(
    "command",
    [
        ("index", "my", "docs"),
        ("ask", "Who", "eats", "fish?"),
        ("search", "red", "panda"),
        ("demo", "-q", "red", "panda"),
        ("tune", "my", "docs"),
        ("embed", "my", "texts.txt"),
        ("indexes", "show", "my", "docs"),
    ],
)
def test_a_value_with_spaces_that_is_not_quoted_is_explained(
    nexusflow: Command, command: tuple[str, ...]
) -> None:
    said = nexusflow.sentence(*command, code=2)
    assert said.startswith("got unexpected extra argument")
    assert said.endswith(
        f"{command[-1]}): put quotes around a path, a question or another value if it has spaces"
    )
