"""Every event of the catalogue has the outcome that the catalogue expects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations.local import LocalServer

from .catalogue import EVENTS, Event, Life
from .systems import KEY, SYSTEMS, SyncDocuments


def cases() -> Iterator[Any]:
    for event in EVENTS:
        for place, (name, system) in enumerate(SYSTEMS.items()):
            slow = event.slow or system is not SyncDocuments
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(event, place, id=f"{event.name}-{name}", marks=marks)


@pytest.fixture(scope="module")
def running() -> Iterator[LocalServer]:
    with LocalServer("hash", api_key=KEY) as server:
        yield server


@pytest.mark.parametrize(("event", "place"), list(cases()))
def test_an_event_ends_as_the_catalogue_says(
    event: Event, place: int, running: LocalServer, tmp_path: Path
) -> None:
    running.reset_stats()
    life = Life([*SYSTEMS.values()][place], tmp_path, running)
    event.do(life)
    outcome, expected = life.outcome(), event.expected[place]
    assert (outcome.error, outcome.wrong) == (expected.error, expected.wrong), life.error
    if event.chance:
        assert outcome.paid <= expected.paid
    else:
        assert outcome.paid == expected.paid
