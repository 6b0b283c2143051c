"""Start servers and child processes, and describe the machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = (
    "nexusflow-integrations",
    "aiohttp",
    "httpx",
    "orjson",
    "pybase64",
    "numpy",
    "openai",
    "httpx2",
    "httpx-aiohttp",
    "langchain-core",
    "langchain-openai",
    "langchain-classic",
    "langchain-chroma",
    "llama-index-core",
    "llama-index-embeddings-openai-like",
    "llama-index-vector-stores-chroma",
    "chromadb",
    "uvloop",
    "baseten-performance-client",
)
PATIENCE = 300.0
"""Seconds after which a child counts as hanging."""

_CLEAN = {
    name: value
    for name, value in os.environ.items()
    if "proxy" not in name.lower() and not name.startswith(("OPENAI", "NEXUSFLOW", "LANGSMITH"))
}
_CLEAN |= {"PYTHONHASHSEED": "0", "ANONYMIZED_TELEMETRY": "False", "LANGSMITH_TRACING": "false"}


@dataclass(frozen=True)
class Server:
    """A running mock server."""

    url: str
    control: str
    process: subprocess.Popen[bytes]

    def stats(self, *, reset: bool = False) -> dict[str, Any]:
        path = "reset" if reset else "stats"
        with urllib.request.urlopen(f"{self.control}/{path}", timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found


@contextlib.contextmanager
def server(latency_ms: float = 0.0, certificate: Path | None = None) -> Iterator[Server]:
    """Run the mock server in a process of its own."""
    command = [sys.executable, str(HERE / "server.py"), "--latency-ms", str(latency_ms)]
    if certificate is not None:
        command += ["--certificate", str(certificate)]
    with running(command) as (process, ports):
        scheme = "http" if certificate is None else "https"
        yield Server(
            f"{scheme}://127.0.0.1:{ports['port']}/v1",
            f"http://127.0.0.1:{ports['control']}",
            process,
        )


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Run a program that prints a line of JSON when it is ready and ends with its input."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_CLEAN)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{command[1]} ended at once")
        yield process, json.loads(line)
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        process.stdout.close()


def start(spec: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    """Start one measurement in a fresh process."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "child.py"), json.dumps(spec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**_CLEAN, **environment},
    )


def measure(spec: dict[str, Any], at: Server | None = None, **environment: str) -> dict[str, Any]:
    """Run one measurement in a fresh process and return its figures, with the server's.

    Raises:
        RuntimeError: It failed, or a vector was wrong.
    """
    if at is not None:
        spec = {**spec, "url": at.url}
        at.stats(reset=True)
    process = start(spec, **environment)
    try:
        out, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError(f"{spec} did not end within {PATIENCE:.0f} s") from None
    if process.returncode:
        raise RuntimeError(f"{spec} failed:\n{errors[-3000:]}")
    figures: dict[str, Any] = json.loads(out.splitlines()[-1])
    if at is not None:
        figures["server"] = at.stats()
    if (busy := figures.pop("busy", None)) is not None and "cpu" in figures:
        # The cores used by other processes, without the server.
        mine = figures["cpu"] + figures.get("server", {}).get("cpu_seconds", 0.0)
        figures["others"] = max(0.0, busy - mine) / figures["wall"]
    return figures


def interleaved(
    specs: dict[str, dict[str, Any]], rounds: int, at: Server | None = None, **environment: str
) -> dict[str, list[dict[str, Any]]]:
    """Measure all ``specs`` in every round, in rotating order."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in specs}
    names = list(specs)
    for turn in range(rounds):
        shift = turn * 3 % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(measure(specs[name], at, **environment))
    return found


def together(
    specs: dict[str, dict[str, Any]], latency_ms: float
) -> dict[str, list[dict[str, Any]]]:
    """Measure all ``specs`` once, in parallel, each with its own server."""

    def one(spec: dict[str, Any]) -> list[dict[str, Any]]:
        with server(latency_ms) as at:
            return [measure(spec, at)]

    with ThreadPoolExecutor(len(specs)) as pool:
        return dict(zip(specs, pool.map(one, specs.values()), strict=True))


def median(runs: Sequence[dict[str, Any]], figure: str) -> float:
    return float(statistics.median(run[figure] for run in runs))


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def realtime() -> bool:
    """Return whether this process and its children have real-time priority."""
    return sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_FIFO


def machine() -> dict[str, Any]:
    """Return the machine and the versions."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "realtime": realtime(),
        "versions": versions,
    }
