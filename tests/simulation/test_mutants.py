"""That the simulation notices what it is there for: it does when one line is taken out."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS, Mutant
from .run import failures

ENOUGH = 1000
"""Runs within which it must be noticed."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_it_notices_that(mutant: Mutant) -> None:
    with mutant.living():
        assert any(report for _, report in failures(range(ENOUGH)))
