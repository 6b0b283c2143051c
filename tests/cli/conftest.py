"""Fixtures: the command, run in this process in its own folders, and a server without a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nexusflow_integrations.cli.app import app
from nexusflow_integrations.local import LocalServer

KEY = "sk-air-very-secret"
"""The key of ``server``, for code outside of tests."""


class Command:
    """Runs ``nexusflow``, and checks that no output has a traceback or the key."""

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run the command, check its exit code, and return its output and standard error."""
        result = CliRunner().invoke(app, list(arguments))
        told = f"{result.stdout}\n{result.stderr}"
        assert result.exit_code == code, told
        assert "Traceback" not in told
        assert "very-secret" not in told
        return result.stdout, result.stderr

    def json(self, *arguments: str) -> dict[str, Any]:
        """Run the command, and return the JSON object that it prints."""
        found: dict[str, Any] = json.loads(self(*arguments, "--json")[0])
        return found

    def sentence(self, *arguments: str, code: int) -> str:
        """Run a command that fails, and return its error message."""
        _, stderr = self(*arguments, code=code)
        lines = [line for line in stderr.splitlines() if line.startswith("nexusflow: ")]
        assert len(lines) == 1, stderr
        assert stderr.rstrip().endswith(lines[0]), stderr
        return lines[0].removeprefix("nexusflow: ")


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's settings, and use folders of this test."""
    for name in os.environ:
        if name.startswith("NEXUSFLOW_") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def service(server: LocalServer, clean: None, monkeypatch: pytest.MonkeyPatch) -> LocalServer:
    """A server in place of the service; the environment has its key and URL."""
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
    return server


@pytest.fixture
def nexusflow(clean: None) -> Command:
    """The command, without a key unless the test also uses ``service``."""
    return Command()


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A folder with three short texts."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "panda.md").write_text("# Panda\n\nThe red panda eats bamboo and sleeps in trees.\n")
    (folder / "otter.txt").write_text("The otter eats fish. It lives in rivers.\n")
    (folder / "熊猫.md").write_text("小熊猫吃竹子。\n", "utf-8")
    return folder
