"""Vectors are projected to the eight sizes of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.local.sizes import SIZES, Projection

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Wire

NATIVE = [(384, 512), (512, 512), (896, 1024)]


def unit_rows(count: int, size: int) -> np.ndarray:
    rows = np.random.default_rng(7).standard_normal((count, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("native", "block"), NATIVE)
@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_the_renormalised_beginning_of_a_larger_one(
    native: int, block: int, size: int
) -> None:
    spread = Projection(native, block).spread(unit_rows(20, native))
    cut = Projection.cut(spread, size)
    assert cut.dtype == np.float32
    assert cut.shape == (20, size)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)
    by_client = spread[:, :size] / np.linalg.norm(spread[:, :size], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, by_client, atol=1e-6)


@pytest.mark.parametrize(("native", "block"), NATIVE)
def test_sizes_that_are_whole_blocks_keep_every_cosine(native: int, block: int) -> None:
    rows = unit_rows(50, native)
    spread = Projection(native, block).spread(rows)
    for size in SIZES:
        if size % block == 0:
            cut = Projection.cut(spread, size)
            np.testing.assert_allclose(cut @ cut.T, rows @ rows.T, atol=2e-6)


@pytest.mark.parametrize(("native", "block"), NATIVE)
def test_sizes_below_a_block_estimate_cosines_and_worse_the_smaller_they_are(
    native: int, block: int
) -> None:
    rows = unit_rows(50, native)
    spread = Projection(native, block).spread(rows)
    errors = []
    for size in (256, 128, 64):
        cut = Projection.cut(spread, size)
        errors.append(float(np.abs(cut @ cut.T - rows @ rows.T).mean()))
    assert errors == sorted(errors)
    assert errors[0] < 0.06
    assert errors[-1] < 0.13


@pytest.mark.parametrize(("native", "block"), NATIVE)
def test_a_row_does_not_depend_on_the_rows_beside_it(native: int, block: int) -> None:
    rows = unit_rows(12, native)
    projection = Projection(native, block)
    together = projection.cut(projection.spread(rows), 256)
    for index in range(len(rows)):
        alone = projection.cut(projection.spread(rows[index : index + 1]), 256)
        assert np.array_equal(alone[0], together[index])


def test_the_rotations_are_the_same_in_every_process_and_version() -> None:
    row = np.zeros((1, 896), np.float32)
    row[0, 3] = 1
    spread = Projection(896, 1024).spread(row)
    # A Hadamard transform of signs: whole numbers, but for one scale.
    whole = np.round(spread[0, :8] * 1024 * 2**0.5).astype(int)
    assert whole.tolist() == [-46, 58, -22, 34, -18, 30, -26, 38]


def test_vectors_of_full_size_are_returned_unchanged() -> None:
    rows = unit_rows(3, 2048)
    assert Projection(2048, 2048).spread(rows) is rows


def test_the_real_model_answers_all_sizes_as_prefixes_of_the_largest(real: Wire) -> None:
    texts = ["A cat sleeps.", "一只猫在睡觉。", "42"]
    full = real.embed(texts, dimensions=2048)
    for size in SIZES:
        rows = real.embed(texts, dimensions=size)
        prefix = full[:, :size] / np.linalg.norm(full[:, :size], axis=1, keepdims=True)
        np.testing.assert_allclose(rows, prefix, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_independent_sizes_keep_cosines_but_none_is_the_beginning_of_another(
    wire_to: Callable[..., Wire],
) -> None:
    texts = [f"text {number} about {word}" for number, word in enumerate(["cats", "dogs", "fish"])]
    cut, independent = wire_to(), wire_to(sizes="independent")
    full = independent.embed(texts, dimensions=2048)
    assert np.array_equal(full, cut.embed(texts, dimensions=2048))
    rows = {size: independent.embed(texts, dimensions=size) for size in SIZES}
    for size in SIZES[1:]:
        like = cut.embed(texts, dimensions=size)
        np.testing.assert_allclose(rows[size] @ rows[size].T, like @ like.T, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(rows[size], axis=1), 1, atol=1e-5)
        for larger in SIZES[: SIZES.index(size)]:
            prefix = rows[larger][:, :size]
            prefix = prefix / np.linalg.norm(prefix, axis=1, keepdims=True)
            assert np.linalg.norm(rows[size] - prefix, axis=1).min() > 1
    assert np.array_equal(independent.embed(texts, dimensions=64), rows[64])


def test_other_values_of_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="'cut' or 'independent'"):
        LocalServer("hash", sizes="both")  # type: ignore[arg-type]
