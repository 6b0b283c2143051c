"""A chat model writes questions: which answers count, and what is paid for."""

from __future__ import annotations

import codecs
import json
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ir_measures", reason="comes with the extra `tune`")
pytest.importorskip("openai", reason="comes with the extra `chat`")

from nexusflow_integrations import Budget, NexusFlow
from nexusflow_integrations.errors import BudgetExceededError, ConfigurationError
from nexusflow_integrations.tune import (
    Answer,
    ChatError,
    ChatModel,
    ChatPrice,
    Document,
    Question,
    Tuning,
    read_questions,
    written,
)
from nexusflow_integrations.tune.written import MOST_WRITTEN, Asked, parsed, question_of, sample
from tests.rag.chat_server import ChatServer

pytestmark = pytest.mark.timeout(300)

KEY = "sk-air-very-secret"
_ANIMALS = ("panda", "otter", "heron", "badger", "lynx", "viper", "stork", "mole")


def _documents() -> dict[str, str]:
    filler = "Nobody knows how many of them there are, and counting takes long. " * 3
    return {
        f"{animal}.md": f"# Animals\n\nThe {animal} sleeps in a hollow. {filler}"
        for animal in _ANIMALS
    }


def _reply(body: dict[str, Any]) -> str:
    passage = body["messages"][1]["content"]
    quote = next(line for line in passage.split("\n\n") if line.startswith("The"))
    quote = quote.partition(".")[0] + "."
    return json.dumps({"question": f"Where does a {quote.split()[1]} rest?", "quote": quote})


@pytest.fixture(scope="module")
def _server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


@pytest.fixture
def server(_server: ChatServer) -> ChatServer:
    _server.reset()
    _server.reply = _reply
    return _server


def _chat(server: ChatServer, **settings: Any) -> ChatModel:
    return ChatModel("chat-model", KEY, server.base_url, **settings)


def _tuning(server: ChatServer, chat: ChatModel | None = None, **settings: Any) -> Tuning:
    client = NexusFlow(KEY, base_url=server.base_url)
    few: dict[str, Any] = {"sizes": [64], "lengths": [], "overlaps": [], "headings": False}
    few |= {"query_instructions": [], "storages": ["float32"], "hybrid": False}
    return Tuning(
        _documents(), client=client, chat=_chat(server) if chat is None else chat, **few, **settings
    )


# -- what an answer is worth ---------------------------------------------------------------------

_WANTED = ("Where does it sleep?", "In a hollow.")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"question": "Where does it sleep?", "quote": "In a hollow."}', _WANTED),
        ('```json\n{"question": "Where does it sleep?", "quote": "In a hollow."}\n```', _WANTED),
        ('Sure! {"quote": "In a hollow.", "question": "Where does it sleep?"} Good luck!', _WANTED),
        (
            '<think>Say {"question": "no"}?\nHm?</think>{"question": "Where does it sleep?",'
            ' "quote": "In a hollow."}',
            _WANTED,
        ),
        ('{"question": "Is {x} a set?", "quote": 7}', ("Is {x} a set?", "")),
        ("Where does it sleep?", ("Where does it sleep?", "")),
        ('**Question:** "Where does it sleep?"', ("Where does it sleep?", "")),
        ("问题：它睡在哪里？", ("它睡在哪里？", "")),
        ("Here it is:\n\n- Where does it sleep?\n", ("Where does it sleep?", "")),
        ("", None),
        ("I cannot help with that.", None),
        ("Who sleeps?\nWhere does it sleep?", None),
        ('{"question": ""}', None),
        ('{"question": "' + "long " * 60 + '?"}', None),
        ('{"question": ["Where?"]}', None),
        ('{"question": "Where does it', None),
        ("{" * 5000, None),
        ("?", None),
        ("<think>Where does it sleep?", None),
        ('{"question": "Where does it sleep?', None),
    ],
)
def test_a_question_is_found_in_any_form_of_answer(
    answer: str, expected: tuple[str, str] | None
) -> None:
    assert parsed(answer) == expected


_PASSAGE = "The panda sleeps in a\nhollow of an old tree. It eats bamboo and fruit."


@pytest.mark.parametrize(
    ("quote", "expected"),
    [
        ("It eats bamboo and fruit.", Answer("a.md", quotes=("It eats bamboo and fruit.",))),
        ("eats   bamboo and\nfruit", Answer("a.md", quotes=("eats bamboo and fruit",))),
        ("It eats bamboo and a fruit", Answer("a.md", quotes=("It eats bamboo and fruit.",))),
        ("Pandas live in China.", Answer("a.md", line=3)),
        ("Animals", Answer("a.md", line=3)),
        ("", Answer("a.md", line=3)),
    ],
)
def test_the_sentence_quoted_or_else_the_line_is_what_answers(quote: str, expected: Answer) -> None:
    asked = Asked("a.md", 3, f"Animals > Bears\n\n{_PASSAGE}")
    answer = json.dumps({"question": "What do bears eat?", "quote": quote})
    found = question_of(asked, answer, [f"# Animals\n\n{_PASSAGE}"])
    assert found == Question("What do bears eat?", (expected,))
    if expected.line:
        assert question_of(asked, answer, [_PASSAGE, "another"]) is None


def test_a_sentence_copied_from_the_passage_is_not_a_question() -> None:
    asked = Asked("a.md", 3, _PASSAGE)
    assert question_of(asked, '{"question": "the panda sleeps in a hollow"}', [_PASSAGE]) is None


def test_the_same_passages_are_asked_about_each_time_and_from_all_documents() -> None:
    documents = [Document(name, text) for name, text in _documents().items()]
    few = sample(documents, 5)
    assert len(few) == 5
    assert few == sample(documents, 5)
    assert {item.key for item in few} <= {item.key for item in sample(documents, 7)}
    assert len({item.source for item in few}) == 5
    assert sample([Document("a.md", "# Heading\n\nShort. Text.")], 5) == []


# -- a run ---------------------------------------------------------------------------------------


def test_the_plan_names_the_calls_and_the_run_counts_what_the_model_said(
    server: ChatServer,
) -> None:
    tuning = _tuning(server, _chat(server, price=ChatPrice(1, 2)))
    plan = tuning.plan()
    assert not server.asked
    assert plan.chat is not None
    assert (plan.questions, plan.chat.calls, plan.made) == (8, 8, False)
    assert plan.chat.most_written == 8 * MOST_WRITTEN
    assert plan.chat.cost == pytest.approx((plan.chat.sent + 2 * 8 * MOST_WRITTEN) / 1e6)
    result = tuning.run()
    assert len(server.asked) == len(result.questions) == 8
    assert {body["max_tokens"] for body in server.asked} == {MOST_WRITTEN}
    assert result.questions[0] == Question(
        "Where does a panda rest?", (Answer("panda.md", quotes=("The panda sleeps in a hollow.",)),)
    )
    chat = result.chat
    assert chat is not None
    assert (chat.calls, chat.sent, chat.written, chat.unknown) == (8, 2400, 320, 0)
    assert chat.cost == pytest.approx((2400 + 2 * 320) / 1e6)
    assert any("written by chat-model" in note for note in result.notes())
    assert result.predicted_tokens <= plan.tokens
    tuning.run()
    assert len(server.asked) == 8, "once each"


def test_progress_says_how_many_questions_are_written(server: ChatServer) -> None:
    said: list[str] = []

    def reply(body: dict[str, Any]) -> str:
        said.append(tuning._doing)
        return _reply(body)

    server.reply = reply
    tuning = _tuning(server)
    tuning.run()
    assert said[0] == "writing: 0/8 questions"
    assert any(re.fullmatch("writing: [1-7]/8 questions", line) for line in said)
    assert tuning._doing.startswith("embedding: ")


def test_tokens_that_no_response_reports_are_unknown(server: ChatServer) -> None:
    server.usage = None
    result = _tuning(server, _chat(server, price=ChatPrice(1, 2))).run()
    found = result.as_json()["chat"]
    assert (found["calls"], found["sent_tokens"], found["price"]) == (8, None, None)


def test_answers_without_a_question_are_counted_and_the_rest_used(server: ChatServer) -> None:
    server.reply = lambda body: "Sorry." if "otter" in str(body["messages"]) else _reply(body)
    result = _tuning(server).run()
    assert len(result.questions) == 7
    assert result.chat is not None
    assert (result.chat.calls, result.chat.useless) == (8, 1)
    assert any("1 of 8 answers" in note for note in result.notes())


def test_a_model_that_writes_no_question_is_an_error(server: ChatServer) -> None:
    server.reply = lambda body: f"I am {KEY}."
    with pytest.raises(ChatError, match=r"wrote no usable question in \d+ answers") as raised:
        _tuning(server).run()
    assert KEY not in str(raised.value)


def test_a_model_that_refuses_is_an_error_without_the_key(server: ChatServer) -> None:
    server.status = 401
    with pytest.raises(ChatError, match="did not answer") as raised:
        _tuning(server).run()
    assert KEY not in str(raised.value)
    assert raised.value.__cause__ is None
    assert KEY not in repr(_chat(server))


def test_a_budget_holds_for_the_model_and_the_vectors_together(server: ChatServer) -> None:
    whole = _tuning(server).run()
    assert whole.chat is not None
    chat = whole.chat.sent + whole.chat.written
    plan = _tuning(server).plan().tokens
    server.asked.clear()
    # Enough for three answers; each may take far more, so the last of them is not begun.
    budget = Budget(tokens=plan + 3 * chat // 8 + 1500)
    result = _tuning(server, budget=budget).run()
    assert result.chat is not None
    spent = result.chat.sent + result.chat.written + result.usage.tokens
    assert spent <= (budget.tokens or 0)
    assert 0 < len(server.asked) == len(result.questions) < 8
    assert result.unwritten == 8 - len(result.questions)
    assert any("was too small to write" in note for note in result.notes())

    server.asked.clear()
    with pytest.raises(BudgetExceededError, match="nothing was sent"):
        _tuning(server, budget=Budget(tokens=plan)).run()
    assert not server.asked


def test_a_budget_in_money_needs_the_price_of_the_model(server: ChatServer) -> None:
    with pytest.raises(ConfigurationError, match="--chat-price"):
        _tuning(server, budget=Budget(money=1))
    price = ChatPrice(1, 2)
    result = _tuning(server, _chat(server, price=price), budget=Budget(money=0.01)).run()
    assert result.chat is not None
    assert result.chat.cost + result.usage.cost <= 0.01


def test_questions_of_a_run_that_failed_are_not_paid_for_again(
    server: ChatServer, tmp_path: Path
) -> None:
    file = tmp_path / "written.jsonl"

    def fail(body: dict[str, Any]) -> str:
        server.status = 401 if len(server.asked) >= 4 else 200
        return _reply(body)

    server.reply = fail
    with pytest.raises(ChatError):
        _tuning(server, _chat(server, file=file)).run()
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert kept
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())  # an editor may add this
    with file.open("a") as broken:
        broken.write('{"question": "Where')  # a killed process may leave this

    server.asked.clear()
    server.status, server.reply = 200, _reply
    again = _tuning(server, _chat(server, file=file))
    plan = again.plan()
    assert plan.chat is not None
    assert plan.chat.calls == 8 - len(kept)
    result = again.run()
    assert len(server.asked) == 8 - len(kept)
    assert len(result.questions) == 8
    assert sorted(map(str, read_questions(file, list(_documents())))) == sorted(
        map(str, result.questions)
    ), "the file is one of questions"

    server.asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "_make_ready", lambda _: pytest.fail("written to for nothing"))
        _tuning(server, _chat(server, file=file)).run()
    assert not server.asked
    other = ChatModel("another", KEY, server.base_url, file=file)
    _tuning(server, other).run()
    assert len(server.asked) == 8, "another model's questions are its own"


def test_ctrl_c_does_not_wait_for_the_answers_of_the_model(server: ChatServer) -> None:
    go_on, waited = threading.Event(), []

    def hang(body: dict[str, Any]) -> str:
        if not waited:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        waited.append(go_on.wait(10))
        return _reply(body)

    server.reply = hang
    try:
        with pytest.raises(KeyboardInterrupt):
            _tuning(server).run()
        assert not waited
    finally:
        go_on.set()


@pytest.mark.timeout(60)
def test_a_thread_that_ends_with_an_exit_ends_the_run(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(written, "question_of", leave)
    with pytest.raises(SystemExit):
        _tuning(server).run()


def test_questions_that_a_user_corrected_are_used_or_refused_with_their_line(
    server: ChatServer, tmp_path: Path
) -> None:
    file = tmp_path / "written.jsonl"
    _tuning(server, _chat(server, file=file)).run()
    server.asked.clear()
    first, *others = map(json.loads, file.read_text().splitlines())

    def correct(**fields: object) -> Tuning:
        lines = [first | fields, *others]
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return _tuning(server, _chat(server, file=file))

    quotes = [first["quote"], "Nobody knows how many of them there are,"]
    both = correct(quote=quotes).run().questions
    assert ([Answer(first["source"], quotes=(quote,)) for quote in quotes]) in [
        [*question.answers] for question in both
    ]
    assert not server.asked
    with pytest.raises(ConfigurationError, match=r"written.jsonl, line 1: .* 'quote'"):
        correct(quote=5)
    with pytest.raises(ConfigurationError, match=r"written.jsonl, line 1 .*: no document contains"):
        correct(quote="Not a sentence of it.")
    assert not server.asked
    for blank in (5, " "):
        assert len(correct(question=blank).run().questions) == 8
    assert len(server.asked) == 2, "a line without a question is asked for again"


def test_a_file_that_cannot_be_created_is_named_before_anything_is_paid_for(
    server: ChatServer, tmp_path: Path
) -> None:
    file = tmp_path / "missing" / "written.jsonl"
    with pytest.raises(FileNotFoundError) as caught:
        _tuning(server, _chat(server, file=file)).run()
    assert caught.value.filename == str(file)
    assert not server.asked


def test_questions_that_cannot_be_kept_are_not_blamed_on_the_model(
    server: ChatServer, tmp_path: Path
) -> None:
    file = tmp_path / "written.jsonl"

    def replace_the_file(body: dict[str, Any]) -> str:
        if len(server.asked) >= 5 and file.is_file():
            file.unlink()
            file.mkdir()
        return _reply(body)

    server.reply = replace_the_file
    with pytest.raises(IsADirectoryError) as caught:
        _tuning(server, _chat(server, file=file)).run()
    assert caught.value.filename == str(file)
    assert KEY not in "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )


def test_questions_and_a_model_that_writes_them_cannot_be_combined(server: ChatServer) -> None:
    with pytest.raises(ConfigurationError, match="chat and questions"):
        _tuning(server, questions=[Question("Who?", (Answer("otter.md"),))])


@pytest.mark.parametrize("settings", [{"questions": 0}, {"base_url": "ftp://x"}, {"model": ""}])
def test_a_wrong_value_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        ChatModel(**({"model": "m", "api_key": "k"} | settings))


def test_the_command_says_what_is_asked_and_what_it_took(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = pytest.importorskip("typer.testing").CliRunner()
    from nexusflow_integrations.cli.app import app

    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    for name, text in _documents().items():
        (tmp_path / name).write_text(text)
    output = tmp_path / "out.json"
    tune = ["tune", str(tmp_path), "--chat-model", "chat-model", "-o", str(output), "--yes"]

    shown = runner.invoke(app, [*tune, "--estimate"])
    assert shown.exit_code == 0, shown.output
    assert "chat-model: 8 calls" in shown.stdout
    assert "price not known" in shown.stdout
    assert not server.asked
    assert not output.with_suffix(".questions.jsonl").exists()

    unpriced = runner.invoke(app, [*tune, "--estimate", "--json"])
    assert json.loads(unpriced.stdout)["chat"]["most_price"] is None
    priced = runner.invoke(app, [*tune, "--estimate", "--json", "--chat-price", "¥1 / ¥2.5"])
    assert json.loads(priced.stdout)["chat"]["most_price"] > 8 * MOST_WRITTEN * 2.5e-6

    shown = runner.invoke(app, tune)
    assert shown.exit_code == 0, shown.output
    assert "8 calls, 2,400 tokens sent and 320 written, price not known" in shown.stdout
    assert KEY not in shown.output
    assert len(read_questions(output.with_suffix(".questions.jsonl"), list(_documents()))) == 8

    again = json.loads(runner.invoke(app, [*tune, "--json"]).stdout)
    assert (again["chat"]["calls"], again["tokens"]) == (0, 0)

    questions = str(output.with_suffix(".questions.jsonl"))
    for more, code in ((["-q", questions], 2), (["--local"], 2), (["--chat-price", "much"], 2)):
        assert runner.invoke(app, [*tune, *more]).exit_code == code
