"""Moves documents from the source into the collection: reads, looks up, embeds, writes."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, closing, suppress
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.halving import Halving
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.chroma_collections.embedding import Embedder
from nexusflow_integrations.chroma_collections.pages import Pages, by_ids
from nexusflow_integrations.chroma_collections.plans import (
    Blocking,
    Plan,
    Step,
    acarry_out,
    carry_out,
    refusal_of,
)
from nexusflow_integrations.chroma_collections.records import Record
from nexusflow_integrations.chroma_collections.run import Ready, Run, Stored, stored_by_id
from nexusflow_integrations.chroma_collections.verifying import (
    READ,
    check_same,
    is_due,
    note,
    sampled,
)
from nexusflow_integrations.errors import CollectionError, NexusFlowError

if TYPE_CHECKING:
    from nexusflow_integrations._core.call.estimate import Estimate
    from nexusflow_integrations._core.call.streaming import Embedded
    from nexusflow_integrations._core.vectors import Vectors
    from nexusflow_integrations.chroma_collections.calls import RefusedError

T = TypeVar("T")

ESTIMATED = 1_000
"""Texts whose cost is estimated at once."""
READINGS = 10
"""Attempts at reading all ids while other programs remove documents."""


class _Filling:
    """Fills a collection. The steps are plans for the sync and the async client.

    Args:
        run: The documents that were read but are not written yet.
        calls: Makes the calls to the collection.
        verify: Whether to compare a few vectors of the collection with new ones from the service,
            before the first vector is written.
    """

    def __init__(self, run: Run, calls: Any, *, verify: bool = True) -> None:
        self._run = run
        self._calls = calls
        self._collection = calls.collection
        self._verify = verify
        self._dry_run = False
        self._problem: Exception | None = None

    def check(self) -> None:
        """Raise the error that ended ``missing`` early, if any."""
        if self._problem is not None:
            raise self._problem

    def _begin(self) -> Plan[None]:
        if self._run.where is not None:
            fields = {"where": self._run.where, "limit": 1, "include": []}
            yield Step("reading", self._collection.get, fields)

    def _sample(self) -> Plan[tuple[list[str], list[str], list[Vectors]]]:
        """Return ids, texts and vectors to compare with the service."""
        fields = {"limit": READ, "include": ["documents", "embeddings"]}
        return sampled((yield Step("reading", self._collection.get, fields)))

    def _take(self, records: list[Record]) -> Plan[tuple[Stored, set[str] | None]]:
        """Take the next slice of the source; return its stored documents and the owned ids."""
        yield Blocking(partial(self._run.seen.add, self._run.take(records)))
        if not (ids := self._run.ids):
            return {}, None
        read = by_ids(self._collection, ids, ["documents", "metadatas"])
        stored = stored_by_id((yield from read))
        if self._run.where is None or not stored:
            return stored, None
        read = by_ids(self._collection, [*stored], [], self._run.where)
        return stored, set((yield from read)["ids"])

    def _remove(self) -> Plan[None]:
        pages = self._run.seen.gone(self._run.size)
        while ids := (yield Blocking(partial(next, pages, None))):
            if not self._dry_run:
                yield Step("removing documents", self._collection.delete, {"ids": ids})
            self._run.removed += len(ids)

    def _after(self, plan: Plan[None]) -> Plan[None]:
        """Carry out a plan after ``fill``; an error gets the vectors that could not be written."""
        try:
            yield from plan
        except NexusFlowError as error:
            error.finished = self._run.unwritten()
            raise

    def _keep(self) -> Plan[None]:
        with suppress(NexusFlowError):  # the error that is being raised gets the vectors
            yield from self._write(self._run.rest())

    def _write_on(self, writes: Iterator[list[Ready]]) -> Plan[None]:
        """Write; after a write has failed, only collect the vectors still in flight."""
        if isinstance(self._problem, CollectionError):
            return
        try:
            yield from self._write(writes)
        except CollectionError as error:
            self._problem = error

    def _write(self, writes: Iterator[list[Ready]]) -> Plan[None]:
        for batch in writes:
            rows = Halving(batch)
            try:
                while part := rows.next:
                    error = yield from self._put(part)
                    if error is None:
                        rows.stored()
                        self._run.written(part)
                    elif (item := rows.refused()) is not None:
                        self._run.refused_by_store(item, error)
            except BaseException:
                self._run.put_back(rows.left)
                raise

    def _put(self, part: Sequence[Ready]) -> Plan[RefusedError | None]:
        """Write; return the error if the store refused the documents."""
        if self._dry_run:
            return None
        method, fields = self._run.fields(part)
        what = f"writing {count(len(part), 'document')}"
        return (yield from refusal_of(Step(what, getattr(self._collection, method), fields)))


def note_gone(run: Run, collection: Any) -> Plan[None]:
    """Collect the ids of ``collection`` that the source no longer has.

    Raises:
        CollectionError: Other programs removed documents during each of ``READINGS`` readings.
    """
    for _ in range(READINGS):
        pages = Pages(collection, [], where=run.where)
        while found := (yield from pages.next_ids()):
            yield Blocking(partial(run.seen.note_gone, found))
        if found is not None:
            return
        yield Blocking(run.seen.forget_gone)
    raise CollectionError(
        f"reading the ids of collection {collection.name!r} failed: another program keeps removing"
        " documents from it: run this again later"
    )


class Filling(_Filling):
    """Fills a ``Collection``."""

    def _do(self, plan: Plan[T]) -> T:
        return carry_out(plan, self._calls)

    def begin(self) -> None:
        """Let Chroma check the filter before anything is paid for."""
        self._do(self._begin())

    def fill(self, records: Iterable[Record], embedder: Embedder) -> None:
        """Embed and write all ``records``.

        After a failure, the vectors that were already paid for are still written.
        """
        texts = self.missing(records)
        try:
            first = next(texts, None)
            if first is not None and self._verify:
                self._compare(embedder)
            texts = chain(() if first is None else (first,), texts)
            with closing(self._embedded(embedder, texts)) as stream:
                for embedded in stream:
                    self._run.add(embedded)
                    self._do(self._write_on(self._run.full()))
            self._do(self._write_on(self._run.rest()))
            self.check()
            self._run.settle()
        except NexusFlowError as error:
            if not isinstance(error, CollectionError):
                self._do(self._keep())
            error.finished = {**self._run.rescued, **self._run.unwritten()}
            raise
        except BaseException:
            self._do(self._keep())
            raise

    def _embedded(
        self, embedder: Embedder, texts: Iterable[str]
    ) -> Generator[Embedded, None, None]:
        # An error's ``finished`` has the stream's positions only if the stream raised the error.
        with closing(embedder.stream(texts)) as stream:
            try:
                yield from stream
            except NexusFlowError as error:
                self._run.rescue(error)
                raise

    def _compare(self, embedder: Embedder) -> None:
        collection, client = self._collection, embedder.client
        if is_due(client, collection.id):
            ids, texts, rows = self._do(self._sample())
            if texts:
                check_same(collection.name, ids, rows, embedder.again(texts), most=True)
            note(client, collection.id)

    def estimate(self, records: Iterable[Record], embedder: Embedder) -> Usage:
        """Read ``records`` without sending or writing anything; return what a run would cost."""
        self._dry_run = True
        client = embedder.client
        usage = Usage(price=client.usage.price)
        texts = self.missing(records)
        while list(islice(texts, ESTIMATED)):
            chunk = self._run.sendable(client.settings)
            # Only the first call compares the sizes of vectors.
            compare = not usage.texts and bool(chunk)
            usage += _expected(client._estimate(chunk, comparing=compare))
            self._run.pretend()
        self._do(self._write(self._run.rest()))
        self.check()
        return usage

    def missing(self, records: Iterable[Record]) -> Iterator[str]:
        """Yield the documents of ``records`` that must be embedded.

        If there is an error, the iterator ends early and ``check`` raises the error later, so that
        texts in flight are written first.
        """
        rest = iter(records)
        while self._problem is None:
            chunk: list[Record] = []
            try:
                chunk.extend(islice(rest, self._run.size))
            except Exception as error:  # noqa: BLE001 - also errors of the caller's iterables
                self._problem, chunk = error, []
            if not chunk:
                return
            try:
                stored, owned = self._do(self._take(chunk))
            except Exception as error:  # noqa: BLE001 - also errors of a signal handler
                self._problem = error
                return
            yield from self._run.compare(stored, owned)
            try:
                self._do(self._write_on(self._run.full()))
            except Exception as error:  # noqa: BLE001 - a signal handler may raise anything
                self._problem = error

    def gone(self) -> None:
        """Collect the ids that the source no longer has."""
        self._do(self._after(note_gone(self._run, self._collection)))

    def remove(self) -> None:
        """Remove the documents that ``gone`` has collected; after ``estimate``, only count them."""
        self._do(self._after(self._remove()))


class AsyncFilling(_Filling):
    """Fills an ``AsyncCollection`` like ``Filling``."""

    async def _do(self, plan: Plan[T]) -> T:
        return await acarry_out(plan, self._calls)

    async def begin(self) -> None:
        await self._do(self._begin())

    async def fill(self, records: AsyncIterator[Record], embedder: Embedder) -> None:
        texts = self.missing(records)
        try:
            first = await anext(texts, None)
            if first is not None and self._verify:
                await self._compare(embedder)
            texts = _achain(first, texts)
            async with aclosing(self._embedded(embedder, texts)) as stream:
                async for embedded in stream:
                    self._run.add(embedded)
                    await self._do(self._write_on(self._run.full()))
            await self._do(self._write_on(self._run.rest()))
            self.check()
            self._run.settle()
        except NexusFlowError as error:
            if not isinstance(error, CollectionError):
                await self._do(self._keep())
            error.finished = {**self._run.rescued, **self._run.unwritten()}
            raise
        except BaseException:
            await self._do(self._keep())
            raise

    async def _embedded(
        self, embedder: Embedder, texts: AsyncIterable[str]
    ) -> AsyncGenerator[Embedded, None]:
        async with aclosing(embedder.astream(texts)) as stream:
            try:
                async for embedded in stream:
                    yield embedded
            except NexusFlowError as error:
                self._run.rescue(error)
                raise

    async def _compare(self, embedder: Embedder) -> None:
        collection, client = self._collection, embedder.client
        if is_due(client, collection.id):
            ids, texts, rows = await self._do(self._sample())
            if texts:
                fresh = await asyncio.to_thread(embedder.again, texts)
                check_same(collection.name, ids, rows, fresh, most=True)
            note(client, collection.id)

    async def estimate(self, records: AsyncIterator[Record], embedder: Embedder) -> Usage:
        self._dry_run = True
        client = embedder.client
        usage = Usage(price=client.usage.price)
        pending = 0

        async def expect() -> Usage:
            chunk = self._run.sendable(client.settings)
            compare = not usage.texts and bool(chunk)
            found = await asyncio.to_thread(client._estimate, chunk, comparing=compare)
            return usage + _expected(found)

        async for _ in self.missing(records):
            pending += 1
            if pending == ESTIMATED:
                usage = await expect()
                self._run.pretend()
                pending = 0
        usage = await expect()
        self._run.pretend()
        await self._do(self._write(self._run.rest()))
        self.check()
        return usage

    async def missing(self, records: AsyncIterator[Record]) -> AsyncIterator[str]:
        while self._problem is None:
            chunk: list[Record] = []
            try:
                async for record in records:
                    chunk.append(record)
                    if len(chunk) == self._run.size:
                        break
            except Exception as error:  # noqa: BLE001
                self._problem, chunk = error, []
            if not chunk:
                return
            try:
                stored, owned = await self._do(self._take(chunk))
            except Exception as error:  # noqa: BLE001
                self._problem = error
                return
            for text in self._run.compare(stored, owned):
                yield text
            try:
                await self._do(self._write_on(self._run.full()))
            except Exception as error:  # noqa: BLE001 - a signal handler may raise anything
                self._problem = error

    async def gone(self) -> None:
        await self._do(self._after(note_gone(self._run, self._collection)))

    async def remove(self) -> None:
        await self._do(self._after(self._remove()))


async def _achain(first: str | None, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    if first is not None:
        yield first
        async for text in rest:
            yield text


def _expected(estimate: Estimate) -> Usage:
    return Usage(
        requests=estimate.requests,
        texts=estimate.texts,
        cached=estimate.cached,
        repeated=estimate.repeated,
        tokens=estimate.tokens,
        estimated_tokens=estimate.tokens,
        price=estimate.price,
    )
