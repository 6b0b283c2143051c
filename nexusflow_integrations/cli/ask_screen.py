"""The output of `demo`, `index`, `ask` and `search`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.cli.rag.answer import Quote, split_headings, without_marks
from nexusflow_integrations.cli.rag.collection import Updated
from nexusflow_integrations.cli.rag.corpus import Corpus, Document, Skipped, kind_of
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.rag.indexes import About, Index
from nexusflow_integrations.cli.rag.pipeline import FRAMEWORKS, Chat, ChatTokens, Passage
from nexusflow_integrations.cli.rag.session import CUTS, Found, agree
from nexusflow_integrations.cli.screen import INDENT, Screen, home, money, price_line
from nexusflow_integrations.cli.words import printable, time_left

_BAR = 10
_SNIPPET = 150
_BELOW = " | "
"""What separates the headings of a passage from its text."""
_NAMED = 20
_RULE = 100
"""Maximum columns of the line beside a question, unless the question is longer."""

_NEXT_TO = 20
"""Minimum columns for the text beside a command."""


class AskScreen(Screen):
    """Prints questions, passages and answers."""

    def setting(self, endpoint: Endpoint, corpus: Corpus, index: Index) -> None:
        """Show the endpoint, the model and the corpus."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True)
        rows.add_column(overflow="fold")
        if endpoint.local_model:
            rows.add_row("Endpoint", f"{endpoint.base_url}, the local server")
            rows.add_row(
                "Model", f"{endpoint.local_model}, a small local model, not text-embedding-v4"
            )
        else:
            rows.add_row("Endpoint", endpoint.base_url)
            rows.add_row("Model", "text-embedding-v4")
        rows.add_row("Corpus", printable(corpus.title))
        rows.add_row("Index", home(index.directory))
        self.out.print(rows)
        self.others(corpus)

    def others(self, corpus: Corpus) -> None:
        """Show how many files of other types were skipped."""
        if corpus.others:
            self.err.print(Text(corpus.others, style="dim"))

    @contextmanager
    def indexing(self, total: int) -> Iterator[Indexing]:
        """Show a progress bar, or lines, while the block runs."""
        self.out.print()
        bar = Progress(
            TextColumn("Indexing", style="bold"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.err,
            disable=not self.err.is_terminal,
            transient=True,
        )
        shown = Indexing(self, bar, total)
        with bar, self.reporting(lambda: f"indexing: {bar.tasks[0].fields['note']}"):
            yield shown

    def changes(self, done: Updated, aside: str = "") -> None:
        """Show how many passages were added, changed and removed, or would be."""
        numbers = [
            f"{number:,} {what}"
            for number, what in (
                (done.added, "added"),
                (done.changed, "changed"),
                (done.unchanged, "unchanged"),
                (done.removed, "removed"),
                (len(done.left_out), "left out"),
            )
        ]
        self.head("Passages", aside)
        self.out.print(Padding(", ".join(numbers) + ".", INDENT))

    def left_out(self, left_out: Sequence[Skipped]) -> None:
        """List the files and passages that were left out, on standard error."""
        for item in left_out[:_NAMED]:
            self.err.print(Text(f"left out {printable(str(item))}", style="yellow"))
        if (more := len(left_out) - _NAMED) > 0:
            self.err.print(
                Text(f"and left out {more:,} more; --json lists them all", style="yellow")
            )

    def asked(self, index: Index, endpoint: Endpoint) -> None:
        """Show which index and which model are used, and whether a limit left out texts."""
        where = ", local" if endpoint.local_model else f" at {endpoint.base_url}"
        line = f"Index {index.name}, model {endpoint.model}{where}"
        about = index.described()
        if about is not None and not about.complete:
            line += "; made with --limit, so some texts are missing"
        self.out.print(Text(line, style="dim"))

    def local_index(self, index: Index, about: About) -> None:
        """Say that the index uses the local model, although there is a key."""
        line = (
            f"The index {index.name} was made with the local model, so the service is not used."
            f" `nexusflow index {printable(shlex.quote(about.corpus))}` makes one with the service."
        )
        self.err.print(Text(line, style="dim"))

    def question(self, text: str) -> None:
        """Show the question."""
        self.out.print()
        rule = Rule(Text(printable(text), style="bold"), style="dim", align="left")
        self.out.print(rule, width=min(self.out.width, max(_RULE, cell_len(printable(text)) + 4)))

    def passages(self, passages: Sequence[Passage], *, hybrid: bool = False) -> None:
        """Show the passages found: number, score, source and the beginning of the text."""
        by = "by rank in the searches by vectors and by keywords; 1 = first in both"
        self.head("Passages", by if hybrid else "by cosine similarity to the question")
        if not passages:
            self.out.print(Padding("nothing", INDENT))
        for number, passage in enumerate(passages, 1):
            line = Text.assemble(
                (f"[{number}]", "cyan"),
                f" {passage.score:.3f} ",
                (self._bar(passage.score), "green"),
                "  ",
                (printable(passage.source), f"bold link {passage.url}" if passage.url else "bold"),
            )
            self.out.print(Padding(line, INDENT))
            self.out.print(Padding(Text(_snippet(passage), style="dim"), (0, 0, 0, 6)))

    def _bar(self, score: float) -> str:
        full, empty = "#-" if self.out.options.ascii_only else "━╌"
        filled = round(max(0.0, min(score, 1.0)) * _BAR)
        return full * filled + empty * (_BAR - filled)

    def beside(
        self, passages: Sequence[Passage], keywords: Sequence[Passage], *, hybrid: bool = False
    ) -> None:
        """Show the hits of BM25 beside those of the vector search."""
        self.head("Compared with BM25", "keyword search; its scores are on another scale")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        ours = ("Hybrid", "rank score") if hybrid else ("Embeddings", "cosine")
        for number, name in enumerate(("", *ours, "BM25", "score")):
            left = number in (1, 3)
            table.add_column(
                name,
                justify="left" if left else "right",
                header_style="dim",
                no_wrap=not left,
                overflow="fold",
            )
        for row in range(max(len(passages), len(keywords), 1)):
            table.add_row(str(row + 1), *_cells(passages, row), *_cells(keywords, row))
        self.out.print(Padding(table, INDENT))

    def quotes(self, quotes: Sequence[Quote], passages: Sequence[Passage]) -> None:
        """Show a quoted answer, and say that it is quoted."""
        self.head("Answer", "extracted from the passages; no chat model used")
        if not quotes:
            self.out.print(Padding("No sentence in the passages could be quoted.", INDENT))
        for item in quotes:
            text = item.text
            if _is_markdown(passages[item.passage - 1]):
                text = without_marks(text)
            line = Text.assemble(f"“{printable(text)}” ", (f"[{item.passage}]", "cyan"))
            self.out.print(Padding(line, INDENT))

    def nothing_close(self, passages: Sequence[Passage]) -> None:
        """Say that no passage is near enough to answer."""
        best = f": the best score is {passages[0].score:.3f}" if passages else ""
        self.out.print()
        self.out.print(Text(f"Nothing close found{best}.", style="yellow"))

    def chat_cost(
        self,
        chat: Chat,
        tokens: ChatTokens | None,
        cost: float | None,
        usage: Usage,
        *,
        brief: bool,
    ) -> None:
        """Show the chat model's tokens and price, and the totals including ``usage``."""
        if tokens is None:
            line = f"{chat.model}: tokens and price not known"
        else:
            line = f"{chat.model}: {tokens.sent:,} tokens sent, {tokens.written:,} written: "
            line += "price not known" if cost is None else money(cost, usage.price)
            line += f"; in total {usage.tokens + tokens.sent + tokens.written:,} tokens"
            line += "" if cost is None else f", {money(usage.cost + cost, usage.price)}"
        shown = Text(line, style="dim")
        self.out.print(shown if brief else Padding(shown, INDENT))

    def written(
        self, pieces: Generator[str, None, ChatTokens | None], model: str, framework: str
    ) -> tuple[str, ChatTokens | None]:
        """Show an answer while the model writes it; return the whole answer and its tokens."""
        text, tokens = "", None

        def each() -> Iterator[str]:
            nonlocal tokens
            tokens = yield from pieces

        shown = each()
        text = next(shown, "")  # wait for the first piece: no heading if the model fails
        self.head("Answer", f"written by {model} through {FRAMEWORKS[framework]}")
        self.out.print(Text(printable(text, "\n\t")), end="", soft_wrap=True)
        for piece in shown:
            text += piece
            self.out.print(Text(printable(piece, "\n\t")), end="", soft_wrap=True)
        self.out.print()
        return text, tokens

    def comparison(self, found: Sequence[Found]) -> None:
        """Show what each framework found first, and whether they agree."""
        self.head("Through each framework")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", style="bold", no_wrap=True)
        table.add_column("nearest", header_style="dim", overflow="fold")
        table.add_column("cosine", justify="right", header_style="dim", no_wrap=True)
        for item in found:
            first = item.passages[0] if item.passages else None
            table.add_row(
                FRAMEWORKS[item.framework],
                printable(first.source) if first else "nothing",
                f"{first.score:.4f}" if first else "",
            )
        self.out.print(Padding(table, INDENT))
        if len(found) > 1:
            number = {2: "two", 3: "three"}[len(found)]
            line = (
                Text(f"The {number} agree: the same passages with the same scores.", style="green")
                if agree(found)
                else Text(
                    f"The {number} do not agree; --json shows the result of each.", style="red"
                )
            )
            self.out.print(Padding(line, INDENT))

    def scores(self, rows: Sequence[tuple[str, dict[str, tuple[float, ...]]]], note: str) -> None:
        """Show hit rates: a row for each method, a group of columns for each language."""
        groups = list(rows[0][1])
        self.head("Hit rates", "hit@1, hit@3, hit@5: a correct passage among the first 1, 3, 5")
        tables = [_rates(rows, groups)]
        unlimited = self.out.options.update_width(10_000)
        if self.out.measure(tables[0], options=unlimited).maximum > self.out.width - INDENT[3]:
            tables = [_rates(rows, [group]) for group in groups]
        self.out.print(Padding(Group(*tables, Text(note, style="dim")), INDENT))

    def cost(self, usage: Usage, endpoint: Endpoint, *, brief: bool = False) -> None:
        """Show the tokens, the requests, the price, and which model the price is for."""
        sent = f"{count(usage.tokens, 'token')} in {count(usage.requests, 'request')}"
        if brief:
            paid = f"{money(usage.cost, usage.price)} at the list price"
            if endpoint.local_model:
                paid = "local model, free"
            self.out.print()
            self.out.print(Text(f"{sent}: {paid}", style="dim"))
            return
        self.head("Cost")
        if usage.cached:
            sent += f"; {count(usage.cached, 'text')} came from the cache"
        self.out.print(Padding(f"{sent}.", INDENT))
        self.out.print(Padding(Text(price_line(usage, endpoint), style="dim"), INDENT))

    def next(self, lines: Sequence[tuple[str, str]]) -> None:
        """Show commands to try next."""
        self.head("Next")
        if max(cell_len(command) for command, _ in lines) > self.out.width - _NEXT_TO:
            for command, what in lines:
                said = Text.assemble((command, "cyan"), (f"  # {what}", "dim"))
                self.out.print(Padding(said, INDENT))
            return
        table = Table.grid(padding=(0, 3))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(style="dim")
        for command, what in lines:
            table.add_row(command, what)
        self.out.print(Padding(table, INDENT))


class Indexing:
    """The bar of `AskScreen.indexing`."""

    def __init__(self, screen: AskScreen, bar: Progress, total: int) -> None:
        self._screen, self._bar, self._total = screen, bar, total
        self._began = time.perf_counter()
        self._done = 0
        self._task: TaskID = bar.add_task("", total=total, note="waiting for the first vectors …")

    def advanced(self, done: int, usage: Usage) -> None:
        """Show ``done`` more passages, the speed, the tokens so far, and the time left."""
        self._done += done
        speed = self._done / max(time.perf_counter() - self._began, 1e-6)
        left = time_left(max(0, self._total - self._done) / speed)
        note = f"{self._done:,}/{self._total:,}  {speed:,.0f}/s  {_paid(usage)}  {left}"
        self._bar.update(self._task, advance=done, note=note)

    def ended(self, done: Updated, usage: Usage) -> None:
        """Say what was embedded."""
        fresh = done.added + done.changed
        note = "Up to date."
        if fresh:
            note = f"{count(fresh, 'passage')} written in {done.seconds:,.1f} s, {_paid(usage)}."
        self._screen.err.print(note)


def _paid(usage: Usage) -> str:
    if not usage.tokens:
        return "from the cache" if usage.cached else "nothing embedded"
    return count(usage.tokens, "token")


def _is_markdown(passage: Passage) -> bool:
    return kind_of(Document(passage.text, passage.source).origin) in ("md", "mdx")


def _snippet(passage: Passage) -> str:
    path, body = split_headings(passage.text.removeprefix(f"{passage.source}: "))
    text = " ".join(body.split())
    text = printable(f"{path}{_BELOW}{text}" if path else text)
    return text if len(text) <= _SNIPPET else f"{text[:_SNIPPET].rsplit(' ', 1)[0]} …"


def _rates(
    rows: Sequence[tuple[str, dict[str, tuple[float, ...]]]], groups: Sequence[str]
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
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
    return table


def _cells(passages: Sequence[Passage], row: int) -> tuple[RenderableType, str]:
    if row >= len(passages):
        return Text("–", style="dim"), ""
    return Text(printable(passages[row].source), style="bold"), f"{passages[row].score:.3f}"
