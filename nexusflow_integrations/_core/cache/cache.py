"""The cache on the event loop: runs the store in a thread, groups writes, and limits every wait.

Rows that arrive during a commit go into the next commit, so the store keeps up with any rate. A
batch counts as in flight until its rows are committed, so if a process dies, at most the texts in
flight are paid for again.

If the store does not answer within ``PATIENCE``, or reports that it cannot be used (a lock that is
not released, a full disk, an unreachable server), the cache is turned off and all calls immediately
continue without it. The store is retried in the background until it works; then the vectors that
were paid for in the meantime are stored.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from nexusflow_integrations._core.cache.in_file import Claimed, VectorStore
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.offload import Submit, Worker, offload
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import CacheError

if TYPE_CHECKING:
    from pathlib import Path

    from nexusflow_integrations._core.cache.keys import Keyer
    from nexusflow_integrations._core.cache.upkeep import CacheInfo, Pruned


PATIENCE = 3.0
"""Seconds that a call waits for one answer of the store before the cache is turned off."""
GRACE = 0.2
"""Extra seconds, because timers expire while a process is suspended, even if answers are ready."""
FIRST_PAUSE = 1.0
"""Seconds until a cache that is off is retried; each failure doubles them."""
LONGEST_PAUSE = 60.0
CLOSING = 1.0
"""Seconds that the process waits at exit until rows are stored and the store is closed."""
MOST_HELD = 64 << 20
"""Maximum bytes of vectors that wait to be stored: 16,000 vectors of 1024 numbers."""
ROWS_AT_ONCE = 1_000
"""Maximum rows per commit, which takes milliseconds."""

T = TypeVar("T")
Row = tuple[bytes, Vectors]


class Store(Protocol):
    """The storage of vectors: a file (``VectorStore``) or a server (``RedisStore``).

    All methods except ``keyer`` block. All methods except ``keyer`` and ``close`` raise
    ``CacheError`` if the data belongs to another program, and ``StoreUnavailable`` if the store
    cannot be used.
    """

    claim_seconds: float
    """Seconds that a claim is valid unless it is renewed."""

    @property
    def path(self) -> Path | str:
        """The location, for messages."""

    def keyer(self, *, base_url: str, model: str, dimensions: int | None, added: str = "") -> Keyer:
        """Return the function that makes the key of a text."""

    def open(self) -> None:
        """Open or create the store."""

    def claim(
        self,
        keys: Sequence[bytes],
        dimensions: int | None,
        *,
        call: int = 0,
        most: int | None = None,
        sent: bool = False,
    ) -> Claimed:
        """Find stored vectors, and claim at most ``most`` of the keys that nobody is paying for.

        ``call`` identifies the call of this process that owns the claims; ``sent`` marks the claims
        as sent.
        """

    def present(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the ``keys`` that are stored."""

    def put(self, rows: Sequence[tuple[bytes, Vectors]]) -> None:
        """Store vectors, all or none, and end the claims on them."""

    def release(self, keys: Iterable[bytes], call: int = 0) -> None:
        """Give up claims of ``call``."""

    def renew(self, keys: Iterable[bytes], call: int = 0) -> None:
        """Extend claims of ``call`` by ``claim_seconds``."""

    def confirm(self, keys: Sequence[bytes], call: int = 0) -> set[bytes]:
        """Renew claims and mark them as sent; return those that ``call`` no longer holds."""

    def together(self, work: Callable[[], T]) -> T:
        """Do all writes of ``work`` in one transaction if the store has transactions."""

    def probe(self) -> None:
        """Write something without effect, to see whether the store works."""

    def info(self) -> CacheInfo:
        """Describe the contents."""

    def prune(self, *, max_age: float | None = None, max_bytes: int | None = None) -> Pruned:
        """Remove vectors unused for ``max_age`` seconds, and those that exceed ``max_bytes``."""

    def clear(self) -> Pruned:
        """Remove all vectors."""

    def close(self) -> None:
        """Give up all claims. Never raises."""


def store_at(place: bool | str | os.PathLike[str] | RedisAddress) -> Store:
    """Return the store in a file or on a server without opening it; ``True`` is the user's file."""
    if isinstance(place, RedisAddress):
        from nexusflow_integrations._core.cache.in_redis import RedisStore

        return RedisStore(place)
    return VectorStore(place)


class _Watch:
    """Calls ``overdue`` if it is not cancelled within ``PATIENCE``."""

    __slots__ = ("_timer",)

    def __init__(self, overdue: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(PATIENCE, self._wait_on, overdue)

    def _wait_on(self, overdue: Callable[[], object]) -> None:
        self._timer = asyncio.get_running_loop().call_later(GRACE, overdue)

    def cancel(self) -> None:
        self._timer.cancel()


class _PendingRead(Generic[T]):
    """A pending request to the store; ``otherwise`` is the result to use if no answer comes."""

    __slots__ = ("answer", "job", "otherwise", "watch")

    def __init__(self, otherwise: T, watch: _Watch) -> None:
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.otherwise = otherwise
        self.watch = watch
        self.job: Future[T] | None = None

    def give_up(self) -> None:
        if not self.answer.done():
            self.answer.set_result(self.otherwise)

    def cancel(self) -> None:
        """Cancel the request if the store has not started it."""
        if self.job is not None:
            self.job.cancel()


class _PendingWrite:
    """Rows to put, or claims of a call to confirm or release.

    The future ``stored`` is done when nothing needs to wait for the write any longer; its result is
    the keys whose claims were lost.
    """

    __slots__ = ("call", "keys", "lost", "rows", "stored", "to_confirm")

    def __init__(
        self,
        rows: Sequence[Row] = (),
        keys: Sequence[bytes] = (),
        call: int = 0,
        *,
        to_confirm: bool = False,
    ) -> None:
        self.rows = rows
        self.keys = keys
        self.call = call
        self.to_confirm = to_confirm
        self.lost: set[bytes] = set()
        self.stored: asyncio.Future[set[bytes]] = asyncio.get_running_loop().create_future()

    def settle(self) -> None:
        if not self.stored.done():
            self.stored.set_result(self.lost)

    def give_up(self) -> None:
        self.lost = set()
        self.settle()


class Cache:
    """One store, which one event loop uses without being blocked.

    Args:
        store: The store, which is opened at first use.
        submit: Runs a function in the store's thread; by default, in a new thread.
    """

    def __init__(self, store: Store, submit: Submit | None = None) -> None:
        self.store = store
        self._worker = Worker("nexusflow-cache")
        self._submit = submit or self._worker.submit
        self._calls = count(1)
        self._is_off = False
        self._has_worked = False
        self._has_lost = False
        self._pause = FIRST_PAUSE
        self._timer: asyncio.TimerHandle | None = None
        self._reads: dict[_PendingRead[Any], None] = {}  # oldest first
        self._writes: deque[_PendingWrite] = deque()
        self._writing: list[_PendingWrite] | None = None
        self._is_due = False
        self._watch: _Watch | None = None
        self._held = 0
        self._lost = 0

    @property
    def keeps_all(self) -> bool:
        """Whether the cache works and has stored, or still queues, every vector it was given."""
        return self._has_worked and not (self._is_off or self._lost or self._has_lost)

    @property
    def is_idle(self) -> bool:
        """Whether the cache works and nothing waits for it or is to be stored."""
        return not (self._is_off or self._reads or self._writes or self._writing)

    # -- reads and claims ----------------------------------------------------------------------

    def new_call(self) -> int:
        """Return a number that identifies a call in its claims."""
        return next(self._calls)

    async def claim(
        self,
        keys: Sequence[bytes],
        dimensions: int | None,
        within: float = PATIENCE,
        *,
        call: int = 0,
        most: int | None = None,
        sent: bool = False,
    ) -> Claimed:
        """Return stored vectors and claim the rest for ``call``, at most ``most`` keys.

        If the cache is off, or does not answer ``within`` seconds, the caller must pay for all
        texts.

        Raises:
            CacheError: The cache is damaged, is not a cache, or is of a newer version; it was
                not changed.
            ImportError: A package that the store needs is not installed.
        """
        alone = Claimed(hits={}, mine=list(keys[:most]), busy=[], repaid=0)

        def give_back(claimed: Claimed, used: Claimed | None) -> None:
            paid = set() if used is None else set(used.mine)
            self.release([key for key in claimed.mine if key not in paid], call)

        return await self._ask(
            lambda: self.store.claim(keys, dimensions, call=call, most=most, sent=sent),
            alone,
            within,
            unused=give_back,
        )

    async def present(self, keys: Sequence[bytes], within: float = PATIENCE) -> set[bytes]:
        """Return the ``keys`` that the store holds, without claiming any.

        Raises:
            CacheError, ImportError: As ``claim`` does.
        """
        return await self._ask(lambda: self.store.present(keys), set(), within)

    async def renew(self, keys: Sequence[bytes], call: int) -> None:
        """Extend the claims on ``keys``."""
        await self._ask(lambda: self.store.renew(keys, call), None, PATIENCE)

    async def _ask(
        self,
        work: Callable[[], T],
        otherwise: T,
        within: float,
        unused: Callable[[T, T | None], object] = lambda *_: None,
    ) -> T:
        """Return the result of ``work``, or ``otherwise`` if that takes too long.

        ``unused`` receives a result that came too late, and the value with which the call continues
        instead (``None`` if the call was cancelled).
        """
        if self._is_off:
            return otherwise
        read = _PendingRead(otherwise, _Watch(self._overdue))

        def then(result: T) -> None:
            self._answered(read)
            self._has_worked = True
            if not read.answer.done():
                read.answer.set_result(result)
            else:
                unused(result, None if read.answer.cancelled() else otherwise)

        def failed(error: BaseException) -> None:
            self._answered(read)
            if isinstance(error, (CacheError, ImportError)):
                if not read.answer.done():
                    read.answer.set_exception(error)
            elif not isinstance(error, CancelledError):
                self._turn_off(error)
            read.give_up()

        self._reads[read] = None
        read.job = offload(self._submit, work, then, failed)
        hurry = None
        if within < PATIENCE:
            loop = asyncio.get_running_loop()
            hurry = loop.call_later(within, self._go_on_without, read)
        try:
            return await read.answer
        except asyncio.CancelledError:
            read.cancel()
            answer = read.answer
            if not answer.cancelled() and answer.exception() is None:
                unused(answer.result(), None)  # the answer arrived together with the cancellation
            raise
        finally:
            if hurry is not None:
                hurry.cancel()

    def _go_on_without(self, read: _PendingRead[Any]) -> None:
        # The store may later still claim the texts that the call pays for now.
        read.give_up()

    def _answered(self, read: _PendingRead[Any]) -> None:
        read.watch.cancel()
        read.job = None  # break a cycle, which would keep the vectors in memory
        self._reads.pop(read, None)

    # -- writes --------------------------------------------------------------------------------

    def put(self, rows: Sequence[Row], within: float = PATIENCE) -> asyncio.Future[Any] | None:
        """Queue rows to commit, together with others that arrive before the commit starts.

        The rows are kept by reference and must not be changed.

        Returns: A future that is done when the rows are committed, the cache is off, or ``within``
            seconds have passed; ``None`` if there is nothing to wait for.
        """
        size = sum(vector.nbytes for _, vector in rows)
        if self._held + size > MOST_HELD:
            self._lost += len(rows)
            return None
        self._held += size
        write = _PendingWrite(rows)
        self._send(write)
        if self._is_off:
            return None
        if within < PATIENCE:
            asyncio.get_running_loop().call_later(within, write.settle)
        return write.stored

    async def confirm(
        self, keys: Sequence[bytes], call: int, within: float = PATIENCE
    ) -> set[bytes]:
        """Renew the claims of ``call`` on ``keys`` and mark them as sent, in one write with others.

        Return the keys that ``call`` no longer holds and must not send. The result is empty if the
        cache is off or does not answer ``within`` seconds.
        """
        if self._is_off:
            return set()
        write = _PendingWrite((), keys, call, to_confirm=True)
        self._send(write)
        if within < PATIENCE:
            asyncio.get_running_loop().call_later(within, write.settle)
        return await write.stored

    def release(self, keys: Sequence[bytes], call: int) -> None:
        """Release ``keys``, which ``call`` will not pay for."""
        if keys and not self._is_off:  # if the cache is off, the claims expire by themselves
            self._send(_PendingWrite((), keys, call))

    def _send(self, write: _PendingWrite) -> None:
        self._writes.append(write)
        if not (self._is_off or self._is_due or self._writing is not None):
            self._is_due = True
            # Write together with whatever else is ready.
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._is_due = False
        if self._writing is not None:
            return
        writing: list[_PendingWrite] = []
        count = 0
        while self._writes and count < ROWS_AT_ONCE:
            writing.append(self._writes.popleft())
            count += len(writing[-1].rows)
        self._writing = writing
        if not self._is_off:
            self._watch = _Watch(self._overdue)
        work = partial(_write, self.store, writing, is_probe=self._is_off)
        offload(self._submit, work, self._written, self._unwritten)

    def _written(self, _: None) -> None:
        for write in self._end_writing():
            self._held -= sum(vector.nbytes for _, vector in write.rows)
            if write.rows:
                self._pause = FIRST_PAUSE
            write.settle()
        was_off = self._turn_on()
        if self._writes:
            self._write()
        if was_off:
            logger.warning("the cache works again: %s", self.store.path)
            self._tell_lost()

    def _unwritten(self, error: BaseException) -> None:
        writing = self._end_writing()
        for write in writing:
            write.give_up()
        self._writes.extendleft(p for p in reversed(writing) if not p.to_confirm)
        if not self._is_off:
            self._turn_off(error)
        elif isinstance(error, CacheError) and not self._has_worked:
            self._is_off = False  # the next call must get this error before it pays
        else:
            self._try_later()

    def _end_writing(self) -> list[_PendingWrite]:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        writing, self._writing = self._writing or [], None
        return writing

    # -- failure and recovery ------------------------------------------------------------------

    def _overdue(self) -> None:
        self._turn_off(StoreUnavailable(f"{self.store.path} has not answered for {PATIENCE:g} s"))

    def _turn_off(self, why: BaseException) -> None:
        if self._is_off:
            return
        self._is_off = True
        for read in list(self._reads):
            read.give_up()
            read.cancel()
        for write in (*(self._writing or ()), *self._writes):
            write.give_up()
        self._writes = deque(write for write in self._writes if not write.to_confirm)
        self._try_later()
        if isinstance(why, (StoreUnavailable, CacheError)):
            logger.warning("the cache is off until it works again: %s", why)
        else:  # show only the type: the message may contain an address with a password
            logger.warning("the cache is off until it works again: %s", type(why).__name__)

    def _try_later(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._pause, self._try_again)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _try_again(self) -> None:
        self._timer = None
        self._write()  # if a write is still running, its outcome shows whether the cache works

    def _turn_on(self) -> bool:
        """Turn the cache on; return whether it was off."""
        self._has_worked = True
        if not self._is_off:
            return False
        self._is_off = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return True

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            self._has_lost = True
        if lost == 1:
            logger.warning("1 vector was paid for and could not be stored in the cache")
        elif lost:
            logger.warning("%d vectors were paid for and could not be stored in the cache", lost)

    async def close(self) -> None:
        """Store pending rows and close the store; give up after ``CLOSING`` seconds."""
        for timer in (self._timer, self._watch, *(one.watch for one in self._reads)):
            if timer is not None:
                timer.cancel()
        left = [*self._writes]
        self._writes.clear()
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def end(result: bool | BaseException) -> None:
            if not ended.done():
                ended.set_result(result is True)

        offload(self._submit, partial(_write_and_close, self.store, left), end, end)
        await asyncio.wait([ended], timeout=CLOSING)
        if not (ended.done() and ended.result()):
            self._writes.extend(left)
        self._lost += sum(len(one.rows) for one in (*(self._writing or ()), *self._writes))
        self._tell_lost()
        self._worker.end()


def _write(store: Store, writes: Sequence[_PendingWrite], *, is_probe: bool) -> None:
    rows = [row for write in writes for row in write.rows]
    to_confirm: dict[int, list[_PendingWrite]] = {}
    for write in writes:
        if write.to_confirm:
            to_confirm.setdefault(write.call, []).append(write)

    def work() -> None:
        if rows:
            store.put(rows)
        for write in writes:
            if write.keys and not write.to_confirm:
                store.release(write.keys, write.call)
        for call, some in to_confirm.items():
            lost = store.confirm([key for write in some for key in write.keys], call)
            for write in some:
                write.lost = lost.intersection(write.keys)

    store.together(work)
    if is_probe and not rows:
        store.probe()


def _write_and_close(store: Store, writes: Sequence[_PendingWrite]) -> bool:
    try:
        if writes:  # a write would create a file again that was removed
            _write(store, writes, is_probe=False)
    except (StoreUnavailable, CacheError):
        return False
    finally:
        store.close()
    return True
