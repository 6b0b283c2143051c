"""Contributors have the same tasks and tool versions as CI."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_commit_hooks_use_the_versions_that_ci_uses() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pins = (ROOT / "constraints.txt").read_text().split()
    wanted = set(re.findall(r'"([\w.-]+==[\w.-]+)"', hooks))
    assert wanted
    assert wanted <= set(pins)


def test_contributing_names_every_task() -> None:
    tasks = re.findall(r"@nox\.session.*?\ndef (\w+)\(", _read("noxfile.py"), re.DOTALL)
    assert tasks
    guide = _read("CONTRIBUTING.md")
    assert [task for task in tasks if f"`{task}`" not in guide] == []


def _read(name: str) -> str:
    return (ROOT / name).read_text()
