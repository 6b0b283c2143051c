"""Passages are ranked by vectors in several formats, by keywords, and by both."""

from __future__ import annotations

import numpy as np
import pytest

from nexusflow_integrations.tune.retrieval import (
    STORAGES,
    Storage,
    Vectored,
    bytes_of_vectors,
    joined,
    shortened,
)

_RANDOM = np.random.default_rng(3)
_ROWS = shortened(_RANDOM.normal(size=(500, 256)).astype(np.float32), 256)
_QUERIES = shortened(_ROWS[:40] + _RANDOM.normal(size=(40, 256)).astype(np.float32) * 0.04, 256)


def test_the_nearest_are_those_with_the_largest_cosine() -> None:
    found = Vectored(_ROWS).nearest(_QUERIES, 10)
    assert [row.tolist() for row in found] == [
        np.argsort(-(_ROWS @ query), kind="stable")[:10].tolist() for query in _QUERIES
    ]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_near_copy_is_found_first_in_every_format(storage: Storage) -> None:
    found = Vectored(_ROWS, storage).nearest(_QUERIES, 5)
    assert [row[0] for row in found] == list(range(40))


def test_equal_scores_are_in_the_order_of_the_passages() -> None:
    rows = shortened(np.ones((9, 4), np.float32), 4)
    assert Vectored(rows).nearest(rows[:1], 5)[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_passage_without_a_vector_is_not_found_before_a_similar_one(storage: Storage) -> None:
    rows = shortened(np.array([[0, 0, 0, 0], [1, 1, 1, 1]], np.float32), 4)
    assert Vectored(rows, storage).nearest(rows[1:], 2)[0].tolist() == [1, 0]


@pytest.mark.parametrize("storage", STORAGES)
def test_fewer_passages_than_wanted_are_all_returned(storage: Storage) -> None:
    assert sorted(Vectored(_ROWS[:3], storage).nearest(_QUERIES[:1], 10)[0]) == [0, 1, 2]
    assert Vectored(_ROWS[:0], storage).nearest(_QUERIES[:1], 10)[0].tolist() == []


def test_shortened_vectors_have_unit_length() -> None:
    short = shortened(_ROWS, 64)
    assert short.shape == (500, 64)
    assert np.allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)


def test_fusion_puts_first_what_both_rankings_found() -> None:
    first, second = np.array([1, 2, 3]), np.array([4, 2, 5])
    assert joined(first, second, k=3).tolist() == [2, 1, 4]
    assert joined(first, np.array([], np.int64), k=9).tolist() == [1, 2, 3]


def test_bytes_are_those_of_the_numbers() -> None:
    assert bytes_of_vectors(10, 64, "float32") == _ROWS[:10, :64].astype("<f4").nbytes
    assert bytes_of_vectors(10, 64, "int8") == 10 * (64 + 4)
    assert bytes_of_vectors(10, 64, "binary") == 10 * 8
