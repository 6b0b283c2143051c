"""Open a Chroma collection safely, and fill it with any number of documents; sync and async.

    collection = open_collection(client, "docs", NexusFlowEmbeddingFunction(dimensions=1024))
    add_documents(collection, ids=ids, documents=texts, progress=tqdm(total=len(texts)).update)

``aopen_collection`` and ``aadd_documents`` do the same with an ``AsyncHttpClient``, without
blocking the event loop while they embed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

# First: where Chroma is missing, this says what to install.
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction  # isort: split

from chromadb.api.types import validate_ids, validate_metadatas
from chromadb.errors import NotFoundError

from nexusflow_integrations._core.texts import check_text
from nexusflow_integrations.errors import (
    APIStatusError,
    ConfigurationError,
    InvalidInputError,
    NexusFlowError,
    RefusedTextsError,
)

if TYPE_CHECKING:
    from chromadb.api import AsyncClientAPI, ClientAPI
    from chromadb.api.collection_configuration import CreateCollectionConfiguration
    from chromadb.api.models.AsyncCollection import AsyncCollection
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import CollectionMetadata, Metadata

    from nexusflow_integrations._core.call.streaming import Embedded
    from nexusflow_integrations._core.vectors import Vectors

__all__ = ["Added", "aadd_documents", "add_documents", "aopen_collection", "open_collection"]

SLICE = 250
"""Documents a write: smaller ones cost more each; a local write freezes all threads (the GIL)."""


@dataclass(frozen=True)
class Added:
    """What became of the documents.

    Attributes:
        added: Embedded and written.
        present: Left alone, and not paid for, because the collection had their ids.
    """

    added: int = 0
    present: int = 0


# -- opening ---------------------------------------------------------------------------------------


def open_collection(
    client: ClientAPI,
    name: str,
    embedding_function: NexusFlowEmbeddingFunction | None = None,
    *,
    create: bool = True,
    metadata: CollectionMetadata | None = None,
    configuration: CreateCollectionConfiguration | None = None,
) -> Collection:
    """Open a collection, or make it, and see to it that its vectors stay comparable.

    Chroma itself compares only the names of embedding functions, so that another model of the same
    size mixes with what is there.

    Args:
        client: Any of Chroma's synchronous clients.
        name: Name of the collection.
        embedding_function: Default: the one that is stored, else one with default settings.
        create: Whether to make a collection that does not exist.
        metadata: For a collection that is made here.
        configuration: The same.

    Raises:
        ConfigurationError: The collection is of another model or size, or its embedding function
            is not NexusFlow's.
        chromadb.errors.NotFoundError: There is none, and ``create`` is false.
    """
    try:
        stored = client.get_collection(name, embedding_function=None)
    except NotFoundError:
        if not create:
            raise
        function = embedding_function or NexusFlowEmbeddingFunction()
        made = client.get_or_create_collection(
            name,
            embedding_function=function,  # type: ignore[arg-type]  # of documents, not images
            metadata=metadata,
            configuration=None if configuration is None else configuration.copy(),
        )
        _fitting(made, function)  # another process may have been faster
        return made
    function = _fitting(stored, embedding_function)
    return client.get_collection(name, embedding_function=function)  # type: ignore[arg-type]


async def aopen_collection(
    client: AsyncClientAPI,
    name: str,
    embedding_function: NexusFlowEmbeddingFunction | None = None,
    *,
    create: bool = True,
    metadata: CollectionMetadata | None = None,
    configuration: CreateCollectionConfiguration | None = None,
) -> AsyncCollection:
    """Open or make a collection like ``open_collection``, with an ``AsyncHttpClient``."""
    try:
        stored = await client.get_collection(name, embedding_function=None)
    except NotFoundError:
        if not create:
            raise
        function = embedding_function or NexusFlowEmbeddingFunction()
        made = await client.get_or_create_collection(
            name,
            embedding_function=function,  # type: ignore[arg-type]
            metadata=metadata,
            configuration=None if configuration is None else configuration.copy(),
        )
        _fitting(made, function)
        return made
    function = _fitting(stored, embedding_function)
    return await client.get_collection(name, embedding_function=function)  # type: ignore[arg-type]


def _fitting(
    collection: Collection | AsyncCollection, given: NexusFlowEmbeddingFunction | None
) -> NexusFlowEmbeddingFunction:
    """Return ``given`` if its vectors belong into the collection; if there is none, the stored."""
    persisted = collection.configuration_json.get("embedding_function") or {}
    if persisted.get("name") != NexusFlowEmbeddingFunction.name():
        raise ConfigurationError(
            f"collection {collection.name!r} stores"
            f" {persisted.get('name', 'no')!r} as its embedding function, not 'nexusflow', so"
            " nobody can say whether the vectors are comparable; make another collection"
        )
    stored = NexusFlowEmbeddingFunction.build_from_config(persisted["config"])
    if given is None:
        return stored
    size = stored.dimensions
    if size is None and given.dimensions is not None:
        size = collection.get_model().dimension  # what the server's own size turned out to be
    for setting, old, new in (
        ("model_name", stored.model_name, given.model_name),
        ("dimensions", size, given.dimensions),
    ):
        if old != new:
            raise ConfigurationError(
                f"collection {collection.name!r} was made with {setting}={old!r}, and this"
                f" embedding function has {new!r}: their vectors are not comparable; give none to"
                " take the one that is stored, or make another collection"
            )
    return given


# -- adding ----------------------------------------------------------------------------------------


def add_documents(
    collection: Collection,
    *,
    ids: Iterable[str],
    documents: Iterable[str],
    metadatas: Iterable[Metadata | None] | None = None,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
) -> Added:
    """Add any number of documents; only those whose ids are not there are embedded and paid for.

    Memory holds about a thousand documents, however many the iterables bring. While one slice is
    written, the next ones are being embedded. After an error of the server, what was embedded by
    then is in the collection: calling again goes on from there. If the collection itself cannot be
    written, what was embedded meanwhile is only kept by ``cache=``.

    Args:
        collection: With a NexusFlow embedding function, passed or stored.
        ids: One for each document, each only once.
        documents: The texts. Lists are checked as a whole before anything is sent.
        metadatas: One for each document, ``None`` for none.
        progress: Called with the number of documents that are done since the last time, written
            or there already, so ``tqdm.update`` fits.
        slice_size: Documents a write, at most; never more than the client's maximum.

    Raises:
        InvalidInputError: A document cannot be sent; ``index`` says which.
        ValueError: Chroma would not take an id or a metadata, or there are more of one than of
            the others.
        RefusedTextsError: The server refused some documents; all others were added. ``refused``
            goes by their place in ``documents``.
        NexusFlowError: Embedding cannot go on.
    """
    function = _function_of(collection)
    most = collection._client.get_max_batch_size()
    filling = _Filling(ids, documents, metadatas, min(slice_size, most), progress)

    def missing() -> Iterator[str]:
        while slice_ids := filling.read():
            yield from filling.missing(collection.get(ids=slice_ids, include=[])["ids"])

    def write(slices: Iterable[list[_Ready]]) -> None:
        for ready in slices:
            collection.add(**_fields(ready))
            filling.written(ready)

    try:
        with closing(function.client.embed_stream(missing())) as stream:
            for embedded in stream:
                write(filling.landed(embedded))
    except NexusFlowError as error:
        filling.rescue(error)
        raise
    finally:
        write(filling.rest())
    return filling.result()


async def aadd_documents(
    collection: AsyncCollection,
    *,
    ids: Iterable[str],
    documents: Iterable[str],
    metadatas: Iterable[Metadata | None] | None = None,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
) -> Added:
    """Add documents like ``add_documents``, to a collection of an ``AsyncHttpClient``."""
    function = _function_of(collection)
    most = await collection._client.get_max_batch_size()
    filling = _Filling(ids, documents, metadatas, min(slice_size, most), progress)

    async def missing() -> AsyncIterator[str]:
        while slice_ids := filling.read():
            for text in filling.missing((await collection.get(ids=slice_ids, include=[]))["ids"]):
                yield text

    async def write(slices: Iterable[list[_Ready]]) -> None:
        for ready in slices:
            await collection.add(**_fields(ready))
            filling.written(ready)

    try:
        async with aclosing(function.client.aembed_stream(missing())) as stream:
            async for embedded in stream:
                await write(filling.landed(embedded))
    except NexusFlowError as error:
        filling.rescue(error)
        raise
    finally:
        await write(filling.rest())
    return filling.result()


def _function_of(collection: Collection | AsyncCollection) -> NexusFlowEmbeddingFunction:
    own = collection._embedding_function
    if not isinstance(own, NexusFlowEmbeddingFunction):
        return _fitting(collection, None)
    if (collection.configuration_json.get("embedding_function") or {}).get("name"):
        _fitting(collection, own)
    return own


class _Record(NamedTuple):
    place: int
    id: str
    document: str
    metadata: Metadata | None


class _Ready(NamedTuple):
    record: _Record
    vector: Vectors


def _fields(ready: list[_Ready]) -> dict[str, Any]:
    metadatas = [record.metadata for record, _ in ready]
    return {
        "ids": [record.id for record, _ in ready],
        "documents": [record.document for record, _ in ready],
        "metadatas": metadatas if any(metadatas) else None,
        "embeddings": [vector for _, vector in ready],
    }


_MISSING: Any = object()


class _Filling:
    """What has been read and is not written yet: all that the two twins share."""

    def __init__(
        self,
        ids: Iterable[str],
        documents: Iterable[str],
        metadatas: Iterable[Metadata | None] | None,
        size: int,
        progress: Callable[[int], object] | None,
    ) -> None:
        if isinstance(ids, str) or isinstance(documents, str):
            raise InvalidInputError("ids and documents are lists of strings, not one string")
        if size < 1:
            raise ConfigurationError("slice_size must be a whole number from 1 up")
        columns = [ids, documents] if metadatas is None else [ids, documents, metadatas]
        self._source = _records(columns)
        if all(isinstance(column, Sequence) for column in columns):
            _check(list(_records(columns)))
        self._size = size
        self._progress = progress
        self._slice: list[_Record] = []
        self._flying: dict[int, _Record] = {}
        self._ids: set[str] = set()
        self._sent = 0
        self._ready: deque[_Ready] = deque()
        self._refused: dict[int, tuple[str, APIStatusError]] = {}
        self._problem: Exception | None = None
        self._added = self._present = 0

    def read(self) -> list[str]:
        """Read the next slice and return its ids; none at the end.

        What goes wrong is kept for ``result``: what has been paid for is written first.
        """
        self._slice = []
        if self._problem is None:
            try:
                self._slice.extend(islice(self._source, self._size))
                _check(self._slice)
            except Exception as error:  # noqa: BLE001 - also of the caller's own iterables
                self._problem, self._slice = error, []
        return [record.id for record in self._slice]

    def missing(self, present: Iterable[str]) -> Iterator[str]:
        """Yield the documents of the slice that are neither present nor on their way."""
        there = self._ids.union(present)
        fresh = [record for record in self._slice if record.id not in there]
        self._present += len(self._slice) - len(fresh)
        self._done(len(self._slice) - len(fresh))
        for record in fresh:
            self._flying[self._sent] = record
            self._ids.add(record.id)
            self._sent += 1
            yield record.document

    def landed(self, embedded: Embedded) -> Iterator[list[_Ready]]:
        """Take one result; yield a slice if one is full."""
        record = self._flying.pop(embedded.index)
        if embedded.vector is not None:
            self._ready.append(_Ready(record, embedded.vector))
        elif isinstance(embedded.error, APIStatusError):
            self._refused[record.place] = record.id, embedded.error
            self._done(1)
        if len(self._ready) >= self._size:
            yield from self.rest()

    def rescue(self, error: NexusFlowError) -> None:
        """Keep what was ready when the stream broke off."""
        found = [(self._flying[place], row) for place, row in error.finished.items()]
        self._ready.extend(_Ready(record, vector) for record, vector in found)
        error.finished = {record.place: vector for record, vector in found}

    def rest(self) -> Iterator[list[_Ready]]:
        """Yield all that is ready, in slices."""
        while self._ready:
            count = min(self._size, len(self._ready))
            yield [self._ready.popleft() for _ in range(count)]

    def written(self, ready: list[_Ready]) -> None:
        self._ids.difference_update(record.id for record, _ in ready)
        self._added += len(ready)
        self._done(len(ready))

    def _done(self, count: int) -> None:
        if self._progress is not None and count:
            self._progress(count)

    def result(self) -> Added:
        """Return the counts, or raise what went wrong."""
        if self._problem is not None:
            raise self._problem
        if self._refused:
            shown = [f"{name!r}: {error}" for name, error in list(self._refused.values())[:3]]
            raise RefusedTextsError(
                f"the server refused {len(self._refused)} documents ({'; '.join(shown)}"
                f"{'; ...' if len(self._refused) > 3 else ''}); all others were added",
                refused={index: error for index, (_, error) in self._refused.items()},
            )
        return Added(self._added, self._present)


def _records(columns: list[Iterable[Any]]) -> Iterator[_Record]:
    for index, row in enumerate(zip_longest(*columns, fillvalue=_MISSING)):
        names = ("ids", "documents", "metadatas")
        if short := [names[n] for n, value in enumerate(row) if value is _MISSING]:
            raise ValueError(f"there are only {index} {' and '.join(short)}, and more of the rest")
        yield _Record(index, row[0], row[1], row[2] if len(row) > 2 else None)


def _check(records: list[_Record]) -> None:
    """Raise what Chroma or the client would raise later, when the slice has been paid for."""
    if not records:
        return
    for record in records:
        check_text(record.document, record.place)
    validate_ids([record.id for record in records])
    metadatas = [record.metadata for record in records if record.metadata is not None]
    if metadatas:
        validate_metadatas(metadatas)
