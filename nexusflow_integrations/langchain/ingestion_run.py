"""The state of one run, without I/O: the documents that were read but are not stored yet."""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.documents import Document
from pydantic import ValidationError

from nexusflow_integrations._core.counts import count, different_lengths
from nexusflow_integrations._core.halving import MOST_REFUSED, Halving
from nexusflow_integrations._core.left_out import LeftOut, Reason, reason_in_words, reason_of
from nexusflow_integrations._core.seen_ids import SeenIds, twice
from nexusflow_integrations._core.store_status import REFUSED, status_of
from nexusflow_integrations._core.texts import check_text, plain_id
from nexusflow_integrations.errors import (
    BadRequestError,
    CollectionError,
    ConfigurationError,
    InvalidInputError,
    NexusFlowError,
    RefusedTextsError,
)

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.streaming import Embedded
    from nexusflow_integrations._core.vectors import Vectors

MISSING: Any = object()
"""Stands for a missing item if one of two iterables ends before the other."""

_OF_A_DOCUMENT = (ValueError, TypeError, OverflowError, BadRequestError, RefusedTextsError)
"""Errors that stores raise for an invalid document, such as one with unsupported metadata."""


class Row(NamedTuple):
    """A document as the caller passed it, unchecked; ``place`` counts from 0."""

    place: int
    document: Any
    id: Any


def kept(row: Row) -> Row:
    """Return ``row`` with a copy of its document.

    The caller may change the document, or yield the same object again with another text.
    """
    document = row.document
    if not isinstance(document, Document):
        return row
    return Row(row.place, document.model_copy(update={"metadata": copy(document.metadata)}), row.id)


class Record(NamedTuple):
    """A document that can be embedded; ``known`` says whether its id was given, not generated."""

    place: int
    document: Document
    id: Any
    known: bool


class Ready(NamedTuple):
    """A document with its vector, to be written.

    If the texts that were sent may differ from those of the documents, ``sent`` maps the texts that
    were sent for this part of the source to their vectors.
    """

    record: Record
    vector: Vectors
    sent: Mapping[str, Vectors] | None

    @property
    def document(self) -> Document:
        return self.record.document

    @property
    def id(self) -> Any:
        return self.record.id


def vectors_of(part: Iterable[Ready]) -> list[Mapping[str, Vectors]]:
    """Return the vectors to use when the store embeds the documents of ``part``."""
    plain = {item.document.page_content: item.vector for item in part if item.sent is None}
    others = {id(item.sent): item.sent for item in part if item.sent is not None}
    return [plain, *others.values()]


@dataclass
class Run:
    """The state of a run.

    Args:
        size: Maximum number of documents per write.
        check_text: Raises an ``InvalidInputError`` for a text that cannot be sent.
        collect_blank: Whether blank documents are left out; otherwise a blank document ends the
            run.
        collect_refused: Whether refused documents are left out; otherwise they are an error at the
            end.
        collect_long: Whether documents that are too long are left out; otherwise such a document
            ends the run.
        store: Name of the store's class, for messages.
        metadata_problem: Returns why the store would silently change some metadata, or ``None``.
        progress: Called with the number of documents done since the last call.
    """

    size: int
    check_text: Callable[[str], object]
    collect_blank: bool
    collect_refused: bool
    collect_long: bool
    store: str = ""
    metadata_problem: Callable[[Mapping[Any, Any]], str | None] | None = None
    progress: Callable[[int], object] | None = None
    added: int = 0
    present: int = 0
    differing: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    refused: list[LeftOut] = field(default_factory=list)
    _problem: Exception | None = None
    _store_failed: bool = False
    _seen: SeenIds = field(default_factory=SeenIds)
    _slice: list[Record] = field(default_factory=list)
    _ids: Halving[str] = field(default_factory=lambda: Halving(()))
    _found: list[Document] = field(default_factory=list)
    _unreadable: int = 0
    _answered: bool = False
    """Whether the store has answered a look-up."""
    _in_flight: dict[int, Record] = field(default_factory=dict)
    _sent: int = 0
    _ready: deque[Ready] = field(default_factory=deque)
    _batch: Halving[Ready] = field(default_factory=lambda: Halving(()))
    _suspects: list[tuple[Ready, Exception]] = field(default_factory=list)
    """Documents that the store refused since it last accepted one."""
    _vectors_left_out: dict[int, Vectors] = field(default_factory=dict)
    """Vectors of documents that were left out because the store refused them, by place."""
    _stored_until: int = -1
    """Place of the last document that the store already had."""

    # -- ending the run ------------------------------------------------------------------------

    @property
    def should_read(self) -> bool:
        """Whether to read more."""
        return self._problem is None

    @contextmanager
    def ending(self) -> Iterator[None]:
        """After an error, even in the caller's iterables, write what is ready, then end the run."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self._problem = self._problem or error

    def rescue(self, error: NexusFlowError, sent: Mapping[str, Vectors] | None) -> None:
        """Take the vectors that were ready when embedding ended with ``error``."""
        for index, vector in error.finished.items():
            self._ready.append(Ready(self._in_flight.pop(index), vector, sent))
        if not isinstance(self._problem, NexusFlowError):
            self._problem = error

    def check(self) -> None:
        """End the run: leave out the documents that the store refused last, or raise an error.

        Raises:
            Exception: The error that ended the run early. If it is an error of this package, it
                holds the vectors that were not written.
            CollectionError: The store refused everything.
        """
        if self._problem is None and self._suspects:
            # A second run may write only the documents that the store refused in the first run.
            if self.added or self.present or self.differing:
                self._accepted()
            else:
                self._all_refused()
        if isinstance(self._problem, NexusFlowError):
            self._problem.finished = self.unwritten()
        if self._problem is not None:
            raise self._problem

    def unwritten(self) -> dict[int, Vectors]:
        """Return vectors that are not in the store, by position in the source."""
        refused = [item for item, _ in self._suspects]
        left = (*refused, *self._batch.left, *self._ready)
        vectors = {item.record.place: item.vector for item in left}
        return self._vectors_left_out | vectors

    def close(self) -> None:
        """Remove temporary files."""
        self._seen.close()

    # -- reading -------------------------------------------------------------------------------

    def take(self, rows: Sequence[Row]) -> list[str]:
        """Take the next slice of the source; return the ids to look up."""
        self._slice = []
        with self.ending():
            for row in rows:
                self._take(row)
        return [record.id for record in self._slice if record.known]

    def _take(self, row: Row) -> None:
        place, document, name = row
        if document is MISSING:
            raise InvalidInputError(different_lengths(place, ["documents"], ["ids"]), index=place)
        if name is MISSING:
            raise InvalidInputError(different_lengths(place, ["ids"], ["documents"]), index=place)
        if not isinstance(document, Document):
            raise InvalidInputError(
                f"document {place} is not a LangChain Document but a {type(document).__name__}",
                index=place,
            )
        if (name := plain_id(name)) is None:
            name = plain_id(document.id)
        record = Record(
            place, document, str(uuid.uuid4()) if name is None else name, name is not None
        )
        if record.known and (words := _id_problem(name)) is not None:
            self._leave_out(record, "invalid id", words, named=False)
            return
        if record.known and (before := self._seen.note(str(name), place)) is not None:
            raise InvalidInputError(twice(str(name), before, place), index=place)
        try:
            self.check_text(document.page_content)
        except InvalidInputError as error:
            self._refuse(record, error)
            return
        problem = self.metadata_problem and self.metadata_problem(document.metadata)
        if problem:
            self._leave_out(record, "invalid metadata", problem)
        else:
            self._slice.append(record)

    def look_ups(self, ids: list[str]) -> Iterator[Sequence[str]]:
        """Yield the ids to look up next, until the store has answered for all ``ids``.

        An id that the store refuses to look up counts as new: the write decides.
        """
        self._found, self._ids, self._unreadable = [], Halving(ids), 0
        while part := self._ids.next:
            yield part

    def found(self, documents: Sequence[Document]) -> None:
        """Record the documents that the store has under the ids that were yielded last."""
        self._ids.stored()
        self._found += documents
        self._answered = True

    def look_up_failed(self, error: Exception) -> None:
        """Record that the look-up of the last ids failed.

        Raises:
            CollectionError: The store failed, or it refused two or more ids, which are all ids of
                the slice, and has answered no look-up of this run.
        """
        problem = failed("reading from", self.store, error)
        # These errors are about an answer of the store that cannot be read, not about an id.
        unreadable = isinstance(error, (json.JSONDecodeError, UnicodeError, ValidationError))
        if unreadable or not is_refusal(error):
            raise problem from error
        self._unreadable += self._ids.refused() is not None
        if self._unreadable > 1 and not self._ids.next and not self._answered:
            raise problem from error

    def compare(self) -> Iterator[str]:
        """Yield the texts of the slice that must be embedded."""
        # Some stores (Qdrant) return the id only in the metadata.
        stored = {str(other.id or other.metadata.get("_id")): other for other in self._found}
        for record in self._slice:
            other = stored.get(str(record.id)) if record.known else None
            if other is None:
                self._in_flight[self._sent] = record
                self._sent += 1
                yield record.document.page_content
            else:
                same = _is_same(record.document, other)
                self.present += same
                self.differing += not same
                self._stored_until = record.place
                self._done(1)

    # -- writing -------------------------------------------------------------------------------

    def add(self, embedded: Embedded, sent: Mapping[str, Vectors] | None) -> None:
        """Take the result of one text."""
        record = self._in_flight.pop(embedded.index)
        error = embedded.error
        if embedded.vector is not None:
            self._ready.append(Ready(record, embedded.vector, sent))
        elif isinstance(error, InvalidInputError):
            with self.ending():
                self._refuse(record, error)
        elif error is not None:
            self._leave_out(record, "refused", reason_in_words(error), error)

    def full(self) -> Iterator[list[Ready]]:
        """Yield the slices that are full."""
        while len(self._ready) >= self.size and not self._store_failed:
            yield self._cut()

    def rest(self) -> Iterator[list[Ready]]:
        """Yield everything that is ready, and first what an interrupted write left."""
        self._ready.extendleft(reversed(self._batch.left))
        self._batch = Halving(())
        while self._ready and not self._store_failed:
            yield self._cut()

    def _cut(self) -> list[Ready]:
        return [self._ready.popleft() for _ in range(min(self.size, len(self._ready)))]

    def parts(self, batch: list[Ready]) -> Iterator[Sequence[Ready]]:
        """Yield what to write next, until all of ``batch`` is stored or refused."""
        self._batch = Halving(batch)
        while not self._store_failed and (part := self._batch.next):
            yield part

    def wrote(self, error: Exception | None) -> None:
        """Record the outcome of writing the last part: ``None`` or the store's error."""
        part = self._batch.next
        if error is None:
            self._batch.stored()
            self.added += len(part)
            self._done(len(part))
            self._accepted()
        elif not is_refusal(error):
            self._fail(f"writing {count(len(part), 'document')} to", error)
        elif (item := self._batch.refused()) is not None:
            self._suspects.append((item, error))
            if len(self._suspects) < MOST_REFUSED:
                return
            if self._stored_until > self._suspects[0][0].record.place:
                self._accepted()  # an earlier run left them out and stored documents after them
            else:
                self._all_refused()

    def _accepted(self) -> None:
        """Leave out the documents that the store refused: it accepts others."""
        suspects, self._suspects = self._suspects, []
        for item, error in suspects:
            self._vectors_left_out[item.record.place] = item.vector.copy()  # not all its batch
            words = f"{self.store} refused it: {type(error).__name__}: {str(error)[:300]}"
            self._leave_out(item.record, "refused by the store", words, error)

    def _all_refused(self) -> None:
        documents = count(len(self._suspects), "document")
        self._fail(f"writing {documents} one by one to", self._suspects[0][1])

    def _fail(self, what: str, error: Exception) -> None:
        self._store_failed = True
        if not isinstance(self._problem, NexusFlowError):
            self._problem = failed(what, self.store, error)

    def _refuse(self, record: Record, error: InvalidInputError) -> None:
        """Leave out a document whose text cannot be sent.

        Raises:
            InvalidInputError: The text is blank or too long, and such documents are not left out.
        """
        reason, words = reason_of(error), reason_in_words(error)
        collect = {"blank": self.collect_blank, "too long": self.collect_long}
        if not collect.get(reason, True):
            said = words.replace("the text", f"document {record.place}", 1)
            raise InvalidInputError(said, index=record.place)
        self._leave_out(record, reason, words)

    # -- what could not be stored --------------------------------------------------------------

    def _leave_out(
        self,
        record: Record,
        reason: Reason,
        words: str,
        error: Exception | None = None,
        *,
        named: bool = True,
    ) -> None:
        source = record.document.metadata.get("source")
        left = LeftOut(
            str(record.id) if record.known and named else None,
            record.place,
            reason,
            words,
            error,
            None if source is None else str(plain_id(source)),
        )
        raises = reason == "refused" and not self.collect_refused
        (self.refused if raises else self.left_out).append(left)
        self._done(1)

    def _done(self, count: int) -> None:
        if self.progress is not None:
            self.progress(count)


def failed(what: str, store: str, error: Exception) -> CollectionError:
    """Return the error, with its cause, for a store that could not be read or written."""
    problem = CollectionError(f"{what} {store} failed: {type(error).__name__}: {str(error)[:500]}")
    problem.__cause__ = error
    return problem


def is_refusal(error: Exception) -> bool:
    """Return whether the store refused a document; otherwise it failed as a whole."""
    if isinstance(error, ConfigurationError):
        return False
    return isinstance(error, _OF_A_DOCUMENT) or status_of(error) in REFUSED


def _id_problem(name: Any) -> str | None:
    if isinstance(name, int) and not isinstance(name, bool):
        return None  # some stores use numbers as ids
    if not isinstance(name, str):
        return f"an id must be text, not {type(name).__name__}"
    try:
        check_text(name)
    except InvalidInputError as error:
        return str(error).replace("the text", "the id")
    return None


def _is_same(document: Document, stored: Document) -> bool:
    """Return whether a store has the same ``document``, apart from metadata that it added."""
    return document.page_content == stored.page_content and all(
        _are_equal(stored.metadata.get(key), value)  # stores may drop the value None
        for key, value in document.metadata.items()
    )


def _are_equal(one: Any, two: Any) -> bool:
    numbers = isinstance(one, (int, float)) and isinstance(two, (int, float))
    if numbers and isinstance(one, bool) is not isinstance(two, bool):
        return False  # Python takes True and 1 for equal
    try:
        if isinstance(one, dict) and isinstance(two, dict):
            return one.keys() == two.keys() and all(_are_equal(one[key], two[key]) for key in one)
        if any(isinstance(one, kind) and isinstance(two, kind) for kind in (list, tuple)):
            return len(one) == len(two) and all(map(_are_equal, one, two))
        return one is two or bool(one == two) or bool(one != one and two != two)  # NaN
    except Exception:  # noqa: BLE001 - such as an array, whose comparison is another array
        return type(one) is type(two) and repr(one) == repr(two)
