"""`pytest tests/faults --all-surfaces` throws every fault at every adapter too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .server import FaultServer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-surfaces",
        action="store_true",
        default=False,
        help="every fault through every adapter, not only one fault of each family",
    )


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Own backoffs of milliseconds; waits that the server asks for stay as they are."""
    from nexusflow_integrations._core.request import retry

    monkeypatch.setattr(retry, "BASE_FAULT", 0.01)
    monkeypatch.setattr(retry, "BASE_THROTTLE", 0.02)


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[FaultServer]:
    """Where nothing may ever be sent: the target of redirects."""
    with FaultServer(lifetime=3600) as server:
        yield server
