"""Write docs/faults.md from the catalogue of faults: python -m tests.faults.page"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from .catalogue import ELSEWHERE, FAULTS, ROWS, AnyOf, Expectation, Right, Row

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
SECTIONS = (
    ("Statuses", 1, 32),
    ("Error bodies", 33, 43),
    ("Invalid responses with status 200", 44, 83),
    ("Connections, framing, time", 84, 110),
    ("Redirects", 118, 118),
)
MOST = 6
"""Maximum number of variants that a line names; the others are only counted."""

HEAD = """\
# The fault table

<!-- Written by python -m tests.faults.page from tests/faults/catalogue.py; do not edit. -->

The tests inject {rows} variants of {faults} faults over real sockets. The tables show what the
caller gets. Each variant is tested with the core (sync, async or both), and one variant of each
fault with all three adapters. `pytest tests/faults --all-surfaces` tests all variants with all of
them. Unless noted otherwise, calls have two retries. In every case no vector is wrong, the call
ends within the deadline, no error shows the key, and the error's `finished` vectors are right.

- The number of a fault is the beginning of its test ids: `pytest tests/faults -k F23-` runs the
  tests of F23.
- **once**: the fault does not occur again at the next request.
- **always**: the fault occurs at every request.
- **or**: either result is acceptable.
- **an error class**: the call raises this class or a subclass of it.
- **finished**: the number of vectors in the error.
"""


def render() -> str:
    """Return the page."""
    tested = {row.fault for row in ROWS}
    lines = [HEAD.format(rows=len(ROWS), faults=len(tested))]
    for title, first, last in SECTIONS:
        numbers = [fault for fault in FAULTS if first <= int(fault[1:]) <= last]
        lines += [
            f"## {title}",
            "",
            "| fault | what the server does | what the caller gets |",
            "|---|---|---|",
        ]
        for fault in numbers:
            found = _lines([row for row in ROWS if row.fault == fault])
            lines += [f"| {fault} | {_cell(ways)} | {_cell([got])} |" for ways, got in found]
        lines.append("")
    lines += ["## Other faults", "", "| what is tested | test file |", "|---|---|"]
    lines += [f"| {_cell([_said(ROOT / path)])} | `{path}` |" for path in ELSEWHERE]
    return "\n".join(lines) + "\n"


def _lines(rows: Iterable[Row]) -> Iterator[tuple[list[str], str]]:
    """Yield the variants of a fault with the same result, and the result."""
    ends: dict[str, dict[str, list[str]]] = {}  # variant -> "once", "always" or "" -> results
    for row in rows:
        way, comma, when = row.name.rpartition(", ")
        if not comma or when not in ("once", "always"):
            way, when = row.name, ""
        ends.setdefault(way, {}).setdefault(when, []).extend(_results(row.expect))
    alike: dict[str, list[str]] = {}
    for way, found in ends.items():
        parts = [f"{when}: {', then '.join(got)}".removeprefix(": ") for when, got in found.items()]
        alike.setdefault("; ".join(parts), []).append(way)
    for got, ways in alike.items():
        more = len(ways) - MOST
        yield (ways if more <= 0 else [*ways[:MOST], f"and {more} more"]), got


def _results(expectations: Iterable[Expectation]) -> list[str]:
    return [got for got, _ in groupby(map(_result, expectations))]


def _result(expectation: Expectation) -> str:
    if isinstance(expectation, AnyOf):
        return " or ".join(map(_result, expectation.choices))
    low, high = expectation.attempts
    if isinstance(expectation, Right):
        return "vectors" + ("" if high == 1 else f" after {_count(low, high)}")
    names = (expectation.error,) if isinstance(expectation.error, str) else expectation.error
    text = f"{' or '.join(f'`{name}`' for name in names)} after {_count(low, high)}"
    if expectation.refused is not None:
        places = ", ".join(map(str, sorted(expectation.refused)))
        text += f"; refused: {places}; finished: {len(expectation.finished or ())}"
    return text


def _count(low: int, high: int) -> str:
    if low == high:
        return "1 request" if low == 1 else f"{low} requests"
    return f"{low} to {high} requests"


def _cell(texts: Iterable[str]) -> str:
    return "; ".join(texts).replace("|", r"\|").replace("<", "&lt;")


def _said(path: Path) -> str:
    """Return the first paragraph of a test file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]


if __name__ == "__main__":
    PAGE.write_text(render())
