"""Collects the vectors of a call, and defines the types that callers get."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from nexusflow_integrations._core.counts import first_three
from nexusflow_integrations._core.request.batching import Batch, Item
from nexusflow_integrations._core.sizes import cut_to_size
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import (
    APIStatusError,
    InvalidInputError,
    InvalidResponseError,
    NexusFlowError,
    RefusedTextsError,
)


class EmbeddingArray(np.ndarray[Any, np.dtype[np.float32]]):
    """A float32 array with ``usage``; its shape is (n, d) for a list of texts, (d,) for one text.

    Arrays that are derived from it (slices, sums) have ``usage`` None, because usage belongs to the
    whole call.
    """

    usage: Usage | None
    _lists: RowLists | None

    def __array_finalize__(self, source: Any) -> None:
        self.usage = self._lists = None

    def tolist(self) -> Any:
        """Return the numbers as lists of floats; faster if the call has made some of them.

        Raises:
            NexusFlowError: There is not enough memory for them, in an adapter's call for lists; the
                error's ``finished`` holds the vectors as arrays.
        """
        lists, self._lists = self._lists, None
        if lists is None:
            return super().tolist()
        vectors = np.asarray(self)
        try:
            return lists.finish(vectors)
        except MemoryError as cause:
            error = NexusFlowError(
                "there is not enough memory for the vectors as lists of floats; this error's"
                " `finished` holds them as arrays"
            )
            error.finished = dict(enumerate(vectors))
            raise error from cause


class EmbeddingList(list[Any]):
    """Vectors in order, with ``None`` for texts that were left out; ``"collect"`` returns this.

    Attributes:
        refused: The server's error for each text that it refused, by index.
        left_out: The error for each text without a vector (refused, blank or too long), by index.
        usage: The tokens, requests and cost of the call.
    """

    def __init__(
        self,
        rows: Iterable[Vectors | None],
        refused: Mapping[int, APIStatusError],
        usage: Usage,
        unsent: Mapping[int, InvalidInputError] = MappingProxyType({}),
    ) -> None:
        super().__init__(rows)
        self.refused = dict(refused)
        self.left_out: dict[int, NexusFlowError] = dict(sorted({**unsent, **refused}.items()))
        self.usage = usage


ROWS_AT_ONCE = 64
"""Number of rows that are converted at once; with 1024 numbers each, they take about 3 ms."""
PAUSE = 0.002
"""Seconds without a response after which rows are converted."""
MOST_WAITING = 4096
"""Maximum number of rows that wait for a ``PAUSE``.

Beyond that, rows are converted while responses arrive, so that at most 0.1 s of work is left for
the end (with 1024 numbers a row).
"""


class RowLists:
    """Rows as lists of floats, made on the event loop while requests are pending.

    Making the lists takes several times as long as decoding the rows. If that happened after the
    last response, the caller would wait for it. If it happened while responses arrive, the next
    requests would be sent later. So rows are converted when no response has arrived for ``PAUSE``
    seconds. A sync caller makes the rest in its own thread; in the main thread, allocating them
    takes fewer system calls.
    """

    def __init__(self, count: int) -> None:
        self._rows: list[Any] = [None] * count  # lists of floats, or None if not converted yet
        self._waiting: deque[tuple[Sequence[int], Vectors]] = deque()
        self._count = 0  # of waiting rows
        self._pause_at = 0.0
        self._is_scheduled = False

    def add(self, places: Sequence[int], vectors: Vectors) -> None:
        for start in range(0, len(places), ROWS_AT_ONCE):
            stop = start + ROWS_AT_ONCE
            self._waiting.append((places[start:stop], vectors[start:stop]))
        self._count += len(places)
        loop = asyncio.get_running_loop()
        self._pause_at = loop.time() + PAUSE
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_at(self._pause_at, self._make)

    def _make(self) -> None:
        if not self._waiting:
            self._is_scheduled = False
            return
        loop = asyncio.get_running_loop()
        if self._count <= MOST_WAITING and loop.time() < self._pause_at:
            loop.call_at(self._pause_at, self._make)
            return
        places, vectors = self._waiting.popleft()
        self._count -= len(places)
        loop.call_soon(self._make)  # schedule the next rows first, in case these fail
        for place, row in zip(places, vectors.tolist(), strict=True):
            self._rows[place] = row

    def stop(self) -> None:
        """Convert no more rows on the event loop."""
        self._waiting.clear()
        self._count = 0

    async def of(self, vectors: Vectors) -> list[list[float]]:
        """Return all rows of ``vectors``; rows that are not converted yet are converted now."""
        for _ in self._rest(vectors):
            await asyncio.sleep(0)  # let other tasks of the loop run
        return self._rows

    def finish(self, vectors: Vectors) -> list[list[float]]:
        """Return all rows like ``of``, in any thread, after ``stop``."""
        for _ in self._rest(vectors):
            pass
        return self._rows

    def _rest(self, vectors: Vectors) -> Iterator[None]:
        """Convert what is missing, and yield before every part but the first."""
        rows = self._rows
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            stop = start + ROWS_AT_ONCE
            some, part = rows[start:stop], vectors[start:stop]
            missing = some.count(None)
            if not missing:
                continue
            if start:
                yield
            try:
                if missing == len(some):  # all at once is faster than row by row
                    rows[start:stop] = part.tolist()
                else:
                    rows[start:stop] = [
                        vector.tolist() if row is None else row
                        for row, vector in zip(some, part, strict=True)
                    ]
            except MemoryError:  # the error with the vectors needs the memory of these lists
                rows.clear()
                raise


class CallResults:
    """The results of one call: rows by index in one array, refusals, and calls that wait for rows.

    ``lists`` is set if the caller wants lists of floats. ``cut_to`` is the size to which larger
    vectors are cut; ``uncut`` then holds the larger vectors that are not stored yet. ``lent`` holds
    the indices of the rows that other calls want, too. After ``part``, the caller may change its
    array, so ``parted`` holds a copy of these rows. ``thread`` is the id of the thread that made
    the call, and ``is_of_loop`` says whether an event loop runs the caller there. ``is_expected``
    says whether calls that want a row may not have reached the background loop yet.
    """

    cut_to: int | None = None
    thread: int | None = None
    is_of_loop = False
    is_expected = False

    def __init__(
        self,
        count: int,
        on_progress: Callable[[int], object] | None = None,
        *,
        lists: RowLists | None = None,
    ) -> None:
        self.count = count
        self._on_progress = on_progress
        self._fresh = 0
        self.vectors: Vectors | None = None
        self.refusals: dict[int, APIStatusError] = {}
        self.unsent: Mapping[int, InvalidInputError] = {}
        self.done = bytearray(count)
        self.duplicates: Mapping[int, int] = {}  # number of duplicates of each text, by index
        self.waiting: dict[int, list[asyncio.Future[None]]] = {}
        self.lists = lists
        self.uncut: dict[int, Vectors] = {}
        self.derived = 0
        self.lent: set[int] = set()
        self.parted: dict[int, Vectors] | None = None

    def rows(self, batch: Batch, vectors: Vectors) -> None:
        if self.cut_to is not None:
            self.uncut.update(zip((item.index for item in batch), vectors, strict=True))
            vectors = cut_to_size(vectors, self.cut_to)
            self.derived += len(batch)
        places = [item.index for item in batch]
        first = places[0]
        array = self._array(vectors.shape[1])
        if places == list(range(first, first + len(batch))):
            array[first : first + len(batch)] = vectors
            vectors = array[first : first + len(batch)]  # so that the response's memory is freed
            self.done[first : first + len(batch)] = b"\1" * len(batch)
        else:  # the batch skips texts that are not sent, or that were looked up again
            array[places] = vectors
            for place in places:
                self.done[place] = 1
        if self.lists is not None:
            self.lists.add(places, vectors)
        self._fresh += len(batch)
        if self.duplicates:
            self._fresh += sum(self.duplicates.get(place, 0) for place in places)
        if self.waiting:
            for item in batch:
                self._wake(item.index)

    def row(self, index: int, vector: Vectors) -> None:
        """Take one row that did not have to be requested."""
        if self.cut_to not in (None, vector.shape[0]):
            vector = cut_to_size(vector, self.cut_to)
            self.derived += 1
        self._array(vector.shape[0])[index] = vector
        self.done[index] = 1
        self._fresh += 1 + self.duplicates.get(index, 0)
        if self.waiting:
            self._wake(index)

    def refused(self, item: Item, error: APIStatusError) -> None:
        self.refuse(item.index, error)

    def is_refused(self, item: Item) -> bool:
        return item.index in self.refusals

    def leave_out(self, errors: Mapping[int, InvalidInputError]) -> None:
        """Take the errors of texts that are not sent."""
        self.unsent = errors
        self._fresh += len(errors)

    def refuse(self, index: int, error: APIStatusError) -> None:
        self.refusals[index] = error
        self._fresh += 1 + self.duplicates.get(index, 0)
        if self.waiting:
            self._wake(index)

    def repeat(self, index: int, original: int) -> None:
        """Give ``index``, a duplicate of ``original``, the same row or refusal."""
        if original in self.refusals:
            self.refusals[index] = self.refusals[original]
        elif self.done[original] and self.vectors is not None:
            self.vectors[index] = self.vectors[original]
            self.done[index] = 1

    def report(self) -> None:
        """Report to the caller how many texts were settled since the last report."""
        if self._on_progress is not None and self._fresh:
            fresh, self._fresh = self._fresh, 0
            self._on_progress(fresh)

    def takes(self, size: int) -> bool:
        """Return whether a row of ``size`` numbers fits the existing rows."""
        if self.cut_to is not None:
            return size == self.cut_to
        return self.vectors is None or self.vectors.shape[1] == size

    def _array(self, size: int) -> Vectors:
        if self.vectors is None:
            self.vectors = np.empty((self.count, size), dtype=np.float32)
        elif self.vectors.shape[1] != size:
            raise InvalidResponseError(
                f"some vectors have {size} dimensions and others {self.vectors.shape[1]}; pass"
                " dimensions=..., and clear the cache if the server's default has changed"
            )
        return self.vectors

    def _wake(self, index: int) -> None:
        for waiter in self.waiting.pop(index, ()):
            if not waiter.done():
                waiter.set_result(None)

    def may_be_awaited_by(self, other: CallResults) -> bool:
        """Return whether the call of ``other`` may wait for this one.

        If both were made in the same thread, a signal handler has interrupted this call to make the
        other one, and must return first.
        """
        return self.thread != other.thread

    def record_waiter(self) -> None:
        """Record that another call begins to wait for a row; the background loop calls this."""

    def settled(self, index: int) -> bool:
        """Return whether there is a row or a refusal for ``index``."""
        return bool(self.done[index]) or index in self.refusals

    def part(self) -> None:
        """Copy the rows that other calls may still read, before the caller gets the array."""
        if self.parted is None:
            # Copy the set with `list`, in one step: a call on the loop may add to the set
            # meanwhile.
            wanted = range(self.count) if self.is_expected else list(self.lent)
            self.parted = {index: self._copied(index) for index in wanted if self.done[index]}

    def lend(self, index: int) -> Vectors | None:
        """Return a copy of a row for another call, or ``None`` if there is none."""
        if not self.done[index] or self.vectors is None:
            return None
        row = self._copied(index)
        # Look this up after copying: the caller, in another thread, may have got the array
        # meanwhile.
        return row if self.parted is None else self.parted.get(index)

    def _copied(self, index: int) -> Vectors:
        assert self.vectors is not None
        row: Vectors = self.vectors[index].copy()
        return row

    def settling(self, index: int) -> asyncio.Future[None]:
        """Return a future that is done when ``index`` is settled or the call has ended."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(index, []).append(waiter)
        return waiter

    def wake_all(self) -> None:
        """Wake all calls that still wait, because this call ends without their texts."""
        for index in list(self.waiting):
            self._wake(index)

    async def make_lists(self) -> None:
        """Convert all rows to lists for an event loop; a thread makes the rest itself."""
        if self.vectors is None or self.refusals:
            self.lists = None
        elif self.lists is not None and self.is_of_loop:
            await self.lists.of(self.vectors)

    def rows_at(self, places: Sequence[int]) -> Vectors:
        """Return a float32 copy, of shape (m, d), of the rows at ``places``, which are all done."""
        if self.vectors is None:
            return np.empty((0, 0), dtype=np.float32)
        rows: Vectors = self.vectors[list(places)]
        return rows

    def received(self, places: Sequence[int]) -> Vectors:
        """Return a float32 copy, of shape (m, d), of the rows as the server sent them.

        Each row can be requested only once.
        """
        if self.cut_to is None:
            return self.rows_at(places)
        return np.stack([self.uncut.pop(place) for place in places])

    def finished(self) -> dict[int, Vectors]:
        """Return the finished rows, by index."""
        if self.vectors is None:
            return {}
        return {index: self.vectors[index] for index, done in enumerate(self.done) if done}

    def result(
        self, usage: Usage, *, single: bool, collect: bool, gaps: bool = False
    ) -> EmbeddingArray | EmbeddingList:
        """Return the result for the caller, once the call has ended.

        Args:
            usage: The usage of the call.
            single: Whether the input was one text.
            collect: Whether refused texts are ``None`` in the result, instead of an error.
            gaps: Whether the caller expects a list even if ``collect`` is false.

        Raises:
            RefusedTextsError: Some texts were refused, and refusals are not collected.
        """
        refusals, vectors = self.refusals, self.vectors
        if refusals and (single or not collect):
            raise self.refused_error()
        if self.done.count(1) + len(refusals) + len(self.unsent) != self.count:
            error = NexusFlowError(
                "the call ended without all vectors; this is a bug in this package"
            )
            error.finished = self.finished()
            raise error
        if (collect or gaps) and not single:
            rows = [
                vectors[index] if self.done[index] and vectors is not None else None
                for index in range(self.count)
            ]
            return EmbeddingList(rows, refusals, usage, self.unsent)
        if vectors is None:
            raise NexusFlowError("the call ended without vectors; this is a bug in this package")
        array = (vectors[0] if single else vectors).view(EmbeddingArray)
        array.usage, array._lists = usage, self.lists
        return array

    def refused_error(self) -> NexusFlowError:
        """Return the error of a call with refused texts; ``finished`` holds the other vectors."""
        refusals = self.refusals
        if self.count == 1:
            return refusals[0]
        reasons = (f"text {index}: {refusals[index]}" for index in sorted(refusals))
        error = RefusedTextsError(
            f"the server refused {len(refusals)} of {self.count} texts"
            f" ({first_three(reasons, len(refusals))});"
            " the others are in this error's `finished`",
            refused=refusals,
        )
        error.finished = self.finished()
        return error
