"""The commands `embed` and `index` read JSON in the same way."""

from __future__ import annotations

import sys

import pytest

from nexusflow_integrations.cli.rag.converted import NotConvertedError, rows
from nexusflow_integrations.cli.rows import InputProblemError, items_of_json, lines_of_json


def embedded(data: bytes, suffix: str) -> tuple[list[tuple[int, str]], str]:
    """Return the texts that `embed` reads, and the first problem."""
    try:
        if suffix == ".json":
            lines = list(items_of_json(data, "t"))
        else:
            lines = list(lines_of_json(data.splitlines(True), "t"))
    except InputProblemError as error:
        return [], str(error)
    what = "item" if suffix == ".json" else "line"
    for line in lines:
        if line.problem:
            return [], f"{what} {line.number} {line.problem}"
    return [(line.number, line.text) for line in lines], ""


def indexed(data: bytes, suffix: str) -> tuple[list[tuple[int, str]], str]:
    """Return the texts that `index` reads, and the problem."""
    try:
        return list(rows(data.decode("utf-8-sig"), suffix)), ""
    except NotConvertedError as error:
        return [], str(error)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'\xef\xbb\xbf"one"\r\n\n  \r\n"two"', [(1, "one"), (4, "two")]),
        (b'"one"\n{"t": "two"}\n', [(1, "one"), (2, "two")]),
        (b'{"t": "three", "score": NaN, "high": -Infinity}', [(1, "three")]),
    ],
)
def test_the_same_lines_are_read(data: bytes, found: list[tuple[int, str]]) -> None:
    assert embedded(data, ".jsonl") == (found, "")
    texts = [(line, text.partition("\n")[0].removeprefix("t: ")) for line, text in found]
    read = [
        (n, text.partition("\n")[0].removeprefix("t: ")) for n, text in indexed(data, ".jsonl")[0]
    ]
    assert read == texts


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'"one"\ntwo\n', "line 2 is not JSON"),
        (b'"one"\n\xef\xbb\xbf"two"\n', "line 2 is not JSON"),
        (b'"one"\n["two"]', "line 2 is neither a JSON object nor a string"),
        (b'"one"\n\n"\\ud800"', "line 3 is not UTF-8"),
        (b'{"t": "one", "other": "\\ud800"}', "line 1 is not UTF-8"),
        (b"[" * 200_000, "line 1 is nested too deeply"),
        pytest.param(
            b"[" * 1010 + b"1" * 19 + b"]" * 1010,
            "line 1 is nested too deeply",
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 12), reason="Python reads this, and it is no object"
            ),
        ),
        (b'{"t": %s}' % (b"1" * 5000), "line 1 is not JSON"),
    ],
)
def test_the_same_problem_of_a_line_is_named(data: bytes, problem: str) -> None:
    assert embedded(data, ".jsonl") == indexed(data, ".jsonl") == ([], problem)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'["one",\n"two"', "not JSON (line 2); for one object per line, "),
        (b'["one", 2]', "item 2 is neither a JSON object nor a string"),
        (b'["\\ud800"]', "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"t": "one"}', "JSON, but not an array of "),
    ],
)
def test_the_same_problem_of_an_array_is_named(data: bytes, problem: str) -> None:
    (nothing, said), (none, left_out) = embedded(data, ".json"), indexed(data, ".json")
    assert nothing == none == []
    assert said.removeprefix("the input is ").startswith(problem)
    assert left_out.startswith(problem)


def test_a_line_of_an_array_that_is_not_utf8_is_named() -> None:
    said = embedded(b'["one",\n"\xff"]', ".json")[1]
    assert said == "the input is not UTF-8 (line 2)"
