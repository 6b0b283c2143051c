"""Modules import in one direction only: adapters import the core, never the reverse."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import TypeVar

import pytest

import nexusflow_integrations
from nexusflow_integrations import NexusFlow
from nexusflow_integrations.client import ClientSettings

PACKAGE = Path(nexusflow_integrations.__file__).parent
FRAMEWORKS = {
    *("langchain_core", "langchain_chroma", "llama_index", "chromadb", "typer", "rich"),
    *("ray", "haystack", "lancedb", "llm", "pydantic_ai"),
}
COMMANDS = {"cli", "report", "tune"}
ADAPTERS = {path.stem for path in PACKAGE.glob("[!_]*") if not path.name.startswith("py.")} - {
    *("client", "errors", "local"),
    *COMMANDS,
}
PUBLIC = ["", *sorted({"client", "errors", "cli", "local", "report", "tune"} | ADAPTERS)]


def _imports(path: Path) -> set[str]:
    """Return the modules that the file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _ours(path: Path) -> set[str]:
    """Return the parts of this package that the file imports, by their first name."""
    prefix = "nexusflow_integrations."
    return {name.removeprefix(prefix).split(".")[0] for name in _imports(path) if prefix in name}


def _files(name: str) -> list[Path]:
    """Return the files of a module or of a folder of them."""
    return sorted([*(PACKAGE / name).rglob("*.py"), *PACKAGE.glob(f"{name}.py")])


@pytest.mark.parametrize("path", _files("_core"), ids=lambda path: path.stem)
def test_the_core_imports_neither_adapter_nor_client_nor_framework(path: Path) -> None:
    assert _ours(path) <= {"_core", "errors"}
    assert not {name.split(".")[0] for name in _imports(path)} & FRAMEWORKS


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_an_adapter_imports_the_core_and_no_other_adapter(name: str) -> None:
    allowed = {"_core", "errors", "client", "NexusFlow", "Budget", "Price", "Usage"}
    family = {"chroma", name} if name == "chroma_collections" else {name}
    assert [path for path in _files(name) if not _ours(path) <= allowed | family] == []


@pytest.mark.parametrize("path", _files("local"), ids=lambda path: path.stem)
def test_the_local_server_imports_nothing_of_the_client(path: Path) -> None:
    assert _ours(path) <= {"local", "__version__"}


def test_nothing_that_a_library_user_imports_imports_a_command() -> None:
    library = [PACKAGE / "client.py", PACKAGE / "errors.py", *_files("_core"), *_files("local")]
    library += [path for name in ADAPTERS for path in _files(name)]
    assert not [path for path in library if _ours(path) & COMMANDS]


def test_the_root_imports_no_framework_and_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import nexusflow_integrations;"
        "heavy = {'langchain_core','llama_index','chromadb','numpy','httpx','aiohttp','sqlite3'};"
        "found = heavy & (set(sys.modules) - before); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_equal_all(name: str) -> None:
    try:
        module = importlib.import_module(f"nexusflow_integrations.{name}".rstrip("."))
    except ImportError as missing:
        if "pip install" not in str(missing):
            raise
        pytest.skip(str(missing))
    for public in module.__all__:
        assert getattr(module, public) is not None
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module)), "names that are made lazily are listed, too"
    defined = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and not isinstance(value, TypeVar)
    }
    assert defined <= set(module.__all__)


def test_no_module_is_named_for_nothing() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


# What an adapter may use of the client that its users should not: named, and few.
SEAM = {"_embed", "_aembed", "_succeed", "_counted", "_uncached", "_agive_back", "_estimate"}


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_an_adapter_uses_only_the_listed_internals_of_the_client(name: str) -> None:
    nodes = [node for path in _files(name) for node in ast.walk(ast.parse(path.read_text()))]
    own = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    } | {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    inside = {key for key in (*vars(NexusFlow), *vars(NexusFlow("-"))) if _is_private(key)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert used & inside - own <= SEAM


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


CORE = PACKAGE / "_core"
ROOMS = ["call", "request", "pace", "cache", "redis"]
"""The folders of the core, from the top down: a room may import only from rooms further down."""


@pytest.mark.parametrize("room", ROOMS)
def test_a_folder_of_the_core_imports_only_from_folders_below_it(room: str) -> None:
    below = {*ROOMS[ROOMS.index(room) :], *(path.stem for path in CORE.glob("*.py"))}
    prefix = "nexusflow_integrations._core."
    for path in _files(f"_core/{room}"):
        used = {name.removeprefix(prefix) for name in _imports(path) if name.startswith(prefix)}
        assert {name.split(".")[0] for name in used} <= below, path


def test_the_modules_below_all_folders_of_the_core_import_none_of_them() -> None:
    for path in CORE.glob("*.py"):
        used = {name for name in _imports(path) if name.startswith("nexusflow_integrations._core")}
        assert not {name.split(".")[2] for name in used if name.count(".") > 1} & {*ROOMS}, path


def test_how_it_works_names_every_folder_of_the_core() -> None:
    page = (PACKAGE.parent / "docs" / "how-it-works.md").read_text()
    folders = {path.parent.name for path in CORE.glob("*/__init__.py")}
    assert folders == {*ROOMS}
    assert all(f"`{room}/`" in page for room in folders)


def test_every_setting_of_the_client_is_in_the_types_that_adapters_pass_on() -> None:
    named = {"api_key", "dimensions"}
    assert ClientSettings.__optional_keys__ == signature(NexusFlow).parameters.keys() - named
