"""Reads the documents of a source one by one, and checks them and their ids."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from chromadb.api.types import validate_ids, validate_metadata
from chromadb.errors import DuplicateIDError

from nexusflow_integrations._core import checks, seen_ids
from nexusflow_integrations._core.counts import different_lengths
from nexusflow_integrations._core.kept_numbers import check_kept
from nexusflow_integrations._core.left_out import LeftOut, reason_of
from nexusflow_integrations._core.texts import check_text, no_rows, plain_id
from nexusflow_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from chromadb.api.types import Metadata

_RESERVED = ("#", "$", "chroma:")
_MISSING: Any = object()
_NAMES = ("ids", "documents", "metadatas")


class Record(NamedTuple):
    """One document of the source; ``place`` counts from 0."""

    place: int
    id: str
    document: str
    metadata: Metadata | None
    uri: str | None = None


def columns_of(
    ids: object, documents: object, metadatas: object, *, twin: str | None = None
) -> list[Any]:
    """Return the columns of the source: two, or three if there are ``metadatas``.

    Args:
        ids, documents, metadatas: As the caller passed them.
        twin: Name of the function that takes async iterables; ``None`` if they are allowed.

    Raises:
        InvalidInputError: A column is not iterable, has no order, or iterating it would yield
            something else, such as the names of columns.
    """
    given = [ids, documents, *([] if metadatas is None else [metadatas])]
    return [_column(name, column, twin) for name, column in zip(_NAMES, given, strict=False)]


def _column(name: str, column: Any, twin: str | None) -> Any:
    kind = type(column).__name__
    if isinstance(column, AsyncIterable) and not isinstance(column, Iterable):
        if twin is None:
            return column
        raise InvalidInputError(f"{name} is an async iterable: use {twin}")
    if (advice := no_rows(column, "id" if name == "ids" else "text")) is not None:
        if name == "metadatas":
            advice = f"one {kind}: pass a list of dicts"
        raise InvalidInputError(f"{name} must have one value for each document, not {advice}")
    if checks.has_methods(column, "to_pylist"):  # the items of a pyarrow array are not plain values
        return column.to_pylist()
    if not isinstance(column, Iterable):
        raise InvalidInputError(f"{name} must be an iterable, not {kind}")
    return column


def rows(columns: Sequence[Iterable[Any]]) -> Iterator[Record]:
    """Yield unchecked records.

    Raises:
        ValueError: The columns have different lengths.
    """
    for place, row in enumerate(zip_longest(*columns, fillvalue=_MISSING)):
        yield _record(place, row)


async def arows(columns: Sequence[Iterable[Any] | AsyncIterable[Any]]) -> AsyncIterator[Record]:
    """Yield records like ``rows``, from iterables or async iterables."""
    iterators = [
        aiter(column) if isinstance(column, AsyncIterable) else iter(column) for column in columns
    ]
    place = 0
    while True:
        row = [
            await anext(each, _MISSING) if isinstance(each, AsyncIterator) else next(each, _MISSING)
            for each in iterators
        ]
        if all(value is _MISSING for value in row):
            return
        yield _record(place, row)
        place += 1


def _record(place: int, row: Sequence[Any]) -> Record:
    if short := [_NAMES[n] for n, value in enumerate(row) if value is _MISSING]:
        long = [_NAMES[n] for n, value in enumerate(row) if value is not _MISSING]
        raise ValueError(different_lengths(place, short, long))
    metadata = row[2] if len(row) > 2 else None
    if isinstance(metadata, dict):  # Chroma's HTTP client accepts only plain strings as keys
        metadata = {
            str.__str__(key) if isinstance(key, str) else key: value
            for key, value in metadata.items()
        }
    return Record(place, plain_id(row[0]), row[1], metadata)


def id_problem(name: object) -> str | None:
    """Return why Chroma would refuse ``name`` as an id, or ``None``."""
    try:
        validate_ids([name])  # type: ignore[list-item]
        if not name:
            raise ValueError("an id must have at least one character")
        str(name).encode()
    except (ValueError, TypeError, UnicodeEncodeError) as error:
        return _sentence(error, f"the id {name!r:.80}")
    return None


def problem(record: Record) -> LeftOut | None:
    """Return why Chroma or the API would refuse ``record``, or ``None``."""
    place, name = record.place, record.id
    if (words := id_problem(name)) is not None:
        return LeftOut(None, place, "invalid id", words)
    try:
        check_text(record.document)
    except InvalidInputError as error:
        return LeftOut(name, place, reason_of(error), str(error))
    if record.metadata is None:
        return None
    try:
        validate_metadata(record.metadata)
        for key, value in record.metadata.items():
            _check_entry(key, value)
    except (ValueError, TypeError, UnicodeEncodeError) as error:
        return LeftOut(name, place, "invalid metadata", _sentence(error, "the metadata"))
    return None


def _check_entry(key: str, value: Any) -> None:
    """Refuse values that Chroma's own check allows but a server refuses or silently changes."""
    if not key or key.startswith(_RESERVED):
        raise ValueError(f"metadata key {key!r} is empty or begins with '#', '$' or 'chroma:'")
    key.encode()
    if value is None:
        raise ValueError(f"metadata {key!r} is None: leave the key out")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            item.encode()
    check_kept(key, value)


def _sentence(error: Exception, what: str) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"{what} holds a lone surrogate (half a character)"
    return f"{error}"[:300]


class SameIdTwiceError(InvalidInputError, DuplicateIDError):
    """Two documents of the source have the same id; ``index`` is the position of the second."""


class SeenIds(seen_ids.SeenIds):
    """Stores all ids of a source and refuses duplicates."""

    def add(self, records: Iterable[Record]) -> None:
        """Record the ids of ``records``.

        Raises:
            SameIdTwiceError: An id was seen before; the message names both positions.
        """
        for record in records:
            if (before := self.note(record.id, record.place)) is not None:
                said = seen_ids.twice(record.id, before, record.place)
                raise SameIdTwiceError(said, index=record.place)
