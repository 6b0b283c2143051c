"""Every Python snippet of the README and the docs runs, top to bottom, against the local server.

Both sides of a ``diff`` run: the removed side, with the local server instead of the service, and
the new side, which the snippets below it continue. Pytest runs a snippet that begins with
``# test_name.py`` as a file. The comment in ``print(...)  # this`` must be the output.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from chromadb.api.shared_system_client import SharedSystemClient

from nexusflow_integrations.local import LocalServer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"recipes.md", "more.md"}
"""What runs on packages of its own, in tests/recipes and tests/small_adapters."""

SERVICE = "https://nexusflow.vip/v1"
_FENCE = re.compile(r"^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (test_\w+\.py)\n")
_PRINTED = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)


class Snippet(NamedTuple):
    """Code, the line of the page where it begins, and of a diff the code that it replaces."""

    line: int
    code: str
    before: str | None = None


def _snippets(page: Path) -> list[Snippet]:
    text = page.read_text()
    snippets = []
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start(2)) + 1
        if found[1] == "diff":
            snippets.append(Snippet(line, _side(found[2], "+"), _side(found[2], "-")))
        else:
            snippets.append(Snippet(line, found[2]))
    return snippets


def _side(diff: str, sign: str) -> str:
    """Return one side of a diff, with a blank line for each of the other's."""
    lines = [line[1:] if line[:1] in (sign, " ") else "" for line in diff.splitlines()]
    return "\n".join(lines)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(model="hash") as running:
        yield running


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if _snippets(page) and page.name not in ELSEWHERE],
    ids=_name,
)
def test_every_snippet_of_the_page_runs(
    page: Path,
    server: LocalServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # In a reader's process, ./chroma is not open yet; here, Chroma would reuse the open store.
    SharedSystemClient.clear_system_cache()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NEXUSFLOW_API_KEY", server.api_key)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
    names: dict[str, object] = {"__name__": page.stem}
    for snippet in _snippets(page):
        if snippet.before is not None:
            _run(snippet.before.replace(SERVICE, server.base_url), snippet.line, page, {})
        if file := _FILE.match(snippet.code):
            _run_as_tests(tmp_path / file[1], snippet.code)
            continue
        capsys.readouterr()
        _run(snippet.code, snippet.line, page, names)
        printed = capsys.readouterr().out.splitlines()
        assert [due for due in _PRINTED.findall(snippet.code) if due not in printed] == []
        if "chromadb" in snippet.code:  # in a notebook, a reader may run it again
            _run(snippet.code, snippet.line, page, names)


def _run(code: str, line: int, page: Path, names: dict[str, object]) -> None:
    # Blank lines in front make a traceback name the line of the page.
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


def _run_as_tests(file: Path, code: str) -> None:
    file.write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", file.name]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_of_the_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_test_that_the_page_names_is_there(page: Path) -> None:
    for path, name in re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text()):
        text = (ROOT / path).read_text()
        assert not name or re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), name


def test_each_row_of_the_readmes_table_names_a_test() -> None:
    table = (ROOT / "README.md").read_text().partition("| shown by |\n")[2].partition("\n\n")[0]
    rows = table.splitlines()[1:]
    assert len(rows) > 5
    assert [row for row in rows if "::test_" not in row] == []


def test_the_first_code_of_the_readme_is_in_its_first_fifteen_lines() -> None:
    assert _snippets(ROOT / "README.md")[0].line <= 15
