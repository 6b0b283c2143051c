"""``add_documents``: new documents into a collection, without a look at what is there."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection

from nexusflow_integrations.chroma_collections.calls import AsyncCalls, Calls, check_timeout
from nexusflow_integrations.chroma_collections.embedding import Embedder, check_kind
from nexusflow_integrations.chroma_collections.filling import AsyncFilling, Filling
from nexusflow_integrations.chroma_collections.records import arows, check_columns, rows
from nexusflow_integrations.chroma_collections.run import SLICE, Run
from nexusflow_integrations.chroma_collections.writer import aonly_writer, only_writer
from nexusflow_integrations.errors import RefusedTextsError

if TYPE_CHECKING:
    from chromadb.api.types import Metadata


@dataclass(frozen=True)
class Added:
    """What became of the documents.

    Attributes:
        added: Embedded and written.
        present: Left alone, and not paid for, because the collection had their ids and texts.
        differing: Left alone although the collection has another text under their id;
            ``sync_documents`` would write them.
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
    """Add any number of documents; only those whose ids are not there are embedded and paid for.

    Memory holds about a thousand documents, however many the iterables bring. While one slice is
    written, the next ones are being embedded. After an error, what was embedded by then is in the
    collection: calling again goes on from there.

    Args:
        collection: With a NexusFlow embedding function, passed or stored.
        ids: One for each document, each only once.
        documents: The texts. Lists are checked as a whole before anything is sent.
        metadatas: One for each document, ``None`` for none.
        progress: Called with the number of documents that are done since the last time, written
            or there already, so ``tqdm.update`` fits.
        slice_size: Documents a write, at most; never more than the client's maximum.
        store_timeout: Seconds that one read or write of the collection may take, retries included;
            never more than the embedding function's ``deadline``.
        writer_wait: Seconds to wait for another process that writes to the same folder.
        verify: Whether to embed up to three short documents of the collection again before the
            first one is embedded, once an hour for each embedding function, and to refuse to write
            if most get another vector: the service has changed its model.

    Raises:
        InvalidInputError: A document, its id or metadata cannot be stored, or an id is there twice;
            ``index`` says which.
        ValueError: There are more of one than of the others.
        RefusedTextsError: The server refused some documents, or they are too long; all others were
            added. ``refused`` has their place in ``documents``.
        CollectionError: The collection cannot be read or written, or another process writes to it.
            ``finished`` holds the vectors that were paid for and not written, by place.
        NexusFlowError: Embedding cannot go on.
    """
    check_kind(collection, Collection, "add_documents", "aadd_documents")
    check_columns(ids, documents, metadatas, twin="aadd_documents")
    columns: list[Iterable[Any]] = [ids, documents, *([] if metadatas is None else [metadatas])]
    _check_lists(columns)
    embedder = Embedder(collection)
    calls = Calls(collection, check_timeout(store_timeout, embedder.deadline))
    most = calls("reading", collection._client.get_max_batch_size)
    run = Run.of(slice_size, most, progress, add_only=True)
    with closing(run), only_writer(collection, writer_wait):
        Filling(run, calls, verify=verify).fill(rows(columns), embedder)
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
    check_columns(ids, documents, metadatas)
    columns: list[Any] = [ids, documents, *([] if metadatas is None else [metadatas])]
    _check_lists(columns)
    embedder = Embedder(collection)
    calls = AsyncCalls(collection, check_timeout(store_timeout, embedder.deadline))
    most = await calls("reading", collection._client.get_max_batch_size)
    run = Run.of(slice_size, most, progress, add_only=True)
    with closing(run):
        async with aonly_writer(collection, writer_wait):
            await AsyncFilling(run, calls, verify=verify).fill(arows(columns), embedder)
    return _added(run)


def _check_lists(columns: Sequence[Any]) -> None:
    if all(isinstance(column, Sequence) for column in columns):
        with closing(Run(SLICE, None, add_only=True)) as trial:
            trial.take(list(rows(columns)))


def _added(run: Run) -> Added:
    if run.refused:
        shown = [f"{name!r}: {error}" for name, error in list(run.refused.values())[:3]]
        raise RefusedTextsError(
            f"{len(run.refused)} documents could not be embedded ({'; '.join(shown)}"
            f"{'; ...' if len(run.refused) > 3 else ''}); all others were added",
            refused={place: cast(Any, error) for place, (_, error) in run.refused.items()},
        )
    return Added(run.added, run.unchanged, run.differing)
