"""onnxruntime reports to Microsoft unless that is turned off before its import."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from nexusflow_integrations.local import minilm

from .conftest import Newcomer

ENCODE = """
import os
from nexusflow_integrations.local import load_encoder
assert load_encoder("minilm").encode(["a text"]).shape == (1, 384)
assert "ORT_DISABLE_TELEMETRY" not in os.environ
"""


def test_the_embedded_model_leaves_no_trace_of_the_user(newcomer: Newcomer) -> None:
    newcomer.alone([sys.executable, "-c", ENCODE])
    assert newcomer.left() == set()
    assert list(newcomer.temp.iterdir()) == []


@pytest.mark.parametrize("chosen", [None, "0", "1"])
def test_telemetry_is_off_during_the_import_unless_the_user_has_chosen(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if chosen is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", chosen)
    seen = []

    def imported(name: str) -> ModuleType:
        seen.append((name, os.environ.get("ORT_DISABLE_TELEMETRY")))
        return ModuleType(name)

    monkeypatch.setattr(minilm, "import_module", imported)
    assert minilm._onnxruntime().__name__ == "onnxruntime"
    assert seen == [("onnxruntime", chosen or "1")]
    assert os.environ.get("ORT_DISABLE_TELEMETRY") == chosen
