"""The notebook runs from top to bottom, as a person would run it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tour_runs_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in EXAMPLES.iterdir():
        if path.suffix in (".py", ".ipynb"):
            shutil.copy(path, tmp_path)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(tmp_path / "tour.ipynb", as_version=4)
    # This very interpreter, whatever kernels the machine has registered.
    kernel = nbclient.NotebookClient(
        notebook, timeout=900, startup_timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    manager = kernel.create_kernel_manager()
    manager.kernel_spec.argv[0] = sys.executable
    kernel.execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    printed = "".join(out.get("text", "") for out in outputs)
    assert len(pictures) >= 4
    assert "(3, 256) float32" in printed
    assert "3 of 4 texts from the cache" in printed
    assert printed.count("library/random.html#random.choice") == 3
    for word in ("nDCG@10", "AUROC", "NMI", "popularity"):
        assert word in printed
    # What is committed holds no output of anybody's machine.
    assert not any(cell.get("outputs") for cell in nbformat.read(EXAMPLES / "tour.ipynb", 4).cells)
