"""An answer quotes its passages, or a chat model writes it from them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.usage import Price
from nexusflow_integrations.cli.rag.answer import is_close, numbered, quote, without_marks
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.rag.indexes import Index
from nexusflow_integrations.cli.rag.passages import cut
from nexusflow_integrations.cli.rag.pipeline import (
    FRAMEWORKS,
    Chat,
    ChatError,
    ChatTokens,
    Passage,
    Pipeline,
)
from nexusflow_integrations.cli.rag.questions import Question
from nexusflow_integrations.cli.rag.session import Found, Session, agree, hit_rates

from .chat_server import ChatServer

PASSAGES = [
    Passage("zoo.panda: The red panda eats bamboo.\nIt sleeps all day.", "zoo.panda", "", 0.6),
    Passage("The otter eats fish. It sleeps all day.", "zoo.otter", "", 0.5),
]
CHAT_PACKAGES = {
    "langchain": "langchain_openai",
    "llama-index": "llama_index.llms.openai_like",
    "chroma": "openai",
}


@pytest.fixture
def client(endpoint: Endpoint) -> NexusFlow:
    return NexusFlow(endpoint.api_key, base_url=endpoint.base_url)


def test_the_sentence_that_is_nearest_comes_first_with_its_passage(client: NexusFlow) -> None:
    first = quote("The otter eats fish.", PASSAGES, client)[0]
    assert (first.text, first.passage) == ("The otter eats fish.", 2)


def test_a_quote_does_not_repeat_the_name_of_its_source(client: NexusFlow) -> None:
    texts = [item.text for item in quote("The red panda eats bamboo.", PASSAGES, client)]
    assert texts[0] == "The red panda eats bamboo."


def test_a_sentence_that_stands_in_two_passages_is_quoted_once(client: NexusFlow) -> None:
    quotes = quote("It sleeps all day.", PASSAGES, client, at_most=9)
    assert [item.passage for item in quotes if item.text == "It sleeps all day."] == [1]


def test_no_more_is_quoted_than_was_asked_for_and_nothing_far_off(client: NexusFlow) -> None:
    assert len(quote("It sleeps all day.", PASSAGES, client, at_most=1)) == 1
    quotes = quote("It sleeps all day.", PASSAGES, client, at_most=9)
    assert all(item.score >= 0.6 * quotes[0].score for item in quotes)


def test_nothing_found_is_nothing_quoted_and_nothing_paid(client: NexusFlow) -> None:
    assert quote("anything?", [], client) == []
    assert client.usage.requests == 0


def test_one_short_passage_is_quoted_rather_than_nothing(client: NexusFlow) -> None:
    assert [item.text for item in quote("What?", [Passage("Yes.", "a", "", 1.0)], client)] == [
        "Yes."
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Zoo > Pandas\n\nWhat do they eat?\n\nBamboo is what they eat.",
        "Food\n\n```python\nprint('no. of pandas.')\n```\n\nBamboo is what they eat.",
        "Food\n\n| a. | b. |\n|----|----|\n| c. | d. |\n\nBamboo is what they eat.",
        "Food\n\n====  ====\n\n>>> eat('bamboo.')\n\n- Bamboo is what they eat.",
        "Food\n\nExample::\n\n    eat('bamboo.')\n\nBamboo is what they eat.",
        "食物\n\n它们吃什么？\n\nBamboo is what they eat.",
        "## Food\n.. index:: bamboo.\n\nBamboo is what they eat.",
        "Pandas > What they eat ...\n\nBamboo is what they eat.",
        "Food\n\n[All they eat](food.md).\n\n- [A](a.md), [b](b.md).\n\nBamboo is what they eat.",
    ],
)
def test_no_heading_question_table_code_or_link_alone_is_quoted(
    client: NexusFlow, text: str
) -> None:
    quotes = quote("What do they eat?", [Passage(text, "a.md:1", "", 0.5)], client)
    assert [item.text for item in quotes] == ["Bamboo is what they eat."]


def test_a_heading_without_text_is_quoted_only_if_nothing_else_can_be(client: NexusFlow) -> None:
    guide = "# Pandas\n\n## What they eat\n\n### In winter\n\n### In summer\n\nBamboo shoots.\n"
    found = [Passage(text, f"a.md:{line}", "", 0.5) for line, text in cut(guide)]
    assert [item.text for item in found] == [
        "Pandas > What they eat > In winter",
        "Pandas > What they eat > In summer\n\nBamboo shoots.",
    ]
    question = "What do pandas eat in winter?"
    assert [item.text for item in quote(question, found, client)] == ["Bamboo shoots."]
    (item,) = quote(question, found[:1], client)
    assert (item.text, item.passage) == ("Pandas > What they eat > In winter", 1)


def test_a_paragraph_marked_like_a_heading_is_quoted(client: NexusFlow) -> None:
    said = "In an emergency call 555-0199, and use the side door of the office."
    ((_, text),) = cut(f"{said}\n---\n\n### Next\n\nBring a lamp.\n")
    quotes = quote("Whom do I call?", [Passage(text, "a.md:6", "", 0.5)], client)
    assert said in [item.text for item in quotes]


def test_a_heading_that_was_cut_is_not_quoted_and_a_star_in_code_stays(client: NexusFlow) -> None:
    ((_, text),) = cut(f"# {'What the panda eats ' * 5}\n\n- It eats `2 * 3` leaves - of bamboo.")
    (found,) = quote("What does the panda eat?", [Passage(text, "a.md:3", "", 0.5)], client)
    assert found.text == "It eats `2 * 3` leaves - of bamboo."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**All numbers are in EUR.", "All numbers are in EUR."),
        ("**`x`** is **very** good.**", "`x` is very good."),
        ("Use a [shared budget](a/b.md), ![or](c.png).", "Use a shared budget, or."),
        ("中文**重点**文字。", "中文重点文字。"),
        ("`f(**more)`, 2 ** 3, 2**3 and *args", "`f(**more)`, 2 ** 3, 2**3 and *args"),
        ("See [x][1] and `[a](b)`.", "See [x][1] and `[a](b)`."),
        ("glob **/*.py, **/x and snake[0](1)", "glob **/*.py, **/x and snake[0](1)"),
    ],
)
def test_a_quote_is_shown_without_the_marks_of_markdown(text: str, shown: str) -> None:
    assert without_marks(text) == shown


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Die Frist endet am\n31. März 2027. Was dann?", "Die Frist endet am 31. März 2027."),
        ("31. März 2027 ist der letzte Tag.", "31. März 2027 ist der letzte Tag."),
        ("Schluss ist am\n31. 12. 2027 um 12 Uhr.", "Schluss ist am 31. 12. 2027 um 12 Uhr."),
        ("31. Martha hat den Schlüssel.", "Martha hat den Schlüssel."),
    ],
)
def test_the_day_of_a_date_is_not_the_number_of_a_list_item(
    client: NexusFlow, text: str, answer: str
) -> None:
    (found,) = quote("Wann endet die Frist?", [Passage(text, "a.md:1", "", 0.5)], client)
    assert found.text == answer


def test_without_sentences_the_items_of_a_list_are_quoted(client: NexusFlow) -> None:
    text = "Food\n\n- bamboo, 20 kg a day\n- two apples\n"
    quotes = quote("What do they eat?", [Passage(text, "a.md:1", "", 0.5)], client)
    assert {item.text for item in quotes} <= {"bamboo, 20 kg a day", "two apples"}
    assert quotes


@pytest.mark.parametrize(
    "text",
    [
        "FAQ\n\nWhat do they eat?",
        "Zoo > Setup\n\n```sh\npip install a-panda\n```",
        "Zoo > Setup\n\n```sh\n\npip install a-panda\n\n```\n",
        "```sh\n\npip install a-panda\n\npip install bamboo\n```",
        "Zoo\n\n    eat(bamboo)\n",
    ],
)
def test_from_questions_and_code_nothing_is_quoted(client: NexusFlow, text: str) -> None:
    assert quote("What?", [Passage(text, "a", "", 1.0)], client) == []
    assert client.usage.requests == 0


def test_no_passage_is_close_below_the_measured_score() -> None:
    far, near = Passage("a", "a", "", 0.05), Passage("b", "b", "", 0.9)
    assert is_close([near, far], "minilm-use-gated")
    assert not is_close([far], "minilm-use-gated")
    assert is_close([far], "text-embedding-v4")  # not measured
    assert not is_close([], "text-embedding-v4")
    assert Found("chroma", [far], 0.0, hybrid=True).is_close("minilm-use-gated")  # not a cosine
    assert not Found("chroma", [far], 0.0).is_close("minilm-use-gated")


def test_passages_are_numbered_as_they_are_cited() -> None:
    assert numbered(PASSAGES).startswith("[1] zoo.panda\nzoo.panda: The red panda")
    assert "\n\n[2] zoo.otter\n" in numbered(PASSAGES)


# -- a chat model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _chat_server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


@pytest.fixture
def chat_server(_chat_server: ChatServer) -> ChatServer:
    _chat_server.reset()
    return _chat_server


@pytest.fixture
def chat(chat_server: ChatServer) -> Chat:
    return Chat("qwen3.5-plus", chat_server.base_url, ApiKey("sk-air-very-secret"))


@pytest.fixture(params=FRAMEWORKS)
def pipeline(request: pytest.FixtureRequest, open_one: Callable[[str], Pipeline]) -> Pipeline:
    pytest.importorskip(CHAT_PACKAGES[request.param])
    return open_one(request.param)


def test_the_answer_comes_piece_by_piece(pipeline: Pipeline, chat: Chat) -> None:
    pieces = [piece for piece in pipeline.write("Which?", PASSAGES, chat) if piece]
    assert pieces == ["Use ", "`random.choice`", " [1]."]


def test_the_model_is_given_instructions_passages_and_question(
    pipeline: Pipeline, chat: Chat, chat_server: ChatServer
) -> None:
    list(pipeline.write("Which {animal} eats fish?", PASSAGES, chat))
    (body,) = chat_server.asked
    assert body["model"] == "qwen3.5-plus"
    system, user = body["messages"]  # type: ignore[misc]
    assert system["role"] == "system"
    assert "numbered passages alone" in system["content"]
    assert user["role"] == "user"
    assert user["content"] == f"{numbered(PASSAGES)}\n\nQuestion: Which {{animal}} eats fish?"
    assert chat_server.keys == ["sk-air-very-secret"]


def _tokens(pieces: Generator[str, None, ChatTokens | None]) -> ChatTokens | None:
    """Read an answer to its end; return its tokens."""
    found: list[ChatTokens | None] = []

    def read() -> Iterator[str]:
        found.append((yield from pieces))

    list(read())
    return found[0]


def test_the_tokens_of_an_answer_are_returned(
    pipeline: Pipeline, chat: Chat, chat_server: ChatServer
) -> None:
    assert _tokens(pipeline.write("Which?", PASSAGES, chat)) == ChatTokens(300, 40)
    chat_server.usage = None
    assert _tokens(pipeline.write("Which?", PASSAGES, chat)) is None


def test_an_endpoint_that_refuses_to_count_answers_uncounted(
    pipeline: Pipeline, chat: Chat, chat_server: ChatServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    chat_server.knows_stream_options = False
    name = next(short for short, title in FRAMEWORKS.items() if title == pipeline.framework)
    opened = Session(endpoint, Index(tmp_path), (name,), cache=False, pipelines={name: pipeline})
    pieces = list(opened.write(Found(name, PASSAGES, 0.0), "Which?", chat))
    assert "".join(pieces) == "Use `random.choice` [1]."
    assert len(chat_server.asked) == 2


def test_a_refusal_is_one_sentence_without_the_key(
    pipeline: Pipeline, chat: Chat, chat_server: ChatServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    chat_server.status = 401
    name = next(short for short, title in FRAMEWORKS.items() if title == pipeline.framework)
    opened = Session(endpoint, Index(tmp_path), (name,), cache=False, pipelines={name: pipeline})
    with pytest.raises(ChatError, match="did not answer") as caught:
        list(opened.write(Found(name, PASSAGES, 0.0), "Which?", chat))
    assert "\n" not in str(caught.value)
    assert "very-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_missing_chat_package_is_one_sentence(
    framework: str, open_one: Callable[[str], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_one(framework)
    monkeypatch.setitem(sys.modules, CHAT_PACKAGES[framework], None)
    with pytest.raises(ImportError, match="pip install") as caught:
        list(pipeline.write("Which?", PASSAGES, Chat("m", "http://127.0.0.1:9/v1", ApiKey("k"))))
    assert "\n" not in str(caught.value)


def test_the_command_shows_what_the_model_writes_and_hides_the_key_it_echoes(
    chat_server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    typer = pytest.importorskip("typer.testing")
    from nexusflow_integrations.cli.app import app
    from nexusflow_integrations.cli.screen import money

    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-very-secret")
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", chat_server.base_url)
    monkeypatch.setenv("NEXUSFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "zoo.txt").write_text("The panda eats bamboo.")
    demo = ["demo", "-c", str(tmp_path / "zoo.txt"), "-f", "chroma", "--chat-model", "qwen3.5-plus"]

    shown = typer.CliRunner().invoke(app, demo)
    assert shown.exit_code == 0, shown.output
    assert "written by qwen3.5-plus through Chroma" in shown.stdout
    assert "Use `random.choice` [1]." in shown.stdout

    answer = json.loads(typer.CliRunner().invoke(app, [*demo, "--json"]).stdout)["answers"][0]
    assert answer["kind"] == "written"
    assert answer["text"] == "Use `random.choice` [1]."
    assert answer["tokens"] == {"sent": 300, "written": 40}

    index = json.loads(typer.CliRunner().invoke(app, [*demo, "--json"]).stdout)["index"]
    ask = ["ask", "Who eats?", "-i", index, "--chat-model", "qwen3.5-plus"]
    shown = typer.CliRunner().invoke(app, [*ask, "--chat-price", "0.8/4.8"])
    said = " ".join(shown.stdout.split())
    tokens = int(re.search(r"(\d+) tokens? in ", said)[1])  # type: ignore[index]
    assert said.endswith(
        f"qwen3.5-plus: 300 tokens sent, 40 written: ¥0.000432; in total {tokens + 340} tokens,"
        f" {money(tokens * 0.5 / 1e6 + 0.000432, Price())}"
    )
    cost = json.loads(
        typer.CliRunner().invoke(app, [*ask, "--chat-price", "0.8/4.8", "--json"]).stdout
    )["cost"]
    assert cost["chat"]["tokens"] == {"sent": 300, "written": 40}
    assert cost["chat"]["price"] == pytest.approx(0.000432)
    assert cost["total_price"] == pytest.approx(cost["list_price"] + 0.000432)

    shown = typer.CliRunner().invoke(app, ask)
    assert "40 written: price not known; in total " in " ".join(shown.stdout.split())
    chat_server.usage = None
    shown = typer.CliRunner().invoke(app, ask)
    assert shown.stdout.rstrip().endswith("qwen3.5-plus: tokens and price not known")
    cost = json.loads(typer.CliRunner().invoke(app, [*ask, "--json"]).stdout)["cost"]
    assert cost["chat"] == {"model": "qwen3.5-plus", "tokens": None, "price": None}
    assert cost["total_price"] is None

    chat_server.status = 401
    refused = typer.CliRunner().invoke(app, demo)
    assert refused.exit_code == 1
    assert "the chat model qwen3.5-plus did not answer: " in refused.stderr
    assert "very-secret" not in refused.output


def test_a_chat_shows_no_key() -> None:
    assert "very-secret" not in repr(Chat("m", "https://x/v1", ApiKey("sk-air-very-secret")))


# -- comparing and measuring ---------------------------------------------------------------------


def found(*passages: tuple[str, float]) -> Found:
    return Found("chroma", [Passage("", source, "", score) for source, score in passages], 0.0)


def test_frameworks_agree_where_sources_and_scores_are_the_same() -> None:
    assert agree([found(("a", 0.5), ("b", 0.4))])
    assert agree([found(("a", 0.5), ("b", 0.4)), found(("a", 0.50001), ("b", 0.4))])
    assert agree([found(("a", 0.50001), ("b", 0.5)), found(("b", 0.50001), ("a", 0.5))])


@pytest.mark.parametrize(
    "other",
    [
        found(("a", 0.5)),
        found(("a", 0.5), ("c", 0.4)),
        found(("a", 0.5), ("b", 0.3)),
        found(),
    ],
)
def test_frameworks_disagree_where_anything_differs(other: Found) -> None:
    assert not agree([found(("a", 0.5), ("b", 0.4)), other])


def test_hit_rates_count_the_first_right_answer_up_to_each_cut() -> None:
    answers = {
        "one": ["right", "right"],
        "three": ["x", "x", "right", "x"],
        "five": ["x", "x", "x", "x", "right"],
        "never": ["x", "rights"],
    }
    questions = [Question(text, "right") for text in answers]

    def search(text: str, k: int) -> list[Passage]:
        assert k == 5
        return [Passage("", source, "", 0.0) for source in answers[text]]

    assert hit_rates(questions, search) == (0.25, 0.5, 0.75)
