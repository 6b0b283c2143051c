"""Converts files that are not plain text: HTML, notebooks, PDF, DOCX and tables."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.texts import is_encodable

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

JSON_LINES = (".jsonl", ".ndjson")
"""Suffixes of files with a JSON object or string on each line."""

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
        try:
            data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise NotConvertedError("not UTF-8") from None
    info = markitdown.StreamInfo(extension=suffix, charset="utf-8")
    try:
        converter = getattr(converters, CONVERTED[suffix])()
        text = str(converter.convert(io.BytesIO(data), info).markdown)
    except Exception as error:  # noqa: BLE001 - each parser raises its own errors
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise NotConvertedError(f"cannot be read as {suffix}: {said}") from None
    if suffix == ".pdf" and not text.strip():
        raise NotConvertedError("a PDF without text, such as a scan")
    return text


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


_LONGEST_FIELD = (1 << 31) - 1  # the largest limit that csv takes everywhere


class NotATableError(Exception):
    """A row cannot be read; the message begins with the numbers of its lines."""


def read_table(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield, for each row of CSV or TSV that is not blank, the number of its last line, and it.

    Raises:
        NotATableError: A quote is not closed, or text follows a closed one.
    """
    csv.field_size_limit(_LONGEST_FIELD)
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


def json_rows(text: str) -> Iterator[tuple[int, str]]:
    """Yield, for each line of JSONL that is not empty, its number and its text.

    The text is the string, or contains a line ``field: value`` for each field with a text or a
    number.

    Raises:
        NotConvertedError: A line is neither a JSON object nor a string.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise NotConvertedError(f"line {number} is not JSON") from None
        if isinstance(found, dict):
            found = "\n".join(
                f"{name}: {value}"
                for name, value in found.items()
                if type(value) in (str, int, float) and value != ""
            )
        if not isinstance(found, str):
            raise NotConvertedError(f"line {number} is neither a JSON object nor a string")
        if not is_encodable(found):
            raise NotConvertedError(f"line {number} is not UTF-8")
        if found:
            yield number, found


def table_rows(text: str, separator: str) -> Iterator[tuple[int, str]]:
    """Yield, for each row of CSV or TSV, the number of its last line, and its text.

    The text contains a line ``column: value`` for each column.

    Raises:
        NotConvertedError: A quote is not closed.
    """
    rows = read_table(io.StringIO(text, newline=""), separator)
    try:
        _, columns = next(rows, (0, []))
        for number, row in rows:
            named = zip([*columns, *[""] * (len(row) - len(columns))], row, strict=False)
            shown = (f"{name}: {value}" if name else value for name, value in named if value)
            if passage := "\n".join(shown):
                yield number, passage
    except NotATableError as error:
        raise NotConvertedError(f"not a table: {error}") from None
