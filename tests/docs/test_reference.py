"""The reference lists every public name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nexusflow_integrations"
NOT_FOR_IMPORT = {"cli"}
"""The command, and what only the command and the examples use."""


def _public() -> Iterator[str]:
    """Yield the public names, as pages of the reference would name them by their last part."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if NOT_FOR_IMPORT & set(parts) or any(re.match("_(?!_)", part) for part in parts):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                yield from ast.literal_eval(node.value)


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: [\w.]+?\.(\w+)$", pages, re.MULTILINE))
    for module in re.findall(r"^::: nexusflow_integrations\.([\w.]+)$", pages, re.MULTILINE):
        path = PACKAGE / (module.replace(".", "/") + ".py")
        if path.exists():  # a whole module
            shown |= set(re.findall(r"^(?:async def|def|class) (\w+)", path.read_text(), re.M))
    public = {name for name in _public() if name != "__version__"}
    assert len(public) > 20
    assert public - shown == set()
