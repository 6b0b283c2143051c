"""Files that commands write: whether they can, before anything is paid for."""

from __future__ import annotations

import os
from pathlib import Path

from nexusflow_integrations.cli.exits import UsageProblem


def check_output(path: Path, *inputs: Path | None) -> None:
    """Check that a file can be written, before anything is paid for.

    Args:
        path: The file.
        *inputs: Files that it must not replace.

    Raises:
        UsageProblem: It cannot be written; the message says why.
    """
    parent = path.parent
    if not parent.is_dir():
        raise UsageProblem(f"the folder {str(parent)!r} does not exist")
    if path.is_dir():
        raise UsageProblem(f"the output {str(path)!r} is a folder")
    target = Path(os.path.realpath(path))
    if any(one is not None and target == Path(os.path.realpath(one)) for one in inputs):
        raise UsageProblem("the output would replace the input")
    written = target if target.exists() and not target.is_file() else target.parent
    if not os.access(written, os.W_OK):
        what = "output" if written == target else "folder"
        raise UsageProblem(f"the {what} {str(written)!r} cannot be written")
