"""``nexusflow embed`` reads and writes every format, and keeps finished vectors after a failure."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from typer.testing import CliRunner

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.usage import Ledger, Usage
from nexusflow_integrations._core.whole_file import whole
from nexusflow_integrations.cli.app import app
from nexusflow_integrations.cli.embed import Embedding
from nexusflow_integrations.cli.exits import explain
from nexusflow_integrations.cli.options import cost_json
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.rows import Line, Npy, lines_of_text
from nexusflow_integrations.cli.screen import price_line
from nexusflow_integrations.local import LocalServer

from .conftest import KEY, Command

pytestmark = pytest.mark.timeout(600)

SMALL = ("--dimensions", "64")
IN_FLIGHT = 2 * 32 * 10
"""A stream reads two windows of max_concurrency requests of batch_size texts ahead; what of them
was not yet in the cache file is paid for again."""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A hundred lines of text."""
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"text number {number}\n" for number in range(100)))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# -- formats -------------------------------------------------------------------------------------


def test_jsonl_holds_each_text_with_its_own_vector_in_order(
    nexusflow: Command, service: LocalServer, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    nexusflow("embed", str(texts), "-o", str(out), *SMALL)
    found = rows(out)
    assert [row["text"] for row in found] == texts.read_text().splitlines()
    expected = NexusFlow(dimensions=64).embed([row["text"] for row in found])
    assert np.array_equal(np.array([row["embedding"] for row in found], np.float32), expected)


def test_npy_holds_the_same_rows(
    nexusflow: Command, service: LocalServer, texts: Path, tmp_path: Path
) -> None:
    nexusflow("embed", str(texts), "-o", str(tmp_path / "out.npy"), *SMALL)
    found = np.load(tmp_path / "out.npy")
    assert (found.shape, found.dtype) == ((100, 64), np.float32)
    assert np.array_equal(found, NexusFlow(dimensions=64).embed(texts.read_text().splitlines()))
    mapped = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert mapped.offset % 64 == 0


def test_parquet_holds_the_same_rows_with_line_id_and_error(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 7, "text": "otter"}\n\n{"id": "x", "text": " "}\n"panda"\n')
    nexusflow("embed", str(source), "-o", str(tmp_path / "out.parquet"), *SMALL, code=5)
    found = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert found["line"] == [1, 3, 4]
    assert found["id"] == ["7", "x", None]
    assert found["text"] == ["otter", " ", "panda"]
    assert found["error"] == [None, "is blank", None]
    assert found["embedding"][1] is None
    expected = NexusFlow(dimensions=64).embed(["otter", "panda"])
    assert np.array_equal(np.float32([found["embedding"][0], found["embedding"][2]]), expected)


def test_parquet_writes_many_groups(
    nexusflow: Command, service: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("nexusflow_integrations.cli.rows._GROUP", 30)
    source = tmp_path / "in.txt"
    source.write_text("".join(f"text {number}\n" for number in range(100)))
    nexusflow("embed", str(source), "-o", str(tmp_path / "out.pq"), *SMALL)
    table = parquet.read_table(tmp_path / "out.pq")
    assert table.num_rows == 100
    assert table.column("text").to_pylist()[-1] == "text 99"
    assert parquet.ParquetFile(tmp_path / "out.pq").num_row_groups == 4


def test_without_pyarrow_parquet_ends_in_3_before_anything_is_sent(
    nexusflow: Command,
    service: LocalServer,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "out.parquet"
    said = nexusflow.sentence("embed", str(texts), "-o", str(out), code=3)
    assert said == 'Parquet needs pyarrow: pip install "pyarrow"'
    assert service.stats.requests == 0
    assert not out.exists()


def test_a_jsonl_object_keeps_its_other_fields(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": 7, "body": "小熊猫吃竹子。", "tags": ["a"]}\n', "utf-8")
    nexusflow("embed", str(source), "-o", str(out), "--field", "body", *SMALL)
    (row,) = rows(out)
    assert len(row.pop("embedding")) == 64
    assert row == {"id": 7, "body": "小熊猫吃竹子。", "tags": ["a"]}
    assert service.stats.received == ("小熊猫吃竹子。",)


def test_tables_and_json_are_read_as_what_they_are(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    with (tmp_path / "in.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["id", "body"], ["1", "one, two\nthree"], ["2", "four"]])
    (tmp_path / "in.tsv").write_text("\ufeffid\tbody\r\n1\tone\r\n", "utf-8")
    (tmp_path / "in.json").write_text(json.dumps([{"id": 1, "body": "one"}, "two"], indent=1))
    out = tmp_path / "out.jsonl"
    expected = {
        "in.csv": [{"id": "1", "body": "one, two\nthree"}, {"id": "2", "body": "four"}],
        "in.tsv": [{"id": "1", "body": "one"}],
        "in.json": [{"id": 1, "body": "one"}, {"text": "two"}],
    }
    for name, records in expected.items():
        nexusflow("embed", str(tmp_path / name), "--field", "body", "-o", str(out), *SMALL)
        found = rows(out)
        assert [len(row.pop("embedding")) for row in found] == [64] * len(records)
        assert found == records


def test_a_row_without_its_text_is_named_and_the_others_are_done(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("id,text\n1,one\n2\n3,three,four\n4,five\n")
    _, aside = nexusflow("embed", str(source), "-o", str(out), *SMALL, code=5)
    assert "line 3: has no column 'text'" in aside
    assert "line 4: has more than 2 columns" in aside
    assert [row["embedding"] is None for row in rows(out)] == [False, True, True, False]


def test_the_failed_rows_of_an_output_can_be_embedded_again(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "failed.jsonl", tmp_path / "out.jsonl"
    failed = {"text": "otter", "embedding": None, "error": "line 6: is blank"}
    own = {"text": "panda", "embedding": None, "error": "a column of the user"}
    again = {"text": " ", "embedding": [1.0], "error": "line 7: is blank"}
    source.write_text("".join(f"{json.dumps(row)}\n" for row in (failed, own, again)))
    nexusflow("embed", str(source), "-o", str(out), *SMALL, code=5)
    first, second, third = rows(out)
    assert (len(first["embedding"]), "error" in first) == (64, False)
    assert (len(second["embedding"]), second["error"]) == (64, "a column of the user")
    assert (third["embedding"], third["error"]) == (None, "line 3: is blank")


def test_long_numbers_and_deep_objects_are_repeated_exactly(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    deep = "[" * 300 + "]" * 300
    lines = [
        f'{{"id": {2**64 - 1}, "text": "one"}}',
        f'{{"id": {2**64}, "text": "two", "more": [-{10**30}], "é": 0.5}}',
        f'{{"id": 1, "text": "three", "deep": {deep}}}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "in.json").write_text(f"[{','.join(lines)}]", "utf-8")
    out = tmp_path / "out.jsonl"
    for name in ("in.jsonl", "in.json"):
        nexusflow("embed", str(tmp_path / name), "-o", str(out), *SMALL)
        found = rows(out)
        assert [len(row.pop("embedding")) for row in found] == [64] * 3
        assert found == [json.loads(line) for line in lines]


def test_columns_with_the_same_name_are_all_kept(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("\na,text,a,a_2,a,,\n1,one,2,3,4,5,6\n")
    nexusflow("embed", str(source), "-o", str(out), *SMALL)
    (row,) = rows(out)
    assert len(row.pop("embedding")) == 64
    kept = {"a": "1", "text": "one", "a_3": "2", "a_2": "3", "a_4": "4", "": "5", "_2": "6"}
    assert row == kept


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ('id,text\n1,ok\n2,"a" b\n3,ok\n', "line 3: ',' expected"),
        ('id,text\n1,ok\n\n2,"two\nlines"\n3,"never closed\n4,ok\n', "lines 6 to 7: unexpected"),
    ],
)
def test_a_table_that_cannot_be_read_names_the_lines_of_the_bad_row(
    nexusflow: Command, service: LocalServer, tmp_path: Path, table: str, where: str
) -> None:
    (tmp_path / "in.csv").write_text(table)
    said = nexusflow.sentence("embed", str(tmp_path / "in.csv"), code=2)
    assert said.startswith(f"the input is not a table: {where}")
    assert service.stats.requests == 0


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_the_columns_of_a_table_may_have_other_separators(
    clean: None, service: LocalServer, separator: str, quote: str
) -> None:
    table = [["id", "text"], ["1,5", "one"], ["2", "two"]]
    lines = [separator.join(f"{quote}{cell}{quote}" for cell in row) + "\n" for row in table]
    done = CliRunner().invoke(app, ["embed", "--input", "csv", *SMALL], input="".join(lines))
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(row) for row in found] == [["id", "text", "embedding"]] * 2
    assert [(row["id"], row["text"]) for row in found] == [("1,5", "one"), ("2", "two")]


def test_a_row_with_more_cells_than_the_only_column_is_refused(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("text\none\ntwo,three\n")
    _, aside = nexusflow("embed", str(tmp_path / "in.csv"), *SMALL, code=5)
    assert "line 3: has more than 1 column\n" in aside


def test_standard_input_and_output_make_a_pipe(clean: None, service: LocalServer) -> None:
    done = CliRunner().invoke(app, ["embed", *SMALL], input="otter\r\npanda\n")
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in found] == ["otter", "panda"]


def test_json_says_what_was_paid(
    nexusflow: Command, service: LocalServer, texts: Path, tmp_path: Path
) -> None:
    arguments = ("embed", str(texts), "-o", str(tmp_path / "out.npy"), *SMALL)
    found = nexusflow.json(*arguments)
    assert found["texts"] == 100
    assert found["cost"]["tokens"] == service.stats.tokens
    assert found["cost"]["requests"] == service.stats.requests
    assert found["refused"] == []


def test_an_empty_input_makes_an_empty_output(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("\n")
    for name in ("out.jsonl", "out.npy"):
        (tmp_path / name).write_text("an older output")
        _, said = nexusflow("embed", str(tmp_path / "in.txt"), "-o", str(tmp_path / name), *SMALL)
        assert f"{name}hasnorows." in _unspaced(said)
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert np.load(tmp_path / "out.npy").shape == (0, 64)


@pytest.fixture
def held_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes only where a test says so."""
    monkeypatch.setattr("time.perf_counter", lambda: 1_000.0)


@pytest.mark.usefixtures("held_clock")
def test_the_bar_shows_speed_tokens_price_cache_hits_and_time_left() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, legacy_windows=False)
    client = NexusFlow("none")
    client._spent.add(Ledger(tokens=1_234_567, cached=23_456))
    columns = (BarColumn(bar_width=10), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        counts = Embedding(console, bar, 1_000_000, client)
        counts.done = 499_999
        counts._began -= 100
        counts.advanced(500_000, None)
        note = bar.tasks[0].fields["note"]
    found = re.fullmatch(
        r"500k/1.0M  5,000 texts/s  1.2M tokens  ¥0.617  23k cached  1:40 left", note
    )
    assert found, note
    assert 10 + 1 + len(note) <= 80


@pytest.mark.usefixtures("held_clock")
def test_the_bar_of_a_pipe_knows_no_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Progress(TextColumn("{task.fields[note]}"), console=console, auto_refresh=False) as bar:
        counts = Embedding(console, bar, None, NexusFlow("none"))
        counts._began -= 1
        counts.advanced(1, None)
        assert re.fullmatch(r"1  1\.0 texts/s  0 tokens  ¥0", bar.tasks[0].fields["note"])


# -- refused texts -------------------------------------------------------------------------------

BAD = (
    b'{"text": "otter"}\n{"text": " "}\nno json\n{"body": "x"}\n[1]\n"\xff"\n{"text": 3}\n"panda"\n'
)
REASONS = {
    2: "is blank",
    3: "is not JSON",
    4: "has no field 'text', only 'body'",
    5: "is neither a JSON object nor a string",
    6: "is not UTF-8",
    7: "must be a string, not int",
}


def _unspaced(said: str) -> str:
    """Return a message without white space: a long path may be broken anywhere."""
    return "".join(said.split())


def test_texts_that_cannot_be_sent_are_named_by_line_and_the_others_are_done(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(BAD)
    _, aside = nexusflow("embed", str(source), "-o", str(out), *SMALL, code=5)
    for line, reason in REASONS.items():
        assert f"line {line}: {reason}" in aside
    assert f"2of8textsto{out}:" in _unspaced(aside)
    assert "6 texts failed" in aside
    found = rows(out)
    assert [row["embedding"] is None for row in found] == [False, *[True] * 6, False]
    assert [row.get("error") for row in found[1:-1]] == [
        f"line {line}: {reason}" for line, reason in REASONS.items()
    ]
    assert sorted(service.stats.received) == ["otter", "panda"]


def test_a_text_that_is_too_long_is_named_by_line_too(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text(f"otter\n\n{'word ' * 9000}\npanda\n")
    _, aside = nexusflow("embed", str(source), "-o", str(out), *SMALL, code=5)
    said = " ".join(aside.split())
    assert re.search(r"line 3: (is too long|400 context_length_exceeded)", said)
    assert "text 1" not in said
    assert "on_too_long" not in said
    found = np.load(out)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    assert np.array_equal(found[[0, 2]], NexusFlow(dimensions=64).embed(["otter", "panda"]))


def test_on_too_long_splits_or_truncates_in_place_of_leaving_out(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text(f"otter\n{'word ' * 20_000}\npanda\n")
    _, aside = nexusflow("embed", str(source), "-o", str(out), *SMALL, code=5)
    assert "line 2: is too long" in " ".join(aside.split())
    assert "set --on-too-long to 'split'" in " ".join(aside.split())
    for policy in ("split", "truncate"):
        nexusflow("embed", str(source), "-o", str(out), *SMALL, "--on-too-long", policy)
        long = NexusFlow(dimensions=64, on_too_long=policy).embed("word " * 20_000)
        assert np.allclose(np.load(out)[1], long, atol=1e-6)


def test_estimate_counts_what_is_too_long_as_unfit_unless_it_is_split(
    nexusflow: Command, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text(f"otter\n{'word ' * 20_000}\n")
    arguments = ("embed", str(tmp_path / "in.txt"), "--estimate")
    found = json.loads(nexusflow(*arguments, "--json", code=5)[0])
    assert (found["texts"], found["unfit"]) == (1, 1)
    found = nexusflow.json(*arguments, "--on-too-long", "split")
    assert (found["texts"], found["unfit"]) == (2, 0)


def test_json_lists_what_was_refused(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(BAD)
    shown, _ = nexusflow(
        "embed", str(source), "-o", str(tmp_path / "out.npy"), *SMALL, "--json", code=5
    )
    refused = json.loads(shown)["refused"]
    assert {item["line"]: item["reason"] for item in refused} == REASONS


def test_npy_learns_its_size_from_the_first_vector_after_refused_lines(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("w+b") as file:
        writer = Npy(file, None)
        writer.write(Line(1), None, "is blank")
        writer.write(Line(2), np.ones(5, np.float32), None)
        writer.finish()
    assert np.isnan(np.load(tmp_path / "x.npy")).tolist() == [[True] * 5, [False] * 5]


def test_a_byte_order_mark_is_not_part_of_the_first_text() -> None:
    found = list(lines_of_text([b"\xef\xbb\xbfotter\r\n", b"\n", b"panda"]))
    assert [(line.number, line.text) for line in found] == [(1, "otter"), (3, "panda")]


# -- money ---------------------------------------------------------------------------------------


def test_estimate_sends_nothing_and_needs_no_key(
    nexusflow: Command, texts: Path, tmp_path: Path
) -> None:
    found = nexusflow.json("embed", str(texts), "-o", str(tmp_path / "out.npy"), "--estimate")
    assert (found["texts"], found["requests"]) == (100, 10)
    assert found["list_price"] == pytest.approx(found["tokens"] * 0.5 / 1e6)
    assert not (tmp_path / "out.npy").exists()
    shown, _ = nexusflow("embed", str(texts), "--estimate")
    assert "Nothing was sent." in shown


def test_estimate_knows_what_the_cache_holds(
    nexusflow: Command, service: LocalServer, texts: Path, tmp_path: Path
) -> None:
    nexusflow("embed", str(texts), "-o", str(tmp_path / "out.npy"), *SMALL)
    service.reset_stats()
    found = nexusflow.json("embed", str(texts), "--estimate", *SMALL)
    assert (found["cached"], found["tokens"]) == (100, 0)
    assert service.stats.requests == 0


def test_estimate_counts_what_cannot_be_sent(nexusflow: Command, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(BAD)
    arguments = ("embed", str(tmp_path / "in.jsonl"), "--estimate", "--json")
    found = json.loads(nexusflow(*arguments, code=5)[0])
    assert (found["texts"], found["unfit"]) == (2, 6)


def test_the_budget_is_kept_and_what_was_paid_for_is_not_lost(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("".join(f"text number {number}\n" for number in range(40)))
    arguments = ("embed", str(source), "-o", str(out), *SMALL)
    _, aside = nexusflow(*arguments, "--budget", "60 tokens", code=1)
    assert "the budget of 60 tokens" in aside
    assert "run the command again to embed the rest" in " ".join(aside.split())
    assert 0 < service.stats.tokens <= 60
    assert sorted(path.name for path in tmp_path.glob("out*")) == []
    paid = service.stats.texts
    nexusflow(*arguments)
    assert service.stats.texts == 40
    assert paid > 0
    assert service.stats.duplicates == {}


def test_a_second_run_pays_nothing_and_no_cache_pays_again(
    nexusflow: Command, service: LocalServer, texts: Path, tmp_path: Path
) -> None:
    arguments = ("embed", str(texts), "-o", str(tmp_path / "out.npy"), *SMALL)
    nexusflow(*arguments)
    assert service.stats.texts == 100
    _, aside = nexusflow(*arguments)
    assert service.stats.texts == 100
    assert "100 from the" in aside
    nexusflow(*arguments, "--no-cache")
    assert service.stats.texts == 200


def test_a_field_of_a_table_may_be_of_any_length(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "texts.csv", tmp_path / "out.jsonl"
    source.write_text(f"text,id\nshort,1\n{'word ' * 30_000},2\nlast,3\n")
    _, aside = nexusflow("embed", str(source), "-o", str(out), *SMALL, code=5)
    assert "line 3: is too long" in aside
    nexusflow("embed", str(source), "-o", str(out), "--on-too-long", "split", *SMALL)
    assert [len(row["embedding"]) for row in rows(out)] == [64] * 3


def test_a_pipe_that_cannot_be_read_further_fails_after_texts_were_sent(
    service: LocalServer, clean: None
) -> None:
    table = b"text\n" + b"".join(b"row %d\n" % number for number in range(2_000)) + b"\xff\n"
    result = CliRunner().invoke(app, ["embed", "--input", "csv", *SMALL], input=table)
    assert result.exit_code == 1
    assert "what was paid for is in the cache" in result.stderr
    assert result.stderr.endswith("nexusflow: line 2002 is not UTF-8\n")
    assert CliRunner().invoke(app, ["embed", "--input", "csv"], input=table[-7:]).exit_code == 2


def test_only_a_cache_that_worked_is_said_to_hold_what_was_paid_for(
    nexusflow: Command, service: LocalServer, texts: Path, tmp_path: Path
) -> None:
    arguments = ("embed", str(texts), "-o", str(tmp_path / "out.npy"), "--budget", "300 tokens")
    _, aside = nexusflow(*arguments, "--cache", "/proc/embed-cache.db", code=1)
    assert service.stats.texts > 0
    assert re.search(r"stopped after \d+ of 100 texts$", aside, re.MULTILINE)
    assert "is in the cache" not in aside
    _, aside = nexusflow(*arguments, "--no-cache", code=1)
    assert "is in the cache" not in aside
    _, aside = nexusflow(*arguments, "--cache", str(tmp_path / "cache.db"), code=1)
    assert "what was paid for is in the cache" in aside


# -- wrong usage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.txt",), "does not exist"),
        (("a" * 300,), "cannot be read: File name too long"),
        ((".",), "is a folder"),
        (("texts.txt", "-o", "texts.txt"), "would replace the input"),
        (("texts.txt", "-o", "no/such/out.npy"), "does not exist"),
        (("texts.txt", "--format", "npy"), "name -o FILE.npy"),
        (("texts.txt", "--json"), "write the vectors to a file with -o FILE"),
        (("texts.txt", "--budget", "5"), "is not a budget"),
        (
            ("texts.txt", "-o", "out.csv"),
            "cannot be written as .csv: give it a name that ends in .jsonl",
        ),
        (("texts.txt", "--field", "body"), "--field is for JSONL, JSON and CSV"),
        (("texts.txt", "--input", "csv"), "has no column 'text': choose one with --field (text nu"),
        (("texts.txt", "--input", "json"), "the input is not JSON (line 1)"),
        (("texts.txt", "--input", "jsonl"), "the input has no text: line 1 is not JSON"),
        (("many.jsonl",), "have no field 'text': choose one with --field (id, body)"),
        (("many.jsonl", "--estimate"), "have no field 'text': choose one with --field (id, body)"),
        (
            ("many.jsonl", "--field", "id"),
            "have no text in the field 'id': choose one with --field",
        ),
        (
            ("null.jsonl",),
            "the input has no text in the field 'text': choose one with --field (body)",
        ),
        (("numbers.jsonl",), "the input has no text in the field 'text'"),
        (("many.json",), "have no field 'text': choose one with --field (id, body)"),
        (("semicolons.csv",), "has no column 'text': choose one with --field (id, body)"),
        (("header.csv",), "has no column 'text': choose one with --field (id;text)"),
        (("twice.csv",), "the input has more than one column 'text': rename one"),
        (
            ("texts.txt", "-o", "x.npy", "--cache", "./x.npy"),
            "would replace the input, the cache or",
        ),
        (("texts.txt", "--cache", "x", "--no-cache"), "use either --cache or --no-cache"),
        (("texts.txt", "--dimensions", "100"), "dimensions must be one of"),
    ],
)
def test_wrong_usage_is_one_sentence_and_sends_nothing(
    nexusflow: Command,
    service: LocalServer,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(texts.parent)
    Path("semicolons.csv").write_text("id;body\n1;one\n")
    Path("header.csv").write_text("id;text\n")
    Path("twice.csv").write_text("text,id,text\none,1,two\n")
    objects = [{"id": number, "body": "one"} for number in range(400)]
    Path("many.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in objects))
    Path("many.json").write_text(json.dumps(objects))
    Path("null.jsonl").write_text('{"text": null, "body": "one"}\n' * 2)
    Path("numbers.jsonl").write_text('{"text": 5}\n' * 2)
    before = texts.read_bytes()
    assert said in nexusflow.sentence("embed", *arguments, code=2)
    assert service.stats.requests == 0
    assert texts.read_bytes() == before


def test_a_forgotten_field_leaves_the_output_that_was_there(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"body": "one"}\n' * 400)
    nexusflow("embed", str(source), "--field", "body", "-o", str(out), *SMALL)
    before = out.read_bytes()
    nexusflow.sentence("embed", str(source), "-o", str(out), *SMALL, code=2)
    assert out.read_bytes() == before


def test_a_field_may_be_missing_in_some_of_the_first_lines(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": 1}\n' * 30 + '{"text": "one"}\n')
    _, aside = nexusflow("embed", str(source), "-o", str(out), *SMALL, code=5)
    assert [row["embedding"] is None for row in rows(out)] == [True] * 30 + [False]
    assert aside.count("has no field 'text'") == 20
    assert "30 texts failed (the first 20 are named above; --json lists them all)" in aside


def test_a_failure_leaves_the_output_that_was_there(
    nexusflow: Command,
    service: LocalServer,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-wrong-very-secret")
    _, aside = nexusflow("embed", str(texts), "-o", str(out), code=4)
    assert "stopped after 0 of" in aside
    assert "paid" not in aside
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    with pytest.raises(OSError, match="No space") as caught, whole(out):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert explain(caught.value) == (f"{out}: No space left on device", 1)
    assert list(tmp_path.iterdir()) == []


# -- the process ---------------------------------------------------------------------------------


def start(server: LocalServer, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("NEXUSFLOW_")
    } | {
        "NEXUSFLOW_API_KEY": KEY,
        "NEXUSFLOW_BASE_URL": server.base_url,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "LOCALAPPDATA": str(folder / "cache"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "nexusflow_integrations.cli", "embed", *arguments, *SMALL],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills without notice")
def test_a_killed_run_leaves_no_output_and_the_next_one_pays_only_for_the_rest(
    tmp_path: Path,
) -> None:
    count = 1200
    lines = [f"text number {number}" for number in range(count)]
    (tmp_path / "in.txt").write_text("\n".join(lines))
    with LocalServer("hash", api_key=KEY, latency_ms=300, record_texts=True) as server:
        killed = start(server, tmp_path, "in.txt", "-o", "out.npy")
        waited = time.monotonic() + 300
        while server.stats.texts < count / 4:
            assert killed.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < waited
            time.sleep(0.005)
        killed.kill()
        killed.communicate(timeout=60)
        assert not (tmp_path / "out.npy").exists()

        again = start(server, tmp_path, "in.txt", "-o", "out.npy")
        _, aside = again.communicate(timeout=300)
        assert again.returncode == 0, aside
        assert server.stats.texts - count <= IN_FLIGHT
        expected = NexusFlow(KEY, base_url=server.base_url, dimensions=64).embed(lines)
        assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def test_a_closed_pipe_ends_the_run_without_a_message(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(f"text {number}" for number in range(2000)))
    with LocalServer("hash", api_key=KEY) as server:
        process = start(server, tmp_path, "in.txt")
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        aside = process.stderr.read()
        process.wait(timeout=300)
        process.stderr.close()
    assert process.returncode == 1
    assert "BrokenPipeError" not in aside
    assert "/cli/" not in aside


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(
    nexusflow: Command, service: LocalServer, tmp_path: Path
) -> None:
    def peak(count: int) -> int:
        source = tmp_path / f"{count}.txt"
        with source.open("w") as file:
            file.writelines(f"text {number % 50}\n" for number in range(count))
        tracemalloc.start()
        nexusflow("embed", str(source), "-o", str(tmp_path / "out.jsonl"), "--dimensions", "1024")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(500)  # imports and connections
    small, large = peak(3000), peak(24_000)
    vectors = 21_000 * 1024 * 4
    assert large - small < vectors / 4


# -- what is not text ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7\nlines\n", "a PDF"),
        (b"\x1f\x8b\x08\x00lines\n", "compressed with gzip"),
        (b"PAR1\x15\x04\x15", "Parquet"),
        (b"one\x00two\n", "binary"),
        ("one\ntwo\n".encode("utf-16"), "UTF-16, not UTF-8"),
    ],
)
def test_a_file_that_is_not_text_is_refused_before_anything_is_paid_for(
    nexusflow: Command, service: LocalServer, tmp_path: Path, data: bytes, kind: str
) -> None:
    source = tmp_path / "lines.txt"
    source.write_bytes(data)
    said = nexusflow.sentence("embed", str(source), "-o", str(tmp_path / "o.jsonl"), code=2)
    assert said == f"the input {str(source)!r} is not text: it is {kind}"
    assert service.stats.requests == 0


def test_piped_input_is_checked_too(service: LocalServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nexusflow_integrations.cli", "embed", "-o", tmp_path / "o.jsonl"],
        input=b"\x1f\x8b\x08\x00lines\n",
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.decode().strip() == (
        "nexusflow: standard input is not text: it is compressed with gzip"
    )
    assert service.stats.requests == 0


# -- money ---------------------------------------------------------------------------------------


def test_the_embedded_model_has_no_price() -> None:
    usage = Usage(tokens=1_000_000)
    free = Endpoint("http://127.0.0.1:1/v1", ApiKey("k"), None, "use")
    assert price_line(usage, free) == "The local model is free."
    assert cost_json(usage, free)["list_price"] == 0
    paid = Endpoint("https://nexusflow.vip/v1", ApiKey("k"))
    assert price_line(usage, paid) == "¥0.5 at the list price of ¥0.5 per million tokens."
    assert cost_json(usage, paid)["list_price"] == 0.5


@pytest.mark.slow
def test_the_embedded_model_is_not_asked_twice_for_a_text(
    nexusflow: Command, texts: Path, tmp_path: Path
) -> None:
    arguments = ("embed", str(texts), "-o", str(tmp_path / "out.npy"), "--local", *SMALL)
    first = nexusflow.json(*arguments)
    vectors = np.load(tmp_path / "out.npy")
    assert (first["cost"]["cached"], first["cost"]["paid"]) == (0, False)
    again = nexusflow.json(*arguments)
    assert (again["cost"]["cached"], again["cost"]["requests"]) == (100, 0)
    assert np.array_equal(np.load(tmp_path / "out.npy"), vectors)
