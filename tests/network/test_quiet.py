"""Without a key nothing leaves the machine, and only the files that the documentation names appear.

Each program runs twice: under strace with a network, which it must not use, and without strace and
without a network, where it must work as well.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import pytest

from .conftest import EXAMPLES, Newcomer

KEY = "sk-air-must-not-leave-this-machine"
# Addresses without a server: a program that uses them is noticed.
PROXIES = {
    name: "http://192.0.2.1:3128"
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
}

SERVE = """
import re, signal, subprocess, urllib.request
command = ["nexusflow", "serve", "--port", "0"]
with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
    url = re.search(r"http://\\S+/v1", process.stderr.readline())[0]
    request = urllib.request.Request(
        url + "/embeddings",
        b'{"model": "text-embedding-v4", "input": "a text"}',
        {"Authorization": "Bearer any", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
assert process.returncode == 0
"""

# Everything that is done with an index of the local model, although a key is set.
COMMANDS = """
set -e
printf 'one\\ntwo\\n' > lines.txt
nexusflow index stdlib --limit 40 --local
nexusflow ask "How do I pick a random item?" --bm25
nexusflow search "a random item" --json
nexusflow report --output report.html
nexusflow embed lines.txt --local --output lines.npy
nexusflow embed lines.txt --estimate
nexusflow cache info
nexusflow --help
"""

# As far as its first picture: what follows does the same as the other examples.
TOUR = f"""
import shutil, sys, nbclient, nbformat
from pathlib import Path
for path in Path({str(EXAMPLES)!r}).glob("*.py"):
    shutil.copy(path, ".")
notebook = nbformat.read({str(EXAMPLES / "tour.ipynb")!r}, as_version=4)
first = next(n for n, cell in enumerate(notebook.cells) if "plt.plot(" in cell.source)
del notebook.cells[first + 1 :]
client = nbclient.NotebookClient(notebook, timeout=900, startup_timeout=300)
client.create_kernel_manager().kernel_spec.argv[0] = sys.executable
client.execute()
"""


@dataclass(frozen=True)
class Program:
    """What is run, and what it needs.

    Attributes:
        command: Program and arguments.
        row: Its row in the table of files of docs/security.md, or how that begins.
        needs: Packages without which it is left out.
        environment: What the user has set.
    """

    command: list[str]
    row: str
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def _example(name: str, *arguments: str) -> Program:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    if name.startswith("rag_"):
        return Program(command, "`rag_chroma.py`")
    return Program(command, "the other examples", ("ir_measures", "matplotlib", "sklearn"))


NOTES = EXAMPLES.parent / "docs" / "guides"
PLOTS = ("ir_measures", "matplotlib", "sklearn")
PROGRAMS = {
    "demo": Program(["nexusflow", "demo", "--limit", "10"], "`nexusflow demo`"),
    "serve": Program([sys.executable, "-c", SERVE], "`nexusflow serve`"),
    "tune": Program(
        ["nexusflow", "tune", str(NOTES / "llama-index.md")], "`nexusflow demo`", ("ir_measures",)
    ),
    "without a key": Program(
        ["sh", "-c", "nexusflow doctor && echo 'a text' | nexusflow embed"], "`nexusflow demo`"
    ),
    "commands": Program(
        ["sh", "-c", COMMANDS],
        "`nexusflow demo`",
        environment={"NEXUSFLOW_API_KEY": KEY, **PROXIES},
    ),
    "semantic_search": _example("semantic_search", "--limit", "40"),
    "anomaly_detection": _example("anomaly_detection", "--limit", "20"),
    "text_clustering": _example("text_clustering", "--limit", "3"),
    "recommendation": _example("recommendation", "--limit", "2"),
    "rag_chroma": _example("rag_chroma", "--folder", str(NOTES), "--port", "0"),
    "rag_langchain": _example("rag_langchain", "--folder", str(NOTES), "--port", "0"),
    "rag_llama_index": _example("rag_llama_index", "--folder", str(NOTES), "--port", "0"),
    "tour": Program(
        [sys.executable, "-c", TOUR], "`tour.ipynb`", (*PLOTS, "nbclient", "ipykernel")
    ),
}
QUICK = "without a key"
ALL = [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in PROGRAMS]

pytestmark = pytest.mark.timeout(1800)


def _program(name: str) -> Program:
    program = PROGRAMS[name]
    for package in program.needs:
        pytest.importorskip(package, reason="comes with the dependency group `examples`")
    return program


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_program_connects_to_no_other_host_and_writes_only_the_documented_files(
    name: str, newcomer: Newcomer
) -> None:
    program = _program(name)
    did = newcomer.traced(program.command, **program.environment)
    assert did.distant == set()
    assert did.resolvers == set()
    assert did.exposed == set()
    assert newcomer.wrote_elsewhere(did) == set()
    assert KEY not in did.text
    newcomer.check_left(program.row)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs_where_there_is_only_loopback(name: str, newcomer: Newcomer) -> None:
    program = _program(name)
    newcomer.alone(program.command, **program.environment)
    newcomer.check_left(program.row)
