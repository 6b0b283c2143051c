"""The fault table in the docs is the one that the tests throw."""

from __future__ import annotations

from .catalogue import ELSEWHERE, FAULTS, ROWS
from .page import PAGE, SECTIONS, render


def test_the_page_is_what_the_catalogue_says() -> None:
    assert PAGE.read_text() == render(), "python -m tests.faults.page writes it anew"


def test_every_fault_is_on_the_page() -> None:
    on_the_page = {f"F{n}" for _, first, last in SECTIONS for n in range(first, last + 1)}
    assert {row.fault for row in ROWS} <= on_the_page
    assert on_the_page | set(ELSEWHERE) == set(FAULTS)
