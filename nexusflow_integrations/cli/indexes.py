"""The command ``nexusflow indexes``: lists, shows and removes what `index` and `demo` made."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nexusflow_integrations._core.counts import count
from nexusflow_integrations.cli.exits import UsageProblem
from nexusflow_integrations.cli.options import (
    JsonOption,
    StoreOption,
    YesOption,
    can_ask,
    confirm,
    print_json,
)
from nexusflow_integrations.cli.plain_help import Group
from nexusflow_integrations.cli.rag.indexes import Index, Indexes
from nexusflow_integrations.cli.screen import INDENT, Screen, home
from nexusflow_integrations.cli.words import in_bytes, printable

__all__ = ["indexes"]


_OTHER_COLUMNS = 40


class _ListsByDefault(Group):
    """Runs ``nexusflow indexes list`` if no subcommand is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


indexes = typer.Typer(
    cls=_ListsByDefault, help="List, show or remove the indexes of `index` and `demo`."
)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of an index, or its beginning.")
]


@indexes.command("list")
def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List all indexes, most recently used first."""
    found = Indexes(store)
    rows = [_described(index) for index in found.all()]
    if as_json:
        print_json({"folder": str(found.folder), "indexes": rows})
    else:
        _show_list(Screen(), found.folder, rows)


@indexes.command()
def show(name: NameArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show the contents of one index."""
    row = _described(Indexes(store).find(name))
    if as_json:
        print_json(row)
    else:
        _show_one(Screen(), row)


@indexes.command()
def remove(
    name: NameArgument,
    yes: YesOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove an index; your texts stay where they are."""
    index = Indexes(store).find(name, unusable=True)  # the user may mean an unfinished one
    row = _described(index)
    if not yes:
        if as_json or not can_ask():
            raise UsageProblem(f"this removes the index {index.name!r}: confirm with --yes")
        confirm(f"Remove the index {index.name} ({_amount(row)})?")
    index.remove()
    if as_json:
        print_json({"removed": row})
    else:
        Screen().out.print(Text(f"Removed {index.name}, {_amount(row)}."))


def _described(index: Index) -> dict[str, Any]:
    about, size = index.described(), index.size
    row: dict[str, Any] = {"name": index.name, "directory": str(index.directory), "bytes": size}
    if about is None:
        return {**row, "usable": False, "state": index.state}
    return {
        **row,
        "usable": True,
        "corpus": about.corpus,
        "passages": about.documents,
        "complete": about.complete,
        "model": about.model,
        "embedded": about.local_model is not None,
        "base_url": about.base_url,
        "dimensions": about.dimensions,
        "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(index.used)),
    }


def _amount(row: dict[str, Any]) -> str:
    size = in_bytes(row["bytes"])
    return f"{count(row['passages'], 'passage')}, {size}" if row["usable"] else size


def _show_list(screen: Screen, folder: Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        screen.out.print(f"There is no index in {home(folder)} yet.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    longest = max(len(row["name"]) for row in rows)
    # A name should be on one line, so that it can be copied.
    whole = longest + _OTHER_COLUMNS <= screen.out.width
    table.add_column("index", style="bold", header_style="dim", no_wrap=whole, overflow="fold")
    table.add_column("passages", justify="right", header_style="dim", no_wrap=True)
    table.add_column("size", justify="right", header_style="dim", no_wrap=True)
    table.add_column("texts", header_style="dim", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['passages']:,}" if row["usable"] else "–",
            in_bytes(row["bytes"]),
            _texts(row["corpus"])
            if row["usable"]
            else Text(row["state"], style="red" if row["state"] == "damaged" else "dim"),
        )
    screen.out.print(f"Indexes in {home(folder)}, most recently used first:")
    screen.out.print(Padding(table, INDENT))


def _texts(corpus: str) -> str:
    """Return what an index was made from, and whether the folder or file was moved or removed."""
    gone = os.path.isabs(corpus) and not os.path.exists(corpus)
    return printable(home(corpus)) + (" (no longer there)" if gone else "")


def _show_one(screen: Screen, row: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("Index", row["name"])
    table.add_row("Folder", home(row["directory"]))
    table.add_row("Size", _amount(row))
    if row["usable"]:
        some = "" if row["complete"] else ", of which --limit left out some"
        table.add_row("Texts", f"{_texts(row['corpus'])}{some}")
        size = f", {row['dimensions']} numbers" if row["dimensions"] else ""
        table.add_row("Model", f"{row['model']}{size}")
        table.add_row("Endpoint", row["base_url"] or "local server")
        table.add_row("Last used", row["used"])
    else:
        what = "index its texts again, or remove it"
        if row["state"] == "building":
            what = "another process is building it"
        table.add_row("State", f"{row['state']}: {what}")
    screen.out.print(table)
