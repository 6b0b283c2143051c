"""Run Chroma's own embedding function tests, from its wheel, against ours.

    python tests/chroma/chroma_suite.py [FOLDER]

makes a virtual environment in FOLDER (default: a temporary one), because Chroma's tests need
another pytest and packages of their own, and prints the outcome as JSON. Two of the files test
every registered function and so find ours by themselves. The third, about configurations, uses
a function of its own; a copy of it gets ours in its place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
CHROMA = "chromadb>=1.5.9,<1.6"
NEEDS = [
    "pytest<9",  # Chroma's conftest fails with 9
    "pytest-asyncio",
    "hypothesis",
    "fastapi",
    "pandas",
    "psutil",
    "opentelemetry-instrumentation-fastapi",
]
CONFIGURATIONS = "configurations/test_collection_configuration.py"
OURS = "configurations/test_collection_configuration_of_nexusflow.py"
FILES = [
    "ef/test_custom_ef.py",
    "ef/test_ef.py",
    CONFIGURATIONS,
    OURS,
    # Last: it replaces ``__new__`` of all functions, and putting object's back breaks their calls.
    "utils/test_embedding_function_schemas.py",
]
FACTORY = """
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction


def CustomEmbeddingFunction(dim: int = 3) -> NexusFlowEmbeddingFunction:
    sizes = {3: 64, 4: 128, 5: 256, 8: 512}
    return NexusFlowEmbeddingFunction(dimensions=sizes[dim])

"""


def make_environment(folder: Path, *packages: str) -> Path:
    """Install packages and this one into a virtual environment of their own; return its Python."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = [*packages, "starlette", "uvicorn", str(HERE.parents[1])]
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if uv := shutil.which("uv", path=places):
        subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "-p", str(python), *wanted], check=True)
    else:
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
    return python


def put_ours_in_place(tests: Path) -> None:
    """Write the copy of Chroma's configuration tests that uses ours."""
    source = (tests / CONFIGURATIONS).read_text()
    head, rest = source.split("@register_embedding_function\nclass CustomEmbeddingFunction(", 1)
    _, rest = rest.split("@register_embedding_function\n", 1)
    invalid = r'("name": "custom_ef",\s+"type": "known",\s+"config": ){}'
    rest, emptied = re.subn(invalid, r'\1{"dimensions": 7}', rest)
    rest, stored = re.subn(r'("config": {\s+)"dim": 10', r'\1"dimensions": 64', rest)
    rest, compared = re.subn(
        r'get_config\(\) == {"dim": (\d)}',
        r"get_config() == CustomEmbeddingFunction(dim=\1).get_config()",
        rest,
    )
    rest, named = re.subn('"custom_ef"', '"nexusflow"', rest)
    # The space of a collection that names none is that of its function: theirs l2, ours cosine.
    default = r'(_config_loaded\.get\("space"\) == )"l2"'
    rest, spaced = re.subn(default, r'\1"cosine"', rest)
    if not (emptied and stored and compared and named and spaced):
        raise SystemExit("Chroma's configuration tests have changed: ours was not put everywhere")
    (tests / OURS).write_text(head + FACTORY + "@register_embedding_function\n" + rest)


def run(folder: Path) -> dict[str, object]:
    """Run the tests in ``folder``; return the counts, and the outcome of those about ours."""
    python = make_environment(folder / "venv", CHROMA, *NEEDS)
    where = "import chromadb.test, os; print(os.path.dirname(chromadb.test.__file__))"
    found = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    tests = Path(found.stdout.strip())
    put_ours_in_place(tests)
    report = folder / "report.xml"
    command = [str(python), "-m", "pytest", "-q", "-p", "nexusflow_plugin", f"--junitxml={report}"]
    command += ["-p", "no:cacheprovider", *(str(tests / name) for name in FILES)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NEXUSFLOW_")}
    environment |= {"CHROMA_RUST_BINDINGS_TEST_ONLY": "1", "PYTHONPATH": str(HERE / "plugin")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )
    if not report.exists():
        raise SystemExit(done.stdout[-4000:] + done.stderr[-4000:])
    counts: Counter[str] = Counter()
    ours: dict[str, str] = {}
    failures: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = kinds[0] if kinds else "passed"
        counts[outcome] += 1
        if "[nexusflow]" in name or "_of_nexusflow" in case.get("classname", ""):
            ours[name] = outcome
        if outcome in ("failure", "error"):
            failures[name] = "".join(child.get("message", "") for child in case)[:500]
    return {"counts": counts, "ours": ours, "failures": failures}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        outcome = run(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            outcome = run(Path(temporary))
    print(json.dumps(outcome, indent=1))
    sys.exit(bool(outcome["failures"]))
