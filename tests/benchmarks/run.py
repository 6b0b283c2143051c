"""Run the benchmarks: figures as JSON and Markdown, and plots.

    python tests/benchmarks/run.py [--quick] [--only NAME ...] [--out FOLDER] [--docs FILE]

Needs the dependency group ``bench``. All of it takes about 45 minutes on two cores, ``--quick``
about three. Every vector that is timed is compared with what it must be. ``--docs`` puts the tables
between the markers of a Markdown file, instead of into ``results.md``.

On a Linux machine that others use too, root can have it go before them all, and everybody in it
alike: ``chrt -f 20 python tests/benchmarks/run.py``. The results say so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cases import CASES, ON_REQUEST
from harness import machine
from tables import fill, tables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    parser.add_argument(
        "--only", action="append", choices=[*CASES, *ON_REQUEST], help="may be repeated"
    )
    parser.add_argument("--out", type=Path, default=Path(".benchmarks"))
    parser.add_argument("--docs", type=Path, help="Markdown file whose tables to renew")
    parser.add_argument("--no-plots", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results = _earlier(path, options)
    began = time.monotonic()
    for name in options.only or CASES:
        at = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        found = {**CASES, **ON_REQUEST}[name](options.quick)
        found["seconds"] = time.monotonic() - at
        found["when"] = datetime.now(timezone.utc).isoformat(timespec="minutes")
        results["cases"][name] = found
        print(f"{found['seconds']:.0f} s", file=sys.stderr, flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    made = tables(results)
    if options.docs:
        options.docs.write_text(fill(options.docs.read_text(), made))
    else:
        (options.out / "results.md").write_text("\n".join(made.values()))
    if not options.no_plots:
        from plots import draw

        draw(results, options.out)
    print(f"{time.monotonic() - began:.0f} s; {path}", file=sys.stderr)


def _earlier(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the results to add to: with ``--only``, those of an earlier run of the same kind."""
    fresh = {"quick": options.quick, "machine": machine(), "cases": {}}
    if options.only and path.exists():
        earlier: dict[str, Any] = json.loads(path.read_text())
        if earlier["quick"] == options.quick:
            return {**fresh, "cases": earlier["cases"]}
    return fresh


if __name__ == "__main__":
    main()
