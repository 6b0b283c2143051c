"""``copy_collection`` copies a collection to another model or size while it stays in use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.comparing import deviation
from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.halving import Halving
from nexusflow_integrations._core.left_out import LeftOut
from nexusflow_integrations._core.one_writer import aonly_writer, only_writer
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections.calls import (
    AsyncCalls,
    Calls,
    check_client,
    check_timeout,
)
from nexusflow_integrations.chroma_collections.embedding import Embedder
from nexusflow_integrations.chroma_collections.exchanging import (
    check_names,
    complete,
    exchange,
    find,
)
from nexusflow_integrations.chroma_collections.filling import AsyncFilling, Filling, note_gone
from nexusflow_integrations.chroma_collections.opening import check_arguments, fitting, same_space
from nexusflow_integrations.chroma_collections.pages import Pages, by_ids
from nexusflow_integrations.chroma_collections.plans import (
    Blocking,
    Plan,
    Step,
    acarry_out,
    carry_out,
    look_up,
    refusal_of,
)
from nexusflow_integrations.chroma_collections.records import Record
from nexusflow_integrations.chroma_collections.run import (
    NUMBER_BYTES,
    SLICE,
    SLICE_BYTES,
    Ready,
    Run,
    same_metadata,
)
from nexusflow_integrations.errors import CollectionError, ConfigurationError

if TYPE_CHECKING:
    from chromadb.api import AsyncClientAPI, ClientAPI
    from chromadb.api.collection_configuration import CreateCollectionConfiguration

Exchange = bool | Literal["anyway"]

COPYING = "nexusflow:copying"
"""The key in the metadata of a copy that is not complete: the id of its source."""
PASSES = 5
"""Maximum number of times that the source is read until the copy matches it."""
_ROUNDING = 1e-5
"""Allowed difference between a vector and its copy, because JSON changes the last bits."""
_WHOLE: Any = ["documents", "metadatas", "uris", "embeddings"]
_TEXTS: Any = ["documents", "metadatas", "uris"]


@dataclass(frozen=True)
class Copied:
    """The outcome of ``copy_collection``, in numbers of documents.

    Attributes:
        copied: Documents that were written with the vectors of the source.
        embedded: Documents that were written with new vectors.
        present: Documents that were already in the target and were not changed.
        removed: Documents that were removed from the target, because the source does not have them.
        left_out: Documents of the source that could not be embedded or stored, each with its
            reason.
        exchanged: Whether the names were exchanged, so that the new collection is now called
            ``source``.
        usage: The tokens, requests and cost; for a dry run, an estimate.
    """

    copied: int = 0
    embedded: int = 0
    present: int = 0
    removed: int = 0
    left_out: tuple[LeftOut, ...] = ()
    exchanged: bool = False
    usage: Usage = Usage()  # noqa: RUF009 - the default is frozen


def copy_collection(
    client: ClientAPI,
    source: str,
    target: str,
    embedding_function: NexusFlowEmbeddingFunction | None = None,
    *,
    exchange: Exchange = True,
    replace: bool = False,
    embed_again: bool = False,
    configuration: CreateCollectionConfiguration | None = None,
    dry_run: bool = False,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
    store_timeout: float = 60.0,
    writer_wait: float = 0.0,
    verify: bool = True,
) -> Copied:
    """Copy a collection while it stays in use, then exchange the names of original and copy.

    If the source has vectors of the same model, size, service, document instruction, ``extra_body``
    and ``default_query``, the vectors are copied and nothing is paid for. Otherwise the stored
    documents of the source are embedded again. During the copy, the source can be searched as
    before and is not changed. After an error, another call pays only for the rest. The source
    is read repeatedly until nothing is left to do and the numbers of documents agree. Then
    ``exchange_names`` gives the copy the name ``source`` and the former collection the name
    ``target``; exchanging the names again undoes this. If documents were embedded again and the
    names exchanged, another call does nothing, or, if one of the collections has changed since,
    raises an error.

    Collection objects opened earlier, also in other processes, keep using the former collection:
    open them again. Documents that other clients of a server write between the last reading and
    the exchange are only in the former collection.

    Args:
        client: Any of Chroma's synchronous clients.
        source: Name of the collection to copy.
        target: Name of the copy. If the collection exists, it must match ``embedding_function``.
            Until a new copy is complete, its metadata has the key ``nexusflow:copying``.
        embedding_function: The function that the copy stores and uses. Default: the function of
            the source.
        exchange: Whether to exchange the names. If documents were left out, the names are exchanged
            only with ``"anyway"``.
        replace: Whether to remove from an existing target the documents that the source does not
            have, and overwrite documents that differ. By default, a target with such documents is
            refused.
        embed_again: Whether to embed the documents again although the vectors could be copied, for
            example because the service has changed its model. Clear the cache first. Each complete
            call embeds all documents.
        configuration: Chroma's configuration for a new copy. Default: the configuration of the
            source.
        dry_run: Whether to only report what would be done and what that would cost; nothing is sent
            or written.
        progress: Called with the number of documents done since the last call. The first error
            that it raises is logged and does not end the call; ``KeyboardInterrupt`` and
            ``SystemExit`` end it.
        slice_size: Maximum documents per write; fewer if vectors are large.
        store_timeout: Seconds that one call to Chroma may take, including retries; at most the
            embedding function's ``deadline``.
        writer_wait: Seconds to wait for another process that writes to the same folder.
        verify: As for ``sync_documents``, if the target already has documents.

    Raises:
        chromadb.errors.NotFoundError: The collection ``source`` does not exist.
        ConfigurationError: ``target`` has another model, size or service, or documents that the
            source does not have or that differ from the source's, or the source's embedding
            function is not NexusFlow's and none is given.
        CollectionError: A collection cannot be read or written, another process writes to the
            folder, or the source changes too fast.
        NexusFlowError: Embedding failed.
    """
    check_client(client, asynchronous=False)
    checks.flags(dry_run=dry_run, verify=verify)
    work = _Work(
        client,
        source,
        target,
        embedding_function,
        exchange,
        replace,
        embed_again,
        configuration,
        progress,
        slice_size,
    )
    timeout = check_timeout(store_timeout, work.deadline)
    calls = Calls(None, timeout)
    if dry_run:
        carry_out(work.open(create=False), calls)
        if work.is_done or work.same:
            return carry_out(work.preview(), calls)
        with closing(work.run()) as run:
            filling = Filling(run, Calls(work.target or _NOTHING, timeout))
            usage = filling.estimate(_records(calls, work.source, run.size, ()), work.embedder())
            if work.target is not None:
                carry_out(work.prune(run, dry=True), calls)
        work.end_pass(run)
        return work.copied(usage)
    with only_writer(client, writer_wait):
        carry_out(work.open(create=True), calls)
        if work.is_done:
            return carry_out(work.preview(), calls)
        embedder = None if work.same else work.embedder()
        while not work.is_complete:
            with closing(work.run()) as run:
                if embedder is None:
                    carry_out(work.transfer(run), calls)
                else:
                    records = _records(calls, work.source, run.size, work.left_out)
                    filling = Filling(run, Calls(work.target, timeout), verify=verify)
                    filling.fill(records, embedder)
                carry_out(work.prune(run), calls)
            carry_out(work.check(run), calls)
        if work.may_exchange:
            carry_out(work.exchange(), calls)
    return work.copied(None if embedder is None else embedder.usage)


async def acopy_collection(
    client: AsyncClientAPI,
    source: str,
    target: str,
    embedding_function: NexusFlowEmbeddingFunction | None = None,
    *,
    exchange: Exchange = True,
    replace: bool = False,
    embed_again: bool = False,
    configuration: CreateCollectionConfiguration | None = None,
    dry_run: bool = False,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
    store_timeout: float = 60.0,
    writer_wait: float = 0.0,
    verify: bool = True,
) -> Copied:
    """Copy like ``copy_collection``, with an ``AsyncHttpClient``."""
    check_client(client, asynchronous=True)
    checks.flags(dry_run=dry_run, verify=verify)
    work = _Work(
        client,
        source,
        target,
        embedding_function,
        exchange,
        replace,
        embed_again,
        configuration,
        progress,
        slice_size,
    )
    timeout = check_timeout(store_timeout, work.deadline)
    calls = AsyncCalls(None, timeout)
    if dry_run:
        await acarry_out(work.open(create=False), calls)
        if work.is_done or work.same:
            return await acarry_out(work.preview(), calls)
        async with aclosing(work.run()) as run:
            filling = AsyncFilling(run, AsyncCalls(work.target or _ASYNC_NOTHING, timeout))
            records = _arecords(calls, work.source, run.size, ())
            usage = await filling.estimate(records, work.embedder())
            if work.target is not None:
                await acarry_out(work.prune(run, dry=True), calls)
        work.end_pass(run)
        return work.copied(usage)
    async with aonly_writer(client, writer_wait):
        await acarry_out(work.open(create=True), calls)
        if work.is_done:
            return await acarry_out(work.preview(), calls)
        embedder = None if work.same else work.embedder()
        while not work.is_complete:
            async with aclosing(work.run()) as run:
                if embedder is None:
                    await acarry_out(work.transfer(run), calls)
                else:
                    records = _arecords(calls, work.source, run.size, work.left_out)
                    filling = AsyncFilling(run, AsyncCalls(work.target, timeout), verify=verify)
                    await filling.fill(records, embedder)
                await acarry_out(work.prune(run), calls)
            await acarry_out(work.check(run), calls)
        if work.may_exchange:
            await acarry_out(work.exchange(), calls)
    return work.copied(None if embedder is None else embedder.usage)


@dataclass
class _Work:
    """The state of a copy; the sync and the async function share it."""

    client: Any
    source_name: str
    target_name: str
    given: NexusFlowEmbeddingFunction | None
    wanted: Exchange
    replace: bool
    embed_again: bool
    configuration: CreateCollectionConfiguration | None
    progress: Callable[[int], object] | None
    size: int
    source: Any = None
    target: Any = None
    same: bool = False
    is_done: bool = False
    is_complete: bool = False
    exchanged: bool = False
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    _function: Any = None
    _marked: bool = False
    _passes: int = 0
    _written: int = 0
    _present: int = 0
    _removed: int = 0

    def __post_init__(self) -> None:
        check_names(source=self.source_name, target=self.target_name)
        check_arguments(self.given, self.configuration)
        checks.flag_or("exchange", self.wanted, "anyway")
        checks.flags(replace=self.replace, embed_again=self.embed_again)
        Run(self.size, self.progress, add_only=False)  # raises an error if either is invalid

    @property
    def deadline(self) -> float | None:
        """Seconds for a whole call, if the given function has a deadline."""
        return None if self.given is None else self.given._options.get("deadline")

    def open(self, *, create: bool) -> Plan[None]:
        """Find both collections, and create the target if it does not exist."""
        completed = yield from complete(self.client, self.source_name, self.target_name)
        self.source = yield from find(self.client, self.source_name)
        self.target = yield from look_up(self.client, self.target_name)
        self._function = self.given or fitting(self.source, None)
        self.same = not self.embed_again and same_space(self.source, self._function)
        self.size = min(self.size, (yield Step("reading", self.client.get_max_batch_size, {})))
        mark = str(self.source.id)
        if self.target is not None:
            if self.wanted and self.same and not same_space(self.target, self._function):
                if not completed:
                    yield from self._check_exchanged()
                self.is_done = True
                return
            fitting(self.target, self._function)
            self._marked = (self.target.metadata or {}).get(COPYING) == mark
            if not self.replace and not self._marked:
                yield from self._refuse_others()
                if create and (yield Step("reading", self.target.count, {})) == 0:
                    yield _marking(self.target, mark)
                    self._marked = True
        elif not create:
            return
        fields: dict[str, Any] = {"name": self.target_name}
        method = self.client.get_collection
        if self.target is None:
            method = self.client.get_or_create_collection  # on a retry, the collection may exist
            fields |= {
                "metadata": {**(self.source.metadata or {}), COPYING: mark},
                "configuration": {**(self.configuration or _configuration_of(self.source))},
            }
            self._marked = True
        fields["embedding_function"] = self._function
        self.target = yield Step("opening the copy", method, fields)
        fitting(self.target, self._function)

    def _check_exchanged(self) -> Plan[None]:
        """Refuse a target that is not the former source, now with the other name.

        Raises:
            ConfigurationError: The target has other documents; nothing was changed.
        """
        read = other = 0
        pages = Pages(self.source, ["documents"])
        while ids := (page := (yield from pages.next()))["ids"]:
            found = yield from by_ids(self.target, ids, ["documents"])
            texts = dict(zip(found["ids"], found["documents"], strict=True))
            stored = zip(ids, page["documents"], strict=True)
            other += sum(name not in texts or texts[name] != text for name, text in stored)
            read += len(ids)
        count = yield Step("reading", self.target.count, {})
        # Documents that were left out are only in the former source.
        if other or count < read or (count > read and (self.wanted != "anyway" or not read)):
            raise ConfigurationError(
                f"collection {self.target_name!r} is not the collection from which"
                f" {self.source_name!r} was copied, or one of the two has changed since: name"
                " another target"
            )

    def _refuse_others(self) -> Plan[None]:
        """Refuse a target with documents that the source does not have, or that differ from it.

        Raises:
            ConfigurationError: The target has such documents; nothing was changed.
        """
        others = 0
        include = _WHOLE if self.same else _TEXTS  # an embedded copy has other vectors
        pages = Pages(self.target, include)
        while ids := (page := (yield from pages.next()))["ids"]:
            rows = _rows((yield from by_ids(self.source, ids, include)))
            others += sum(not _same(row, rows.get(name)) for name, row in _rows(page).items())
        if others:
            raise ConfigurationError(
                f"collection {self.target_name!r} has {count(others, 'document')} that"
                f" {self.source_name!r} does not have, or whose text or metadata"
                f"{' or vector' if self.same else ''} is different, and a copy would remove or"
                " replace them: name another target, or allow it with replace=True"
            )

    def embedder(self) -> Embedder:
        """Return the embedder of the documents."""
        return Embedder(self._function if self.target is None else self.target)

    def run(self) -> Run:
        """Start reading the source once more."""
        self._passes += 1
        return Run(self.size, self.progress if self._passes == 1 else None, add_only=False)

    def transfer(self, run: Run, *, dry: bool = False) -> Plan[None]:
        """Copy the documents that the target does not have, with their vectors."""
        offset = 0
        pages = Pages(self.source, _WHOLE, size=run.size)
        while ids := (found := (yield from pages.next()))["ids"]:
            seen = [Record(offset + n, name, "", None) for n, name in enumerate(ids)]
            yield Blocking(partial(run.seen.add, seen))
            rows, there = _rows(found), {}
            if self.target is not None:
                there = _rows((yield from by_ids(self.target, ids, _WHOLE)))
            wanted = [name for name in ids if name not in self.left_out]
            missing = [name for name in wanted if not _same(rows[name], there.get(name))]
            refused = 0
            if dry:
                run.added += len(missing)
            else:
                if other := [name for name in missing if name in there]:
                    # Delete first: an upsert would keep metadata or a document that the source no
                    # longer has.
                    yield Step("removing documents", self.target.delete, {"ids": other})
                places = {record.id: record.place for record in seen}
                kept = set(wanted).difference(missing)
                run.stored_until = max((places[name] for name in kept), default=run.stored_until)
                for part in _parts([(name, rows[name]) for name in missing]):
                    refused += yield from self._write(run, part, places)
            run.unchanged += len(wanted) - len(missing)
            if run.progress is not None:
                run.progress(len(ids) - refused)
            offset += len(ids)
        run.settle()

    def _write(self, run: Run, rows: list[tuple[str, Row]], places: Mapping[str, int]) -> Plan[int]:
        """Write rows of the source; return how many the store refused."""
        refused = 0
        batch = Halving(rows)
        while part := batch.next:
            step = Step(
                f"writing {count(len(part), 'document')}", self.target.upsert, _fields(part)
            )
            if (error := (yield from refusal_of(step))) is None:
                batch.stored()
                run.added += len(part)
                run.accepted()
            elif (alone := batch.refused()) is not None:
                name, row = alone
                record = Record(places[name], name, row[0] or "", None)
                run.refused_by_store(Ready(record, None, True, ()), error)
                refused += 1
        return refused

    def prune(self, run: Run, *, dry: bool = False) -> Plan[None]:
        """Remove from the target the documents that the source does not have."""
        yield from note_gone(run, self.target)
        pages = run.seen.gone(run.size)
        while ids := (yield Blocking(partial(next, pages, None))):
            # Check again: pages shift while others remove documents from the source.
            still = set((yield from by_ids(self.source, ids, []))["ids"]) - set(self.left_out)
            gone = [name for name in ids if name not in still]
            if gone and not dry:
                yield Step("removing documents", self.target.delete, {"ids": gone})
            run.removed += len(gone)

    def check(self, run: Run) -> Plan[None]:
        """Set ``is_complete`` if the target has all documents of the source.

        Raises:
            CollectionError: The target does not have all documents after ``PASSES`` readings of the
                source.
        """
        changed = self.end_pass(run)
        source = yield Step("reading", self.source.count, {})
        target = yield Step("reading", self.target.count, {})
        self.is_complete = not changed and source == target + len(self.left_out)
        if not self.is_complete and self._passes >= PASSES:
            raise CollectionError(
                f"collection {self.source_name!r} has {count(source, 'document')} and its copy"
                f" {self.target_name!r} has {target:,}, after {PASSES} readings: stop what"
                " writes to them and call again; the names were not exchanged"
            )
        if self.is_complete and self._marked:
            yield from self._unmark()

    def _unmark(self) -> Plan[None]:
        """Make the copy a collection like any other: it may now be used and changed."""
        fresh = yield from find(self.client, self.target_name)
        yield _marking(fresh, None)
        self._marked = False

    def end_pass(self, run: Run) -> bool:
        """Count what this pass copied or removed; return whether that was anything."""
        new = {str(item.id): item for item in run.left_out}
        self.left_out |= new
        self._written += run.added + run.changed
        self._removed += run.removed
        if self._passes == 1:
            self._present = run.unchanged
        return bool(run.added or run.changed or run.removed or new)

    @property
    def may_exchange(self) -> bool:
        """Whether the names must be exchanged."""
        return self.wanted == "anyway" or bool(self.wanted and not self.left_out)

    def exchange(self) -> Plan[None]:
        """Exchange the names."""
        yield from exchange(self.source, self.target)
        self.exchanged = True

    def preview(self) -> Plan[Copied]:
        """Return what a copy would do if nothing needs embedding; change nothing."""
        if self.is_done:
            return Copied(present=(yield Step("reading", self.source.count, {})), exchanged=True)
        run = self.run()
        try:
            yield from self.transfer(run, dry=True)
            if self.target is not None:
                yield from self.prune(run, dry=True)
        finally:
            yield Blocking(run.close)
        self.end_pass(run)
        return self.copied(None)

    def copied(self, usage: Usage | None) -> Copied:
        """Return the result."""
        return Copied(
            copied=self._written if self.same else 0,
            embedded=0 if self.same else self._written,
            present=self._present,
            removed=self._removed,
            left_out=tuple(self.left_out.values()),
            exchanged=self.exchanged,
            usage=Usage() if usage is None else usage,
        )


_NOTHING: Any = SimpleNamespace(
    get=lambda **_: {"ids": [], "documents": [], "metadatas": []},
)
"""A placeholder for a copy that does not exist yet."""


async def _nothing(**_: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", _NOTHING.get())


_ASYNC_NOTHING: Any = SimpleNamespace(get=_nothing)


Row = tuple[Any, Any, Any, Any]
"""Document, metadata, URI and vector of a record; ``None`` for each that is missing."""


def _rows(found: Any) -> dict[str, Row]:
    ids = found["ids"]
    none = [None] * len(ids)
    columns = [none if (column := found.get(name)) is None else column for name in _WHOLE]
    return dict(zip(ids, zip(*columns, strict=True), strict=True))


def _same(one: Row, two: Row | None) -> bool:
    return (
        two is not None
        and one[0] == two[0]
        and same_metadata(one[1], two[1])
        and one[2] == two[2]
        and _same_vector(one[3], two[3])
    )


def _same_vector(one: Any, two: Any) -> bool:
    if one is None or two is None:
        return one is two
    return bool(deviation(np.asarray(one, np.float32), np.asarray(two, np.float32)) < _ROUNDING)


def _marking(collection: Any, mark: str | None) -> Step:
    """Return the step that marks a copy as incomplete, or with ``None``, as complete."""
    fields = {
        "id": collection.id,
        "new_metadata": {**(collection.metadata or {}), COPYING: mark},  # None removes the key
        "tenant": collection.tenant,
        "database": collection.database,
    }
    # ``collection.modify`` refuses metadata that has "hnsw:space".
    return Step("marking the copy", collection._client._modify, fields)


def _fields(rows: Sequence[tuple[str, Row]]) -> dict[str, Any]:
    """Return the arguments of ``upsert`` for ``rows``."""
    documents, metadatas, uris, embeddings = zip(*(row for _, row in rows), strict=True)
    fields: dict[str, Any] = {
        "ids": [name for name, _ in rows],
        "embeddings": [*embeddings],
        "metadatas": [metadata or None for metadata in metadatas],
        "documents": [*documents],
        "uris": [*uris],
    }
    return {name: column for name, column in fields.items() if any(x is not None for x in column)}


def _parts(rows: list[tuple[str, Row]]) -> Iterator[list[tuple[str, Row]]]:
    """Yield rows in parts whose size a server accepts."""
    part: list[tuple[str, Row]] = []
    room = SLICE_BYTES
    for name, row in rows:
        size = NUMBER_BYTES * len(row[3]) + 2 * len(row[0] or "")
        if part and size > room:
            yield part
            part, room = [], SLICE_BYTES
        part.append((name, row))
        room -= size
    if part:
        yield part


def _records(calls: Calls, source: Any, size: int, left: Container[str]) -> Iterator[Record]:
    """Yield the records of the source, except those that were left out before (``left``)."""
    offset = 0
    pages = Pages(source, _TEXTS, size=size)
    while (found := carry_out(pages.next(), calls))["ids"]:
        yield from _as_records(found, offset, left)
        offset += len(found["ids"])


async def _arecords(
    calls: AsyncCalls, source: Any, size: int, left: Container[str]
) -> AsyncIterator[Record]:
    offset = 0
    pages = Pages(source, _TEXTS, size=size)
    while (found := await acarry_out(pages.next(), calls))["ids"]:
        for record in _as_records(found, offset, left):
            yield record
        offset += len(found["ids"])


def _as_records(found: Any, offset: int, left: Container[str]) -> Iterator[Record]:
    for place, (name, row) in enumerate(_rows(found).items(), start=offset):
        if name not in left:
            yield Record(place, name, row[0], row[1] or None, row[2])


def _configuration_of(collection: Any) -> CreateCollectionConfiguration:
    """Return the index configuration of a collection, to create another one like it."""
    kept: Any = {}
    for index in ("hnsw", "spann"):
        settings = collection.configuration_json.get(index) or {}
        if given := {name: value for name, value in settings.items() if value is not None}:
            kept[index] = given
    return cast("CreateCollectionConfiguration", kept)
