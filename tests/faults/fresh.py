"""The client in a new process, with an environment of its own (proxies, trusted roots)."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .server import expected_vector

ROOT = Path(__file__).parents[2]
TEXTS = ("first text", "第二段")
KEY = "sk-air-fresh-0123456789abcdef"

_CHILD = """
import asyncio, base64, json, sys, time, traceback
from tests.import_watch import watch
imported = watch()
import numpy as np
from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.request import retry

retry.BASE_FAULT = retry.BASE_THROTTLE = 0.01
texts, jobs = json.load(sys.stdin)
for job in jobs:
    started = time.monotonic()
    try:
        client = NexusFlow(**job["options"])
        if job["mode"] == "sync":
            rows = client.embed(texts)
        else:
            rows = asyncio.run(client.aembed(texts))
        packed = [np.asarray(row, "<f4").tobytes() for row in rows]
        outcome = {"rows": [base64.b64encode(row).decode() for row in packed]}
    except Exception as error:
        outcome = {
            "errors": [cls.__name__ for cls in type(error).__mro__],
            "text": str(error),
            "report": "".join(traceback.format_exception(error)),
        }
    print(json.dumps({**outcome, "seconds": time.monotonic() - started}), flush=True)
assert not imported, imported
"""

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass(frozen=True)
class Outcome:
    """The result of a call: `errors` are the class names of the error, the most derived first."""

    errors: tuple[str, ...]
    text: str
    report: str
    right: bool


def embed_in_a_new_process(
    jobs: Sequence[tuple[str, str]], environment: Mapping[str, str], **options: Any
) -> list[Outcome]:
    """Run each job, a (base URL, "sync" or "async"), one after the other in one process."""
    clean = {k: v for k, v in os.environ.items() if k.lower() not in PROXY_VARIABLES}
    clean.pop("SSL_CERT_FILE", None)
    common = {"dimensions": 64, "timeout": 60.0, "deadline": 120.0, "max_retries": 2, **options}
    described = [
        {
            "mode": mode,
            # A key of its own for each job: pace and retry budget are per key.
            "options": {**common, "base_url": url, "api_key": f"{KEY}-{n}"},
        }
        for n, (url, mode) in enumerate(jobs)
    ]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps([TEXTS, described]),
        env={**clean, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300 + 20 * len(jobs),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr
    return [_outcome(json.loads(line)) for line in done.stdout.splitlines()]


def _outcome(answer: Mapping[str, Any]) -> Outcome:
    if "rows" not in answer:
        for place in (answer["text"], answer["report"]):
            assert KEY not in place
        return Outcome(tuple(answer["errors"]), answer["text"], answer["report"], right=False)
    rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in answer["rows"]]
    assert len(rows) == len(TEXTS)
    for row, text in zip(rows, TEXTS, strict=True):
        assert np.array_equal(row, expected_vector(text, 64))
    return Outcome((), "", "", right=True)
