"""Write docs/collections.md from the catalogue of events: python -m tests.life.page"""

from __future__ import annotations

from pathlib import Path

from .catalogue import ELSEWHERE, EVENTS, Event, Outcome
from .systems import SYSTEMS

PAGE = Path(__file__).parents[2] / "docs" / "collections.md"

HEAD = """\
# The life of a collection

<!-- Written by python -m tests.life.page from tests/life/catalogue.py; do not edit. -->

How well a Chroma collection follows its source, with
[`sync_documents`](guides/chroma-collections.md) and three other
tools. Each cell is a test with a real `PersistentClient`, on a collection of 20 documents unless
the event says otherwise: the number of texts paid for, then the error that was raised, if any, then
what is wrong with the collection afterwards. If a cell has only a number, the collection is right.

- **lost**: documents that should be there and are not. After an error these are the old documents,
  or new ones that could have been stored.
- **stale**: documents that still have an old text.

All four use this package's embeddings with retries off. `sync_documents` has its default settings:
in a new process it compares up to three stored vectors with the service before it writes the first
new one, which counts as up to three texts. LangChain is `index(cleanup="full")` with an
`SQLRecordManager` in a file, LlamaIndex an `IngestionPipeline` with a `SimpleDocumentStore` that is
saved after each run and `DocstoreStrategy.UPSERTS_AND_DELETE`. With plain Chroma the program
upserts the whole source, then deletes the ids that the source does not have.

"""


def render() -> str:
    """Return the page."""
    lines = [
        f"| event | {' | '.join(SYSTEMS)} |",
        "|---|" + "---|" * len(SYSTEMS),
        *map(_line, EVENTS),
        "",
        "Further events, for `sync_documents` alone:",
        "",
        "| event | outcome | test |",
        "|---|---|---|",
        *(f"| {name} | {outcome} | `{path}` |" for name, outcome, path in ELSEWHERE),
    ]
    return HEAD + "\n".join(lines) + "\n"


def _line(event: Event) -> str:
    return f"| {event.name} | {' | '.join(_cell(got, event.chance) for got in event.expected)} |"


def _cell(outcome: Outcome, chance: bool) -> str:
    parts = [f"{'at most ' if chance else ''}{outcome.paid:,}"]
    if outcome.error:
        parts.append(f"`{outcome.error}`")
    if outcome.wrong:
        parts.append(f"**{outcome.wrong}**")
    return ", ".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
