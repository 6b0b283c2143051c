"""The tasks of this project; CI runs the same names. ``nox -l`` lists them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.options.sessions = [
    "tests",
    "slow",
    "simulation",
    "lint",
    "typing",
    "wheel",
    "frameworks",
    "floor",
    "chroma_suite",
    "recipes",
    "small_adapters",
    "docs",
    "ray",
]
nox.options.error_on_external_run = True
nox.options.envdir = os.environ.get("NOX_ENVDIR", ".nox")
# Where uv is installed, the environments share one copy of each file. pip gives a gigabyte to each.
nox.options.default_venv_backend = "uv|virtualenv"
# Hundreds of tests start a Python, which without compiled files takes a second longer.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
PINS = ("-c", "constraints.txt")
PARALLEL = ("-n", "4", "--dist", "loadfile")  # they wait more than they compute

FOR_THE_CORE = ("pytest>=9", "pytest-asyncio>=1.5", "pytest-timeout>=2.4", "hypothesis>=6.160")
FOR_SERVERS = ("psutil>=7", "trustme>=1.1", "opentelemetry-sdk>=1.27")


FEW = 5
"""How many failures may be races of busy processes; more are a fault."""


def _group(name: str) -> list[str]:
    return nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), name)


def _pytest(session: nox.Session, *arguments: str) -> None:
    """Run tests in parallel; if only a few fail, run those once more, alone, as CPython's CI does.

    Thousands of them kill, stop and race real processes, four at once on a machine that may do
    other things too. The log shows what failed first; a test that fails twice fails the task.
    """
    cache = Path(session.virtualenv.location, "pytest").resolve()  # create_tmp would set TMPDIR
    shutil.rmtree(cache, ignore_errors=True)
    command = ("pytest", "-q", "-o", f"cache_dir={cache}", *arguments)
    try:
        session.run(*command)
    except CommandFailed as error:
        failed = cache / "v" / "cache" / "lastfailed"
        if error.reason != "Returned code 1" or not failed.exists():
            raise
        again = json.loads(failed.read_text())
        if len(again) > FEW:
            raise
        session.log(f"Once more, alone: {', '.join(again)}")
        session.run(*command, "-n", "0", "--last-failed")


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests that need nothing but this machine, but the slow ones."""
    session.install(*PINS, "-e", ".[all]", *_group("test"), *_group("examples"))
    _pytest(session, *PARALLEL, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests: the examples, the real model, whole benchmarks."""
    session.install(*PINS, "-e", ".[all]", *_group("test"), *_group("examples"))
    _pytest(session, "-m", "slow", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session
def simulation(session: nox.Session) -> None:
    """Simulate the engine with a hundred thousand seeds, or with as many as CI has time for."""
    session.install(*PINS, "-e", ".")
    seeds = os.environ.get("SIMULATION_SEEDS", "100000")
    session.run("python", "-m", "tests.simulation", *(session.posargs or [seeds]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*PINS, *_group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types, strictly."""
    session.install(*PINS, "-e", ".[all]", *_group("test"), *_group("typing"))
    session.run("mypy")
    session.run("mypy", "tests/typing/surface.py")
    session.run("pyright", "tests/typing/surface.py")


ADAPTERS = ("tests/langchain", "tests/llama_index", "tests/chroma", "tests/core")


@nox.session(venv_backend="uv")
@nox.parametrize("resolution", ["lowest-direct", "highest"])
def frameworks(session: nox.Session, resolution: str) -> None:
    """Test the adapters with the lowest supported and with the newest frameworks."""
    session.install("--resolution", resolution, "-e", ".[all]", *_group("test"))
    _pytest(session, *PARALLEL, *ADAPTERS, *session.posargs)


@nox.session(venv_backend="uv")
def floor(session: nox.Session) -> None:
    """Test the core with the lowest versions of what it needs itself, which frameworks raise."""
    extras, tests = ".[local,redis,otel]", ("core", "streams", "telemetry", "redis")
    needed = (*FOR_THE_CORE, *FOR_SERVERS, "quicktok-v1>=0.4")  # the last: exact token counts
    session.install("--resolution", "lowest-direct", "-e", extras, *needed)
    session.run("pytest", "-q", *(f"tests/{name}" for name in tests), *session.posargs)


@nox.session
def chroma_suite(session: nox.Session) -> None:
    """Run Chroma's own embedding function tests against ours, in an environment of their own."""
    session.install(*PINS, "-e", ".[all]", *_group("test"))
    session.run("pytest", "-q", "tests/chroma/test_chroma_suite.py", env={"CHROMA_SUITE": "1"})


@nox.session
def recipes(session: nox.Session) -> None:
    """Run docs/recipes.md on Daft, Dask and DSPy, in an environment of their own."""
    session.install("-e", ".[local]", *_group("recipes"))
    session.run("pytest", "-q", "-m", "recipes", "tests/recipes", *session.posargs)


QUICK = (
    *("core", "structure", "langchain", "llama_index", "chroma", "store", "streams", "lifecycle"),
    *("local", "telemetry", "resume", "cli", "rag"),
)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure, with branches, what the quick tests run through, also in their subprocesses."""
    session.install(
        *PINS, "-e", ".[all]", *_group("test"), *_group("examples"), *_group("coverage")
    )
    session.run("coverage", "erase")
    folders = session.posargs or [f"tests/{name}" for name in QUICK]
    session.run("coverage", "run", "-m", "pytest", "-q", *folders, success_codes=[0, 1])
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session
def mutation(session: nox.Session) -> None:
    """Change the pure core in a thousand places; tests/core should notice. Takes hours."""
    session.install(*PINS, "-e", ".", *FOR_THE_CORE, *_group("mutation"))
    session.run("mutmut", "run", "--max-children", "1", *session.posargs, success_codes=[0, 1])
    session.run("mutmut", "results")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/; a broken link, reference or docstring fails."""
    session.install(*PINS, *_group("docs"))
    said = session.run("zensical", "build", "--strict", "--clean", silent=True)
    if "griffe:" in str(said):  # strict mode lets these pass
        session.error(f"docstrings that cannot be read:\n{said}")
    session.run("python", "tests/docs/check_site.py", "site")


SMALL_ADAPTERS = ("haystack", "lancedb", "llm", "pydantic-ai")


@nox.session(venv_backend="uv")
@nox.parametrize("resolution", ["lowest-direct", "highest"])
def small_adapters(session: nox.Session, resolution: str) -> None:
    """Test the small adapters and their page, all in one environment, which also checks types."""
    extras = f".[{','.join(SMALL_ADAPTERS)}]"
    session.install("--resolution", resolution, "-e", extras, *_group("small-adapters"))
    tests = ("tests/small_adapters", "tests/network/test_small_adapters.py")
    session.run("pytest", "-q", *tests, *session.posargs)
    if resolution == "highest":
        names = (name.replace("-", "_") for name in SMALL_ADAPTERS)
        session.run("mypy", *(f"-pnexusflow_integrations.{name}" for name in names))


@nox.session
def ray(session: nox.Session) -> None:
    """Run the tests of Ray Data on a Ray of two CPUs, in an environment of their own."""
    session.install(*PINS, "-e", ".[ray,chroma,local]", *_group("ray"))
    session.run("pytest", "-q", "-m", "ray", "tests/ray", "tests/network", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure everything beside the peers (45 minutes on a quiet machine)."""
    session.install(*PINS, "-e", ".[all]", *_group("bench"))
    session.run("python", "tests/benchmarks/run.py", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build twice, compare, look inside; test the wheel where no extra is installed."""
    session.install(*PINS, "build", "twine")
    work = Path(session.create_tmp())
    shutil.rmtree(work)
    builds = [work / "first", work / "second"]
    # The first wheel is built from the sdist, the second from the tree.
    for out, how in zip(builds, ([], ["--sdist", "--wheel"]), strict=True):
        env = {"SOURCE_DATE_EPOCH": "1700000000"}
        session.run("python", "-m", "build", *how, "--outdir", str(out), env=env, silent=True)
    session.run("python", "tests/archives_check.py", *map(str, builds))
    archives = sorted(builds[0].iterdir())
    session.run("twine", "check", "--strict", *map(str, archives))
    built = next(path for path in archives if path.suffix == ".whl")
    session.install(*PINS, str(built))
    session.run("python", "tests/wheel_check.py")
    # As a packager would: the core's tests out of the sdist, against the wheel alone.
    session.install(*PINS, *FOR_THE_CORE)
    sdist = next(path for path in archives if path.name.endswith(".tar.gz"))
    shutil.unpack_archive(sdist, work)
    with session.chdir(work / sdist.name.removesuffix(".tar.gz")):
        shutil.rmtree("nexusflow_integrations")
        session.run("pytest", "-q", "tests/core")
