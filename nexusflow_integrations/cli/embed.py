"""The command ``nexusflow embed``: reads lines of text and writes their vectors."""

from __future__ import annotations

import errno
import re
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.texts import check_text
from nexusflow_integrations._core.usage import Price, Usage
from nexusflow_integrations._core.whole_file import is_stream, whole
from nexusflow_integrations.cli import rows
from nexusflow_integrations.cli.exits import PARTLY, UsageProblem
from nexusflow_integrations.cli.first_bytes import not_text
from nexusflow_integrations.cli.options import (
    BudgetOption,
    CacheOption,
    DimensionsOption,
    EstimateOption,
    JsonOption,
    LocalOption,
    cost_json,
    estimate_json,
    print_json,
)
from nexusflow_integrations.cli.options import budget as read_budget
from nexusflow_integrations.cli.outputs import check_output
from nexusflow_integrations.cli.rag.endpoint import Endpoint, has_key, open_endpoint
from nexusflow_integrations.cli.screen import Screen, money, price_line
from nexusflow_integrations.cli.words import time_left
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import InvalidInputError, NexusFlowError

__all__ = ["embed"]

_REDRAW = 0.1
_SLOW = 10
_NAMED = 20
"""Refused lines that a run prints; the output, or --json, has them all."""
_TEXT_NUMBER = re.compile(r"^text \d+ ")


class InputFormat(str, Enum):
    """The values of ``--input``."""

    text = "text"
    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"


class OutputFormat(str, Enum):
    """The values of ``--format``."""

    jsonl = "jsonl"
    npy = "npy"
    parquet = "parquet"


class TooLong(Enum):
    """The values of ``--on-too-long``."""

    collect = "collect"
    split = "split"
    truncate = "truncate"
    send = "send"


_INPUTS = {
    ".jsonl": InputFormat.jsonl,
    ".ndjson": InputFormat.jsonl,
    ".json": InputFormat.json,
    ".csv": InputFormat.csv,
    ".tsv": InputFormat.tsv,
}
_OUTPUTS = {
    "": OutputFormat.jsonl,
    ".jsonl": OutputFormat.jsonl,
    ".ndjson": OutputFormat.jsonl,
    ".npy": OutputFormat.npy,
    ".parquet": OutputFormat.parquet,
    ".pq": OutputFormat.parquet,
}


def embed(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Plain text or JSONL with one text per line, or JSON, CSV or TSV; - is standard"
            " input.",
        ),
    ] = "-",
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="File to write; - is standard output, as JSONL."),
    ] = "-",
    input_format: Annotated[
        InputFormat | None,
        typer.Option(
            "--input", help="Format of FILE. [dim]Default: by its suffix, else text.[/dim]"
        ),
    ] = None,
    output_format: Annotated[
        OutputFormat | None,
        typer.Option(
            "--format", help="Format of the output. [dim]Default: by its suffix, else jsonl.[/dim]"
        ),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            "--field",
            show_default=False,
            help="Field or column that holds the text. [dim]Default: text.[/dim]",
        ),
    ] = None,
    dimensions: DimensionsOption = None,
    on_too_long: Annotated[
        TooLong,
        typer.Option(
            "--on-too-long",
            metavar="ACTION",
            help="What to do with texts over the model's limit: collect (report them), split,"
            " truncate or send.",
        ),
    ] = TooLong.collect,
    budget: BudgetOption = None,
    estimate: EstimateOption = False,
    local: LocalOption = False,
    cache: CacheOption = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Use no cache, and pay for every text.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Embed lines of text, JSONL, JSON or CSV to JSONL, NPY or Parquet; run again to resume.

    The output has one row per text, in order, and appears only when it is complete. A text that
    is refused has an empty row and is reported by its line number, and the exit code is 5.
    """
    job = _Job(source, output, input_format, output_format, text_field)
    limit = None if budget is None else read_budget(budget, Price())
    screen = Screen(quiet=as_json)
    if cache is not None and no_cache:
        raise UsageProblem("use either --cache or --no-cache, not both")
    if cache is not None and job.output is not None:
        check_output(job.output, Path(cache))
    if estimate:
        store = None if no_cache or local or not has_key() else cache or True
        # The estimate sends nothing, so no key is needed.
        client = NexusFlow(dimensions=dimensions, cache=store, on_too_long=on_too_long.value)
        _estimate(job, screen, client, local, as_json)
        return
    if as_json and output == "-":
        raise UsageProblem(
            "--json and the vectors cannot both go to standard output: write the"
            " vectors to a file with -o FILE"
        )
    with open_endpoint(local=local or None, dimensions=dimensions) as endpoint:
        remembered = None if no_cache else cache or True
        client = endpoint.client(
            dimensions=endpoint.dimensions,
            cache=remembered,
            budget=limit,
            on_too_long=on_too_long.value,
        )
        paid = endpoint.local_model is None
        with job.lines() as lines, _embedding(screen, job.total(), client, paid=paid) as bar:
            try:
                refused = _run(lines, job, client, bar, keep=as_json)
            except (NexusFlowError, KeyboardInterrupt):
                bar.broken()
                raise
            except rows.InputProblemError as error:
                if not client.usage.requests:
                    raise
                bar.broken()  # a pipe can be read only once
                raise InvalidInputError(str(error)) from None
            except OSError as error:
                if error.errno != errno.EPIPE:
                    bar.broken()
                raise
        _show_embedded(screen, bar, output, client.usage, endpoint)
    if as_json:
        print_json(_summary(bar, output, client, endpoint) | {"refused": refused})
    if bar.refused:
        raise typer.Exit(PARTLY)


class _Job:
    """The input and the output of one run, checked before anything is sent."""

    def __init__(
        self,
        source: str,
        output: str,
        input_format: InputFormat | None,
        output_format: OutputFormat | None,
        text_field: str | None,
    ) -> None:
        self.source = None if source == "-" else Path(source)
        self.output = None if output == "-" else Path(output)
        self._field = text_field or "text"
        suffix = self.source.suffix.lower() if self.source else ""
        self._input = input_format or _INPUTS.get(suffix, InputFormat.text)
        suffix = self.output.suffix.lower() if self.output else ""
        known = output_format or _OUTPUTS.get(suffix)
        self._format = known or OutputFormat.jsonl
        if text_field is not None and self._input is InputFormat.text:
            raise UsageProblem("--field is for JSONL, JSON and CSV: name the format with --input")
        if self.source is None and (sys.stdin is None or sys.stdin.isatty()):
            raise UsageProblem("name a FILE with texts, or pipe the texts in")
        if self.source is not None:
            rows.check_input(self.source, "input")
        elif kind := not_text(_piped()):
            raise UsageProblem(f"standard input is not text: it is {kind}")
        if self.output is None and sys.stdout is None:
            raise UsageProblem("standard output is closed: name -o FILE")
        if self.output is None and self._format is not OutputFormat.jsonl:
            raise UsageProblem(f"standard output is JSONL: name -o FILE.{self._format.value}")
        if self.output is not None:
            check_output(self.output, self.source)
            if self._format is OutputFormat.npy and is_stream(self.output):
                raise UsageProblem("NPY needs a file: its header is written last")
            if known is None:
                raise UsageProblem(
                    f"{str(self.output)!r} cannot be written as {suffix}: give it a name that"
                    " ends in .jsonl, .npy or .parquet, or set --format"
                )
        if self._format is OutputFormat.parquet:
            rows.need_parquet()

    def lines(self) -> closing[Generator[rows.Line, None, None]]:
        """Return the lines that are not empty."""
        return closing(self._lines())

    def _lines(self) -> Generator[rows.Line, None, None]:
        with ExitStack() as stack:
            file: Any = (
                typer.get_binary_stream("stdin")
                if self.source is None
                else stack.enter_context(self.source.open("rb"))
            )
            if self._input is InputFormat.text:
                yield from rows.lines_of_text(file)
            elif self._input is InputFormat.jsonl:
                lines = rows.lines_of_json(file, self._field)
                yield from rows.some_with_text(lines, self._field)
            elif self._input is InputFormat.json:
                lines = rows.items_of_json(file.read(), self._field)
                yield from rows.some_with_text(lines, self._field)
            else:
                yield from rows.rows_of_table(
                    file, self._field, "," if self._input is InputFormat.csv else "\t"
                )

    def total(self) -> int | None:
        """Return the number of texts; ``None`` for a pipe, which can be read only once."""
        if self.source is None or not self.source.is_file():
            return None
        if self._input not in (InputFormat.text, InputFormat.jsonl):
            with self.lines() as lines:
                return sum(1 for _ in lines)
        with self.source.open("rb") as file:
            return sum(1 for line in file if line.strip())

    def writer(self, file: BinaryIO, dimensions: int | None) -> rows.Writer:
        """Return the writer of the output."""
        if self._format is OutputFormat.npy:
            return rows.Npy(file, dimensions)
        return rows.Parquet(file) if self._format is OutputFormat.parquet else rows.JsonLines(file)


def _piped() -> bytes:
    """Return the first bytes of standard input that are available, without consuming them."""
    stdin: Any = typer.get_binary_stream("stdin")
    return bytes(stdin.peek()) if hasattr(stdin, "peek") else b""


def _run(
    lines: Iterator[rows.Line], job: _Job, client: NexusFlow, bar: Embedding, *, keep: bool
) -> list[dict[str, Any]]:
    refused: list[dict[str, Any]] = []
    flying: deque[rows.Line] = deque()

    def texts() -> Iterator[Any]:
        for line in lines:
            flying.append(line)
            yield line.text

    with ExitStack() as stack:
        file: Any = (
            typer.get_binary_stream("stdout")
            if job.output is None
            else stack.enter_context(whole(job.output))
        )
        writer = job.writer(file, client.dimensions)
        for item in stack.enter_context(closing(client.embed_stream(texts()))):
            line = flying.popleft()
            reason = None if item.error is None else _reason(line, item.error)
            writer.write(line, item.vector, reason)
            bar.advanced(line.number, reason)
            if reason is not None and keep:
                refused.append({"line": line.number, "reason": reason})
        writer.finish()
    return refused


def _reason(line: rows.Line, error: NexusFlowError) -> str:
    # Adapt the error's message, which names text numbers and a Python setting: users of the
    # command see line numbers and options.
    said = _TEXT_NUMBER.sub("", " ".join(str(error).split()))
    return _fault(line) or said.replace("set on_too_long=", "set --on-too-long to ")


def _fault(line: rows.Line) -> str | None:
    """Return why a line cannot be sent, or ``None``."""
    if line.problem is not None:
        return line.problem
    try:
        check_text(line.text)
    except InvalidInputError as error:
        return str(error).removeprefix("the text ")
    return None


def _estimate(job: _Job, screen: Screen, client: NexusFlow, local: bool, as_json: bool) -> None:
    count = 0

    def texts() -> Iterator[str]:
        nonlocal count
        with job.lines() as lines:
            for count, line in enumerate(lines, 1):  # noqa: B007 - read after the loop
                if _fault(line) is None:
                    yield line.text

    found = client.estimate(texts())
    unfit = count - found.texts
    screen.estimate(found, unfit, local=local)
    if as_json:
        print_json(estimate_json(found, local=local) | {"unfit": unfit})
    if unfit:
        raise typer.Exit(PARTLY)


def _summary(bar: Embedding, output: str, client: NexusFlow, endpoint: Endpoint) -> dict[str, Any]:
    return {
        "output": output,
        "texts": bar.done,
        "seconds": round(bar.seconds, 3),
        "cost": cost_json(client.usage, endpoint),
    }


# -- output --------------------------------------------------------------------------------------


class Embedding:
    """The progress bar and the counts of one run."""

    def __init__(
        self,
        console: Console,
        bar: Progress,
        total: int | None,
        client: NexusFlow,
        *,
        paid: bool = True,
    ) -> None:
        self._console, self._bar, self._client, self._paid = console, bar, client, paid
        self._task = bar.add_task("", total=total, note="waiting for the first vectors …")
        self._began = time.perf_counter()
        self._shown = 0.0
        self._total = total
        self.done = 0
        self.refused = 0

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began

    def advanced(self, line: int, reason: str | None) -> None:
        """Count one more text; of the first that are refused, print line number and reason."""
        self.done += 1
        if reason is not None:
            self.refused += 1
            if self.refused <= _NAMED:
                self._console.print(Text(f"line {line}: {reason}", style="yellow"))
        # Drawing every update would take longer than embedding.
        if self.seconds - self._shown > _REDRAW or self.done == self._total:
            self._shown = self.seconds
            self._bar.update(self._task, completed=self.done, note=self._note())

    def broken(self) -> None:
        """Show how many texts were embedded before a failure."""
        done = count(self.done, "text")
        if self._total is not None:
            done = f"{self.done:,} of {count(self._total, 'text')}"
        rest = ""
        if self._client.usage.tokens and self._client._keeps_all():
            what = "what was paid for" if self._paid else "what was embedded"
            rest = f"; {what} is in the cache: run the command again to embed the rest"
        self._console.print(f"stopped after {done}{rest}")

    def _note(self) -> str:
        usage, task = self._client.usage, self._bar.tasks[0]
        speed = task.speed or self.done / max(self.seconds, 1e-6)
        parts = [
            f"{_short(self.done)}/{_short(self._total)}" if self._total else _short(self.done),
            _rate(speed),
            f"{_short(usage.tokens)} tokens",
        ]
        if self._paid:
            parts.append(money(usage.cost, usage.price))
        if usage.cached:
            parts.append(f"{_short(usage.cached)} cached")
        if self._total and speed:
            parts.append(time_left((self._total - self.done) / speed))
        return "  ".join(parts)


@contextmanager
def _embedding(
    screen: Screen, total: int | None, client: NexusFlow, *, paid: bool
) -> Iterator[Embedding]:
    """Show a progress bar, or lines, while the block embeds texts.

    Args:
        screen: Where to show it.
        total: Number of texts; ``None`` if it is unknown.
        client: Counts the usage.
        paid: Whether the texts cost money.
    """
    bar = Progress(
        BarColumn(bar_width=10),
        TextColumn("{task.fields[note]}"),
        console=screen.err,
        disable=not screen.err.is_terminal,
        transient=True,
    )
    shown = Embedding(screen.err, bar, total, client, paid=paid)
    with bar, screen.reporting(lambda: f"embedding: {bar.tasks[0].fields['note']}"):
        yield shown


def _show_embedded(
    screen: Screen, bar: Embedding, output: str, usage: Usage, endpoint: Endpoint
) -> None:
    """Show on standard error what was written and what it cost: standard output may be a pipe."""
    if not bar.done:
        so = "" if output == "-" else f", so {output} has no rows"
        screen.err.print(f"No texts: nothing to embed{so}.")
        return
    speed = bar.done / max(bar.seconds, 1e-6)
    where = "" if output == "-" else f" to {output}"
    cached = f", {usage.cached:,} from the cache" if usage.cached else ""
    texts = count(bar.done, "text")
    if bar.refused:
        texts = f"{bar.done - bar.refused:,} of {texts}"
    screen.err.print(
        f"{texts}{where}: {_rate(speed)},"
        f" {count(usage.tokens, 'token')} in {count(usage.requests, 'request')}{cached}."
    )
    screen.err.print(Text(price_line(usage, endpoint), style="dim"))
    if bar.refused:
        above = "see above"
        if bar.refused > _NAMED:
            above = f"the first {_NAMED} are named above; --json lists them all"
        screen.err.print(f"{count(bar.refused, 'text')} failed ({above}).")


def _rate(speed: float) -> str:
    return f"{speed:,.1f} texts/s" if speed < _SLOW else f"{speed:,.0f} texts/s"


def _short(number: int) -> str:
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e3:.0f}k" if number < 1e6 else f"{number / 1e6:,.1f}M"
