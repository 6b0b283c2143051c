"""Options that several commands share, and the parsing of amounts on the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexusflow_integrations._core.settings import DIMENSIONS
from nexusflow_integrations._core.usage import Budget, Price, Usage
from nexusflow_integrations.cli.exits import UsageProblem
from nexusflow_integrations.cli.rag.endpoint import Endpoint, has_key
from nexusflow_integrations.cli.rag.pipeline import ChatPrice

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.estimate import Estimate

DimensionsOption = Annotated[
    int | None,
    typer.Option(help="Size of the vectors: " + ", ".join(map(str, DIMENSIONS)) + "."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
LocalOption = Annotated[
    bool, typer.Option("--local", help="Use the local model even if a key is set.")
]
BudgetOption = Annotated[
    str | None,
    typer.Option(help="Maximum to spend, like [bold]'200k tokens'[/bold] or [bold]¥2.50[/bold]."),
]
ChatPriceOption = Annotated[
    str | None,
    typer.Option(
        metavar="SENT/WRITTEN",
        help="Price of the chat model per million prompt and answer tokens, like"
        " [bold]0.8/4.8[/bold].",
    ),
]
EstimateOption = Annotated[
    bool, typer.Option("--estimate", help="Show what the run would cost, and send nothing.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        envvar="NEXUSFLOW_STORE",
        show_default=False,
        file_okay=False,
        help="Folder of the indexes. [dim]Default: in the user's cache folder.[/dim]",
    ),
]


def _no_folder(place: str | None) -> str | None:
    if place is not None and Path(place).is_dir():
        raise typer.BadParameter(f"{place!r} is a folder; name a file in it")
    return place


CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="FILE|URL",
        callback=_no_folder,
        show_default=False,
        help="The cache: a file, or redis://HOST:PORT/0 with its password in"
        " NEXUSFLOW_REDIS_PASSWORD. [dim]Default: a file in the user's cache folder.[/dim]",
    ),
]

_AMOUNT = re.compile(
    # A comma separates thousands; in 2,50 it is the decimal comma of another language.
    r"\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?|\.[0-9]+)\s*(.*?)\s*"
)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_MULTIPLES = {"": 1, "K": 10**3, "M": 10**6}
_SIGNS = {"¥": "CNY", "￥": "CNY", "$": "USD", "€": "EUR"}


def print_json(result: dict[str, Any]) -> None:
    """Print one JSON object on standard output, with escapes if that is not Unicode."""
    plain = not (getattr(sys.stdout, "encoding", None) or "utf").lower().startswith("utf")
    typer.echo(json.dumps(result, ensure_ascii=plain, indent=2))


def cost_json(usage: Usage, endpoint: Endpoint) -> dict[str, Any]:
    """Return the cost of a run for JSON; the local model is free."""
    paid = endpoint.local_model is None
    return {
        "tokens": usage.tokens,
        "requests": usage.requests,
        "cached": usage.cached,
        "list_price": usage.cost if paid else 0.0,
        "currency": usage.currency,
        "paid": paid,
    }


def estimate_json(found: Estimate, *, local: bool) -> dict[str, Any]:
    """Return the estimated requests and cost of a run.

    Without a key, the price is the service's price, and ``paid`` is false because the local model
    would run.
    """
    return {
        "texts": found.texts,
        "repeated": found.repeated,
        "cached": found.cached,
        "requests": found.requests,
        "tokens": found.tokens,
        "token_error": found.token_error,
        "list_price": 0.0 if local else found.cost,
        "currency": found.price.currency,
        "paid": has_key() and not local,
    }


def seconds(text: str) -> float:
    """Return an age such as ``30d``, ``12h`` or ``2w`` in seconds.

    Raises:
        UsageProblem: ``text`` is not valid.
    """
    number, unit = _split(text) or (0.0, "")
    if unit.lower() not in _SECONDS:
        raise UsageProblem(f"{text!r} is not an age: write it like 30d, 12h or 2w")
    return number * _SECONDS[unit.lower()]


def size(text: str) -> int:
    """Return a size such as ``500MB`` or ``2G`` in bytes; a thousand bytes are a kilobyte.

    Raises:
        UsageProblem: ``text`` is not valid.
    """
    number, unit = _split(text) or (0.0, "?")
    unit = unit.upper()
    unit = unit if unit in _BYTES else unit.removesuffix("B")
    if unit not in _BYTES:
        raise UsageProblem(f"{text!r} is not a size: write it with its unit, like 500MB or 2GB")
    return int(number * _BYTES[unit])


def budget(text: str, price: Price) -> Budget:
    """Return a budget such as ``200k tokens``, ``¥2.50``, ``2.50 CNY`` or ``0``.

    Raises:
        UsageProblem: ``text`` is not valid, or has another currency than ``price``.
    """
    text = text.strip()
    sign = _SIGNS.get(text[:1])
    number, unit = _split(text[1:] if sign else text) or (0.0, "?")
    if text == "0":  # zero needs no unit
        return Budget(tokens=0)
    tokens = re.fullmatch(r"([km]?)\s*tokens?", unit.lower())
    if tokens and not sign:
        return Budget(tokens=int(number * _MULTIPLES[tokens[1].upper()]))
    currency = sign if sign and not unit else unit.upper()
    if currency == price.currency and sign in (None, price.currency):
        return Budget(money=number)
    if re.fullmatch("[A-Z]{3}", currency):
        raise UsageProblem(
            f"the price list is in {price.currency}: write the budget in {price.currency}, such as"
            f" '2.50 {price.currency}', or in tokens"
        )
    raise UsageProblem(
        f"{text!r} is not a budget: write it like '200k tokens' or '2.50 {price.currency}'"
    )


def chat_price(text: str) -> ChatPrice:
    """Return the prices per million prompt and answer tokens, from text such as ``0.8/4.8``.

    Raises:
        UsageProblem: ``text`` is not valid.
    """
    found = re.fullmatch(r"[^\d./]?(\d*\.?\d+)/[^\d./]?(\d*\.?\d+)", text.replace(" ", ""))
    if found is None:
        raise UsageProblem(
            f"{text!r} is not a price: write the prices of a million tokens sent and written, like"
            " 0.8/4.8"
        )
    return ChatPrice(float(found[1]), float(found[2]))


def _split(text: str) -> tuple[float, str] | None:
    found = _AMOUNT.fullmatch(text)
    return None if found is None else (float(re.sub("[_,]", "", found[1])), found[2])


def can_ask() -> bool:
    """Return whether a person can answer on standard input, which may also be closed."""
    return sys.stdin is not None and sys.stdin.isatty()


def confirm(question: str, *, default: bool = False) -> None:
    """Ask on standard error; Ctrl-C stops the command as it does everywhere.

    Raises:
        typer.Abort: The answer is no.
        KeyboardInterrupt: The input ended without an answer.
    """
    try:
        agreed = typer.confirm(question, default=default, err=True)
    except typer.Abort:
        raise KeyboardInterrupt from None
    if not agreed:
        raise typer.Abort
