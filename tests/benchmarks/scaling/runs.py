"""Real processes, a real cache file and a real server with quotas, on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.local import LocalServer

ROOT = Path(__file__).parents[3]
PATIENCE = 120.0
"""Seconds for a process to start or to end."""


def run_processes(
    processes: int,
    *,
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
    latency: float,
    words: int,
    seconds: float,
    warm: float = 4.0,
) -> dict[str, float]:
    """Run processes that share one cache file, as fast as allowed; return the server's counts."""
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer("hash", latency_ms=latency * 1000, **limits) as server,
    ):
        arguments = {
            "api_key": server.api_key,
            "base_url": server.base_url,
            "cache": str(Path(folder) / "cache.sqlite3"),
            "dimensions": 64,
            **limits,
        }
        children = [
            subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.runs", json.dumps([arguments, n, words])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for n in range(processes)
        ]
        try:
            for child in children:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            time.sleep(warm)
            before, began = server.stats, time.monotonic()
            time.sleep(seconds)
            after, took = server.stats, time.monotonic() - began
        finally:
            for child in children:
                child.terminate()
                child.wait(PATIENCE)
    refused = after.statuses.get(429, 0) - before.statuses.get(429, 0)
    used = (
        (after.ok - before.ok) / (requests_per_minute / 60 * took)
        if requests_per_minute is not None
        else (after.tokens - before.tokens) / ((tokens_per_minute or 0) / 60 * took)
    )
    sent = after.requests - before.requests
    return {"used": used, "refused": refused / sent, "requests": sent, "seconds": took}


def embed_for_ever(arguments: dict[str, Any], number: int, words: int) -> None:
    """The work of one process, once it is started."""
    client = NexusFlow(**arguments)
    filler = "word " * (words - 2)
    client.embed([f"{number} opens what is lazy"])
    print("ready", flush=True)
    sys.stdin.readline()
    start = 0
    while True:
        texts = (f"{number} {n} {filler}" for n in range(start, start + 100_000))
        for item in client.embed_stream(texts, ordered=False):
            if item.error is not None:
                raise item.error
        start += 100_000


if __name__ == "__main__":
    embed_for_ever(*json.loads(sys.argv[1]))
