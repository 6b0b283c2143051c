"""``nexusflow cache``: what the cache holds, and making it smaller."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from nexusflow_integrations._core.cache.cache import Store, store_at
from nexusflow_integrations._core.cache.upkeep import Pruned
from nexusflow_integrations._core.redis.address import address_or_path
from nexusflow_integrations.cli.exits import UsageProblem
from nexusflow_integrations.cli.options import CacheOption, JsonOption, print_json, seconds, size
from nexusflow_integrations.cli.screen import Screen

__all__ = ["cache"]

cache = typer.Typer(
    no_args_is_help=True,
    help="Show, shrink or empty what remembers every vector: a file, or a Redis server.",
)


@cache.command()
def info(path: CacheOption = None, as_json: JsonOption = False) -> None:
    """Show the size of the cache, its vectors by model, and how many texts it saved."""
    with _opened(path) as store:
        found = store.info()
    if as_json:
        print_json(asdict(found) | {"path": str(found.path), "hit_rate": round(found.hit_rate, 4)})
    else:
        Screen().cache(found)


@cache.command()
def prune(
    older_than: Annotated[
        str | None,
        typer.Option(help="Remove what was not used for so long: 30d, 12h, 2w; to the day."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="Come down to this size, the least recently used first: 500MB."),
    ] = None,
    path: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what was not used for long, or until the file is small enough."""
    if older_than is None and to is None:
        raise UsageProblem("say what to remove: --older-than 30d, or --to 500MB, or both")
    age = None if older_than is None else seconds(older_than)
    most = None if to is None else size(to)
    with _opened(path) as store:
        _report(store, store.prune(max_age=age, max_bytes=most), as_json)


@cache.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    path: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove all vectors and all counts; what is embedded again is paid for again."""
    with _opened(path) as store:
        if not yes:
            if as_json or not sys.stdin.isatty():
                raise UsageProblem("this removes everything that was paid for: confirm with --yes")
            typer.confirm(f"Remove all vectors from {store.path}?", abort=True, err=True)
        _report(store, store.clear(), as_json)


@contextmanager
def _opened(place: str | None) -> Iterator[Store]:
    store = store_at(True if place is None else address_or_path(place))
    try:
        yield store
    finally:
        store.close()


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
        Screen().pruned(removed, left)
