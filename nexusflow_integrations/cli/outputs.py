"""Checks that an output file can be written, before anything is paid for."""

from __future__ import annotations

import os
from pathlib import Path

from nexusflow_integrations._core.whole_file import is_stream
from nexusflow_integrations.cli.exits import UsageProblem
from nexusflow_integrations.cli.rag.converted import CONVERTED, ROWS
from nexusflow_integrations.cli.rag.corpus import is_own_page

_OTHERS = frozenset(
    (*CONVERTED, *ROWS, ".md", ".txt", ".svg", ".png", ".jpg", ".gif", ".xlsx", ".zip")
)
"""Endings of types that an output could be mistaken for."""


def check_output(path: Path, *inputs: Path | None) -> None:
    """Check that a file can be written, before anything is paid for.

    Args:
        path: The file.
        *inputs: Files that the output must not replace.

    Raises:
        UsageProblem: The file cannot be written; the message says why.
    """
    parent = path.parent
    if not parent.is_dir():
        raise UsageProblem(f"the folder {str(parent)!r} does not exist")
    if path.is_dir():
        raise UsageProblem(f"the output {str(path)!r} is a folder")
    if is_stream(path):
        return
    target = Path(os.path.realpath(path))
    if any(one is not None and target == Path(os.path.realpath(one)) for one in inputs):
        raise UsageProblem(f"{str(path)!r} would replace the input, the cache or another output")
    if not os.access(target.parent, os.W_OK):
        raise UsageProblem(f"the folder {str(target.parent)!r} cannot be written")


def check_page(path: Path) -> None:
    """Check that an HTML page replaces no file except an empty one or an earlier page.

    Args:
        path: The page. Other tools write to ``report.html`` by default, too.

    Raises:
        UsageProblem: The file has other contents.
    """
    if is_stream(path) or not path.exists() or not path.stat().st_size:
        return
    if not is_own_page(path):
        raise UsageProblem(
            f"{str(path)!r} exists, and neither `report` nor `tune` wrote it: remove it, or choose"
            " another name"
        )


def check_ending(path: Path, *endings: str) -> None:
    """Check that the name of an output is not that of another type of file.

    A name without an ending, or with one that names no type (``map.v2``), is accepted.

    Args:
        path: The file.
        *endings: The endings of its type; the first one is in the message.

    Raises:
        UsageProblem: The name has the ending of another type of file.
    """
    ending = path.suffix.lower()
    if ending in endings or is_stream(path):
        return
    if ending in _OTHERS:
        raise UsageProblem(
            f"{str(path)!r} cannot be written as {ending}: give it a name that ends in {endings[0]}"
        )
