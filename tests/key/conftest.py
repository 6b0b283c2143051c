"""A fixture that makes retries immediate."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    from nexusflow_integrations._core.request import retry

    monkeypatch.setattr(retry, "BASE_FAULT", 0.01)
    monkeypatch.setattr(retry, "BASE_THROTTLE", 0.02)
