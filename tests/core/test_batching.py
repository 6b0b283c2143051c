"""Batches are complete, in order, and within every limit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations._core.request.batching import (
    MAX_BATCH_TOKENS,
    MAX_BODY_BYTES,
    Item,
    halves,
    item_of,
    max_tokens,
    plan_batches,
)
from nexusflow_integrations._core.request.wire import encode_request
from nexusflow_integrations._core.settings import Settings

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))


def encoded(texts: list[str]) -> list[Item]:
    return [item_of(index, text) for index, text in enumerate(texts)]


@given(TEXTS, st.integers(1, 12), st.integers(300, 900), st.integers(1, 60))
def test_batches_joined_are_the_input_and_each_keeps_every_limit_unless_it_is_one_text(
    texts: list[str], most: int, size: int, tokens: int
) -> None:
    items = encoded(texts)
    batches = list(plan_batches(items, max_texts=most, max_bytes=size, max_tokens=tokens))
    assert [item for batch in batches for item in batch] == items
    for batch in batches:
        assert 1 <= len(batch) <= most
        if len(batch) > 1:
            body = encode_request(batch, model="m" * 20, encoding_format="base64", dimensions=2048)
            assert len(body) <= size
            assert sum(item.tokens for item in batch) <= tokens


@given(TEXTS, st.integers(1, 12), st.integers(300, 900), st.integers(1, 60))
def test_no_batch_could_have_taken_the_first_text_of_the_next(
    texts: list[str], most: int, size: int, tokens: int
) -> None:
    batches = list(plan_batches(encoded(texts), max_texts=most, max_bytes=size, max_tokens=tokens))
    for batch, after in itertools.pairwise(batches):
        more = [*batch, after[0]]
        over_count = len(more) > most
        over_bytes = 256 + sum(len(item.encoded) + 1 for item in more) > size
        over_tokens = sum(item.tokens for item in more) > tokens
        assert over_count or over_bytes or over_tokens


def test_a_text_over_a_limit_gets_its_own_batch() -> None:
    items = encoded(["a", "b" * 2000, "c"])
    batches = list(plan_batches(items, max_texts=10, max_bytes=1000))
    assert [[item.index for item in batch] for batch in batches] == [[0], [1], [2]]


def test_planning_is_lazy_it_reads_no_text_beyond_the_batch() -> None:
    read = 0

    def source() -> Iterator[Item]:
        nonlocal read
        for item in encoded(["x"] * 100):
            read += 1
            yield item

    first = next(plan_batches(source(), max_texts=10))
    assert len(first) == 10
    assert read == 10


def test_no_items_make_no_batch() -> None:
    assert list(plan_batches([], max_texts=10)) == []


def test_ten_cjk_texts_of_8192_tokens_stay_under_the_body_limit() -> None:
    # 11,700 characters are 8,192 estimated tokens, and 35 kB; 32,000 characters are 96 kB each.
    for length in (11_700, 32_000):
        batches = list(plan_batches(encoded(["漢" * length] * 10), max_texts=10))
        assert sum(map(len, batches)) == 10
        for batch in batches:
            body = encode_request(batch, model="m", encoding_format="base64", dimensions=None)
            assert len(body) <= MAX_BODY_BYTES


def test_text_outside_ascii_is_sent_as_utf8_not_as_escapes() -> None:
    assert item_of(0, "漢字🧪").encoded == '"漢字🧪"'.encode()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_encoded_text_decodes_to_itself(text: str) -> None:
    assert json.loads(item_of(3, text).encoded) == text


@given(st.integers(2, 40))
def test_halves_are_both_filled_differ_by_one_at_most_and_join_to_the_batch(n: int) -> None:
    batch = encoded([str(i) for i in range(n)])
    left, right = halves(batch)
    assert [*left, *right] == batch
    assert right
    assert len(left) - len(right) in (0, 1)


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_the_number_of_batches_is_the_least_for_short_texts(limit: int) -> None:
    assert len(list(plan_batches(encoded(["t"] * 30), max_texts=limit))) == 30 // limit


def test_under_a_token_limit_a_request_holds_at_most_what_a_second_brings() -> None:
    def most(**given: Any) -> float:
        return max_tokens(Settings(base_url="https://a.example/v1", **given))

    assert most() == MAX_BATCH_TOKENS
    assert most(model="another") == MAX_BATCH_TOKENS
    assert most(tokens_per_minute=60_000) == 1000
    assert most(tokens_per_minute=1e9) == MAX_BATCH_TOKENS


ENVELOPE, ONE = 256, 103
"""Bytes of a body without texts, and of a text of 100 letters with quotes and a comma."""


@pytest.mark.parametrize(
    ("max_bytes", "full"),
    [(ENVELOPE + 3 * ONE, 3), (ENVELOPE + 4 * ONE - 1, 3), (ENVELOPE + 4 * ONE, 4)],
)
def test_every_batch_is_as_full_as_the_bytes_allow(max_bytes: int, full: int) -> None:
    items = [item_of(index, "x" * 100) for index in range(3 * full)]
    batches = plan_batches(items, max_texts=99, max_bytes=max_bytes)
    assert [len(batch) for batch in batches] == [full] * 3


def test_every_batch_is_as_full_as_the_tokens_allow() -> None:
    items = [item_of(index, "x" * 100) for index in range(6)]
    batches = plan_batches(items, max_texts=99, max_tokens=2 * items[0].tokens)
    assert [len(batch) for batch in batches] == [2, 2, 2]
