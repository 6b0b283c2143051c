"""What a person sees. Results go to standard output, progress and asides to standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from nexusflow_integrations._core.cache.upkeep import CacheInfo, Pruned
from nexusflow_integrations._core.usage import Price, Usage
from nexusflow_integrations.cli.rag.answer import Quote
from nexusflow_integrations.cli.rag.corpus import Corpus
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.rag.indexes import Index
from nexusflow_integrations.cli.rag.pipeline import FRAMEWORKS, Passage
from nexusflow_integrations.cli.rag.session import CUTS, Filled, Found, agree

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.estimate import Estimate
    from nexusflow_integrations.cli.doctor import Findings
    from nexusflow_integrations.client import NexusFlow
    from nexusflow_integrations.report import Report

_SYMBOLS = {"CNY": "¥", "USD": "$", "EUR": "€"}
_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("·", "dim")}
_INDENT = (0, 0, 0, 2)
_BAR = 10
_SNIPPET = 150
_REDRAW = 0.1


class Screen:
    """Two consoles, and how each part of a result looks on them.

    Args:
        quiet: Show no results, only progress: the caller prints JSON.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.out = Console(quiet=quiet, highlight=False, emoji=False, markup=False)
        self.err = Console(stderr=True, highlight=False, emoji=False, markup=False)

    # -- before the answer ---------------------------------------------------------------------

    def setting(self, endpoint: Endpoint, corpus: Corpus, index: Index) -> None:
        """Say where is embedded, by what, and what is searched."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True)
        rows.add_column(overflow="fold")
        if endpoint.local_model:
            rows.add_row("Endpoint", f"{endpoint.base_url}, the embedded server")
            rows.add_row(
                "Model", f"{endpoint.local_model}, a small stand-in: not text-embedding-v4"
            )
        else:
            rows.add_row("Endpoint", endpoint.base_url)
            rows.add_row("Model", "text-embedding-v4")
        rows.add_row("Corpus", corpus.title)
        rows.add_row("Index", _home(index.directory))
        self.out.print(rows)
        for reason in corpus.skipped[:5]:
            self.err.print(Text(f"skipped {reason}", style="yellow"))
        if len(corpus.skipped) > 5:
            self.err.print(Text(f"and skipped {len(corpus.skipped) - 5} more", style="yellow"))

    @contextmanager
    def indexing(self, frameworks: Sequence[str], total: int) -> Iterator[Indexing]:
        """Show a bar for each framework while the block runs."""
        self.out.print()
        bars = Progress(
            TextColumn("{task.description:<11}", style="bold"),
            BarColumn(bar_width=22),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.err,
            disable=not self.err.is_terminal,
        )
        with bars:
            yield Indexing(self, bars, frameworks, total)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something takes a moment."""
        if not self.err.is_terminal:
            yield
            return
        with self.err.status(Text(what, style="dim")):
            yield

    # -- the answer ----------------------------------------------------------------------------

    def question(self, text: str) -> None:
        """Show what is asked."""
        self.out.print()
        self.out.print(Rule(Text(text, style="bold"), style="dim", align="left"))

    def passages(self, passages: Sequence[Passage]) -> None:
        """Show what was found: number, score, source and the beginning of the text."""
        self._head("Passages", "by cosine with the question")
        if not passages:
            self.out.print(Padding("nothing", _INDENT))
        for number, passage in enumerate(passages, 1):
            line = Text.assemble(
                (f"[{number}]", "cyan"),
                f" {passage.score:.3f} ",
                (_bar(passage.score), "green"),
                "  ",
                (passage.source, f"bold link {passage.url}" if passage.url else "bold"),
            )
            self.out.print(Padding(line, _INDENT))
            self.out.print(Padding(Text(_snippet(passage), style="dim"), (0, 0, 0, 6)))

    def beside(self, passages: Sequence[Passage], keywords: Sequence[Passage]) -> None:
        """Show BM25's hits beside ours."""
        self._head("Beside BM25", "which knows words, not meaning; its scores have no unit")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("", "Embeddings", "cosine", "BM25", "score"):
            number = name in ("", "cosine", "score")
            table.add_column(name, justify="right" if number else "left", header_style="dim")
        for row in range(max(len(passages), len(keywords), 1)):
            table.add_row(str(row + 1), *_cells(passages, row), *_cells(keywords, row))
        self.out.print(Padding(table, _INDENT))

    def quotes(self, quotes: Sequence[Quote]) -> None:
        """Show an answer that is quoted, and say that it is."""
        self._head("Answer", "quoted from the passages, not written: no chat model was asked")
        if not quotes:
            self.out.print(Padding("The passages hold no sentence to quote.", _INDENT))
        for item in quotes:
            line = Text.assemble(f"“{item.text}” ", (f"[{item.passage}]", "cyan"))
            self.out.print(Padding(line, _INDENT))

    def written(self, pieces: Iterator[str], model: str, framework: str) -> str:
        """Show an answer as it is written; returns all of it."""
        text = next(pieces, "")  # before the heading, which a failure should not leave alone
        self._head("Answer", f"written by {model} through {FRAMEWORKS[framework]}")
        self.out.print(Text(text), end="", soft_wrap=True)
        for piece in pieces:
            text += piece
            self.out.print(Text(piece), end="", soft_wrap=True)
        self.out.print()
        return text

    # -- after the answer ----------------------------------------------------------------------

    def comparison(self, found: Sequence[Found], filled: dict[str, Filled]) -> None:
        """Show what each framework found first, how fast, and whether they agree."""
        self._head("Through each framework")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", style="bold")
        table.add_column("nearest", header_style="dim", overflow="fold")
        for name in ("cosine", "indexed in", "tokens"):
            table.add_column(name, justify="right", header_style="dim", no_wrap=True)
        for item in found:
            work = filled.get(item.framework)
            first = item.passages[0] if item.passages else None
            table.add_row(
                FRAMEWORKS[item.framework],
                first.source if first else "nothing",
                f"{first.score:.4f}" if first else "",
                f"{work.seconds:.1f} s" if work and work.added else "before",
                f"{work.usage.tokens:,}" if work else "0",
            )
        self.out.print(Padding(table, _INDENT))
        if len(found) > 1:
            number = {2: "two", 3: "three"}[len(found)]
            line = (
                Text(f"The {number} agree: the same passages with the same scores.", style="green")
                if agree(found)
                else Text(f"The {number} do not agree; --json shows each one's.", style="red")
            )
            self.out.print(Padding(line, _INDENT))

    def scores(self, rows: Sequence[tuple[str, dict[str, tuple[float, ...]]]], note: str) -> None:
        """Show hit rates: a row for each method, a group of columns for each language."""
        groups = list(rows[0][1])
        self._head("Hit rates", "a right answer among the first 1, 3, 5")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("")
        for place, group in enumerate(groups):
            for cut in CUTS:
                name = f"{group}\n@{cut}" if cut == CUTS[0] else f"\n@{cut}"
                table.add_column(name, justify="right", header_style="dim", no_wrap=True)
            if place < len(groups) - 1:
                table.add_column("")
        for name, rates in rows:
            cells: list[str] = []
            for group in groups:
                cells += [*([""] if cells else []), *(f"{rate:.2f}" for rate in rates[group])]
            table.add_row(Text(name, style="" if name.startswith("BM25") else "bold"), *cells)
        self.out.print(Padding(Group(table, Text(note, style="dim")), _INDENT))

    def cost(self, usage: Usage, endpoint: Endpoint, *, brief: bool = False) -> None:
        """Show tokens, requests and price, and say whose price it is."""
        sent = f"{_count(usage.tokens, 'token')} in {_count(usage.requests, 'request')}"
        if brief:
            price = money(usage.cost, usage.price)
            paid = f"{price} at the list price"
            if endpoint.local_model:
                paid = f"free, for {endpoint.local_model} answered; the service lists {price}"
            self.out.print()
            self.out.print(Text(f"{sent}: {paid}", style="dim"))
            return
        self._head("Cost")
        if usage.cached:
            sent += f"; {_count(usage.cached, 'text')} came from the cache"
        self.out.print(Padding(f"{sent}.", _INDENT))
        self.out.print(Padding(Text(price_line(usage, endpoint), style="dim"), _INDENT))

    def next(self, lines: Sequence[tuple[str, str]]) -> None:
        """Show what one may type next."""
        self._head("Next")
        table = Table.grid(padding=(0, 3))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(style="dim")
        for command, what in lines:
            table.add_row(command, what)
        self.out.print(Padding(table, _INDENT))

    def findings(self, findings: Findings) -> None:
        """Show what the doctor found."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True)
        rows.add_column(style="bold", no_wrap=True)
        rows.add_column(overflow="fold")
        for check in findings:
            mark, style = _MARKS[check.ok]
            rows.add_row(Text(mark, style=style), check.name, check.text)
        self.out.print(rows)
        verdict = ("All is well.", "green") if findings.healthy else ("Not all is well.", "red")
        self.out.print(Text(verdict[0], style=verdict[1]))

    # -- embedding -----------------------------------------------------------------------------

    @contextmanager
    def embedding(self, total: int | None, client: NexusFlow) -> Iterator[Embedding]:
        """Show a bar while the block embeds ``total`` texts; ``None``: nobody knows how many."""
        bar = Progress(
            BarColumn(bar_width=10),
            TextColumn("{task.fields[note]}"),
            console=self.err,
            disable=not self.err.is_terminal,
            transient=True,
        )
        with bar:
            yield Embedding(self.err, bar, total, client)

    def embedded(self, bar: Embedding, output: str, usage: Usage, endpoint: Endpoint) -> None:
        """Show what was written and what it cost, on standard error: output may be a pipe."""
        speed = bar.done / max(bar.seconds, 1e-6)
        where = "" if output == "-" else f" to {output}"
        cached = f", {usage.cached:,} from the cache" if usage.cached else ""
        self.err.print(
            f"{_count(bar.done, 'text')}{where}: {speed:,.0f} texts/s,"
            f" {_count(usage.tokens, 'token')} in {_count(usage.requests, 'request')}{cached}."
        )
        self.err.print(Text(price_line(usage, endpoint), style="dim"))
        if bar.refused:
            self.err.print(f"{_count(bar.refused, 'text')} refused, as named above: no vector.")

    def estimate(self, found: Estimate, unfit: int) -> None:
        """Show what embedding would send and cost."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True)
        rows.add_column(overflow="fold")
        rows.add_row("Texts", f"{found.texts:,}")
        for name, number in (
            ("Repeated", found.repeated),
            ("In the cache", found.cached),
            ("Unfit", unfit),
        ):
            if number:
                rows.add_row(name, f"{number:,}")
        error = f", give or take {found.token_error:.0%}" if found.token_error else ""
        rows.add_row("Tokens", f"{found.tokens:,}{error}")
        rows.add_row("Requests", f"{found.requests:,}")
        rows.add_row("Price", f"{money(found.cost, found.price)} at the list price")
        self.out.print(rows)
        self.out.print(Text("Nothing was sent.", style="dim"))

    def reported(self, report: Report) -> None:
        """Show what the report holds."""
        of = f" of {report.total:,}" if report.total > report.points else ""
        self.out.print(f"{report.points:,}{of} texts, map by {report.projection}: {report.path}")
        judged = len(report.ranks)
        if judged:
            ranks = [rank for rank in report.ranks if rank is not None]
            hits = [f"{sum(rank <= most for rank in ranks) / judged:.2f}" for most in CUTS]
            self.out.print(
                f"Of {_count(judged, 'question')} a right answer among the first"
                f" {', '.join(map(str, CUTS))}: {', '.join(hits)}"
            )

    # -- the cache -----------------------------------------------------------------------------

    def cache(self, info: CacheInfo) -> None:
        """Show what the cache holds."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True)
        rows.add_column(overflow="fold")
        rows.add_row("Cache", _home(info.path))
        if not info.bytes:
            rows.add_row("Size", "nothing was cached yet")
            self.out.print(rows)
            return
        rows.add_row("Size", f"{_bytes(info.bytes)}, {_count(info.vectors, 'vector')}")
        asked = info.hits + info.misses
        rate = f"{info.hit_rate:.1%} of {_count(asked, 'text')}" if asked else "not asked yet"
        rows.add_row("Hit rate", rate)
        if info.created is not None and info.used is not None:
            rows.add_row("In use", f"since {_day(info.created)}, last on {_day(info.used)}")
        if info.in_flight:
            rows.add_row("In flight", _count(info.in_flight, "text"))
        self.out.print(rows)
        if not info.models:
            return
        self._head("By model")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("model", header_style="dim", overflow="fold")
        table.add_column("size", justify="right", header_style="dim")
        table.add_column("vectors", justify="right", header_style="dim", no_wrap=True)
        table.add_column("endpoint", header_style="dim", overflow="fold")
        for item in info.models:
            table.add_row(
                Text(item.model, style="bold"),
                "server's own" if item.dimensions is None else str(item.dimensions),
                f"{item.vectors:,}",
                item.base_url,
            )
        self.out.print(Padding(table, _INDENT))

    def pruned(self, removed: Pruned, left: CacheInfo) -> None:
        """Show what was removed from the cache, and what is left."""
        gone, rest = _count(removed.vectors, "vector"), _count(left.vectors, "vector")
        self.out.print(
            f"Removed {gone}, {_bytes(removed.bytes)}; {rest}, {_bytes(left.bytes)} left."
        )

    def _head(self, title: str, aside: str = "") -> None:
        self.out.print()
        self.out.print(Text.assemble((title, "bold"), f"  {aside}" if aside else "", style=""))


class Indexing:
    """The bars of `Screen.indexing`."""

    def __init__(
        self, screen: Screen, bars: Progress, frameworks: Sequence[str], total: int
    ) -> None:
        self._screen, self._bars, self._total = screen, bars, total
        self._began = 0.0
        self._done = 0
        self._tasks: dict[str, TaskID] = {
            name: bars.add_task(FRAMEWORKS[name], total=total, note="") for name in frameworks
        }

    def importing(self, framework: str) -> None:
        """Show that the framework is being imported."""
        self._bars.update(self._tasks[framework], note="importing …")

    def began(self, framework: str) -> None:
        """Show that the first texts are on their way."""
        self._began, self._done = time.perf_counter(), 0
        self._bars.update(self._tasks[framework], note="waiting for the first vectors …")

    def advanced(self, framework: str, fresh: int, usage: Usage) -> None:
        """Show ``fresh`` more documents, the speed and the tokens so far."""
        self._done += fresh
        speed = self._done / max(time.perf_counter() - self._began, 1e-6)
        note = f"{self._done}/{self._total}  {speed:,.0f} texts/s  {_paid(usage)}"
        self._bars.update(self._tasks[framework], advance=fresh, note=note)

    def ended(self, framework: str, filled: Filled) -> None:
        """Show that the collection is complete."""
        if filled.added:
            speed = filled.added / max(filled.seconds, 1e-6)
            note = f"{filled.added} texts  {speed:,.0f} texts/s  {_paid(filled.usage)}"
        else:
            note = "indexed before"
        self._bars.update(self._tasks[framework], completed=self._total, note=note)
        if not self._screen.err.is_terminal:
            self._screen.err.print(f"{FRAMEWORKS[framework]}: {note}")


class Embedding:
    """The bar of `Screen.embedding`, and the counts."""

    def __init__(
        self, console: Console, bar: Progress, total: int | None, client: NexusFlow
    ) -> None:
        self._console, self._bar, self._client = console, bar, client
        self._task = bar.add_task("", total=total, note="waiting for the first vectors …")
        self._began = time.perf_counter()
        self._shown = 0.0
        self._total = total
        self.done = 0
        self.refused = 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._began

    def advanced(self, line: int, reason: str | None) -> None:
        """Count one more text; if it was refused, say which line and why."""
        self.done += 1
        if reason is not None:
            self.refused += 1
            self._console.print(Text(f"line {line}: {reason}", style="yellow"))
        # Drawing each one would take longer than embedding it.
        if self.seconds - self._shown > _REDRAW or self.done == self._total:
            self._shown = self.seconds
            self._bar.update(self._task, completed=self.done, note=self._note())

    def broken(self, remembered: bool) -> None:
        """Say how far it came."""
        of = "" if self._total is None else f" of {self._total:,}"
        rest = "; what was paid for is in the cache: run again for the rest" if remembered else ""
        self._console.print(f"stopped after {self.done:,}{of} texts{rest}")

    def _note(self) -> str:
        usage, task = self._client.usage, self._bar.tasks[0]
        speed = task.speed or self.done / max(self.seconds, 1e-6)
        parts = [
            f"{_short(self.done)}/{_short(self._total)}" if self._total else _short(self.done),
            f"{speed:,.0f} texts/s",
            f"{_short(usage.tokens)} tokens",
            money(usage.cost, usage.price),
        ]
        if usage.cached:
            parts.append(f"{_short(usage.cached)} cached")
        if self._total and speed:
            left = round((self._total - self.done) / speed)
            clock = f"{left // 60}:{left % 60:02}"
            parts.append(
                f"{left // 3600}:{left // 60 % 60:02} h left" if left >= 3600 else f"{clock} left"
            )
        return "  ".join(parts)


def price_line(usage: Usage, endpoint: Endpoint) -> str:
    """Say what ``usage`` costs: at the service, or what it would cost there."""
    price = money(usage.cost, usage.price)
    listed = (
        f"the list price of {money(usage.price.per_million_tokens, usage.price)} per million tokens"
    )
    if endpoint.local_model is None:
        return f"{price} at {listed}."
    return (
        f"The embedded model is free. At {listed} the service would charge {price},"
        " by this model's count of tokens."
    )


def money(amount: float, price: Price) -> str:
    """Return an amount with its currency and three significant digits."""
    symbol = _SYMBOLS.get(price.currency, f"{price.currency} ")
    if amount == 0 or amount >= 100:
        return f"{symbol}{amount:,.0f}"
    return f"{symbol}{float(f'{amount:.3g}'):,.7f}".rstrip("0").rstrip(".")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _short(number: int) -> str:
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e3:.0f}k" if number < 1e6 else f"{number / 1e6:,.1f}M"


def _bytes(number: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}"
    return _count(number, "byte")


def _day(moment: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def _paid(usage: Usage) -> str:
    if not usage.tokens:
        return "from the cache"
    return f"{usage.tokens:,} tokens"


def _bar(score: float) -> str:
    filled = round(max(0.0, min(score, 1.0)) * _BAR)
    return "━" * filled + "╌" * (_BAR - filled)


def _snippet(passage: Passage) -> str:
    text = " ".join(passage.text.removeprefix(f"{passage.source}: ").split())
    return text if len(text) <= _SNIPPET else f"{text[:_SNIPPET].rsplit(' ', 1)[0]} …"


def _cells(passages: Sequence[Passage], row: int) -> tuple[RenderableType, str]:
    if row >= len(passages):
        return Text("–", style="dim"), ""
    return Text(passages[row].source, style="bold"), f"{passages[row].score:.3f}"


def _home(path: Path | str) -> str:
    """Return ``path`` with the home folder as ``~``."""
    try:
        return str(Path("~") / Path(path).relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)
