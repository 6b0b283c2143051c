"""``add_documents`` adds any number of documents to any vector store and leaves out bad ones."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from pydantic import ValidationError

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.call.caller import Callback
from nexusflow_integrations._core.call.streaming import Embedded
from nexusflow_integrations._core.counts import count, first_three
from nexusflow_integrations._core.kept_numbers import number_problem
from nexusflow_integrations._core.left_out import LeftOut
from nexusflow_integrations._core.one_writer import aonly_writer, only_writer
from nexusflow_integrations._core.request.long_texts import check_document
from nexusflow_integrations._core.settings import (
    ON_REFUSED,
    ON_TOO_LONG,
    OnRefused,
    OnTooLongOrCollect,
)
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations._core.texts import check_text, no_rows
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.errors import (
    BadRequestError,
    ConfigurationError,
    InvalidInputError,
    NexusFlowError,
    RefusedTextsError,
)
from nexusflow_integrations.langchain.embeddings import NexusFlowEmbeddings, _is_traced, _recorded
from nexusflow_integrations.langchain.ingestion_run import (
    MISSING,
    Ready,
    Row,
    Run,
    kept,
    vectors_of,
)
from nexusflow_integrations.langchain.model_errors import ALSO_LANGCHAINS

if TYPE_CHECKING:
    from nexusflow_integrations._core.vectors import Vectors

__all__ = ["Added", "aadd_documents", "add_documents"]

SLICE = 250
"""Documents per write: enough to keep a fast store busy, few enough to fit into memory."""
LAST_WRITE = 30.0
"""Maximum seconds that a cancelled task waits for the write that has begun."""


@dataclass(frozen=True)
class Added:
    """The outcome of ``add_documents``, in numbers of documents.

    Attributes:
        added: Documents that were embedded and stored.
        present: Documents that the store already had under their ids; they were not paid for. The
            stored document may have more metadata, because some stores add their own.
        differing: Documents that were not written, because the store has another text or metadata
            under their id.
        left_out: The documents that could not be stored, each with the reason.
        usage: The tokens, requests and cost of the run.
    """

    added: int = 0
    present: int = 0
    differing: int = 0
    left_out: tuple[LeftOut, ...] = ()
    usage: Usage = Usage()  # noqa: RUF009 - the default is frozen


def add_documents(
    store: VectorStore,
    documents: Iterable[Document],
    ids: Iterable[str | None] | None = None,
    *,
    on_refused: OnRefused = "collect",
    on_blank: OnRefused = "collect",
    on_too_long: OnTooLongOrCollect | None = None,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
    writer_wait: float = 0.0,
) -> Added:
    """Add documents to a vector store whose embedding is ``NexusFlowEmbeddings``.

    A document that cannot be embedded, or that the store refuses, is left out and reported; all
    others are in the store afterwards. If the store refuses everything, or 250 documents in a row,
    the store is at fault, and the run ends. Documents are embedded before they are passed to the
    store; while one slice is written, the next ones are embedded. About a thousand documents are in
    memory at a time.

    Documents with an id may be added again. If the store supports ``get_by_ids``, documents that it
    already has with the same text and metadata are neither sent nor paid for. So a call after an
    error continues where the failed call ended. Documents without an id get a random one.

    Args:
        store: Any vector store of LangChain.
        documents: Any iterable of LangChain's ``Document``, such as a loader's ``lazy_load()``.
        ids: One id for each document. Default: the ``id`` of each document.
        on_refused: What to do if the server refuses a document: ``"collect"`` adds the document to
            ``left_out``; ``"raise"`` raises a ``RefusedTextsError`` once all others are stored.
        on_blank: What to do with a document without text: ``"collect"`` adds the document to
            ``left_out``; ``"raise"`` raises an ``InvalidInputError`` (for a list, before anything
            is sent).
        on_too_long: What to do with a document that has too many tokens: ``"collect"`` adds the
            document to ``left_out``; ``"error"`` raises an ``InvalidInputError``; ``"split"``,
            ``"truncate"`` and ``"send"`` work as in ``NexusFlowEmbeddings``. Default: the setting
            of the embedding, but ``"collect"`` instead of ``"error"``.
        progress: Called with the number of documents done since the last call, including those left
            out, so ``tqdm.update`` can be passed. The first error that it raises is logged and
            does not end the call; ``KeyboardInterrupt`` and ``SystemExit`` end it.
        slice_size: Documents per write, from 1 to 1,000.
        writer_wait: Seconds to wait for another process that writes to the same folder of Chroma.
            Other stores need no lock.

    Raises:
        ConfigurationError: The store's embedding is not a ``NexusFlowEmbeddings``. Nothing was
            sent.
        InvalidInputError: An item is not a ``Document``, an id occurs twice, or there are not as
            many ids as documents; ``index`` is the position. Lists are checked before anything is
            sent.
        CollectionError: The store cannot be read or written, or refuses everything, or another
            process writes to its Chroma folder. ``finished`` holds the vectors that were paid for
            but not written, by position in ``documents``.
        NexusFlowError: Embedding failed. The documents that were ready are in the store.
    """
    with ALSO_LANGCHAINS:
        embedder = _Embedder(store, on_too_long)
        _check_iterables(documents, ids, twin="aadd_documents")
        run = _run(
            store, documents, ids, embedder, on_refused, on_blank, on_too_long, progress, slice_size
        )
        try:
            with only_writer(_client_of(store), writer_wait):
                _Filling(store, embedder, run).fill(_rows(documents, ids))
        finally:
            run.close()
        return _added(run, embedder.usage)


async def aadd_documents(
    store: VectorStore,
    documents: Iterable[Document] | AsyncIterable[Document],
    ids: Iterable[str | None] | AsyncIterable[str | None] | None = None,
    *,
    on_refused: OnRefused = "collect",
    on_blank: OnRefused = "collect",
    on_too_long: OnTooLongOrCollect | None = None,
    progress: Callable[[int], object] | None = None,
    slice_size: int = SLICE,
    writer_wait: float = 0.0,
) -> Added:
    """Add documents like ``add_documents``, with the store's async methods.

    Iterables and async iterables may be mixed.
    """
    with ALSO_LANGCHAINS:
        embedder = _Embedder(store, on_too_long)
        _check_iterables(documents, ids)
        # Start the run in a thread, because it writes the ids of its documents to a temporary file.
        run = await asyncio.to_thread(
            _run,
            store,
            documents,
            ids,
            embedder,
            on_refused,
            on_blank,
            on_too_long,
            progress,
            slice_size,
        )
        try:
            async with aonly_writer(_client_of(store), writer_wait):
                await _AsyncFilling(store, embedder, run).fill(_arows(documents, ids))
        finally:
            await asyncio.to_thread(run.close)
        return _added(run, embedder.usage)


def _client_of(store: VectorStore) -> Any:
    """Return the client of LangChain's ``Chroma``, or of a store that also has a ``_client``."""
    return vars(store).get("_client")  # not a property, which might raise any error


# -- checking the arguments ------------------------------------------------------------------------


def _check_iterables(documents: object, ids: object, *, twin: str | None = None) -> None:
    for name, given in (("documents", documents), ("ids", ids)):
        if given is None and name == "ids":
            continue
        if isinstance(given, AsyncIterable):
            if twin is None:
                continue
            raise InvalidInputError(f"{name} is an async iterable: use {twin}")
        if callable(getattr(given, "lazy_load", None)):
            raise InvalidInputError(f"{name} is a loader: pass its lazy_load()")
        if hasattr(given, "page_content"):
            raise InvalidInputError(f"{name} is one document: pass a list of them")
        kind = type(given).__name__
        if name == "ids" and (advice := no_rows(given, "id")) is not None:
            raise InvalidInputError(f"ids must be a list of ids, not {advice}")
        if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
            raise InvalidInputError(f"{name} must be an iterable, not {kind}")


def _metadata_check(store: VectorStore) -> Callable[[Mapping[Any, Any]], str | None] | None:
    """Return a check for numbers that ``store`` would silently change; only Chroma does."""
    is_chroma = any(base.__name__ == "Chroma" for base in type(store).__mro__)
    return number_problem if is_chroma else None


def _run(
    store: VectorStore,
    documents: Any,
    ids: Any,
    embedder: _Embedder,
    on_refused: OnRefused,
    on_blank: OnRefused,
    on_too_long: OnTooLongOrCollect | None,
    progress: Callable[[int], object] | None,
    slice_size: int,
) -> Run:
    """Return a new run. Lists are checked first, so that errors in them are raised early."""
    blank = checks.one_of("on_blank", on_blank, ON_REFUSED) == "collect"
    refused = checks.one_of("on_refused", on_refused, ON_REFUSED) == "collect"
    size = checks.whole("slice_size", slice_size, 1, 1_000)
    progress = checks.function("progress", progress)
    long = on_too_long != "error"
    settings = embedder.embeddings.client.settings
    check = check_text if long else partial(check_document, settings=settings)

    def new_run() -> Run:
        return Run(size, check, collect_blank=blank, collect_refused=refused, collect_long=long)

    if isinstance(documents, Sequence) and (ids is None or isinstance(ids, Sequence)):
        trial = new_run()
        try:
            trial.take(list(_rows(documents, ids)))
            trial.check()
        finally:
            trial.close()
    run = new_run()
    run.store = embedder.store_name
    run.metadata_problem = _metadata_check(store)
    run.progress = None if progress is None else Callback("progress", progress)
    return run


def _rows(documents: Iterable[Any], ids: Iterable[Any] | None) -> Iterator[Row]:
    names = None if ids is None else iter(ids)
    place = 0
    for place, document in enumerate(documents, 1):
        yield Row(place - 1, document, None if names is None else next(names, MISSING))
    if names is not None and next(names, MISSING) is not MISSING:
        yield Row(place, MISSING, None)


async def _arows(documents: Any, ids: Any) -> AsyncIterator[Row]:
    names = None if ids is None else _aiter(ids)
    place = 0
    async for document in _aiter(documents):
        yield Row(place, document, None if names is None else await anext(names, MISSING))
        place += 1
    if names is not None and await anext(names, MISSING) is not MISSING:
        yield Row(place, MISSING, None)


async def _aiter(items: Any) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _added(run: Run, usage: Usage) -> Added:
    if run.refused:
        refused, left_out = len(run.refused), len(run.left_out)
        named = first_three(run.refused, refused)
        said = f"the server refused {count(refused, 'document')} ({named})"
        if left_out:
            named = first_three(run.left_out, left_out)
            said += f"; {left_out:,} more could not be stored ({named})"
        failed = RefusedTextsError(
            f"{said}; all others are in the store",
            refused={left.place: left.error for left in run.refused},  # type: ignore[misc]
        )
        failed.finished = run.unwritten()
        raise failed
    return Added(run.added, run.present, run.differing, tuple(run.left_out), usage)


# -- embedding -------------------------------------------------------------------------------------


class _Embedder:
    """The embedding object of ``store``, perhaps with another ``on_too_long``, and its usage.

    Raises:
        ConfigurationError: The store's embedding is not a ``NexusFlowEmbeddings``.
    """

    def __init__(self, store: VectorStore, on_too_long: OnTooLongOrCollect | None) -> None:
        if not isinstance(store, VectorStore):
            raise ConfigurationError(
                f"expected a LangChain VectorStore, not {type(store).__name__}"
            )
        embeddings = store.embeddings
        self.store_name = name = type(store).__name__
        if not isinstance(embeddings, NexusFlowEmbeddings):
            kind = "not known" if embeddings is None else f"a {type(embeddings).__name__}"
            raise ConfigurationError(
                f"the embedding of this {name} is {kind}: create the store with NexusFlowEmbeddings"
            )
        self.of_store = embeddings
        if on_too_long is not None:
            checks.one_of("on_too_long", on_too_long, (*ON_TOO_LONG, "collect"))
            policy = "error" if on_too_long == "collect" else on_too_long
            if policy != embeddings.on_too_long:
                embeddings = embeddings.model_copy(update={"on_too_long": policy})
        self.embeddings: NexusFlowEmbeddings = embeddings
        own = type(embeddings)
        self._streams = (
            own.embed_documents is NexusFlowEmbeddings.embed_documents
            and own.aembed_documents is NexusFlowEmbeddings.aembed_documents
            and embeddings.rate_limiter is None
            and not _is_traced()
        )
        self.part: _Part | None = None
        self._parts: list[Usage] = []
        self._before = embeddings.client.usage

    @property
    def usage(self) -> Usage:
        client = self.embeddings.client
        if self._streams:
            return sum(self._parts, Usage(price=client.usage.price))
        return client.usage - self._before

    @property
    def recorded(self) -> Mapping[str, Vectors] | None:
        """The vectors of the last embedded part of the stream, by the text that was sent."""
        return None if self.part is None else self.part.recorded

    def stream(self, texts: Iterable[str]) -> Generator[Result, None, None]:
        """Yield the result of every text, in order, and the vectors by the text that was sent."""
        if self._streams:
            client = self.embeddings.client._counted(self._parts.append)
            with closing(client.embed_stream(texts)) as stream:
                for embedded in stream:
                    yield embedded, None
            return
        # Call the public method, which takes a list: only that method applies the rate limiter,
        # traces and the changes of a subclass.
        rest, start = iter(texts), 0
        while chunk := list(islice(rest, SLICE)):
            part = self.part = _Part(chunk, start)
            while not part.done:
                with part:
                    part.took(self.embeddings.embed_documents(part.texts))
            yield from part.results()
            start += len(chunk)

    async def astream(self, texts: AsyncIterable[str]) -> AsyncGenerator[Result, None]:
        if self._streams:
            client = self.embeddings.client._counted(self._parts.append)
            async with aclosing(client.aembed_stream(texts)) as stream:
                async for embedded in stream:
                    yield embedded, None
            return
        start = 0
        async for chunk in _chunks(texts):
            part = self.part = _Part(chunk, start)
            while not part.done:
                with part:
                    part.took(await self.embeddings.aembed_documents(part.texts))
            for result in part.results():
                yield result
            start += len(chunk)


Result = tuple[Embedded, "Mapping[str, Vectors] | None"]
"""The result for a text, and the vectors by the texts that were sent if these may differ."""


class _Part:
    """Texts that one call embeds; a context manager that catches the errors of single texts.

    Args:
        texts: The texts of a part of the stream.
        start: Index of the first of them in the stream.
    """

    def __init__(self, texts: list[str], start: int) -> None:
        self._all = texts
        self._start = start
        self._left = list(range(len(texts)))
        self._found: dict[int, Any] = {}
        self.recorded: dict[str, Vectors] = {}

    @property
    def done(self) -> bool:
        return not self._left

    @property
    def texts(self) -> list[str]:
        """The texts without a result so far."""
        return [self._all[place] for place in self._left]

    def took(self, rows: Sequence[Any]) -> None:
        self._found.update(zip(self._left, rows, strict=True))
        self._left = []

    def __enter__(self) -> None:
        self._token = _recorded.set(self.recorded)

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> bool:
        _recorded.reset(self._token)
        if isinstance(error, RefusedTextsError):
            rows = {**error.finished, **error.refused}
            self.took([rows[place] for place in range(len(self._left))])
        elif isinstance(error, BadRequestError) and len(self._left) == 1:
            self.took([error])
        elif isinstance(error, InvalidInputError) and error.index is not None:
            self._found[self._left.pop(error.index)] = error  # the other texts were not sent
        else:
            if isinstance(error, NexusFlowError):
                places = [self._start + place for place in self._left]
                error.finished = {places[place]: row for place, row in error.finished.items()}
            return False
        return True

    def results(self) -> Iterator[Result]:
        """Yield the results of all texts, in order."""
        for place in range(len(self._all)):
            found, index = self._found[place], self._start + place
            if isinstance(found, NexusFlowError):
                yield Embedded(index, None, found), None
            else:
                yield Embedded(index, np.asarray(found, np.float32)), self.recorded


async def _chunks(texts: AsyncIterable[str]) -> AsyncIterator[list[str]]:
    chunk: list[str] = []
    async for text in texts:
        chunk.append(text)
        if len(chunk) == SLICE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# -- writing to the store --------------------------------------------------------------------------


def _stored(store: Any, ids: Sequence[str]) -> Sequence[Document]:
    """Return the documents that ``store`` has under ``ids``."""
    try:
        found: Sequence[Document] = store.get_by_ids(ids)
    except ValidationError:
        # langchain-chroma (1.1) cannot make a Document of a record without metadata.
        if not callable(getattr(store, "get", None)):
            raise
        rows = store.get(ids=ids)
        found = [
            Document(text, id=name, metadata=metadata or {})
            for name, text, metadata in zip(
                rows["ids"], rows["documents"], rows["metadatas"], strict=True
            )
            if text is not None
        ]
    return found


class _Filling:
    """Moves documents from the source into the store: reads, looks up, embeds and writes them."""

    def __init__(self, store: VectorStore, embedder: _Embedder, run: Run) -> None:
        self._store = store
        self._embedder = embedder
        self._run = run

    def fill(self, rows: Iterator[Row]) -> None:
        run = self._run
        try:
            with closing(self._embedder.stream(self._missing(rows))) as stream:
                for embedded, sent in stream:
                    run.add(embedded, sent)
                    self._write(run.full)
            self._write(run.rest)
        except NexusFlowError as error:
            run.rescue(error, self._embedder.recorded)
        finally:  # after an error, write what is ready
            self._write(run.rest)
        run.check()

    def _missing(self, rows: Iterator[Row]) -> Iterator[str]:
        # After an error, stop reading, so that requests in flight finish and are written first.
        while self._run.should_read:
            chunk: list[Row] = []
            with self._run.ending():
                for row in islice(rows, self._run.size):
                    chunk.append(kept(row))  # noqa: PERF401 - keep the rows before an error
            if not chunk:
                return
            with self._run.ending():
                self._look_up(self._run.take(chunk))
                yield from self._run.compare()

    def _look_up(self, ids: list[str]) -> None:
        for part in self._run.look_ups(ids):
            try:
                self._run.found(_stored(self._store, part))
            except NotImplementedError:  # noqa: PERF203 - each part may fail
                return
            except Exception as error:
                if raised_by_signal_handler(error):
                    raise
                self._run.look_up_failed(error)

    def _write(self, batches: Callable[[], Iterator[list[Ready]]]) -> None:
        for batch in batches():
            for part in self._run.parts(batch):
                self._run.wrote(self._attempt(part))

    def _attempt(self, part: Sequence[Ready]) -> Exception | None:
        with self._embedder.of_store._holding(*vectors_of(part)):
            try:
                self._store.add_documents(
                    [item.document for item in part], ids=[item.id for item in part]
                )
            except Exception as error:  # stores raise errors of any class
                if raised_by_signal_handler(error):
                    raise
                return error
        return None


class _AsyncFilling:
    """Moves documents with a store's async methods, one call to the store at a time."""

    def __init__(self, store: VectorStore, embedder: _Embedder, run: Run) -> None:
        self._store = store
        self._embedder = embedder
        self._run = run
        self._turn = asyncio.Lock()

    async def fill(self, rows: AsyncIterator[Row]) -> None:
        run = self._run
        try:
            async with aclosing(self._embedder.astream(self._missing(rows))) as stream:
                async for embedded, sent in stream:
                    run.add(embedded, sent)
                    await self._write(run.full)
            await self._write(run.rest)
        except NexusFlowError as error:
            run.rescue(error, self._embedder.recorded)
        finally:
            await self._write(run.rest)
        run.check()

    async def _missing(self, rows: AsyncIterator[Row]) -> AsyncIterator[str]:
        while self._run.should_read:
            chunk: list[Row] = []
            with self._run.ending():
                async for row in rows:
                    chunk.append(kept(row))
                    if len(chunk) == self._run.size:
                        break
            if not chunk:
                return
            with self._run.ending():
                await self._look_up(await asyncio.to_thread(self._run.take, chunk))
                for text in self._run.compare():
                    yield text

    async def _look_up(self, ids: list[str]) -> None:
        for part in self._run.look_ups(ids):
            try:
                async with self._turn:
                    try:
                        found: Sequence[Document] = await self._store.aget_by_ids(part)
                    except ValidationError:
                        found = await asyncio.to_thread(_stored, self._store, part)
                self._run.found(found)
            except NotImplementedError:  # noqa: PERF203 - each part may fail
                return
            except Exception as error:  # noqa: BLE001
                self._run.look_up_failed(error)

    async def _write(self, batches: Callable[[], Iterator[list[Ready]]]) -> None:
        for batch in batches():
            for part in self._run.parts(batch):
                writing = asyncio.create_task(self._attempt(part))
                was_cancelled = True
                try:
                    await asyncio.wait([writing])
                    was_cancelled = False
                finally:
                    await self._end(writing, was_cancelled=was_cancelled)

    async def _end(
        self, writing: asyncio.Task[BaseException | None], *, was_cancelled: bool
    ) -> None:
        """Record the outcome of a write; if this task was cancelled, wait for it first.

        Many stores write in a thread, which goes on after the task is cancelled. A store that only
        appends would otherwise get the documents of this write twice. The same is true if both
        tasks were cancelled, as ``asyncio.run`` does at its end: nobody knows what was written.
        """
        try:
            if not writing.done():
                await asyncio.wait([writing], timeout=LAST_WRITE)
        finally:
            writing.cancel()  # no effect on a write that has ended
            is_unknown = not writing.done() or (was_cancelled and writing.cancelled())
            error = TimeoutError("cancelled") if is_unknown else writing.result()
            if error is not None and not isinstance(error, Exception):
                raise error
            self._run.wrote(error)

    async def _attempt(self, part: Sequence[Ready]) -> BaseException | None:
        with self._embedder.of_store._holding(*vectors_of(part)):
            try:
                async with self._turn:
                    await self._store.aadd_documents(
                        [item.document for item in part], ids=[item.id for item in part]
                    )
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - Ctrl-C in a task would end the loop
                return error
        return None
