"""What the small adapters keep to, whether or not their frameworks are installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nexusflow_integrations

PACKAGE = Path(nexusflow_integrations.__file__).parent
EXTRAS = {
    "haystack": "haystack",
    "lancedb": "lancedb",
    "llm": "llm",
    "pydantic_ai": "pydantic-ai",
}
FILES = sorted([*(PACKAGE / "haystack").glob("*.py"), *(PACKAGE / f"{n}.py" for n in EXTRAS)])
FILES = [path for path in FILES if path.exists()]


def test_every_small_adapter_is_looked_at() -> None:
    assert {"lancedb", "llm", "pydantic_ai", "text_embedder", "document_embedder"} <= {
        path.stem for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_has_fewer_than_sixty_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_the_worked_example_has_fewer_than_sixty_lines() -> None:
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text().partition("## Add an adapter")[2]
    snippets = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert 0 < len("".join(snippets).splitlines()) < 60


@pytest.mark.parametrize("name", EXTRAS)
def test_without_its_framework_it_says_in_one_sentence_what_to_type(name: str) -> None:
    code = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "try:\n"
        f"    import nexusflow_integrations.{name}\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert said == (
        f"nexusflow_integrations.{name} needs {EXTRAS[name]}:"
        f' pip install "nexusflow-integrations[{EXTRAS[name]}]"\n'
    )
