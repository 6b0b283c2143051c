"""Write docs/collections.md from the catalogue of events: python -m tests.life.page"""

from __future__ import annotations

from pathlib import Path

from .catalogue import ELSEWHERE, EVENTS, Event, Outcome
from .systems import SYSTEMS

PAGE = Path(__file__).parents[2] / "docs" / "collections.md"

HEAD = """\
# The life of a collection

<!-- Written by python -m tests.life.page from tests/life/catalogue.py; do not edit. -->

This page shows how well a Chroma collection follows its source with
[`sync_documents`](guides/chroma-collections.md) and with three other tools. Each cell is the result
of a test with a real `PersistentClient`. The collection has 20 documents unless the event says
otherwise.

A cell shows the number of texts paid for, the error that was raised, and what is wrong with the
collection afterwards. If a cell has only a number, there was no error and the collection is right.

- **lost**: the number of documents that are missing. After an error, these are old documents, or
  new ones that could have been stored.
- **stale**: the number of documents that still have an old text.
- **left over**: the number of documents that the source no longer has.

All four tools use this package's embeddings, without retries:

- `sync_documents` has its default settings. In a new process it compares up to three stored vectors
  with the service before it writes the first new one, which counts as up to three texts.
- LangChain's `index` has `cleanup="full"` and an `SQLRecordManager` in a file.
- LlamaIndex's `IngestionPipeline` has `DocstoreStrategy.UPSERTS_AND_DELETE` and a
  `SimpleDocumentStore` that is saved after each run.
- With plain Chroma, the program upserts the whole source, then deletes the ids that the source does
  not have.

"""


def render() -> str:
    """Return the page."""
    lines = [
        f"| event | {' | '.join(SYSTEMS)} |",
        "|---|" + "---|" * len(SYSTEMS),
        *map(_line, EVENTS),
        "",
        "These events are tested with `sync_documents`, the first two also with LangChain's"
        " `add_documents`:",
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
