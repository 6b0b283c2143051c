"""The state of one run over a source: the documents that were read but are not written yet."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.call.caller import Callback
from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.halving import MOST_REFUSED
from nexusflow_integrations._core.left_out import LeftOut, reason_in_words, reason_of
from nexusflow_integrations._core.request.long_texts import check_document
from nexusflow_integrations.chroma_collections.calls import RefusedError
from nexusflow_integrations.chroma_collections.ownership import finds, same_value
from nexusflow_integrations.chroma_collections.records import Record, SeenIds, problem
from nexusflow_integrations.errors import (
    CollectionError,
    InvalidInputError,
    NexusFlowError,
)

if TYPE_CHECKING:
    from chromadb.api.types import Where

    from nexusflow_integrations._core.call.streaming import Embedded
    from nexusflow_integrations._core.settings import Settings
    from nexusflow_integrations._core.vectors import Vectors

SLICE = 250
"""Documents per write: smaller writes take longer in total, larger ones hold the GIL longer."""
SLICE_BYTES = 8_000_000
"""Approximate bytes of a write as JSON; servers refuse large bodies."""
NUMBER_BYTES = 21
"""Maximum characters of a float32 in JSON, including the comma."""

Stored = Mapping[str, tuple[str | None, Mapping[str, Any] | None]]
"""Document and metadata of each existing id."""


class Ready(NamedTuple):
    """A document to write; ``vector`` is ``None`` if only the metadata has changed."""

    record: Record
    vector: Vectors | None
    fresh: bool
    cleared: tuple[str, ...]

    @property
    def size(self) -> int:
        numbers = 0 if self.vector is None else self.vector.size
        return NUMBER_BYTES * numbers + 2 * len(self.record.document)


def _replacing(item: Ready) -> dict[str, Any] | None:
    # Chroma merges metadata on update and upsert; the value None removes a key.
    metadata = dict.fromkeys(item.cleared) | dict(item.record.metadata or {})
    return metadata or None


@dataclass
class Run:
    """The state of a run, without I/O except for the temporary file of ``seen``.

    Args:
        size: Maximum documents per write.
        progress: Called with the number of documents done since the last call; the first
            error that it raises is logged and does not end the run.
        add_only: Whether to leave existing documents unchanged, and to end the run at a document
            that cannot be stored.
        where: The part of the collection that the source owns; ``None`` is the whole collection.
    """

    size: int
    progress: Callable[[int], object] | None
    add_only: bool
    where: Where | None = None
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    differing: int = 0
    removed: int = 0
    read: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    refused: dict[int, tuple[str, NexusFlowError]] = field(default_factory=dict)
    rescued: dict[int, Vectors] = field(default_factory=dict)
    not_stored: list[tuple[Ready, RefusedError]] = field(default_factory=list)
    """With ``add_only``, the documents that the store refused."""
    seen: SeenIds = field(default_factory=SeenIds)
    _slice: list[Record] = field(default_factory=list)
    _in_flight: dict[int, Ready] = field(default_factory=dict)
    _sent: int = 0
    _ready: deque[Ready] = field(default_factory=deque)
    _metadata_only: deque[Ready] = field(default_factory=deque)
    stored_until: int = -1
    """Place of the last document that the collection already had, unchanged."""
    _suspects: list[tuple[Ready, RefusedError]] = field(default_factory=list)
    """Documents that the store refused since it last accepted one."""
    _vectors_left_out: dict[int, Vectors] = field(default_factory=dict)
    """Vectors of documents that were left out because the store refused them, by place."""

    def __post_init__(self) -> None:
        self.size = checks.whole("slice_size", self.size, 1)
        if (progress := checks.function("progress", self.progress)) is not None:
            self.progress = Callback("progress", progress)

    @classmethod
    def of(
        cls,
        size: int,
        most: int,
        progress: Callable[[int], object] | None,
        *,
        add_only: bool,
        where: Where | None = None,
    ) -> Run:
        """Return a run that writes at most ``size`` or ``most`` documents at once."""
        return cls(min(checks.whole("slice_size", size, 1), most), progress, add_only, where)

    def close(self) -> None:
        """Remove the temporary file of ids."""
        self.seen.close()

    async def aclose(self) -> None:
        """Remove the temporary file of ids without blocking the event loop."""
        await asyncio.to_thread(self.close)

    # -- reading -------------------------------------------------------------------------------

    def take(self, records: Sequence[Record]) -> list[Record]:
        """Take the next slice of the source; return the records whose ids ``seen`` must record.

        Raises:
            InvalidInputError: A document cannot be stored, and ``add_only`` is set.
        """
        noted = []
        self.read += len(records)
        self._slice = []
        for record in records:
            fault = problem(record) or self._outside(record)
            if fault is None:
                self._slice.append(record)
            elif self.add_only:
                raise InvalidInputError(_named(fault), index=fault.place)
            else:
                self._leave_out(fault)
            if fault is None or fault.id is not None:
                noted.append(record)
        return noted

    @property
    def ids(self) -> list[str]:
        """The ids of the slice that must be looked up."""
        return [record.id for record in self._slice]

    def compare(self, stored: Stored, owned: set[str] | None = None) -> Iterator[str]:
        """Yield the documents of the slice that must be embedded.

        Args:
            stored: The collection's documents with the ids of the slice.
            owned: The ids of those that this source may change; ``None`` means all.
        """
        same = 0
        for record in self._slice:
            if record.id not in stored:
                yield self._send(record, fresh=True, cleared=())
                continue
            document, metadata = stored[record.id]
            if self.add_only:
                same += document == record.document
                self.differing += document != record.document
                self.stored_until = record.place
                self._done(1)
                continue
            if owned is not None and record.id not in owned:
                self._leave_out(
                    LeftOut(
                        record.id,
                        record.place,
                        "invalid id",
                        "the collection has a document with this id that does not match `where`",
                    )
                )
                continue
            cleared = tuple(sorted(set(metadata or {}) - set(record.metadata or {})))
            if document != record.document:
                yield self._send(record, fresh=False, cleared=cleared)
            elif not same_metadata(metadata, record.metadata):
                self._metadata_only.append(Ready(record, None, False, cleared))
            else:
                same += 1
                self.stored_until = record.place
                self._done(1)
        self.unchanged += same

    def _outside(self, record: Record) -> LeftOut | None:
        if self.where is None or finds(self.where, record.metadata):
            return None
        words = "its metadata does not match `where`, so no later run would find it"
        return LeftOut(record.id, record.place, "invalid metadata", words)

    def _send(self, record: Record, *, fresh: bool, cleared: tuple[str, ...]) -> str:
        self._in_flight[self._sent] = Ready(record, None, fresh, cleared)
        self._sent += 1
        return record.document

    # -- writing -------------------------------------------------------------------------------

    def add(self, embedded: Embedded) -> None:
        """Take one result."""
        item = self._in_flight.pop(embedded.index)
        if embedded.vector is not None:
            self._ready.append(item._replace(vector=embedded.vector))
        elif embedded.error is not None:
            self._refuse(item.record, embedded.error)

    def full(self) -> Iterator[list[Ready]]:
        """Yield the writes that are full: documents either all with vectors or all without."""
        for queue in (self._ready, self._metadata_only):
            while len(queue) >= self.size:
                yield self._cut(queue)

    def rest(self) -> Iterator[list[Ready]]:
        """Yield writes of all documents that are ready."""
        for queue in (self._ready, self._metadata_only):
            while queue:
                yield self._cut(queue)

    def _cut(self, queue: deque[Ready]) -> list[Ready]:
        ready = [queue.popleft()]
        room = SLICE_BYTES - ready[0].size
        while queue and len(ready) < self.size and (room := room - queue[0].size) >= 0:
            ready.append(queue.popleft())
        return ready

    def fields(self, part: Sequence[Ready]) -> tuple[str, dict[str, Any]]:
        """Return the name of the collection's method that writes ``part``, and its arguments."""
        records = [item.record for item in part]
        metadatas = [_replacing(item) for item in part]
        fields: dict[str, Any] = {"ids": [record.id for record in records]}
        if any(metadatas):
            fields["metadatas"] = metadatas
        if any(record.uri for record in records):
            fields["uris"] = [record.uri for record in records]
        if part[0].vector is None:
            return "update", fields
        fields["documents"] = [record.document for record in records]
        fields["embeddings"] = [item.vector for item in part]
        return "add" if self.add_only else "upsert", fields

    def written(self, part: Sequence[Ready]) -> None:
        """Count the documents of a finished write."""
        fresh = sum(item.fresh for item in part)
        self.added += fresh
        self.changed += len(part) - fresh
        self._done(len(part))
        self.accepted()

    def refused_by_store(self, item: Ready, error: RefusedError) -> None:
        """Take a document that the store refused when it was written alone.

        It is left out as soon as the store accepts another document.

        Raises:
            CollectionError: The store has refused ``MOST_REFUSED`` documents in a row.
        """
        self._suspects.append((item, error))
        if len(self._suspects) < MOST_REFUSED:
            return
        if self.stored_until < self._suspects[0][0].record.place:
            raise self._all_refused()
        self.accepted()  # an earlier run left them out and stored documents after them

    def settle(self) -> None:
        """At the end of the run, decide about documents that the store refused last.

        Raises:
            CollectionError: The store has refused everything.
        """
        has_some = self.added or self.changed or self.unchanged or self.differing
        if self._suspects and not has_some:
            raise self._all_refused()
        self.accepted()

    def _all_refused(self) -> CollectionError:
        _, error = self._suspects[0]
        failed = CollectionError(
            f"writing failed: the store refused {count(len(self._suspects), 'document')}, one by"
            f" one: {error.reason}"
        )
        failed.__cause__ = error.__cause__
        return failed

    def accepted(self) -> None:
        """Leave out the documents that the store refused: it accepts others."""
        suspects, self._suspects = self._suspects, []
        if self.add_only:
            self.not_stored += suspects
            self._done(len(suspects))
            return
        for (record, vector, *_), error in suspects:
            if vector is not None:
                self._vectors_left_out[record.place] = vector.copy()  # not all its batch
            self._leave_out(
                LeftOut(
                    record.id,
                    record.place,
                    "refused by the store",
                    f"the store refused it: {error.reason[:300]}",
                    cause if isinstance(cause := error.__cause__, Exception) else error,
                )
            )

    def sendable(self, settings: Settings) -> list[str]:
        """In a dry run, leave out pending documents that are too long; return the others' texts."""
        for index, item in [*self._in_flight.items()]:
            try:
                check_document(item.record.document, settings)
            except InvalidInputError as error:  # noqa: PERF203 - only long texts are counted
                del self._in_flight[index]
                self._refuse(item.record, error)
        return [item.record.document for item in self._in_flight.values()]

    def pretend(self) -> None:
        """In a dry run, count pending documents as written."""
        for item in self._in_flight.values():
            self.written([item])
        self._in_flight.clear()

    def put_back(self, rows: Sequence[Ready]) -> None:
        """Keep documents that could not be written."""
        for item in reversed(rows):
            (self._metadata_only if item.vector is None else self._ready).appendleft(item)

    def rescue(self, error: NexusFlowError) -> None:
        """Take the vectors that were ready before the stream failed."""
        found = [(self._in_flight.pop(at), row) for at, row in error.finished.items()]
        self._ready.extend(item._replace(vector=row) for item, row in found)
        self.rescued = {item.record.place: row for item, row in found}

    def unwritten(self) -> dict[int, Vectors]:
        """Return vectors that are not in the collection, by position in the source."""
        refused = [item for item, _ in (*self.not_stored, *self._suspects)]
        left = (*self._ready, *refused)
        vectors = {item.record.place: item.vector for item in left if item.vector is not None}
        return self._vectors_left_out | vectors

    # -- what could not be stored --------------------------------------------------------------

    @property
    def may_remove(self) -> bool:
        """Whether all ids of the source are known, because every document has a usable id."""
        return all(item.id is not None for item in self.left_out)

    def _refuse(self, record: Record, error: NexusFlowError) -> None:
        self.refused[record.place] = record.id, error
        words = reason_in_words(error)
        self._leave_out(LeftOut(record.id, record.place, reason_of(error), words, error))

    def _leave_out(self, item: LeftOut) -> None:
        self.left_out.append(item)
        self._done(1)

    def _done(self, count: int) -> None:
        if self.progress is not None and count:
            self.progress(count)


def same_metadata(stored: Mapping[str, Any] | None, given: Mapping[str, Any] | None) -> bool:
    """Return whether Chroma's filters find the metadata of two documents alike."""
    one, two = stored or {}, given or {}
    return one.keys() == two.keys() and all(
        same_value(value, two[key]) for key, value in one.items()
    )


def stored_by_id(found: Mapping[str, Any]) -> Stored:
    """Return the result of ``collection.get``, by id."""
    none: Iterable[None] = [None] * len(found["ids"])
    return {
        name: (document, metadata)
        for name, document, metadata in zip(
            found["ids"], found["documents"] or none, found["metadatas"] or none, strict=True
        )
    }


def _named(fault: LeftOut) -> str:
    if fault.id is None:
        return f"document {fault.place}: {fault.message}"
    message = re.sub("^the text ", f"text {fault.place} ", fault.message)
    return f"{message} (document {fault.place}, id {fault.id!r})"
