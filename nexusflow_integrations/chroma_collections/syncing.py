"""``sync_documents`` makes a collection match its source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing, closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.left_out import LeftOut
from nexusflow_integrations._core.one_writer import aonly_writer, only_writer
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.chroma_collections.calls import AsyncCalls, Calls, check_timeout
from nexusflow_integrations.chroma_collections.embedding import Embedder, check_kind
from nexusflow_integrations.chroma_collections.filling import AsyncFilling, Filling
from nexusflow_integrations.chroma_collections.keyword_index import refresh
from nexusflow_integrations.chroma_collections.one_sync import aonly_sync, only_sync
from nexusflow_integrations.chroma_collections.ownership import check_owned
from nexusflow_integrations.chroma_collections.records import (
    SeenIds,
    arows,
    columns_of,
    id_problem,
    rows,
)
from nexusflow_integrations.chroma_collections.run import SLICE, Run

if TYPE_CHECKING:
    from chromadb.api.types import Metadata, Where

Remove = bool | Literal["all"]


@dataclass(frozen=True)
class Synced:
    """The outcome of ``sync_documents``, in numbers of documents.

    Attributes:
        added: Documents with new ids, which were embedded and written.
        changed: Documents whose text or metadata differed, which were written again.
        unchanged: Documents whose text and metadata were the same, which were not written.
        removed: Documents that the source no longer has, which were removed from the collection.
        left_out: Documents that could not be stored, each with its reason. Documents that the
            collection already had under their ids are kept.
        usage: The tokens, requests and cost of the run; for a dry run, an estimate.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    left_out: tuple[LeftOut, ...] = ()
    usage: Usage = Usage()  # noqa: RUF009 - the default is frozen


def sync_documents(
    collection: Collection,
    *,
    ids: Iterable[str],
    documents: Iterable[str],
    metadatas: Iterable[Metadata | None] | None = None,
    where: Where | None = None,
    remove: Remove = True,
    dry_run: bool = False,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
    store_timeout: float = 60.0,
    writer_wait: float = 0.0,
    verify: bool = True,
) -> Synced:
    """Make ``collection`` match a source; pay only for new or changed texts.

    Documents are compared with those in the collection: a changed text is embedded again, changed
    metadata alone is written without embedding, and all other documents are left unchanged.
    Documents that the source no longer has are removed last, and only if the source was read to its
    end and everything else succeeded. So after any failure, the collection answers queries at least
    as well as before, and another call pays only for the rest.

    A document that cannot be stored (refused by the server or the store, blank, invalid id or
    metadata) is left out and reported. About a thousand documents are in memory at a time.

    Args:
        collection: A collection that was opened with a NexusFlow embedding function, or stores one.
        ids: One id for each document; no two may be equal.
        documents: The texts.
        metadatas: One dict for each document; ``None`` for a document without metadata. If this is
            left out, no document has metadata, and stored metadata is removed.
        where: Chroma's filter for the part of the collection that this source owns. Nothing outside
            this part is changed or removed, and a document whose metadata does not match the filter
            is left out. The filter may not use ``#document``. ``None`` is the whole collection.
        remove: Whether to remove documents that the source no longer has. If the source is empty,
            or none of its documents can be stored, nothing is removed unless this is ``"all"``.
        dry_run: Whether to only report what would be done and what that would cost; nothing is sent
            or written.
        progress: Called with the number of documents done since the last call, so ``tqdm.update``
            can be passed. The first error that it raises is logged and does not end the call;
            ``KeyboardInterrupt`` and ``SystemExit`` end it.
        slice_size: Maximum documents per write; fewer if vectors are large.
        store_timeout: Seconds that one read or write of the collection may take, including retries;
            at most the embedding function's ``deadline``.
        writer_wait: Seconds to wait for another process that writes to the same folder, and for
            another sync of this process that may remove the same documents.
        verify: Whether to check that the service still uses the same model, at most once an hour
            for each embedding function and collection: first, up to three short documents of the
            collection are embedded again, and nothing is written if most of them get a different
            vector.

    Raises:
        SameIdTwiceError: An id occurs twice; the message names both positions.
        ValueError: The numbers of ids and documents differ.
        ConfigurationError: The embedding function is not a NexusFlow function, the collection needs
            the other (sync or async) version of this function, or (with ``verify``) the service
            returns vectors that differ from the stored ones.
        CollectionError: The collection cannot be read or written, another process writes to it, or
            another sync of this process may remove the same documents. ``finished`` holds the
            vectors that were paid for but not written, by position in the source: float32 of shape
            (d,).
        NexusFlowError: Embedding failed.
    """
    check_kind(collection, Collection, "sync_documents", "async_documents")
    columns = columns_of(ids, documents, metadatas, twin="async_documents")
    checks.flag_or("remove", remove, "all")
    checks.flags(dry_run=dry_run, verify=verify)
    writer_wait = checks.seconds("writer_wait", writer_wait, least=0.0)
    check_owned(where)
    _check_lists(columns)
    embedder = Embedder(collection)
    calls = Calls(collection, check_timeout(store_timeout, embedder.deadline))
    most = calls("reading", collection._client.get_max_batch_size)
    run = Run.of(slice_size, most, progress, add_only=False, where=where)
    filling = Filling(run, calls, verify=verify)
    with closing(run):
        filling.begin()
        if dry_run:
            usage = filling.estimate(rows(columns), embedder)
            if _may_remove(run, remove):
                filling.gone()
                filling.remove()
            return _synced(run, usage)
        until = monotonic() + writer_wait
        with (
            only_writer(collection, writer_wait),
            only_sync(collection, where, until) if remove else nullcontext(),
        ):
            filling.fill(rows(columns), embedder)
            if _may_remove(run, remove):
                filling.gone()
                filling.remove()
            if run.added or run.changed or run.removed:
                refresh(collection)
        return _synced(run, embedder.usage)


async def async_documents(
    collection: AsyncCollection,
    *,
    ids: Iterable[str] | AsyncIterable[str],
    documents: Iterable[str] | AsyncIterable[str],
    metadatas: Iterable[Metadata | None] | AsyncIterable[Metadata | None] | None = None,
    where: Where | None = None,
    remove: Remove = True,
    dry_run: bool = False,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
    store_timeout: float = 60.0,
    writer_wait: float = 0.0,
    verify: bool = True,
) -> Synced:
    """Sync like ``sync_documents``, to a collection of an ``AsyncHttpClient``.

    Iterables and async iterables may be mixed.
    """
    check_kind(collection, AsyncCollection, "async_documents", "sync_documents")
    columns = columns_of(ids, documents, metadatas)
    checks.flag_or("remove", remove, "all")
    checks.flags(dry_run=dry_run, verify=verify)
    writer_wait = checks.seconds("writer_wait", writer_wait, least=0.0)
    check_owned(where)
    await asyncio.to_thread(_check_lists, columns)
    embedder = Embedder(collection)
    calls = AsyncCalls(collection, check_timeout(store_timeout, embedder.deadline))
    most = await calls("reading", collection._client.get_max_batch_size)
    run = Run.of(slice_size, most, progress, add_only=False, where=where)
    filling = AsyncFilling(run, calls, verify=verify)
    async with aclosing(run):
        await filling.begin()
        if dry_run:
            usage = await filling.estimate(arows(columns), embedder)
            if _may_remove(run, remove):
                await filling.gone()
                await filling.remove()
            return _synced(run, usage)
        until = monotonic() + writer_wait
        async with (
            aonly_writer(collection, writer_wait),
            aonly_sync(collection, where, until) if remove else nullcontext(),
        ):
            await filling.fill(arows(columns), embedder)
            if _may_remove(run, remove):
                await filling.gone()
                await filling.remove()
        return _synced(run, embedder.usage)


def _check_lists(columns: Sequence[Any]) -> None:
    """Check for duplicate ids and columns of different lengths before anything else."""
    if all(isinstance(column, Sequence) for column in columns):
        lengths = {len(column) for column in columns}
        if len(lengths) > 1:
            list(rows(columns))  # raises an error that names the columns
        seen = SeenIds()
        try:
            seen.add(record for record in rows(columns) if id_problem(record.id) is None)
        finally:
            seen.close()


def _may_remove(run: Run, remove: Remove) -> bool:
    kept = run.added + run.changed + run.unchanged  # if this is 0, the source was empty or unusable
    return bool(remove) and run.may_remove and (kept > 0 or remove == "all")


def _synced(run: Run, usage: Usage) -> Synced:
    return Synced(run.added, run.changed, run.unchanged, run.removed, tuple(run.left_out), usage)
