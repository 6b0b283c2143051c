"""Every Python snippet of the README and the docs runs, top to bottom, against the local server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusflow_integrations.local import LocalServer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The recipes run on engines of their own, in tests/recipes.
ELSEWHERE = {"recipes.md"}
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _snippets(page: Path) -> list[tuple[int, str]]:
    text = page.read_text()
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in _FENCE.finditer(text)]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(model="hash") as running:
        yield running


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if _snippets(page) and page.name not in ELSEWHERE],
    ids=lambda p: p.name,
)
def test_every_snippet_of_the_page_runs(
    page: Path, server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NEXUSFLOW_API_KEY", server.api_key)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
    names: dict[str, object] = {"__name__": page.stem}
    for line, snippet in _snippets(page):
        # Blank lines in front make a traceback name the line of the page.
        exec(compile("\n" * (line - 1) + snippet, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_of_the_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_first_code_of_the_readme_stands_in_its_first_fifteen_lines() -> None:
    assert _snippets(ROOT / "README.md")[0][0] <= 15
