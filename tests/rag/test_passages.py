"""Cutting text loses no word and passes no limit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusflow_integrations.cli.rag.passages import cut, first_part, sentences


def test_sentences_end_at_stops_of_english_and_chinese() -> None:
    assert sentences("One is here. Two? 四在这里。五呢？六") == [
        "One is here.",
        "Two?",
        "四在这里。",
        "五呢？",
        "六",
    ]


def test_a_closing_quote_stays_with_its_sentence() -> None:
    assert sentences("He said “Stop!” Then he left. 他说：“停！”然后走了。") == [
        "He said “Stop!”",
        "Then he left.",
        "他说：“停！”",
        "然后走了。",
    ]


def test_an_empty_line_ends_a_sentence_and_a_line_break_does_not() -> None:
    assert sentences("A title\n\nIt goes\non here.") == ["A title", "It goes on here."]


@pytest.mark.parametrize(
    "text", ["Pi is 3.14 or so.", "A tool, e.g. a saw.", "That is, i.e. this."]
)
def test_not_every_stop_ends_a_sentence(text: str) -> None:
    assert sentences(text) == [text]


def test_the_first_part_is_whole_sentences() -> None:
    assert first_part("First one. Second one. Third one.", 24) == "First one. Second one."
    assert first_part("A single sentence that goes on and on", 20) == "A single sentence"
    assert first_part("", 20) == ""


def test_a_heading_begins_a_passage_and_stands_before_each_under_it() -> None:
    text = "# Zoo\n\n" + "\n\n".join(f"Paragraph {n} is about animals." for n in range(6))
    found = list(cut(text, 80))
    assert all(passage.startswith("Zoo\n\n") for _, passage in found)
    assert [line for line, _ in found] == [3, 7, 11]


def test_a_heading_glued_to_its_paragraph_is_a_heading() -> None:
    assert list(cut("## Food\nBamboo.")) == [(2, "Food\n\nBamboo.")]


def test_a_paragraph_that_is_too_long_is_cut_after_a_sentence() -> None:
    found = [passage for _, passage in cut("One two three. " * 20, 100)]
    assert all(passage.endswith("three.") for passage in found)
    assert all(len(passage) <= 100 for passage in found)


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.sampled_from("ab .。!?\n#汉字-"), max_size=400),
    st.integers(min_value=20, max_value=120),
)
def test_no_passage_is_empty_or_too_long_and_no_letter_is_lost(text: str, most: int) -> None:
    found = list(cut(text, most))
    assert all(passage.strip() and len(passage) <= most for _, passage in found)
    lines = [line for line, _ in found]
    assert lines == sorted(lines)
    plain = "".join(line for line in text.splitlines() if not line.startswith("#"))
    letters = sorted(char for char in plain if char in "ab汉字")
    kept = "".join(passage for _, passage in found)
    assert all(kept.count(char) >= letters.count(char) for char in set(letters))


@pytest.mark.parametrize("text", ["x" * 5000, "汉" * 5000])
def test_text_without_any_blank_is_cut_all_the_same(text: str) -> None:
    found = [passage for _, passage in cut(text, 800)]
    assert "".join(found) == text
    assert max(map(len, found)) <= 800
