"""The environment of a new user: empty folders and no settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .only_loopback import NOT_ALLOWED
from .tracing import Trace, trace, why_not

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LAUNCHER = Path(__file__).with_name("only_loopback.py")


@dataclass(frozen=True)
class Newcomer:
    """The folders of a test, and methods that run commands in them.

    Attributes:
        home: The home folder; no XDG variable names another.
        work: The working folder.
        temp: ``TMPDIR``.
    """

    home: Path
    work: Path
    temp: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a command."""
        return {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
            "HOME": str(self.home),
            "TMPDIR": str(self.temp),
            "LANG": "C.UTF-8",
            **more,
        }

    def traced(self, command: list[str], **more: str) -> Trace:
        """Run a command that must succeed, with network access, and return its trace."""
        if reason := why_not():
            pytest.skip(reason)
        notes = self.home.with_name("notes")
        done, did = trace(command, cwd=self.work, env=self.environment(**more), notes=notes)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return did

    def alone(self, command: list[str], **more: str) -> str:
        """Run a command that must succeed with only the loopback network, and return its output."""
        done = subprocess.run(
            [sys.executable, str(LAUNCHER), *command],
            cwd=self.work,
            env=self.environment(**more),
            capture_output=True,
            encoding="utf-8",
            timeout=900,
        )
        if done.returncode == NOT_ALLOWED:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def wrote_elsewhere(self, did: Trace) -> set[Path]:
        """Return the files that a command wrote outside of its folders."""
        return did.written_outside(self.home, self.work, self.temp)

    def left(self) -> set[str]:
        """Return all files in the home folder, relative to it."""
        return {str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()}

    def check_left(self, row: str, temp: Collection[str] = ()) -> None:
        """Check that exactly the documented files are left.

        Args:
            row: How a row of the table of files in docs/security.md begins.
            temp: What is left in the temporary folder.
        """
        page = (ROOT / "docs" / "security.md").read_text("utf-8")
        (line,) = re.findall(rf"^\| {re.escape(row)}.*? \| (.*) \|$", page, re.MULTILINE)
        documented, left = re.findall(r"`~/([^`]+)`", line), self.left()
        places = {
            path: {one for one in documented if f"{path}/".startswith(f"{one}/")} for path in left
        }
        assert {path for path in left if not places[path]} == set()
        assert {one for place in places.values() for one in place} == set(documented)
        assert sorted(path.name for path in self.temp.iterdir()) == sorted(temp)


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    # The path is short, because Ray's socket paths have a maximum length.
    with tempfile.TemporaryDirectory(prefix="nf-", ignore_cleanup_errors=True) as folder:
        newcomer = Newcomer(*(Path(folder, part) for part in ("home", "work", "temp")))
        for path in (newcomer.home, newcomer.work, newcomer.temp):
            path.mkdir()
        yield newcomer
