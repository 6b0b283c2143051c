"""Fixtures, and the option `--all-surfaces`, which tests every fault with every adapter."""

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
    """Shorten backoffs to milliseconds, but not the waits that the server asks for."""
    from nexusflow_integrations._core.request import retry

    monkeypatch.setattr(retry, "BASE_FAULT", 0.01)
    monkeypatch.setattr(retry, "BASE_THROTTLE", 0.02)


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[FaultServer]:
    """The target of redirects, which must never get a request."""
    with FaultServer(lifetime=3600) as server:
        yield server
