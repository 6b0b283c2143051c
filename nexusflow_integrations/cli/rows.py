"""Reads lines of text, and writes files of vectors that are never incomplete."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import orjson

from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.cli.first_bytes import LOOKED_AT, not_text
from nexusflow_integrations.cli.json_rows import NotJsonError, json_lines, load, problem_of
from nexusflow_integrations.cli.rag.converted import NotATableError, read_table
from nexusflow_integrations.cli.words import as_typed, is_address
from nexusflow_integrations.errors import InvalidResponseError

_GROUP = 2000
"""Rows that the Parquet writer collects before it writes them: 16 MB at 2,048 dimensions."""

_FIELDS = 6
"""Fields of a line that an error message names."""

_FIRST = 100
"""If none of so many lines at the beginning of JSONL has a text, the field or format is wrong."""


class InputProblemError(Exception):
    """The whole input cannot be read; the message is one sentence."""


def check_input(path: Path, what: str) -> None:
    """Check that a file exists, can be read and may be text.

    Args:
        path: The file.
        what: What the message calls the file, such as ``input``.

    Raises:
        InputProblemError: The file is missing, cannot be read, or is not text.
    """
    try:
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist"
            problem = "is a folder" if path.is_dir() else problem
            if is_address(path) and not path.exists():
                problem += ": addresses are not read; download the file first"
            raise InputProblemError(f"the {what} {as_typed(path)!r} {problem}")
        with path.open("rb") as file:
            head = file.read(LOOKED_AT)
    except OSError as error:
        raise InputProblemError(
            f"the {what} {str(path)!r} cannot be read: {error.strerror}"
        ) from None
    if kind := not_text(head):
        raise InputProblemError(f"the {what} {str(path)!r} is not text: it is {kind}")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input that is not empty.

    Attributes:
        number: Number of the line, counted from 1; empty lines count, too.
        text: The text to embed; ``None`` if ``problem`` is set.
        record: Fields of the input that JSONL output repeats beside the vector.
        problem: The reason why there is no text, or ``None``.
    """

    number: int
    text: Any = None
    record: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def lines_of_text(source: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines of plain text; empty lines are skipped."""
    for number, text in _decoded(source):
        if text is None:
            yield Line(number, problem="is not UTF-8")
        elif text.strip():
            yield Line(number, text, {"text": text})


def lines_of_json(source: Iterable[bytes], name: str) -> Iterator[Line]:
    """Yield the lines of JSONL: strings, or objects whose field ``name`` is the text."""
    for number, found, problem in json_lines(_decoded(source)):
        yield _line(number, found, problem, name)


def items_of_json(data: bytes, name: str) -> Iterator[Line]:
    """Yield the items of a JSON array: strings, or objects whose field ``name`` is the text.

    An item's number is its position in the array, counted from 1.

    Raises:
        InputProblemError: The input is not a JSON array.
    """
    text = _decode(data.removeprefix(codecs.BOM_UTF8))
    if text is None:
        line = next(number for number, text in _decoded(data.splitlines(True)) if text is None)
        raise InputProblemError(f"the input is not UTF-8 (line {line})")
    try:
        found = load(text)
    except NotJsonError as error:
        raise InputProblemError(f"the input {error.of_array('set --input jsonl')}") from None
    if not isinstance(found, list):
        raise InputProblemError("the input is JSON, but not an array of texts or objects")
    for number, item in enumerate(found, 1):
        yield _line(number, item, problem_of(item), name)


def some_with_text(lines: Iterator[Line], name: str) -> Iterator[Line]:
    """Yield ``lines`` if one of the first has a text in its field ``name``.

    Otherwise, a forgotten ``--field`` would replace an output with rows that hold no vector.

    Raises:
        InputProblemError: None of the first lines has a text.
    """
    first: list[Line] = []
    for line in lines:
        first.append(line)
        if line.problem is None and isinstance(line.text, str):
            yield from first
            yield from lines
            return
        if len(first) == _FIRST:
            break
    if not first:
        return
    fields = list(dict.fromkeys(field for line in first for field in line.record))
    if fields:
        where = f"the first {_FIRST} lines have" if len(first) == _FIRST else "the input has"
        lack = f"no text in the field {name!r}" if name in fields else f"no field {name!r}"
        others = [field for field in fields if field != name]
        choice = f": choose one with --field ({_few(others)})" if others else ""
        raise InputProblemError(f"{where} {lack}{choice}")
    which = "the only line" if len(first) == 1 else f"line {first[0].number}"
    raise InputProblemError(f"the input has no text: {which} {first[0].problem}")


def rows_of_table(source: Iterable[bytes], name: str, separator: str) -> Iterator[Line]:
    """Yield the rows of CSV or TSV with a header, whose column ``name`` is the text.

    The number of a row is the number of its last line.

    Raises:
        InputProblemError: There is no such column, or more than one, a line is not UTF-8, or a
            quote is not closed.
    """
    try:
        rows = read_table(_utf8(source), separator)
        _, columns = next(rows, (0, []))
        if columns and name not in columns:
            raise InputProblemError(
                f"the input has no column {name!r}: choose one with --field ({', '.join(columns)})"
            )
        if columns.count(name) > 1:
            raise InputProblemError(f"the input has more than one column {name!r}: rename one")
        columns = _distinct(columns)
        for number, row in rows:
            record: dict[str, Any] = dict(zip_longest(columns, row[: len(columns)]))
            if len(row) > len(columns):
                yield Line(
                    number, record=record, problem=f"has more than {count(len(columns), 'column')}"
                )
            elif record[name] is None:
                yield Line(number, record=record, problem=f"has no column {name!r}")
            else:
                yield Line(number, record[name], record)
    except NotATableError as error:
        raise InputProblemError(f"the input is not a table: {error}") from None


def _distinct(columns: list[str]) -> list[str]:
    """Return the names with a number added to each that an earlier column has."""
    found: dict[str, None] = {}
    for name in columns:
        number, chosen = 2, name
        while chosen in found or (chosen != name and chosen in columns):
            number, chosen = number + 1, f"{name}_{number}"
        found[chosen] = None
    return list(found)


def _utf8(source: Iterable[bytes]) -> Iterator[str]:
    for number, text in _decoded(source, ends=True):
        if text is None:
            raise InputProblemError(f"line {number} is not UTF-8")
        yield text


def _line(number: int, found: Any, problem: str | None, name: str) -> Line:
    if problem is not None:
        return Line(number, problem=problem)
    if isinstance(found, str):
        return Line(number, found, {"text": found})
    if name not in found:
        others = f", only {_few([repr(other) for other in found])}" if found else ""
        problem = f"has no field {name!r}{others}"
        return Line(number, record=found, problem=problem)
    return Line(number, found[name], found)


def _few(fields: list[str]) -> str:
    return ", ".join(fields[:_FIELDS]) + (", …" if len(fields) > _FIELDS else "")


def _decoded(source: Iterable[bytes], ends: bool = False) -> Iterator[tuple[int, str | None]]:
    """Yield each line with its number; the text is ``None`` if the line is not UTF-8."""
    for number, raw in enumerate(source, 1):
        text = _decode(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw)
        yield number, text if ends or text is None else text.rstrip("\r\n")


def _decode(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


# -- writing -------------------------------------------------------------------------------------


class Writer(Protocol):
    """Writes one row for every line, in order: its vector, or the reason why there is none."""

    def write(self, line: Line, vector: Vectors | None, reason: str | None) -> None: ...

    def finish(self) -> None: ...


_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_REASON = re.compile(r"line \d+: ")


class JsonLines:
    """Writes JSONL: the input's object with ``embedding``, or with null and an ``error``."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, line: Line, vector: Vectors | None, reason: str | None) -> None:
        row = line.record | {"embedding": vector}
        if vector is None:
            row["error"] = f"line {line.number}: {reason}"
        elif line.record.get("embedding", "") is None and _REASON.match(str(row.get("error"))):
            del row["error"]  # an earlier run wrote it, and its output is now the input
        try:
            written = orjson.dumps(row, option=_OPTIONS)
        except TypeError:  # a number of more than 64 bits, or many levels of nesting
            row = {
                name: vector
                if name == "embedding"
                else orjson.Fragment(json.dumps(value, ensure_ascii=False))
                for name, value in row.items()
            }
            written = orjson.dumps(row, option=_OPTIONS)
        self._file.write(written)

    def finish(self) -> None:
        self._file.flush()


class Npy:
    """Writes NPY: a float32 array of shape (lines, d); a line without a vector is a row of NaN."""

    def __init__(self, file: BinaryIO, size: int | None) -> None:
        self._file = file
        self._size = size
        self._rows = 0
        self._missing = 0  # rows without a vector, until the first vector gives the size
        if size is not None:
            self._head()

    def write(self, line: Line, vector: Vectors | None, reason: str | None) -> None:
        self._rows += 1
        if self._size is None:
            if vector is None:
                self._missing += 1
                return
            self._size = vector.shape[0]
            self._head()
            for _ in range(self._missing):
                self._put(None)
        self._put(vector)

    def finish(self) -> None:
        if self._size is None:
            self._size = 0
        # Write the header again, now with the number of rows: numpy leaves room for it.
        self._file.seek(0)
        self._head()
        self._file.flush()

    def _head(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._size)},
        )

    def _put(self, vector: Vectors | None) -> None:
        if vector is None:
            vector = np.full(self._size or 0, np.nan, dtype=np.float32)
        elif vector.shape[0] != self._size:
            raise InvalidResponseError(
                f"a vector has {vector.shape[0]} dimensions, and earlier ones have {self._size}:"
                " set --dimensions"
            )
        self._file.write(vector.astype("<f4", copy=False).tobytes())


class Parquet:
    """Writes Parquet with the columns ``line``, ``id``, ``text``, ``embedding`` and ``error``."""

    def __init__(self, file: BinaryIO) -> None:
        pa, parquet = _pyarrow()
        self._pa = pa
        self._schema = pa.schema(
            [
                ("line", pa.int64()),
                ("id", pa.string()),
                ("text", pa.string()),
                ("embedding", pa.list_(pa.float32())),
                ("error", pa.string()),
            ]
        )
        self._writer = parquet.ParquetWriter(file, self._schema)
        self._group: list[tuple[Line, Vectors | None, str | None]] = []

    def write(self, line: Line, vector: Vectors | None, reason: str | None) -> None:
        self._group.append((line, vector, reason))
        if len(self._group) == _GROUP:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        pa, group = self._pa, self._group
        if not group:
            return
        vectors = [vector for _, vector, _ in group]
        ends = np.cumsum([0, *(0 if row is None else row.shape[0] for row in vectors)])
        present = [row for row in vectors if row is not None]
        embedding = pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()),
            pa.array(np.concatenate(present) if present else np.empty(0, np.float32)),
            mask=pa.array([row is None for row in vectors]),
        )
        ids = [line.record.get("id") for line, _, _ in group]
        texts = [line.text if isinstance(line.text, str) else None for line, _, _ in group]
        columns = [
            pa.array([line.number for line, _, _ in group], pa.int64()),
            pa.array([None if name is None else str(name) for name in ids], pa.string()),
            pa.array(texts, pa.string()),
            embedding,
            pa.array([reason for _, _, reason in group], pa.string()),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._group = []


def need_parquet() -> None:
    """Raise an ``ImportError`` that says what to install, before anything is paid for."""
    _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    with needed("Parquet", "pyarrow", install="pyarrow"):
        # pyarrow has no type hints, so importing it by name loses nothing.
        return import_module("pyarrow"), import_module("pyarrow.parquet")
