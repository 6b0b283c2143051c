"""The fault server of tests/faults, and retries that take no time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    from nexusflow_integrations._core.request import retry

    monkeypatch.setattr(retry, "BASE_FAULT", 0.01)
    monkeypatch.setattr(retry, "BASE_THROTTLE", 0.02)
