"""The page in the docs is generated from the catalogue of events."""

from __future__ import annotations

from pathlib import Path

from .catalogue import ELSEWHERE, EVENTS
from .page import PAGE, render
from .systems import SYSTEMS

ROOT = Path(__file__).parents[2]


def test_the_page_matches_the_catalogue() -> None:
    assert PAGE.read_text() == render(), "run python -m tests.life.page"


def test_every_event_has_a_name_of_its_own_and_an_outcome_for_each_system() -> None:
    assert len({event.name for event in EVENTS}) == len(EVENTS)
    assert {len(event.expected) for event in EVENTS} == {len(SYSTEMS)}
    assert all((ROOT / path).is_file() for _, _, path in ELSEWHERE)
