"""Questions are read from files or made from documents, and each finds its answering passages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.cli.rag.corpus import kind_of
from nexusflow_integrations.cli.rag.passages import cut
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.tune.passages import Passages
from nexusflow_integrations.tune.questions import (
    Answer,
    Document,
    Question,
    Truth,
    check_questions,
    make_questions,
    one_line,
    read_questions,
)
from nexusflow_integrations.tune.settings import Cutting

_GUIDE = """# Red pandas

Red pandas live in the mountains of Asia. They sleep in trees during most of the day. Few people
have seen one in the wild.

## What they like to eat

They eat bamboo. Now and then they also eat the eggs of birds. In winter there is less of both.

```
# not a heading. Not a sentence. Nor is this one here at all.
```

## How they sleep

On a branch, with the tail over the nose. When it is hot their legs hang down from it. Then they
look dead.
"""


def _read(tmp_path: Path, *records: object) -> list[Question]:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")
    return read_questions(file, {"a.md", "odd:7"})


def test_a_line_names_a_source_a_line_or_a_quote(tmp_path: Path) -> None:
    found = _read(
        tmp_path,
        {"question": "one?", "source": "a.md"},
        {"question": "two?", "source": ["a.md:12", "odd:7"]},
        {"question": "three?", "quote": "They sleep."},
        {"question": "four?", "source": "a.md", "quote": ["This.", "That."]},
    )
    assert [question.answers for question in found] == [
        (Answer("a.md"),),
        (Answer("a.md", 12), Answer("odd:7")),
        (Answer(None, quotes=("They sleep.",)),),
        (Answer("a.md", quotes=("This.",)), Answer("a.md", quotes=("That.",))),
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_question(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "one?", "source": "a.md"}\n', "utf-8-sig")
    (question,) = read_questions(file, {"a.md"})
    assert question.text == "one?"


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"source": "a.md"}, "has no field 'question', only 'source'"),
        ({"question": 7, "source": "a.md"}, "has no text in 'question'"),
        ({"question": " ", "source": "a.md"}, "has no text in 'question'"),
        ({"question": "one?"}, "has no answer"),
        ({"question": "one?", "source": 7}, "a value in 'source' that is not text"),
        ({"question": "one?", "quote": [""]}, "a value in 'quote' that is not text"),
        ({"question": "one?", "source": ["a.md", "b.md"], "quote": "x"}, "several 'source' values"),
        (["one?"], "is neither a JSON object nor a string"),
        ("one?", "has no answer"),
    ],
)
def test_an_error_names_the_bad_line(tmp_path: Path, record: object, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^questions.jsonl, line 2: ") as raised:
        _read(tmp_path, {"question": "one?", "source": "a.md"}, record)
    assert problem in str(raised.value)


def test_a_file_without_questions_or_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no questions"):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "is not JSON"),
        ('{"question": "é?", "source": "a.md"}'.encode("latin-1"), "is not UTF-8"),
        (b'{"question": "\\ud800", "source": "a.md"}', "is not UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_an_error_says_why_a_line_cannot_be_read(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b"\n" + content)
    with pytest.raises(ConfigurationError, match=rf"^bad.jsonl, line 2: {problem}$"):
        read_questions(file, ())


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer("b.md"), "there is no document 'b.md'"),
        (Answer("b.csv", 9), "no document 'b.csv'; name one of its rows, such as 'b.csv:2'"),
        (Answer("blank.md"), "the document 'blank.md' has no text"),
        (Answer("blank.md", 2), "the document 'blank.md' has no text"),
        (Answer("a.md", 99), "'a.md' has 17 lines, not 99"),
        (Answer("b.csv:2", 2), "'b.csv:2' has 1 line, not 2"),
        (Answer("a.md", quotes=("Blue pandas",)), "no document contains the quote 'Blue pandas'"),
        (Answer(quotes=("Blue pandas",)), "no document contains the quote 'Blue pandas'"),
    ],
)
def test_an_answer_that_is_in_no_document_is_an_error(answer: Answer, problem: str) -> None:
    good = Question("What?", (Answer("a.md", quotes=("Few people have seen one",)),))
    documents = [Document("a.md", _GUIDE), Document("b.csv:2", "animal: panda")]
    documents.append(Document("blank.md", " \n\n"))
    check_questions([good, Question("Who?", (Answer("b.csv:2"),))], documents)
    with pytest.raises(ConfigurationError, match=r"^question 2 \('Where\?'\): ") as raised:
        check_questions([good, Question("Where?", (answer,))], documents)
    assert problem in str(raised.value)


def test_questions_are_taken_out_of_the_documents() -> None:
    left, questions = make_questions([Document("a.md", _GUIDE)])
    check_questions(questions, left)
    assert make_questions([Document("a.md", _GUIDE)]) == (left, questions)
    texts = [question.text for question in questions]
    assert "They sleep in trees during most of the day." in texts
    assert "Now and then they also eat the eggs of birds." in texts
    headings = ("Red pandas", "What they like to eat", "How they sleep")
    assert sum(text in headings for text in texts) == 1, "half of the headings stay"
    assert not [text for text in texts if "not a heading" in text]
    for text in texts:
        assert text in one_line(_GUIDE)
        assert text not in one_line(left[0].text).replace("Red pandas live", "")


def test_a_heading_is_answered_by_the_section_under_it() -> None:
    guide = "# Top of it\n\nOne. Two.\n\n## What pandas eat\n\nBamboo. Eggs.\n"
    _, questions = make_questions([Document("a.md", guide)])
    assert questions in (
        [Question("Top of it", (Answer("a.md", quotes=("One.",)),))],
        [Question("What pandas eat", (Answer("a.md", quotes=("Bamboo.",)),))],
    )


@pytest.mark.parametrize(
    ("name", "marked"),
    [
        ("a.md", "## {}\n\n"),
        ("a.md", "{}\n---\n\n"),
        ("a.rst", "{}\n==================\n\n"),
        ("a.rst", "==================\n{}\n==================\n\n"),
        ("a.adoc", "== {}\n\n"),
        ("a.org", "** {} :tag:\n:PROPERTIES:\n:ID: 7\n:END:\n"),
    ],
)
def test_headings_are_asked_in_every_form_that_the_cutter_knows(name: str, marked: str) -> None:
    titles = ("Sleep in winter", "Food and drink", "Where they live", "How they fight")
    text = "\n".join(f"{marked.format(title)}They are {title[::-1]}.\n" for title in titles)
    left, questions = make_questions([Document(name, text)])
    asked = [question.text for question in questions]
    assert len(asked) == 2, "half of the headings stay"
    assert set(asked) <= set(titles)
    for question in questions:
        assert question.answers == (Answer(name, quotes=(f"They are {question.text[::-1]}.",)),)
        assert question.text not in left[0].text
    for title in set(titles) - set(asked):
        assert marked.format(title) in left[0].text
    passages = list(cut(left[0].text, 800, kind=kind_of(name)))
    assert all(title not in passage for title in asked for _, passage in passages)


def test_neither_line_ends_nor_lines_of_code_hide_a_heading() -> None:
    text = "# One title\n\nSay this.\n\n```\n# no title\n```\n\n# Two titles\n\nSay that.\n"
    _, questions = make_questions([Document("a.md", text)])
    _, others = make_questions([Document("a.md", text.replace("\n", "\r\n"))])
    assert questions == others
    (question,) = questions
    assert question.text in ("One title", "Two titles")


def test_chinese_sentences_make_questions() -> None:
    text = "小熊猫住在亚洲的山里。白天的大部分时间它们都在树上睡觉。很少有人见过野生的小熊猫。"
    left, questions = make_questions([Document("a.md", text)])
    assert [question.text for question in questions] == ["白天的大部分时间它们都在树上睡觉。"]
    assert left[0].text == "小熊猫住在亚洲的山里。很少有人见过野生的小熊猫。"


def test_a_sentence_that_stands_twice_is_not_asked() -> None:
    text = "One is here. The same sentence stands in both of them. Two is there."
    assert make_questions([Document("a.md", text), Document("b.md", text)])[1] == []


def test_at_most_as_many_questions_are_made_as_are_wanted() -> None:
    documents = [
        Document(
            f"{i}.md",
            f"# Heading number {i}\n\nA{i}. What the number {i} has to say is this. B{i}.",
        )
        for i in range(60)
    ]
    _, questions = make_questions(documents, 30)
    assert len(questions) == 30
    assert sum(question.text.startswith("Heading") for question in questions) == 10


# -- judging -------------------------------------------------------------------------------------


def _truth(answer: Answer) -> Truth:
    return Truth(
        [Question("?", (answer,))],
        ["a.md", "a.md", "a.md", "b.md"],
        [1, 5, 5, 1],
        ["One. Two.", "Two.\nThree   four.", "Five.", "Two."],
    )


def test_a_source_is_found_by_any_of_its_passages_and_counts_once() -> None:
    truth = _truth(Answer("a.md"))
    names = [truth.name(0, place) for place in range(4)]
    assert truth.right == [{names[0]}]
    assert names[0] == names[1] == names[2] != names[3]


def test_a_quote_is_found_by_the_passages_that_hold_it_whole() -> None:
    truth = _truth(Answer("a.md", quotes=("Three four.",)))
    assert [truth.name(0, place) in truth.right[0] for place in range(4)] == [
        *(False, True, False, False)
    ]
    everywhere = _truth(Answer(quotes=("Two.",)))
    found = [everywhere.name(0, place) for place in (0, 1, 3)]
    assert {*found} == everywhere.right[0]
    assert len({*found}) == 1, "overlapping passages are one answer"


def test_a_line_belongs_to_the_last_passage_that_begins_before_it() -> None:
    for line, expected in ((1, {0}), (4, {0}), (5, {1, 2}), (9, {1, 2})):
        truth = _truth(Answer("a.md", line))
        found = {place for place in range(4) if truth.name(0, place) in truth.right[0]}
        assert found == expected, line


_ZOO = """# Zoo

Welcome to the zoo.

## Opening hours

### Summer

The gates open at nine.

## Pandas
They eat bamboo, and in winter also bark. They eat the leaves of tall trees. They
sleep in hollow trees. They like rain more than the heat of a dry summer.
"""


@pytest.mark.parametrize("headings", [True, False])
@pytest.mark.parametrize(
    ("line", "beginnings"),
    [
        (1, ["Welcome"]),
        (3, ["Welcome"]),
        (5, ["The gates"]),
        (7, ["The gates"]),
        (9, ["The gates"]),
        (11, ["They eat bamboo"]),
        (12, ["They eat bamboo"]),
        (13, ["They eat bamboo", "They like"]),
    ],
)
def test_a_line_is_in_each_passage_that_has_it_and_a_heading_in_the_passage_below(
    line: int, beginnings: list[str], headings: bool
) -> None:
    passages = Passages.of(
        [Document("a.md", _ZOO)], Cutting(120, headings=headings), NexusFlow("none")
    )
    truth = passages.truth([Question("?", (Answer("a.md", line),))])
    found = [
        text.rpartition("\n\n")[2]
        for place, text in enumerate(passages.texts)
        if truth.name(0, place) in truth.right[0]
    ]
    assert len(found) == len(beginnings)
    assert all(map(str.startswith, found, beginnings)), found


def test_a_line_of_a_document_without_passages_is_in_none() -> None:
    settings = Document("a.md", "---\nlayout: page\n---\n")
    passages = Passages.of([settings, Document("b.md", "Text.")], Cutting(), NexusFlow("none"))
    assert passages.truth([Question("?", (Answer("a.md", 2),))]).right == [set()]


def test_copies_of_a_passage_are_searched_once_and_answer_for_each_other() -> None:
    same, other = "Dogs stay outside at all times.", "The zoo opens at nine."
    documents = [Document("a.md", same), Document("b.md", f"{other}\n\n# Dogs\n\n{same}")]
    passages = Passages.of(documents, Cutting(800, headings=False), NexusFlow("none"))
    assert passages.texts == [same, other]
    answers = (Answer("b.md"),), (Answer("b.md", 5),), (Answer("b.md", quotes=(same,)),)
    both = *answers, (Answer("a.md"), Answer("b.md", 5))
    truth = passages.truth([Question("?", given) for given in both])
    for number in range(4):
        assert truth.name(number, 0) in truth.right[number]
        assert len(truth.right[number]) == 1
    assert truth.name(0, 1) in truth.right[0], "another passage of the source"
    assert truth.name(1, 1) not in truth.right[1]


def test_an_answer_that_was_cut_apart_is_in_no_passage() -> None:
    assert _truth(Answer(quotes=("Two. Three four. Five.",))).right == [set()]
