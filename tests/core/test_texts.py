"""Texts are checked before anything is sent, and the error names the index of a bad one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexusflow_integrations._core.request.batching import item_of
from nexusflow_integrations._core.texts import check_text, check_texts
from nexusflow_integrations.errors import InvalidInputError

BLANKS = ["", " ", "\n\t", "\u3000", "\ufeff", "\x00", "\u200b", "\u2060\ufeff", " \ufeff "]
LONG_BLANKS = [" " * 50, "\ufeff" * 9, "\u200b" * 300, "\x00" * 1000, " \ufeff \ufeff", "\x00 " * 9]


@pytest.mark.parametrize("blank", BLANKS + LONG_BLANKS)
def test_a_text_without_visible_characters_is_refused_as_blank(blank: str) -> None:
    with pytest.raises(InvalidInputError, match="blank"):
        check_text(blank)


@pytest.mark.parametrize("text", ["\ufeffBOM first", "a\x00b", "\u200bx", " y ", "-", "\u3000漢"])
def test_invisible_characters_next_to_visible_ones_are_kept(text: str) -> None:
    assert check_text(text) == text


@given(st.text(st.sampled_from(" \n\t\u3000\ufeff\x00\u200b\u2060"), max_size=30))
def test_any_mixture_of_invisible_characters_is_blank(text: str) -> None:
    with pytest.raises(InvalidInputError, match="blank"):
        check_text(text, 0)


@pytest.mark.parametrize("text", ["\ud800", "fine \udfff end", "\ud83d" + "x" * 1000])
def test_a_lone_surrogate_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInputError, match="text 2 holds a lone surrogate") as caught:
        check_texts(["a", "b", text])
    assert caught.value.index == 2


@given(st.text(min_size=1))
@example("\ud800")
@example("🧪")
@example("a\x00b")
def test_every_accepted_text_can_be_encoded_and_visible_text_is_accepted(
    text: str,
) -> None:
    encodable = text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)
    visible = any(char.isprintable() and not char.isspace() for char in text)
    try:
        passed = check_text(text)
    except InvalidInputError:
        assert not encodable or not visible
    else:
        assert encodable
        assert passed == text
        item_of(0, passed)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (None, "is None"),
        (7, "must be a string, not int"),
        (b"bytes", "must be a string, not bytes"),
        (["nested"], "must be a string, not list"),
        (1.5, "must be a string, not float"),
        ("", "is blank"),
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_an_item_that_is_not_a_text_is_named_by_index_and_type(
    bad: object, words: str, place: int
) -> None:
    texts: list[object] = ["a", "b", "c", "d"]
    texts[place] = bad
    with pytest.raises(InvalidInputError, match=f"text {place} {words}") as caught:
        check_texts(texts)  # type: ignore[arg-type]
    assert caught.value.index == place


def test_the_first_of_several_bad_texts_is_named() -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_texts(["ok", "", None])  # type: ignore[list-item]
    assert caught.value.index == 1


def test_a_single_bad_text_has_no_index() -> None:
    with pytest.raises(InvalidInputError, match="the text is blank") as caught:
        check_text("")
    assert caught.value.index is None


@pytest.mark.parametrize("bad", ["one string", b"bytes", None, 3, 1.5])
def test_an_argument_that_is_not_a_list_of_texts_is_refused(bad: object) -> None:
    with pytest.raises(InvalidInputError, match="expected a list of texts") as caught:
        check_texts(bad)  # type: ignore[arg-type]
    assert caught.value.index is None


def test_tuples_generators_views_and_numpy_arrays_are_lists_of_texts() -> None:
    for source in (("a", "b"), (t for t in "ab"), {"a": 1, "b": 2}.keys(), np.array(["a", "b"])):
        assert check_texts(source) == ["a", "b"]


def test_a_numpy_string_is_a_text_and_can_be_sent() -> None:
    (text,) = check_texts(np.array(["naïve 漢"]))
    assert item_of(0, text).encoded == '"naïve 漢"'.encode()


def test_order_and_duplicates_are_kept() -> None:
    assert check_texts(["b", "a", "b"]) == ["b", "a", "b"]


def test_invalid_input_is_a_value_error_too() -> None:
    assert issubclass(InvalidInputError, ValueError)


def test_the_error_does_not_quote_the_text() -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_texts(["my secret \ud800 diary"])
    assert "diary" not in str(caught.value)


def test_a_million_characters_pass() -> None:
    text = "漢a" * 500_000
    assert check_text(text) is text


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("one", "expected a list of texts, not one string: write [text]"),
        (b"one", "expected a list of texts, not bytes: decode it"),
        (3, "expected a list of texts, not int"),
    ],
)
def test_the_error_for_a_non_list_names_its_type_and_what_to_write(bad: object, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_texts(bad)  # type: ignore[arg-type]
    assert str(caught.value) == said
