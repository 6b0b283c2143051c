"""Reads a collection in pages, which are smaller if the store refuses large ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nexusflow_integrations.chroma_collections.calls import RefusedError
from nexusflow_integrations.chroma_collections.plans import Plan, Step

if TYPE_CHECKING:
    from chromadb.api.types import Where

PAGE = 1_000
"""Documents per read; smaller pages take longer, because Chroma skips all earlier documents."""
SMALL_PAGE = 250
"""Documents per read if a service refuses more: Chroma Cloud returns at most 300 at once."""


class Pages:
    """The pages of a collection.

    Args:
        collection: A sync or async collection.
        include: The columns to read.
        size: Maximum number of documents of a page.
        where: Chroma's filter; ``None`` is the whole collection.
    """

    def __init__(
        self, collection: Any, include: list[str], *, size: int = PAGE, where: Where | None = None
    ) -> None:
        self._get = collection.get
        self._fields: dict[str, Any] = {"include": include}
        if where is not None:
            self._fields["where"] = where
        self._size = size
        self._read = 0
        self._last: str | None = None

    def next(self) -> Plan[Any]:
        """Return the next page, as ``collection.get`` does; without ids after the last one."""
        while True:
            fields = {**self._fields, "limit": self._size, "offset": self._read}
            try:
                found = yield Step("reading", self._get, fields)
            except RefusedError:
                if self._size <= SMALL_PAGE:
                    raise
                self._size = SMALL_PAGE
            else:
                self._read += len(found["ids"])
                return found

    def next_ids(self) -> Plan[list[str] | None]:
        """Return the ids of the next page; none after the last one, ``None`` if pages shifted.

        Pages shift if another program removes documents that were already read: ids would be
        skipped. So each page begins with the last id of the page before.
        """
        if self._last is not None:
            self._read -= 1
        ids: list[str] = (yield from self.next())["ids"]
        if self._last is not None:
            if ids[:1] != [self._last]:
                return None
            ids = ids[1:]
        if ids:
            self._last = ids[-1]
        return ids


def by_ids(
    collection: Any, ids: list[str], include: list[str], where: Where | None = None
) -> Plan[dict[str, list[Any]]]:
    """Return the columns of the documents with these ids, in smaller reads if necessary."""
    fields: dict[str, Any] = {"include": include}
    if where is not None:
        fields["where"] = where
    size = len(ids)
    columns: dict[str, list[Any]] = {name: [] for name in ("ids", *include)}
    start = 0
    while start < len(ids):
        part = ids[start : start + size]
        try:
            found = yield Step("reading", collection.get, {**fields, "ids": part})
        except RefusedError:
            if size <= SMALL_PAGE:
                raise
            size = SMALL_PAGE
            continue
        for name, column in columns.items():
            values = found[name]
            column.extend([None] * len(found["ids"]) if values is None else values)
        start += len(part)
    return columns
