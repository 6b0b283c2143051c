"""The two consoles: results on standard output, progress and notes on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from nexusflow_integrations._core.usage import Price, Usage
from nexusflow_integrations.cli.rag.endpoint import Endpoint

_SYMBOLS = {"CNY": "¥", "USD": "$", "EUR": "€"}
INDENT = (0, 0, 0, 2)


class Screen:
    """Both consoles, and what all commands print alike.

    Args:
        quiet: Show no results, only progress: the caller prints JSON.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.out = Console(quiet=quiet, highlight=False, emoji=False, markup=False)
        self.err = Console(stderr=True, highlight=False, emoji=False, markup=False)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something takes a moment."""
        if not self.err.is_terminal:
            yield
            return
        with self.err.status(Text(what, style="dim")):
            yield

    def head(self, title: str, aside: str = "") -> None:
        """Print a heading, with a note beside it."""
        self.out.print()
        self.out.print(Text.assemble((title, "bold"), f"  {aside}" if aside else "", style=""))


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


def count(number: int, what: str) -> str:
    """Return ``1 text``, ``2 texts``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def home(path: Path | str) -> str:
    """Return ``path`` with the home folder as ``~``."""
    try:
        return str(Path("~") / Path(path).relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)
