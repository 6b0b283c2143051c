"""Fixtures with real sockets: the fault server, and the local server for quotas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from faults.server import FaultServer


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A server with correct responses, until a test changes its script."""
    from faults.server import FaultServer

    with FaultServer() as server:
        yield server


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten backoffs to milliseconds."""
    from nexusflow_integrations._core.request import retry

    monkeypatch.setattr(retry, "BASE_FAULT", 0.01)
    monkeypatch.setattr(retry, "BASE_THROTTLE", 0.02)
