"""Fixtures that run each example like a script, in its own folder and without a key."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("ir_measures", "matplotlib", "sklearn"):
        pytest.importorskip(needed, reason="comes with the dependency group `examples`")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    for name in ("API_KEY", "BASE_URL", "CHAT_MODEL"):
        monkeypatch.delenv(f"NEXUSFLOW_{name}", raising=False)


@pytest.fixture
def run() -> Run:
    """Run an example's main with these arguments and return what it returns."""

    def run(name: str, *arguments: object) -> dict[str, Any]:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        result: dict[str, Any] = module.main([str(argument) for argument in arguments])
        return result

    return run


@pytest.fixture(scope="session")
def port(hold_port: Callable[[], int]) -> int:
    """A free port for all examples, because the cache depends on the server's address."""
    return hold_port()


@pytest.fixture
def data() -> Callable[[str], Path]:
    """A file of a standard data set, from the folder that ``NEXUSFLOW_DATA`` names."""

    def data(name: str) -> Path:
        folder = os.environ.get("NEXUSFLOW_DATA")
        if not folder or not (path := Path(folder, name)).is_file():
            pytest.skip(f"NEXUSFLOW_DATA names no folder with {name}")
        return path

    return data
