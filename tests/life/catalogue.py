"""Events in the life of a collection, and their outcomes with each of four tools.

``test_events`` checks these outcomes, and ``page`` writes them into the docs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexusflow_integrations import Budget
from nexusflow_integrations.local import LocalServer

from .systems import SYSTEMS, Row, System

ROOT = Path(__file__).parents[2]
COUNT = 20


def rows(count: int = COUNT, text: str = "text", start: int = 0) -> list[Row]:
    return [(f"id{n}", f"{text} {n}", {"v": 1}) for n in range(start, start + count)]


def texts(source: Iterable[Row]) -> dict[str, str]:
    return {name: text for name, text, _ in source}


@dataclass(frozen=True)
class Outcome:
    """The texts paid for, the error that was raised, and what is wrong with the collection.

    If the event ends by chance, ``paid`` is the maximum.
    """

    paid: int
    error: str = ""
    wrong: str = ""


@dataclass
class Life:
    """One collection during one event.

    Attributes:
        wanted: The right texts of the collection at the end, by id.
        bad: An id that may be in the collection or not.
        other: Anything else that is wrong.
        error: The error that the last sync raised.
    """

    kind: type[System]
    folder: Path
    server: LocalServer
    wanted: dict[str, str] = field(default_factory=dict)
    bad: str | None = None
    other: str = ""
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.system = self.kind(self.folder, self.server.base_url)

    def again(self, **options: Any) -> None:
        """Continue as a new process would, with these settings."""
        self.system = self.kind(self.folder, self.server.base_url, **options)

    def sync(self, source: Iterable[Row], **options: Any) -> None:
        self.error = None
        try:
            self.system.sync(source, **options)
        except (Exception, KeyboardInterrupt) as error:
            self.error = error

    def begin(self, source: list[Row] | None = None) -> None:
        """Fill the collection, and count payments only from now on."""
        source = rows() if source is None else source
        self.sync(source)
        assert self.error is None, self.error
        self.wanted = texts(source)
        self.server.reset_stats()

    def outcome(self) -> Outcome:
        have = self.system.texts()
        there = self.wanted.keys() & have.keys()
        extra = have.keys() - self.wanted.keys() - {str(self.bad)}
        counts = {
            "lost": len(self.wanted.keys() - have.keys()),
            "stale": sum(have[name] != self.wanted[name] for name in there),
            "left over": len(extra),
        }
        return Outcome(
            self.server.stats.texts,
            "" if self.error is None else type(self.error).__name__,
            ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or self.other,
        )


Do = Callable[[Life], None]


@dataclass(frozen=True)
class Event:
    """An event; ``expected`` has one outcome for each item of ``SYSTEMS``, in the same order."""

    name: str
    do: Do
    expected: tuple[Outcome, ...]
    slow: bool = False
    chance: bool = False


EVENTS: list[Event] = []
ELSEWHERE = (
    (
        "two processes write to one folder at the same time",
        "the second waits, or gets an error before it pays; nothing is damaged",
        "tests/chroma/test_one_writer.py",
    ),
    (
        "two processes that have the folder open take turns",
        "nothing is damaged",
        "tests/chroma/test_one_writer.py",
    ),
    (
        "the store refuses a document, such as one that is too large for a proxy",
        "it is left out and reported; all others are written",
        "tests/chroma/test_sync_documents.py",
    ),
    (
        "the disk is full",
        "`CollectionError`; the old passages stay, the vectors are in `finished`",
        "tests/chroma/test_broken_off.py",
    ),
    (
        "the Chroma server is killed and started again midway",
        "the call waits; no text is paid for twice",
        "tests/chroma/test_broken_off.py",
    ),
    (
        "the Chroma server does not come back",
        "`CollectionError`; the next run pays for the rest",
        "tests/chroma/test_broken_off.py",
    ),
    (
        "Chroma does not answer",
        "`CollectionError` after `store_timeout`",
        "tests/chroma/test_sync_documents.py",
    ),
)
"""Events that other files test, with ``sync_documents`` only: event, outcome, test file."""


def event(
    name: str, *expected: Outcome, slow: bool = False, chance: bool = False
) -> Callable[[Do], Do]:
    def add(do: Do) -> Do:
        EVENTS.append(Event(name, do, expected, slow, chance))
        return do

    return add


# -- a source that changes -----------------------------------------------------------------------


@event(
    "the first run",
    Outcome(20),
    Outcome(20),
    Outcome(20),
    Outcome(20),
)
def _(life: Life) -> None:
    life.sync(rows())
    life.wanted = texts(rows())


@event(
    "nothing has changed",
    Outcome(0),
    Outcome(0),
    Outcome(0),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    life.sync(rows())


@event(
    "the documents come in another order",
    Outcome(0),
    Outcome(0),
    Outcome(0),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    life.sync(rows()[::-1])


@event(
    "one text has changed",
    Outcome(1),
    Outcome(1),
    Outcome(1),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    _become(life, [("id0", "another text", {"v": 1}), *rows()[1:]])


@event(
    "the metadata of one document has changed",
    Outcome(0),
    Outcome(1),
    Outcome(1),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    _become(life, [("id0", "text 0", {"v": 2}), *rows()[1:]])


@event(
    "one document is added",
    Outcome(1),
    Outcome(1),
    Outcome(1),
    Outcome(21),
)
def _(life: Life) -> None:
    life.begin()
    _become(life, rows(COUNT + 1))


@event(
    "one document is removed",
    Outcome(0),
    Outcome(0),
    Outcome(0),
    Outcome(19),
)
def _(life: Life) -> None:
    life.begin()
    _become(life, rows()[1:])


@event(
    "one document has another id",
    Outcome(1),
    Outcome(1),
    Outcome(1),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    _become(life, [("renamed", "text 0", {"v": 1}), *rows()[1:]])


@event(
    "two ids have exchanged their texts",
    Outcome(2),
    Outcome(2),
    Outcome(2),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    _become(life, [("id0", "text 1", {"v": 1}), ("id1", "text 0", {"v": 1}), *rows()[2:]])


@event(
    "a new document has the same text as another",
    Outcome(1),
    Outcome(1),
    Outcome(1),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    _become(life, [*rows(), ("twin", "text 0", {"v": 1})])


@event(
    "the first of two documents with the same text is removed",
    Outcome(0),
    Outcome(0),
    Outcome(0, wrong="1 left over"),
    Outcome(20),
)
def _(life: Life) -> None:
    twin = ("twin", "text 0", {"v": 1})
    life.begin([*rows(), twin])
    _become(life, [*rows()[1:], twin])


@event(
    "the source is empty, as after a failed export",
    Outcome(0),
    Outcome(0, wrong="20 lost"),
    Outcome(0, wrong="20 lost"),
    Outcome(0, wrong="20 lost"),
)
def _(life: Life) -> None:
    life.begin()
    life.sync([])


# -- documents that cannot be stored --------------------------------------------------------------


@event(
    "one of two new texts is blank",
    Outcome(1),
    Outcome(0, "InvalidInputError", "1 lost"),
    Outcome(1),
    Outcome(0, "InvalidInputError", "1 lost"),
)
def _(life: Life) -> None:
    _with_bad(life, ("bad", "  ", {"v": 1}))


@event(
    "one of two new documents has `None` as metadata value",
    Outcome(1),
    Outcome(2),
    Outcome(2),
    Outcome(22),
)
def _(life: Life) -> None:
    _with_bad(life, ("bad", "text", {"v": None}))


@event(
    "one of two new documents has nested metadata",
    Outcome(1),
    Outcome(2, "ValueError", "1 lost"),
    Outcome(2, wrong="stored with other metadata"),
    Outcome(0, "ValueError", "1 lost"),
)
def _(life: Life) -> None:
    _with_bad(life, ("bad", "text", {"v": {"a": 1}}))


@event(
    "one of two new documents has a number above 64 bits",
    Outcome(1),
    Outcome(2, wrong="stored with other metadata"),
    Outcome(2, wrong="stored with other metadata"),
    Outcome(22, wrong="stored with other metadata"),
)
def _(life: Life) -> None:
    _with_bad(life, ("bad", "text", {"v": 1 << 70}))


@event(
    "one of two new documents has no id",
    Outcome(1),
    Outcome(2),
    Outcome(0, "ValidationError", "1 lost"),
    Outcome(0, "ValueError", "1 lost"),
)
def _(life: Life) -> None:
    _with_bad(life, (None, "text", {"v": 1}))


@event(
    "one id has two texts",
    Outcome(0, "SameIdTwiceError"),
    Outcome(1, wrong="1 stale"),
    Outcome(1, wrong="1 stale"),
    Outcome(0, "DuplicateIDError"),
)
def _(life: Life) -> None:
    life.begin()
    life.sync([*rows(), ("id0", "another text", {"v": 1})])


# -- runs that break off ---------------------------------------------------------------------------

CHANGED = rows(text="new text")


@event(
    "20 texts have changed, and the key is refused",
    Outcome(0, "AuthenticationError"),
    Outcome(0, "AuthenticationError"),
    Outcome(0, "AuthenticationError", "20 lost"),
    Outcome(0, "AuthenticationError"),
)
def _(life: Life) -> None:
    life.begin()
    life.again(api_key="sk-air-expired")
    life.sync(CHANGED)


@event(
    "the budget ends midway through 20 changed texts; the second run has no budget",
    Outcome(26),
    Outcome(31),
    Outcome(31),
    Outcome(31),
)
def _(life: Life) -> None:
    life.begin()
    life.again(budget=Budget(tokens=45), max_concurrency=1)
    life.sync(CHANGED)
    assert life.error is not None
    life.again()
    _become(life, CHANGED)


@event(
    "the source fails after 10 of 20 changed documents",
    Outcome(0, "OSError"),
    Outcome(0, "OSError"),
    Outcome(0, "OSError"),
    Outcome(0, "OSError"),
)
def _(life: Life) -> None:
    life.begin()
    life.sync(_failing(CHANGED, OSError("the disk is gone")))
    if life.server.stats.texts:
        life.wanted |= texts(CHANGED[:10])


@event(
    "Ctrl-C after 10 of 20 changed documents, then a second run",
    Outcome(23),
    Outcome(20),
    Outcome(20),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    life.sync(_failing(CHANGED, KeyboardInterrupt()))
    life.again()
    _become(life, CHANGED)


@event(
    "`kill -9` after 400 of 1,000 texts, then a second run",
    Outcome(1_380),
    Outcome(1_200),
    Outcome(2_000),
    Outcome(2_000),
    slow=True,
    chance=True,
)
def _(life: Life) -> None:
    life.begin()
    arguments = [life.system.name, str(life.folder), life.server.base_url]
    child = subprocess.Popen([sys.executable, "-m", "tests.life.catalogue", *arguments], cwd=ROOT)
    try:
        until = time.monotonic() + 120
        while life.server.stats.texts < 400 and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        child.kill()
        child.wait()
    life.again()
    _become(life, MANY)


MANY = rows(1_000, text="new text")


# -- other programs -------------------------------------------------------------------------------


@event(
    "the record manager or docstore is lost",
    Outcome(0),
    Outcome(20),
    Outcome(20),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    life.system.forget()
    life.sync(rows())


@event(
    "the collection is lost",
    Outcome(20),
    Outcome(0, wrong="20 lost"),
    Outcome(0, wrong="20 lost"),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    life.system.client.delete_collection("docs")
    life.again()
    life.sync(rows())


@event(
    "another program removes a document from the collection",
    Outcome(1),
    Outcome(0, wrong="1 lost"),
    Outcome(0, wrong="1 lost"),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    collection = life.system.collection
    collection.delete(ids=collection.get(limit=1)["ids"])
    life.sync(rows())


@event(
    "another program changes a document in the collection",
    Outcome(1),
    Outcome(0, wrong="1 stale"),
    Outcome(0, wrong="1 stale"),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    collection = life.system.collection
    collection.update(
        ids=collection.get(limit=1)["ids"], documents=["theirs"], embeddings=[[1.0] * 64]
    )
    life.sync(rows())


@event(
    "another source has a document in the collection",
    Outcome(0),
    Outcome(0),
    Outcome(0),
    Outcome(20, wrong="1 lost"),
)
def _(life: Life) -> None:
    life.begin()
    metadata = {"v": 9, "source": "other", "doc_id": "other"}
    life.system.collection.add(
        ids=["other"], documents=["theirs"], embeddings=[[1.0] * 64], metadatas=[metadata]
    )
    life.wanted["other"] = "theirs"
    life.sync(rows(), part=True)


@event(
    "one text has changed, and the program asks for another size of vectors",
    Outcome(0, "ConfigurationError"),
    Outcome(1, "InvalidArgumentError"),
    Outcome(1, "InvalidArgumentError", "1 lost"),
    Outcome(20, "InvalidArgumentError"),
)
def _(life: Life) -> None:
    life.begin()
    life.again(dimensions=128)
    life.sync([("id0", "another text", {"v": 1}), *rows()[1:]])
    if life.error is None:
        life.wanted["id0"] = "another text"


@event(
    "one text has changed, and the service has changed its model",
    Outcome(3, "ConfigurationError"),
    Outcome(1, wrong="two models mixed"),
    Outcome(1, wrong="two models mixed"),
    Outcome(20),
)
def _(life: Life) -> None:
    life.begin()
    found = life.system.collection.get(include=["embeddings"])
    life.system.collection.update(ids=found["ids"], embeddings=-found["embeddings"])
    life.again()
    life.sync([("id0", "another text", {"v": 1}), *rows()[1:]])
    if life.error is None:
        life.wanted["id0"] = "another text"
        life.other = "two models mixed" if life.server.stats.texts < COUNT else ""


@event(
    "the source has 6,000 documents, which is more than Chroma accepts at once",
    Outcome(6_000),
    Outcome(6_000),
    Outcome(6_000, "InternalError", "6,000 lost"),
    Outcome(6_000, "InternalError", "6,000 lost"),
    slow=True,
)
def _(life: Life) -> None:
    life.sync(rows(6_000))
    life.wanted = texts(rows(6_000))


def _become(life: Life, source: list[Row]) -> None:
    life.wanted = texts(source)
    life.sync(source)


def _with_bad(life: Life, bad: Row) -> None:
    life.begin()
    life.bad = bad[0]
    life.wanted["good"] = "a good text"
    life.sync([*rows(), bad, ("good", "a good text", {"v": 1})])
    stored = life.system.collection.get(include=["documents", "metadatas"])
    for text, metadata in zip(stored["documents"], stored["metadatas"], strict=True):
        if text == bad[1] and (metadata or {}).get("v") != bad[2]["v"]:
            life.other = "stored with other metadata"


def _failing(source: list[Row], error: BaseException) -> Iterator[Row]:
    yield from source[: len(source) // 2]
    raise error


if __name__ == "__main__":
    name, folder, address = sys.argv[1:]
    SYSTEMS[name](Path(folder), address, max_concurrency=4).sync(MANY)
