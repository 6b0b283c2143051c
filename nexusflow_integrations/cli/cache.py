"""The command ``nexusflow cache``: shows, shrinks or clears the embedding cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.cache.cache import Store, store_at
from nexusflow_integrations._core.cache.upkeep import CacheInfo, ModelRows, Pruned
from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.redis.address import address_or_path
from nexusflow_integrations._core.settings import resolve_api_key, resolve_base_url
from nexusflow_integrations.cli.exits import FAILED, UsageProblem
from nexusflow_integrations.cli.options import (
    CacheOption,
    JsonOption,
    YesOption,
    can_ask,
    confirm,
    print_json,
    seconds,
    size,
)
from nexusflow_integrations.cli.plain_help import Group
from nexusflow_integrations.cli.rag.endpoint import local_model_at
from nexusflow_integrations.cli.screen import INDENT, Screen, home
from nexusflow_integrations.cli.words import in_bytes
from nexusflow_integrations.errors import ConfigurationError

__all__ = ["cache"]

_EMPTY = 50_000
"""Approximate bytes of an empty cache file."""

cache = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Show, shrink or clear the embedding cache: a file, or a Redis server.",
)


@cache.command()
def info(path: CacheOption = None, as_json: JsonOption = False) -> None:
    """Show the cache's size, its vectors by model, and how many texts were found in it."""
    with _opened(path) as store:
        found = store.info()
    if as_json:
        models = [
            {**asdict(item), "embedded_model": local_model_at(item.base_url)}
            for item in found.models
        ]
        print_json(
            asdict(found)
            | {"path": str(found.path), "hit_rate": round(found.hit_rate, 4), "models": models}
        )
    else:
        _show_info(Screen(), found)


@cache.command()
def prune(
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Remove vectors unused for longer than this, such as 30d, 12h or 2w. A file keeps"
            " those that are stored beside newer ones."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="Shrink to this size, such as 500MB; the least recently used vectors go first."
        ),
    ] = None,
    yes: YesOption = False,
    path: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove vectors that were not used for a long time, or shrink to a size.

    Asks for confirmation before it removes almost everything.
    """
    if older_than is None and to is None:
        raise UsageProblem("say what to remove: --older-than 30d, --to 500MB, or both")
    age = None if older_than is None else seconds(older_than)
    most = None if to is None else size(to)
    with _opened(path) as store:
        if most is not None and not yes:
            info = store.info()
            if info.vectors and most < max(_EMPTY, info.bytes / 100):
                _confirm(f"shrinking to {in_bytes(most)} removes almost all of", store, as_json)
        _report(store, store.prune(max_age=age, max_bytes=most), as_json)


@cache.command()
def clear(
    yes: YesOption = False,
    path: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove all vectors and all counts; embedding the texts again costs as much as before."""
    with _opened(path) as store:
        if not yes and store.info().vectors:
            _confirm("this removes", store, as_json)
        _report(store, store.clear(), as_json)


@cache.command()
def verify(path: CacheOption = None, as_json: JsonOption = False) -> None:
    """Find out if the service has changed its model; the first run stores vectors to compare."""
    resolve_api_key()  # raises an error if there is no key
    place = True if path is None else address_or_path(path)
    with _opened(path) as store:
        found = [verified(item, place) for item in of_service(store.info())]
    if as_json:
        print_json({"models": [{**asdict(item.rows), "status": item.status} for item in found]})
    else:
        _show_verified(Screen(), found)
    if any(item.status == "changed" for item in found):
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class Verified:
    """The result of comparing the vectors of one model, as a word and as a sentence."""

    rows: ModelRows
    status: Literal["same", "kept", "changed"]
    message: str


def of_service(info: CacheInfo) -> list[ModelRows]:
    """Return the cached models of the current endpoint."""
    return [item for item in info.models if item.base_url == resolve_base_url()]


def verified(rows: ModelRows, place: Any) -> Verified:
    """Compare one model's vectors in the cache at ``place`` with the service's."""
    client = NexusFlow(model=rows.model, dimensions=rows.dimensions, cache=place)
    try:
        if client.verify_cache():
            return Verified(rows, "same", "the service returns the same vectors")
    except ConfigurationError as error:
        return Verified(rows, "changed", str(error))
    return Verified(rows, "kept", "stored three vectors to compare with next time")


@contextmanager
def _opened(place: str | None) -> Iterator[Store]:
    store = store_at(True if place is None else address_or_path(place))
    try:
        yield store
    finally:
        store.close()


def _confirm(what: str, store: Store, as_json: bool) -> None:
    """Ask for confirmation before removing vectors that were paid for."""
    sentence = f"{what} the {count(store.info().vectors, 'vector')} in {home(store.path)}"
    if as_json or not can_ask():
        raise UsageProblem(f"{sentence}: confirm with --yes")
    confirm(f"{sentence[0].upper()}{sentence[1:]}. Continue?")


def _report(store: Store, removed: Pruned, as_json: bool) -> None:
    left = store.info()
    if as_json:
        print_json(
            {
                "path": str(store.path),
                "removed": asdict(removed),
                "left": {"vectors": left.vectors, "bytes": left.bytes},
            }
        )
    else:
        _show_removed(Screen(), removed, left)


def _show_info(screen: Screen, info: CacheInfo) -> None:
    """Show the contents of the cache."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("Cache", home(info.path))
    if not info.bytes:
        rows.add_row("Size", "nothing cached yet")
        screen.out.print(rows)
        return
    rows.add_row("Size", f"{in_bytes(info.bytes)}, {count(info.vectors, 'vector')}")
    asked = info.hits + info.misses
    rate = f"{info.hit_rate:.1%} of {count(asked, 'text')}" if asked else "no text looked up yet"
    rows.add_row("Hit rate", rate)
    if info.created is not None and info.used is not None:
        rows.add_row("In use", f"since {_day(info.created)}, last on {_day(info.used)}")
    if info.in_flight:
        rows.add_row("In flight", count(info.in_flight, "text"))
    screen.out.print(rows)
    if not info.models:
        return
    screen.head("By model")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", header_style="dim", overflow="fold")
    table.add_column("size", justify="right", header_style="dim")
    table.add_column("vectors", justify="right", header_style="dim", no_wrap=True)
    table.add_column("endpoint", header_style="dim", overflow="fold")
    for item in info.models:
        local = local_model_at(item.base_url)
        table.add_row(
            Text(local or item.model, style="bold"),
            "default" if item.dimensions is None else str(item.dimensions),
            f"{item.vectors:,}",
            "local server" if local else item.base_url,
        )
    screen.out.print(Padding(table, INDENT))


def _show_removed(screen: Screen, removed: Pruned, left: CacheInfo) -> None:
    """Show what was removed from the cache, and what is left."""
    gone, rest = count(removed.vectors, "vector"), count(left.vectors, "vector")
    screen.out.print(
        f"Removed {gone}, {in_bytes(removed.bytes)}; {rest}, {in_bytes(left.bytes)} left."
    )


def _show_verified(screen: Screen, found: list[Verified]) -> None:
    """Show the results of the comparison."""
    if not found:
        screen.out.print("The cache holds no vectors of this endpoint.")
    for item in found:
        size = "default size" if item.rows.dimensions is None else str(item.rows.dimensions)
        style = "red" if item.status == "changed" else "green"
        screen.out.print(Text(f"{item.rows.model}, {size}: {item.message}", style=style))


def _day(moment: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
