"""Exchanges the names of two collections, and completes an exchange that was interrupted.

Chroma renames one collection per call, and names are unique. So the first collection gets a
temporary name, the second gets the name of the first, and the first gets the name of the second.
The temporary name contains both names, so any process that finds it can complete the exchange.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chromadb.errors import NotFoundError

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.one_writer import aonly_writer, only_writer
from nexusflow_integrations.chroma_collections.calls import (
    AsyncCalls,
    Calls,
    check_client,
    check_timeout,
)
from nexusflow_integrations.chroma_collections.plans import (
    Plan,
    Step,
    acarry_out,
    carry_out,
    look_up,
)
from nexusflow_integrations.errors import CollectionError, ConfigurationError

if TYPE_CHECKING:
    from chromadb.api import AsyncClientAPI, ClientAPI

BETWEEN = ".exchanged-with."
LONGEST_NAME = 512
"""Chroma's maximum length of a name, in characters."""
_PAGE = 250


def exchange_names(
    client: ClientAPI,
    first: str,
    second: str,
    *,
    store_timeout: float = 60.0,
    writer_wait: float = 0.0,
) -> None:
    """Exchange the names of two collections; a second call undoes the exchange.

    The exchange takes three calls to Chroma. Between the first two, for some milliseconds, no
    collection has the name ``first``. If the process ends there, the next call of
    ``open_collection``, ``copy_collection`` or this function completes the exchange. A call that
    completes an interrupted exchange does not start another one.

    Collection objects that were opened earlier keep using the same collection, which now has the
    other name.

    Args:
        client: Any of Chroma's synchronous clients.
        first: Name of the collection in use; no collection has this name for a moment.
        second: Name of the other collection.
        store_timeout: Seconds that one call to Chroma may take, including retries.
        writer_wait: Seconds to wait for another process that writes to the same folder.

    Raises:
        chromadb.errors.NotFoundError: One of the collections does not exist.
        ConfigurationError: The names are the same, or together too long.
        CollectionError: A collection could not be renamed, or another process writes to the folder.
    """
    check_client(client, asynchronous=False)
    check_names(first=first, second=second)
    calls = Calls(None, check_timeout(store_timeout))
    with only_writer(client, writer_wait):
        carry_out(_exchange(client, first, second), calls)


async def aexchange_names(
    client: AsyncClientAPI,
    first: str,
    second: str,
    *,
    store_timeout: float = 60.0,
    writer_wait: float = 0.0,
) -> None:
    """Exchange names like ``exchange_names``, with an ``AsyncHttpClient``."""
    check_client(client, asynchronous=True)
    check_names(first=first, second=second)
    calls = AsyncCalls(None, check_timeout(store_timeout))
    async with aonly_writer(client, writer_wait):
        await acarry_out(_exchange(client, first, second), calls)


def check_names(**names: str) -> None:
    """Refuse two names that cannot be exchanged; the keywords are the names of the arguments.

    Raises:
        ConfigurationError: A name is not text, or they are the same, or together too long.
    """
    first, second = (
        checks.text(name, given, "the name of a collection") for name, given in names.items()
    )
    if first == second:
        raise ConfigurationError(f"two different collections are needed, not {first!r} twice")
    if len(first) + len(BETWEEN) + len(second) > LONGEST_NAME:
        raise ConfigurationError(
            f"two names that are exchanged may have {LONGEST_NAME - len(BETWEEN)} characters"
            " together"
        )


def _exchange(client: Any, first: str, second: str) -> Plan[None]:
    if (yield from complete(client, first, second)):
        return
    one = yield from find(client, first)
    two = yield from find(client, second)
    yield from exchange(one, two)


def find(client: Any, name: str) -> Plan[Any]:
    """Return the collection called ``name``.

    Raises:
        chromadb.errors.NotFoundError: The collection does not exist.
    """
    found = yield from look_up(client, name)
    if found is None:
        raise NotFoundError(f"there is no collection {name!r}")
    return found


def exchange(one: Any, two: Any) -> Plan[None]:
    """Exchange the names of two collections."""
    first, second = one.name, two.name
    yield _rename(one, second + BETWEEN + first)
    try:
        yield _rename(two, first)
    except Exception as error:
        try:
            yield _rename(one, first)  # restore the former name
        except Exception:  # noqa: BLE001 - raise the first error, which says more
            raise CollectionError(
                f"no collection has the name {first!r}, because exchanging it with {second!r} was"
                " interrupted: call exchange_names, copy_collection or open_collection to complete"
                f" it ({error})"
            ) from error
        raise
    yield _rename(one, second)


def is_interrupted(client: Any, name: str) -> Plan[bool]:
    """Return whether an exchange with ``name`` is under way or was interrupted."""
    names = yield from _names(client)
    return any(
        between.endswith(BETWEEN + name) or between.startswith(name + BETWEEN) for between in names
    )


def _names(client: Any) -> Plan[dict[str, Any]]:
    offset = 0
    names: dict[str, Any] = {}
    while found := (
        yield Step("reading", client.list_collections, {"limit": _PAGE, "offset": offset})
    ):
        names |= {collection.name: collection for collection in found}
        offset += len(found)
    return names


def complete(client: Any, first: str, second: str | None = None) -> Plan[bool]:
    """Complete an interrupted exchange with ``first``; return whether there was one.

    Args:
        client: A sync or async client.
        first: A name that is missing.
        second: The other name, if known.
    """
    names = yield from _names(client)
    for between, old in names.items():
        if BETWEEN not in between:
            continue
        if second is not None and between not in (
            first + BETWEEN + second,
            second + BETWEEN + first,
        ):
            continue
        if between.endswith(BETWEEN + first):
            asked, other = first, between.removesuffix(BETWEEN + first)
        elif between.startswith(first + BETWEEN):
            asked, other = between.removeprefix(first + BETWEEN), first
        else:
            continue
        if asked in names and other in names:
            raise CollectionError(
                f"an exchange of the names {asked!r} and {other!r} was interrupted, and then"
                f" another collection was created under one of them: the former {asked!r} is now"
                f" {between!r}; rename it, or the new one, with collection.modify(name=...)"
            )
        if asked not in names and other in names:
            yield _rename(names[other], asked)
        # If the other collection is gone, only the old one can take the name.
        yield _rename(old, other if asked in names or other in names else asked)
        return True
    return False


def _rename(collection: Any, name: str) -> Step:
    return Step(f"renaming {collection.name!r} to {name!r}", collection.modify, {"name": name})
