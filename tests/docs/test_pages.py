"""The site lists each page once, and the tables of fields match the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations import __version__

tomllib = pytest.importorskip("tomllib")  # since Python 3.11

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE: dict[str, Any] = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]


def _pages(items: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for item in items:
        for name, value in item.items():
            if isinstance(value, list):
                yield from _pages(value)
            else:
                yield name, value


def _heading(page: str) -> str:
    found = re.search(r"^# (.+)$", (DOCS / page).read_text("utf-8"), re.MULTILINE)
    assert found is not None, page
    return found[1]


def test_a_page_has_the_same_name_in_the_menu_and_in_its_heading() -> None:
    named = {page: name for name, page in _pages(SITE["nav"]) if page != "index.md"}
    assert {page: _heading(page) for page in named} == named


def test_every_page_is_in_the_menu_once() -> None:
    shown = sorted(page for _, page in _pages(SITE["nav"]))
    assert shown == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_site_shows_the_version() -> None:
    assert f"nexusflow-integrations {__version__}," in SITE["copyright"]


def _fields(page: str) -> dict[str, str]:
    """Return the names in a table of fields, each with its default as it is written."""
    table = (DOCS / page).read_text("utf-8").partition("| field | default |")[2]
    found = {}
    for row in table.partition("\n\n")[0].splitlines()[2:]:
        names, defaults = (cell.strip() for cell in row.strip("|").split("|")[:2])
        written = [part.strip() for part in names.split(",")]
        values = [defaults] if len(written) == 1 else [part.strip() for part in defaults.split(",")]
        values *= len(written) if len(values) == 1 else 1
        found |= {name.strip("`"): value for name, value in zip(written, values, strict=True)}
    return found


def _defaults(page: str) -> dict[str, object]:
    if page == "guides/langchain.md":
        from nexusflow_integrations.langchain import NexusFlowEmbeddings

        fields = NexusFlowEmbeddings.model_fields
        return {field.alias or name: field.get_default() for name, field in fields.items()}
    if page == "guides/llama-index.md":
        from nexusflow_integrations.llama_index import NexusFlowEmbedding

        made = NexusFlowEmbedding(api_key="test")
        return {name: getattr(made, name) for name in type(made).model_fields}
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
    from nexusflow_integrations.client import NexusFlow

    found: dict[str, object] = {}
    for function in (NexusFlow.__init__, NexusFlowEmbeddingFunction.__init__):
        found |= {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
        }
    return found


WRITTEN: dict[str, object] = {"off": (None, False), "none": (None,), '`"error"`': ("error",)}
"""Defaults in words. What is found out, asked for or read elsewhere is ``None`` in the code."""


@pytest.mark.parametrize(
    "page", ["guides/langchain.md", "guides/llama-index.md", "guides/chroma.md"]
)
def test_a_table_of_fields_has_the_names_and_defaults_of_the_code(page: str) -> None:
    real, table = _defaults(page), _fields(page)
    assert len(table) > 10
    assert set(table) - set(real) == set()
    for name, written in table.items():
        value = real[name]
        if re.fullmatch(r"\d+( s)?", written):
            assert value == int(written.split()[0]), name
        elif written in WRITTEN:
            assert value in WRITTEN[written], name  # type: ignore[operator]
