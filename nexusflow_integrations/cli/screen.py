"""The two consoles: results go to standard output, progress and notes to standard error."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nexusflow_integrations._core.usage import Price, Usage
from nexusflow_integrations.cli.rag.endpoint import Endpoint, has_key

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.estimate import Estimate

_SYMBOLS = {"CNY": "¥", "USD": "$", "EUR": "€"}
INDENT = (0, 0, 0, 2)
_UNLIMITED = 10_000
_SILENCE = 10.0
_PADDING = re.compile(" +\n")


class _Changing:
    """Text that is asked for each time it is drawn."""

    def __init__(self, line: Callable[[], str]) -> None:
        self._line = line

    def __rich__(self) -> Text:
        return Text(self._line(), style="dim")


class Screen:
    """Both consoles, and the kinds of output that all commands share.

    Args:
        quiet: Show progress but no results, because the caller prints JSON.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.out = _console(sys.stdout, quiet=quiet)
        self.err = _console(sys.stderr, stderr=True)

    @contextmanager
    def waiting(self, what: str | Callable[[], str]) -> Iterator[None]:
        """Show a spinner and ``what`` while the block runs; a function may return changing text."""
        line = what if callable(what) else partial(str, what)
        if not self.err.is_terminal:
            with self.reporting(line):
                yield
            return
        spinner = "line" if self.err.options.ascii_only else "dots"
        with self.err.status(_Changing(line), spinner=spinner):
            yield

    @contextmanager
    def reporting(self, line: Callable[[], str]) -> Iterator[None]:
        """Without a terminal, print a line every ten seconds while the block runs.

        A line that has not changed is not printed again.
        """
        if self.err.is_terminal:
            yield
            return
        ended = Event()

        def report() -> None:
            said = ""
            with suppress(OSError):  # nobody reads what is printed
                while not ended.wait(_SILENCE):
                    if (now := line()) != said:
                        self.err.print(Text(now))
                        said = now

        thread = Thread(target=report, name="nexusflow-report", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def head(self, title: str, aside: str = "") -> None:
        """Print a heading, with a note beside it."""
        self.out.print()
        self.out.print(Text.assemble((title, "bold"), f"  {aside}" if aside else "", style=""))

    def estimate(self, found: Estimate, unfit: int = 0, *, local: bool = False) -> None:
        """Show what embedding would send and cost; the local model costs nothing."""
        self.head("Estimate")
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
        error = f" ±{found.token_error:.0%}" if found.token_error else ""
        rows.add_row("Tokens", f"{found.tokens:,}{error}")
        rows.add_row("Requests", f"{found.requests:,}")
        paid = f"{money(found.cost, found.price)} at the list price"
        if local:
            paid = "none; the local model is free"
        elif not has_key():
            paid += " of the service; without a key the local model is used, which is free"
        rows.add_row("Price", paid)
        self.out.print(Padding(rows, INDENT))
        self.out.print(Padding(Text("Nothing was sent.", style="dim"), INDENT))


class _Unpadded:
    """A stream that drops the spaces with which Rich fills up lines."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(_PADDING.sub("\n", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _console(stream: IO[str] | None, **options: Any) -> Console:
    """Return a console; a pipe or file gets whole lines, unless ``COLUMNS`` sets their length."""
    console = Console(highlight=False, emoji=False, markup=False, **options)
    if stream is not None and not console.is_terminal and not os.environ.get("COLUMNS"):
        console.file = cast("IO[str]", _Unpadded(stream))
        console.width = _UNLIMITED
    return console


def price_line(usage: Usage, endpoint: Endpoint) -> str:
    """Return the cost of ``usage`` as text."""
    if endpoint.local_model is not None:
        return "The local model is free."
    price = usage.price
    return (
        f"{money(usage.cost, price)} at the list price of"
        f" {money(price.of(1_000_000), price)} per million tokens."
    )


def money(amount: float, price: Price) -> str:
    """Return an amount with its currency and three significant digits."""
    symbol = _SYMBOLS.get(price.currency, f"{price.currency} ")
    if amount == 0 or amount >= 100:
        return f"{symbol}{amount:,.0f}"
    return f"{symbol}{float(f'{amount:.3g}'):,.7f}".rstrip("0").rstrip(".")


def home(path: Path | str) -> str:
    """Return ``path`` with the home folder as ``~``."""
    try:
        return str(Path("~") / Path(path).relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)
