"""Simulate, run, and fill docs/scaling.md.

    python -m tests.benchmarks.scaling [--quick] [--only NAME ...] [--docs FILE] [--out FOLDER]

Needs the dependency group ``bench``. ``--only`` adds to the results of earlier runs; with
``--redraw`` nothing is run, and tables and plots are made of what is there.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.tables import fill

from .cases import CASES
from .tables import tables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer points, shorter")
    parser.add_argument("--only", action="append", choices=list(CASES), help="may be repeated")
    parser.add_argument("--redraw", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path(".benchmarks/scaling"))
    parser.add_argument("--docs", type=Path, help="Markdown file whose tables to renew")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results: dict[str, Any] = {"cases": {}}
    if (options.only or options.redraw) and path.exists():
        results = json.loads(path.read_text())
    results["machine"] = (
        f"{platform.machine()} {platform.system()}, Python {platform.python_version()}"
    )
    for name in () if options.redraw else options.only or CASES:
        began = time.monotonic()
        found = CASES[name](options.quick)
        found["seconds"] = time.monotonic() - began
        results["cases"][name] = found
        print(f"{name}: {found['seconds']:.0f} s", file=sys.stderr, flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    made = tables(results, options.out)
    if options.docs:
        options.docs.write_text(fill(options.docs.read_text(), made))
    else:
        (options.out / "results.md").write_text("\n".join(made.values()))

    from .plots import draw

    draw(results["cases"], options.out)


if __name__ == "__main__":
    main()
