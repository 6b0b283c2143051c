"""The notebook runs from top to bottom."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tour_runs_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLES / "tour.ipynb", tmp_path)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(tmp_path / "tour.ipynb", as_version=4)
    # This very interpreter, whatever kernels the machine has registered.
    kernel = nbclient.NotebookClient(
        notebook, timeout=900, startup_timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    manager = kernel.create_kernel_manager()
    manager.kernel_spec.argv[0] = sys.executable
    kernel.execute()

    pictures, printed = _outputs(notebook)
    assert pictures == 3
    assert "(3, 1024) float32" in printed
    assert "3 of 4 texts from the cache" in printed
    assert printed.count("library/random.html#random.choice") == 3
    for word in ("BM25", "AUROC", "NMI", "baseline"):
        assert word in printed


def test_the_tour_holds_its_outputs_each_plot_once_and_its_code() -> None:
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    pictures, printed = _outputs(notebook)
    assert pictures == 3
    assert "-> ['random.choice'" in printed
    assert "Traceback" not in printed
    assert "%run" not in "".join(cell.source for cell in notebook.cells)
    assert str(Path.home()) not in printed


def _outputs(notebook: Any) -> tuple[int, str]:
    """Return the number of pictures and all that was printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return pictures, "".join(output.get("text", "") for output in outputs)
