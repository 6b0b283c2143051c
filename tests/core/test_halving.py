"""A refused write is split until the refused rows are alone."""

from __future__ import annotations

import pytest

from nexusflow_integrations._core.halving import Halving


@pytest.mark.parametrize("bad", [[], [0], [3, 4], [7], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_exactly_the_bad_rows_are_refused_and_all_others_stored_in_order(bad: list[int]) -> None:
    rows, stored, refused = Halving(range(8)), [], []
    while part := rows.next:
        assert rows.left == [n for n in range(8) if n >= part[0]]
        if not set(part) & set(bad):
            rows.stored()
            stored += part
        elif (row := rows.refused()) is not None:
            refused.append(row)
    assert refused == bad
    assert stored == [n for n in range(8) if n not in bad]
    assert rows.left == []


def test_one_bad_row_of_a_thousand_takes_few_writes() -> None:
    rows, writes = Halving(range(1000)), 0
    while part := rows.next:
        writes += 1
        if 700 in part:
            rows.refused()
        else:
            rows.stored()
    assert writes <= 21
