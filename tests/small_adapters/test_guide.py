"""The snippets of docs/guides/more.md run unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "more.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.splitlines()[0])
def test_a_snippet_finds_the_shuffling_text(
    snippet: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # This file's own `annotations` import is not the page's.
    code = compile(snippet, str(PAGE), "exec", dont_inherit=True)
    exec(code, {"__name__": "more"})
    assert capsys.readouterr().out.splitlines()[-1] == "Shuffle a list in place."


def test_the_page_has_a_snippet_for_each_adapter() -> None:
    text = "".join(SNIPPETS)
    for name in ("haystack", "lancedb", "pydantic_ai"):
        assert f"nexusflow_integrations.{name} " in text
