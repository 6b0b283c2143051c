"""A stream is split into chunks, and each of its texts gets one result with its index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.call.streaming import BATCHES_A_CHUNK, Chunk, Cutter
from nexusflow_integrations._core.request.batching import item_of
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations.errors import BadRequestError, InvalidInputError


def cutter(instruction: str = "", **options: int) -> Cutter:
    return Cutter(Settings(base_url="https://x.invalid", **options), instruction)  # type: ignore[arg-type]


def embedded(chunk: Chunk, *, refuse: set[int] = frozenset()) -> CallResults:  # type: ignore[assignment]
    """The result of a call with the chunk's texts; index p in the chunk gets the vector [p + 1]."""
    results = CallResults(len(chunk.texts))
    for place, text in enumerate(chunk.texts):
        item = item_of(place, text)
        if place in refuse:
            results.refused(item, BadRequestError("no", status_code=400))
        else:
            results.rows([item], np.array([[place + 1]], np.float32))
    return results


MIXED = st.lists(st.sampled_from(["a", "b", "", None, "\ud800", "c", 7]), max_size=60)


@given(MIXED, st.integers(1, 5), st.sets(st.integers(0, 19)))
def test_every_text_of_a_stream_has_exactly_one_result_in_order(
    texts: list[str], batch_size: int, refuse: set[int]
) -> None:
    results = []
    for chunk in cutter(batch_size=batch_size).cut(texts):
        assert 0 < len(chunk.texts) + len(chunk.invalid) <= batch_size * BATCHES_A_CHUNK
        found = embedded(chunk, refuse=refuse) if chunk.texts else None
        results += chunk.results(found)
    assert [result.index for result in results] == list(range(len(texts)))
    for result, text in zip(results, texts, strict=True):
        sendable = text in ("a", "b", "c")
        assert (result.vector is None) == (result.error is not None)
        if not sendable:
            assert isinstance(result.error, InvalidInputError)
            assert result.error.index == result.index


@given(MIXED, st.integers(1, 5))
def test_chunks_hold_the_sendable_texts_in_order(texts: list[str], batch_size: int) -> None:
    chunks = list(cutter(batch_size=batch_size).cut(texts))
    sent = [text for chunk in chunks for text in chunk.texts]
    assert sent == [text for text in texts if text in ("a", "b", "c")]


def test_no_more_is_read_than_the_chunk_needs() -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "x"

    chunk = next(cutter(batch_size=3).cut(texts()))
    assert len(chunk.texts) == read == 3 * BATCHES_A_CHUNK


def test_enough_chunks_are_in_flight_to_keep_all_requests_busy() -> None:
    for concurrency in (1, 3, 4, 32):
        flying = cutter(max_concurrency=concurrency).in_flight
        assert flying >= 2
        assert flying * BATCHES_A_CHUNK >= 2 * concurrency


def test_the_instruction_is_put_before_every_text() -> None:
    (chunk,) = cutter("query: ").cut(["a", "b"])
    assert chunk.texts == ["query: a", "query: b"]


def test_refusals_are_results_too() -> None:
    (chunk,) = cutter().cut(["a", "", "b"])
    results = list(chunk.results(embedded(chunk, refuse={1})))
    assert results[0].vector is not None
    assert isinstance(results[1].error, InvalidInputError)
    assert isinstance(results[2].error, BadRequestError)


@pytest.mark.parametrize("texts", [[], ()])
def test_an_empty_stream_has_no_chunk(texts: list[str]) -> None:
    assert list(cutter().cut(texts)) == []
