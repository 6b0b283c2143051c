"""Converts files that are not plain text: HTML, notebooks, PDF, DOCX, tables and JSON."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import chain, islice, tee
from typing import Any

from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.texts import is_blank, is_encodable
from nexusflow_integrations.cli.json_rows import NotJsonError, json_lines, load, problem_of

INSTALL = "nexusflow-integrations[files]"
CONVERTED = {
    ".html": "HtmlConverter",
    ".htm": "HtmlConverter",
    ".ipynb": "IpynbConverter",
    ".docx": "DocxConverter",
    ".pdf": "PdfConverter",
}
"""The markitdown converter for each suffix; it returns Markdown."""
TABLES = {".csv": ",", ".tsv": "\t"}
"""The column separator for each suffix."""

JSON = (".jsonl", ".ndjson", ".json")
"""Suffixes of files with a JSON object or string on each line, or, the last one, in an array."""
ROWS = (*TABLES, *JSON)
"""Suffixes of files in which each row is a text of its own."""
_VECTOR = 64
"""A list of at least so many numbers is a vector, not text; no model has smaller ones."""

_TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"
_STARTS = {".docx": (b"PK\x03\x04", "a DOCX file"), ".pdf": (b"%PDF-", "a PDF")}


class NotConvertedError(Exception):
    """A file cannot be converted; the message says why, in a few words."""


def can_convert() -> bool:
    """Return whether ``markitdown``, which converts files, is installed."""
    return find_spec("markitdown") is not None


def markdown(data: bytes, suffix: str) -> str:
    """Convert a file to Markdown.

    Args:
        data: The contents of the file.
        suffix: A key of `CONVERTED`.

    Raises:
        ImportError: The package that converts the file is missing; the message says what to
            install.
        NotConvertedError: The file is not of the type that its suffix names, or has no text.
    """
    start, kind = _STARTS.get(suffix, (b"", ""))
    if not data.startswith(start):
        raise NotConvertedError(f"not {kind}")
    with needed(f"Reading {suffix}", "markitdown", install=INSTALL), _no_telemetry():
        import markitdown
        from markitdown import converters
    if suffix in (".html", ".htm", ".ipynb"):
        decoded(data)
    info = markitdown.StreamInfo(extension=suffix, charset="utf-8")
    try:
        converter = getattr(converters, CONVERTED[suffix])()
        with warnings.catch_warnings(), _silent_parser():  # they name lines of Python, not the file
            warnings.simplefilter("ignore")
            text = str(converter.convert(io.BytesIO(data), info).markdown)
    except Exception as error:  # noqa: BLE001 - each parser raises its own errors
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise NotConvertedError(f"cannot be read as {suffix}: {said}") from None
    if suffix == ".pdf" and not text.strip():
        raise NotConvertedError("a PDF without text, such as a scan")
    return text


def decoded(data: bytes) -> str:
    """Return the text of a file.

    Raises:
        NotConvertedError: The file is not UTF-8; the message names the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotConvertedError(f"line {line} is not UTF-8") from None


@contextmanager
def _silent_parser() -> Iterator[None]:
    """Drop the parser's warning about undecoded characters, which a page without text gets, too."""
    logger = logging.getLogger("bs4.dammit")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Turn off the telemetry of onnxruntime, which markitdown imports but does not use here."""
    if _TELEMETRY_OFF in os.environ:
        yield
        return
    os.environ[_TELEMETRY_OFF] = "1"
    try:
        yield
    finally:
        os.environ.pop(_TELEMETRY_OFF, None)


_NAMED_SEPARATOR = re.compile(r'"?sep=([^\r\n"])"?\1*[\r\n]*', re.IGNORECASE)
_LONGEST_FIELD = (1 << 31) - 1  # the largest limit that csv takes everywhere


class NotATableError(Exception):
    """A row cannot be read; the message begins with the numbers of its lines."""


def read_table(lines: Iterable[str], usual: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line and the cells of each row that is not blank.

    If the header has only one column, but a tab, a semicolon or a vertical bar divides both the
    header and the first row, that character separates the columns. A first line such as ``sep=;``,
    which Excel writes, names the separator.

    Args:
        lines: The lines with their ends; they are read only as far as the rows are.
        usual: The separator of the columns, unless another fits better.

    Raises:
        NotATableError: A quote is not closed, or text follows a closed one.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    rest = iter(lines)
    head = next(rest, "")
    if named := _NAMED_SEPARATOR.fullmatch(head):
        return _rows(chain(["\n"], rest), named[1])  # an empty line, so that numbers stay right
    lines, first = tee(chain([head], rest))
    return _rows(lines, _separator(first, usual))


def _separator(lines: Iterator[str], usual: str) -> str:
    lines, again = tee(lines)
    # Not strict: with the wrong separator, quotes are in odd places.
    with suppress(csv.Error, NotATableError):
        header = next(filter(None, csv.reader(lines, delimiter=usual)), [])
        other = next((char for char in "\t;|" if char in header[0]), None) if header else None
        if other is not None and len(header) == 1:
            two = [row for _, row in islice(_rows(again, other), 2)]
            if len(two) == 2 and min(map(len, two)) > 1:
                return other
    return usual


def _rows(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, delimiter=separator, strict=True)
    begun = 1
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
            begun = reader.line_num + 1
    except csv.Error as error:
        end = reader.line_num
        where = f"line {end}" if begun >= end else f"lines {begun} to {end}"
        raise NotATableError(f"{where}: {error}") from None


def rows(text: str, suffix: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each row of a file.

    Args:
        text: The contents of the file.
        suffix: One of `ROWS`.

    Raises:
        NotConvertedError: The file is not of the type that its suffix names.
    """
    if suffix in TABLES:
        return table_rows(text, TABLES[suffix])
    return json_items(text) if suffix == ".json" else json_rows(text)


def json_rows(text: str) -> Iterator[tuple[int, str]]:
    """Yield, for each line of JSONL that is not empty, its number and its text.

    The text is the string, or contains a line ``field: value`` for each field. It is empty if the
    line has no text. Null, blank strings and vectors are left out.

    Raises:
        NotConvertedError: A line is neither a JSON object nor a string.
    """
    for number, found, problem in json_lines(enumerate(text.split("\n"), 1)):
        if problem is not None:
            raise NotConvertedError(f"line {number} {problem}")
        yield number, _json_text(found, f"line {number}")


def json_items(text: str) -> Iterator[tuple[int, str]]:
    """Yield, for each item of a JSON array, its position, counted from 1, and its text.

    The text is that of `json_rows`.

    Raises:
        NotConvertedError: The text is not an array of JSON objects and strings.
    """
    try:
        found = load(text)
    except NotJsonError as error:
        raise NotConvertedError(error.of_array("name it .jsonl").removeprefix("is ")) from None
    if not isinstance(found, list):
        raise NotConvertedError("JSON, but not an array of objects or strings")
    for number, item in enumerate(found, 1):
        if problem := problem_of(item):
            raise NotConvertedError(f"item {number} {problem}")
        yield number, _json_text(item, f"item {number}")


def _json_text(value: dict[str, Any] | str, where: str) -> str:
    try:
        found = _pruned(value)
        if isinstance(found, dict):
            found = "\n".join(f"{name}: {_shown(item)}" for name, item in found.items())
    except RecursionError:
        raise NotConvertedError(f"{where} is nested too deeply") from None
    text = found or ""
    if not is_encodable(text):
        raise NotConvertedError(f"{where} is not UTF-8")
    return text


def _pruned(value: Any) -> Any:
    """Return ``value`` without null, blank strings and vectors; ``None`` if nothing is left."""
    if isinstance(value, dict):
        pairs = ((name, _pruned(item)) for name, item in value.items())
        return {name: item for name, item in pairs if item is not None} or None
    if isinstance(value, list):
        if len(value) >= _VECTOR and all(type(item) in (int, float) for item in value):
            return None
        return [item for item in map(_pruned, value) if item is not None] or None
    return None if isinstance(value, str) and is_blank(value) else value


def _shown(value: Any) -> str:
    """Return a string as it is, plain values with commas between them, and all else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        return ", ".join(map(_shown, value))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def table_rows(text: str, separator: str) -> Iterator[tuple[int, str]]:
    """Yield, for each row of CSV or TSV, the number of its last line, and its text.

    The text contains a line ``column: value`` for each column.

    Raises:
        NotConvertedError: A quote is not closed.
    """
    try:
        rows = read_table(io.StringIO(text, newline=""), separator)
        _, columns = next(rows, (0, []))
        for number, row in rows:
            named = zip([*columns, *[""] * (len(row) - len(columns))], row, strict=False)
            shown = (f"{name}: {value}" if name else value for name, value in named if value)
            if passage := "\n".join(shown):
                yield number, passage
    except NotATableError as error:
        raise NotConvertedError(f"not a table: {error}") from None
