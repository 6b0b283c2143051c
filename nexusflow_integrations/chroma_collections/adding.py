"""``add_documents`` adds new documents to a collection and does not change existing ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.left_out import reason_in_words
from nexusflow_integrations._core.one_writer import aonly_writer, only_writer
from nexusflow_integrations.chroma_collections.calls import AsyncCalls, Calls, check_timeout
from nexusflow_integrations.chroma_collections.embedding import Embedder, check_kind
from nexusflow_integrations.chroma_collections.filling import AsyncFilling, Filling
from nexusflow_integrations.chroma_collections.keyword_index import refresh
from nexusflow_integrations.chroma_collections.records import arows, columns_of, rows
from nexusflow_integrations.chroma_collections.run import SLICE, Run
from nexusflow_integrations.errors import CollectionError, RefusedTextsError

if TYPE_CHECKING:
    from chromadb.api.types import Metadata


@dataclass(frozen=True)
class Added:
    """The outcome of ``add_documents``, in numbers of documents.

    Attributes:
        added: Documents that were embedded and written.
        present: Documents that the collection already had with the same text; they were not paid
            for.
        differing: Documents that were not written, because the collection has a different text
            under their id; ``sync_documents`` would write them.
    """

    added: int = 0
    present: int = 0
    differing: int = 0


def add_documents(
    collection: Collection,
    *,
    ids: Iterable[str],
    documents: Iterable[str],
    metadatas: Iterable[Metadata | None] | None = None,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
    store_timeout: float = 60.0,
    writer_wait: float = 0.0,
    verify: bool = True,
) -> Added:
    """Add any number of documents; embed and pay for only those whose ids are new.

    About a thousand documents are in memory at a time. While one slice is written, the next ones
    are embedded. After an error, the documents that were embedded before it are in the collection,
    and another call continues from there.

    Args:
        collection: A collection that was opened with a NexusFlow embedding function, or stores one.
        ids: One id for each document; no two may be equal.
        documents: The texts. Lists are checked before anything is sent, except for the length of
            the texts.
        metadatas: One dict for each document; ``None`` for a document without metadata.
        progress: Called with the number of documents done since the last call, whether written or
            already there, so ``tqdm.update`` can be passed. The first error that it raises is
            logged and does not end the call; ``KeyboardInterrupt`` and ``SystemExit`` end it.
        slice_size: Maximum documents per write, up to the client's own maximum.
        store_timeout: Seconds that one read or write of the collection may take, including retries;
            at most the embedding function's ``deadline``.
        writer_wait: Seconds to wait for another process that writes to the same folder.
        verify: Whether to check that the service still uses the same model, at most once an hour
            for each embedding function and collection: first, up to three short documents of the
            collection are embedded again, and nothing is written if most of them get a different
            vector.

    Raises:
        InvalidInputError: A document, its id or metadata cannot be stored, or an id occurs twice;
            ``index`` is its position in the source, counted from 0.
        ValueError: The numbers of ids, documents and metadatas differ.
        ConfigurationError: The embedding function is not a NexusFlow function, the collection needs
            the other (sync or async) version of this function, or (with ``verify``) the service
            returns vectors that differ from the stored ones.
        RefusedTextsError: The server refused some documents, or they are too long; all others were
            added. ``refused`` holds their errors by position in ``documents``.
        CollectionError: The collection cannot be read or written, or another process writes to it,
            or the store refused some documents; in the last case, all others were added.
            ``finished`` holds the vectors that were paid for but not written, by position: float32
            of shape (d,).
        NexusFlowError: Embedding failed.
    """
    check_kind(collection, Collection, "add_documents", "aadd_documents")
    columns = columns_of(ids, documents, metadatas, twin="aadd_documents")
    checks.flags(verify=verify)
    _check_lists(columns)
    embedder = Embedder(collection)
    calls = Calls(collection, check_timeout(store_timeout, embedder.deadline))
    most = calls("reading", collection._client.get_max_batch_size)
    run = Run.of(slice_size, most, progress, add_only=True)
    with closing(run), only_writer(collection, writer_wait):
        Filling(run, calls, verify=verify).fill(rows(columns), embedder)
        if run.added:
            refresh(collection)
    return _added(run)


async def aadd_documents(
    collection: AsyncCollection,
    *,
    ids: Iterable[str] | AsyncIterable[str],
    documents: Iterable[str] | AsyncIterable[str],
    metadatas: Iterable[Metadata | None] | AsyncIterable[Metadata | None] | None = None,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
    store_timeout: float = 60.0,
    writer_wait: float = 0.0,
    verify: bool = True,
) -> Added:
    """Add documents like ``add_documents``, to a collection of an ``AsyncHttpClient``.

    Iterables and async iterables may be mixed.
    """
    check_kind(collection, AsyncCollection, "aadd_documents", "add_documents")
    columns = columns_of(ids, documents, metadatas)
    checks.flags(verify=verify)
    await asyncio.to_thread(_check_lists, columns)
    embedder = Embedder(collection)
    calls = AsyncCalls(collection, check_timeout(store_timeout, embedder.deadline))
    most = await calls("reading", collection._client.get_max_batch_size)
    run = Run.of(slice_size, most, progress, add_only=True)
    async with aclosing(run), aonly_writer(collection, writer_wait):
        await AsyncFilling(run, calls, verify=verify).fill(arows(columns), embedder)
    return _added(run)


def _check_lists(columns: Sequence[Any]) -> None:
    if all(isinstance(column, Sequence) for column in columns):
        with closing(Run(SLICE, None, add_only=True)) as trial:
            trial.seen.add(trial.take(list(rows(columns))))


def _added(run: Run) -> Added:
    others = f"; {len(run.refused)} could not be embedded" if run.refused else ""
    if run.not_stored:
        shown = [f"{item.record.id!r}: {error.reason}" for item, error in run.not_stored[:3]]
        failed = CollectionError(
            f"the store refused {count(len(run.not_stored), 'document')}"
            f" ({'; '.join(shown)}"
            f"{'; ...' if len(run.not_stored) > 3 else ''}){others}; all others were added"
        )
        failed.finished = run.unwritten()
        raise failed from run.not_stored[0][1].__cause__
    if run.refused:
        shown = [
            f"{name!r}: {reason_in_words(error)}" for name, error in list(run.refused.values())[:3]
        ]
        raise RefusedTextsError(
            f"{count(len(run.refused), 'document')} could not be embedded ({'; '.join(shown)}"
            f"{'; ...' if len(run.refused) > 3 else ''}); all others were added",
            refused={place: cast(Any, error) for place, (_, error) in run.refused.items()},
        )
    return Added(run.added, run.unchanged, run.differing)
