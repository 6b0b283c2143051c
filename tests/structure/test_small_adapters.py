"""Without its framework, a small adapter raises an error that says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXTRAS = {
    "haystack": "haystack",
    "lancedb": "lancedb",
    "llm": "llm",
    "pydantic_ai": "pydantic-ai",
}


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
