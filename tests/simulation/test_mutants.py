"""The simulation notices when one line of the engine is changed."""

from __future__ import annotations

from contextlib import closing

import pytest

from .mutants import MUTANTS, Mutant
from .run import failures

ENOUGH = 1000
"""The number of runs within which it must notice."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_the_line_that_a_mutant_changes_is_there(mutant: Mutant) -> None:
    with mutant.living():
        pass


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_the_simulation_notices_the_mutant(mutant: Mutant) -> None:
    with mutant.living(), closing(failures(range(ENOUGH))) as runs:
        assert any(report for _, report in runs)
