"""Tuned settings are saved to a file and read from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations.errors import ConfigurationError

_TUNED = TunedSettings(
    dimensions=256,
    passage_characters=400,
    overlap=50,
    headings=False,
    query_instruction="问题：\n",
    hybrid=True,
)


def test_saved_settings_are_loaded(tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    _TUNED.save(file)
    assert TunedSettings.load(file) == _TUNED
    assert json.loads(file.read_text("utf-8"))["version"] == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_an_editor_saved_with_a_byte_order_mark_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    _TUNED.save(file)
    file.write_text(file.read_text("utf-8"), "utf-8-sig")
    assert TunedSettings.load(file) == _TUNED


def test_a_client_gets_the_settings_that_it_has() -> None:
    settings = NexusFlow("k", **_TUNED.for_client()).settings
    assert (settings.dimensions, settings.query_instruction) == (256, "问题：\n")
    assert settings.document_instruction is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"dimensions": 300},
        {"passage_characters": 10},
        {"overlap": 500},
        {"overlap": -1},
        {"headings": "yes"},
        {"model": ""},
        {"query_instruction": 7},
    ],
)
def test_a_wrong_value_is_named(wrong: dict[str, Any], tmp_path: Path) -> None:
    name = next(iter(wrong))
    with pytest.raises(ConfigurationError, match=name):
        TunedSettings(**wrong)
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"version": 1, **wrong}))
    with pytest.raises(ConfigurationError, match=f"tuned.json.*{name}"):
        TunedSettings.load(file)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "has no version"),
        ("{}", "has no version"),
        ('{"version": 2}', "by another version"),
        ('{"version": 1, "speed": 9}', "unknown setting: 'speed'"),
    ],
)
def test_another_file_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        TunedSettings.load(file)
