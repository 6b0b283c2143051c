"""The catalogue is complete and well-formed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from . import catalogue

ROOT = Path(__file__).parents[2]


def test_every_fault_is_thrown() -> None:
    assert {row.fault for row in catalogue.ROWS} == set(catalogue.FAULTS)


def test_row_names_are_unique() -> None:
    assert [name for name, n in Counter(row.id for row in catalogue.ROWS).items() if n > 1] == []


@pytest.mark.parametrize("path", catalogue.ELSEWHERE)
def test_a_file_that_the_catalogue_points_to_has_tests(path: str) -> None:
    assert "def test_" in (ROOT / path).read_text()


def test_error_names_are_those_of_the_package() -> None:
    errors = pytest.importorskip("nexusflow_integrations.errors")
    for row in catalogue.ROWS:
        for expectation in row.expect:
            choices = getattr(expectation, "choices", (expectation,))
            for choice in choices:
                names = getattr(choice, "error", ())
                for name in (names,) if isinstance(names, str) else names:
                    assert issubclass(getattr(errors, name), errors.NexusFlowError), row.id


def test_every_fault_but_those_that_only_wait_has_a_representative() -> None:
    represented = {row.fault for row in catalogue.ROWS if row.representative}
    missing = {row.fault for row in catalogue.ROWS} - represented
    assert missing == {"F30", "F86", "F97", "F99", "F108", "F110"}
    assert {"F96", "F98", "F109"} <= represented
