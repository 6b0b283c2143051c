"""A row is valid only if it equals the row that was stored under its key."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations._core.cache.rows import dimensions_of, is_whole, packed, unpacked

KEY = bytes(range(24))
VECTOR = np.array([0.25, -1.5, 3e-42, 7e30], np.float32)

vectors = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40).map(
    lambda numbers: np.array(numbers, np.float32)
)
keys = st.binary(min_size=24, max_size=24)


@given(keys, vectors)
def test_unpacking_returns_exactly_what_was_packed(key: bytes, vector: np.ndarray) -> None:
    row = packed(key, vector)
    assert is_whole(key, row)
    assert dimensions_of(row) == len(vector)
    found = unpacked([(key, row)], len(vector))
    if np.isfinite(vector).all() and vector.any():
        assert found[key].tobytes() == vector.tobytes()
        assert found[key].dtype == np.float32
        assert not found[key].flags.writeable
    else:
        assert found == {}


def test_the_numbers_lie_in_the_row_as_little_endian_float32() -> None:
    assert packed(KEY, VECTOR)[:-4] == VECTOR.astype("<f4").tobytes()


@given(vectors, st.data())
def test_up_to_three_flipped_bits_are_detected(vector: np.ndarray, data: st.DataObject) -> None:
    row = bytearray(KEY + packed(KEY, vector))
    bits = data.draw(st.sets(st.integers(0, 8 * len(row) - 1), min_size=1, max_size=3))
    for bit in bits:
        row[bit // 8] ^= 1 << bit % 8
    assert not is_whole(bytes(row[:24]), bytes(row[24:]))


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_not_a_valid_row(row: bytes) -> None:
    assert not is_whole(KEY, row)


def test_a_row_under_another_key_is_not_valid() -> None:
    assert not is_whole(KEY[::-1], packed(KEY, VECTOR))


def test_a_truncated_or_extended_row_is_not_valid() -> None:
    row = packed(KEY, VECTOR)
    assert not any(is_whole(KEY, row[:end]) for end in range(len(row)))
    assert not is_whole(KEY, row + bytes(4))


def test_only_vectors_of_the_size_asked_for_are_unpacked() -> None:
    rows = [(KEY, packed(KEY, VECTOR)), (KEY[::-1], packed(KEY[::-1], VECTOR[:2]))]
    assert list(unpacked(rows, 4)) == [KEY]
    assert list(unpacked(rows, 2)) == [KEY[::-1]]
    assert unpacked(rows, 0) == unpacked(rows, 3) == {}
