"""Tokens are estimated for plans, and have an upper bound for budgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations._core.request import tokens
from nexusflow_integrations._core.request.batching import item_of
from nexusflow_integrations._core.request.tokens import estimate_tokens, exact_counter, token_bound

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(ANY_TEXT)
def test_the_estimate_is_at_least_one_and_never_above_the_bound(text: str) -> None:
    item = item_of(0, text)
    assert 1 <= item.tokens <= token_bound(len(item.encoded))


@given(ANY_TEXT)
def test_the_bound_is_at_least_a_token_for_every_byte_and_the_end_token(text: str) -> None:
    assert token_bound(len(item_of(0, text).encoded)) >= len(text.encode()) + 1


@given(ANY_TEXT, ANY_TEXT)
def test_a_longer_text_is_never_estimated_lower(text: str, more: str) -> None:
    assert estimate_tokens(text + more) >= estimate_tokens(text)


@pytest.mark.parametrize(
    ("text", "about"), [("x" * 4200, 1000), ("漢" * 1000, 700), ("ж" * 1000, 450)]
)
def test_the_rule_counts_as_its_documentation_says(text: str, about: int) -> None:
    assert abs(estimate_tokens(text) - about) <= 2
    for number in ("0.70", "1/4.2", "0.45"):
        assert number in (tokens.__doc__ or "")


def test_mixed_text_is_the_sum_of_its_parts() -> None:
    parts = ("word " * 100, "漢字" * 100, "слово" * 100)
    assert abs(estimate_tokens("".join(parts)) - sum(map(estimate_tokens, parts))) <= 3


def test_without_the_tokenizer_there_is_no_exact_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "quicktok", None)
    exact_counter.cache_clear()
    try:
        assert exact_counter() is None
    finally:
        exact_counter.cache_clear()


def test_with_the_models_own_tokenizer_tokens_are_counted_exactly() -> None:
    quicktok = pytest.importorskip("quicktok", reason="pip install quicktok-v1")
    exact_counter.cache_clear()
    counter = exact_counter()
    assert counter is not None
    encoding = quicktok.get_encoding("qwen3")
    for text in ("Hello world", "漢字 слово", "x" * 1000, ""):
        assert counter(text) == len(encoding.encode(text))


def test_a_text_has_at_most_a_token_for_each_byte_and_one_that_ends_it() -> None:
    assert [token_bound(encoded_bytes) for encoded_bytes in (2, 5, 8192)] == [3, 6, 8193]
