"""Vectors are cut to a smaller size, and a service that does the same is detected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nexusflow_integrations._core.comparing import TOLERANCE
from nexusflow_integrations._core.sizes import cut_sizes, cut_to_size
from nexusflow_integrations.errors import ConfigurationError, InvalidInputError

ROWS = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)


def test_a_cut_vector_is_the_beginning_scaled_to_unit_length() -> None:
    cut = cut_to_size(ROWS, 16)
    assert cut.dtype == np.float32
    assert cut.shape == (5, 16)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        cut, ROWS[:, :16] / np.linalg.norm(ROWS[:, :16], axis=1, keepdims=True), atol=1e-6
    )
    assert np.array_equal(cut_to_size(ROWS[2], 16), cut[2])
    assert np.array_equal(cut_to_size(ROWS.tolist(), 16), cut)
    assert cut_to_size(ROWS[:0], 16).shape == (0, 16)


def test_cutting_twice_is_cutting_once() -> None:
    np.testing.assert_allclose(
        cut_to_size(cut_to_size(ROWS, 32), 8), cut_to_size(ROWS, 8), atol=1e-6
    )


def test_the_argument_is_not_changed() -> None:
    before = ROWS.copy()
    cut = cut_to_size(ROWS, 64)
    cut[:] = 0
    assert np.array_equal(ROWS, before)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_long_and_very_short_vectors_are_cut_too(scale: float) -> None:
    scaled = ROWS * np.float32(scale)
    np.testing.assert_allclose(cut_to_size(scaled, 8), cut_to_size(ROWS, 8), atol=1e-5)


@pytest.mark.parametrize("size", [0, -1, 65, 2.5, "8", True, None])
def test_an_impossible_size_is_refused(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="size"):
        cut_to_size(ROWS, size)


@pytest.mark.parametrize("number", [0.0, np.nan, np.inf])
def test_a_vector_without_a_direction_is_named(number: float) -> None:
    rows = ROWS.copy()
    rows[3, :8] = number
    with pytest.raises(InvalidInputError, match="vector 3 cannot be cut to 8"):
        cut_to_size(rows, 8)
    with pytest.raises(InvalidInputError, match="vector cannot be cut to 8"):
        cut_to_size(rows[3], 8)
    assert cut_to_size(np.nan_to_num(rows, posinf=0), 16).shape == (5, 16)


def test_an_array_of_another_shape_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="shape"):
        cut_to_size(np.zeros((2, 3, 4)), 2)


def own(size: int, moved: float = 0.0) -> list[np.ndarray]:
    """A service's vectors of ``size``, the last of them moved by a share of its length."""
    rows = cut_to_size(ROWS, size)
    if moved:
        away = np.random.default_rng(4).standard_normal(size)
        rows[-1] += np.float32(moved) * (away / np.linalg.norm(away)).astype(np.float32)
    return [*rows]


def test_sizes_that_are_cut_are_distinguished_from_those_that_are_not() -> None:
    rows = {64: own(64), 32: own(32), 16: [-row for row in own(16)], 8: own(8)}
    assert cut_sizes(rows) == {32: True, 16: False, 8: True}


@pytest.mark.parametrize(("moved", "is_cut"), [(0.9 * TOLERANCE, True), (1.1 * TOLERANCE, False)])
def test_one_vector_that_is_too_far_away_is_enough(moved: float, is_cut: bool) -> None:
    assert cut_sizes({64: own(64), 16: own(16, moved)}) == {16: is_cut}


def test_smaller_vectors_that_are_not_of_unit_length_are_not_cut_ones() -> None:
    assert cut_sizes({64: own(64), 16: [row[:16] for row in own(64)]}) == {16: False}


def test_a_largest_vector_that_cannot_be_cut_is_no_reason_to_fail() -> None:
    empty = [np.zeros(64, np.float32), *own(64)[1:]]
    assert cut_sizes({64: empty, 16: own(16)}) == {16: False}
    assert cut_sizes({}) == {}
