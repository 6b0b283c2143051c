"""The fault table in the docs is generated from the catalogue."""

from __future__ import annotations

from .catalogue import FAULTS
from .page import PAGE, SECTIONS, render


def test_the_page_matches_the_catalogue() -> None:
    assert PAGE.read_text() == render(), "run python -m tests.faults.page"


def test_every_fault_is_on_the_page() -> None:
    on_the_page = {f"F{n}" for _, first, last in SECTIONS for n in range(first, last + 1)}
    assert on_the_page == set(FAULTS)
