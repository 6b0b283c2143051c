from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations.local import LocalServer

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

Recipe = Callable[[str], dict[str, Any]]


def recipes() -> dict[str, list[tuple[int, str]]]:
    """The snippets of the page and the numbers of their first lines, by heading."""
    text = PAGE.read_text()
    found: dict[str, list[tuple[int, str]]] = {}
    headings = [(match.start(), match[1]) for match in re.finditer(r"^## (.+)$", text, re.M)]
    for fence in _FENCE.finditer(text):
        heading = [name for start, name in headings if start < fence.start()][-1]
        line = text.count("\n", 0, fence.start(1)) + 1
        found.setdefault(heading, []).append((line, fence[1]))
    return found


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer("hash", api_key="sk-air-of-the-recipes", record_texts=True) as running:
        yield running


@pytest.fixture
def run(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Run all snippets under a heading unchanged, and return their variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXUSFLOW_API_KEY", server.api_key)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path / "dspy"))

    def of(heading: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "recipe"}
        for line, snippet in recipes()[heading]:
            exec(compile("\n" * (line - 1) + snippet, str(PAGE), "exec"), names)
        return names

    return of
