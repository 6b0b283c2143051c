"""A scripted store: the real cache file, which is sometimes slow, locked, missing or failing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nexusflow_integrations._core.cache.cache import PATIENCE, Cache
from nexusflow_integrations._core.cache.file import BUSY_SECONDS
from nexusflow_integrations._core.cache.in_file import Claimed, VectorStore
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations._core.vectors import Vectors

from .process import Wait
from .world import World

T = TypeVar("T")


@dataclass
class StoreScript:
    """The behaviour of the file.

    Attributes:
        locks: (from, to): another process locks it.
        gone: The time in seconds from which it cannot be used.
        raises: Probability that a call fails.
    """

    locks: list[tuple[float, float]] = field(default_factory=list)
    gone: float = float("inf")
    raises: float = 0.0


class ScriptedStore(VectorStore):
    """The cache file, as one process sees it."""

    def __init__(self, path: str, world: World) -> None:
        super().__init__(path)
        assert world.running is not None
        self._process = world.running
        self._world = world
        self._script: StoreScript = self._process.store_script
        self._chance = random.Random(f"store {self._process.pid} {world.seed}")
        self._is_inside = False
        self._asked_at: dict[str, float] = {}
        world.stores.append(self)

    def open(self) -> None:
        self._call("open", super().open)

    def claim(self, keys: Sequence[bytes], dimensions: int | None, **options: Any) -> Claimed:
        return self._call("claim", super().claim, keys, dimensions, **options)

    def present(self, keys: Sequence[bytes]) -> set[bytes]:
        return self._call("present", super().present, keys)

    def put(self, rows: Sequence[tuple[bytes, Vectors]]) -> None:
        self._call("put", super().put, rows)
        self._process.kept_at.update((key, self._world.now) for key, _ in rows)

    def release(self, keys: Iterable[bytes], call: int = 0) -> None:
        self._call("release", super().release, keys, call)

    def renew(self, keys: Iterable[bytes], call: int = 0) -> None:
        self._call("renew", super().renew, keys, call)

    def confirm(self, keys: Sequence[bytes], call: int = 0) -> set[bytes]:
        return self._call("confirm", super().confirm, keys, call)

    def probe(self) -> None:
        self._call("probe", super().probe)

    def transaction(self) -> AbstractContextManager[Any]:
        return super().transaction() if self._is_inside else self._paced()

    @contextmanager
    def _paced(self) -> Iterator[Any]:
        self._await_turn("pace")
        with super().transaction() as db:
            yield db

    def _call(self, what: str, method: Callable[..., T], *args: Any, **options: Any) -> T:
        if self._is_inside:
            return method(*args, **options)
        self._await_turn(what)
        self._is_inside = True
        try:
            found = method(*args, **options)
        finally:
            self._is_inside = False
        self._world.note(f"{self._process.name} has done {what}", *map(_counted, (*args, found)))
        return found

    def _await_turn(self, what: str) -> None:
        world, script = self._world, self._script
        asked_at = self._asked_at.setdefault(what, world.now)
        self._process.world.note(f"{self._process.name} asks the store", what)
        if world.now >= script.gone or self._chance.random() < script.raises:
            self._give_up(what, "disk I/O error")
        for begin, end in script.locks:
            if begin <= world.now < end:
                left = asked_at + BUSY_SECONDS - world.now
                if left <= 0:
                    self._give_up(what, "database is locked")
                raise Wait(min(left, end - world.now))
        del self._asked_at[what]

    def _give_up(self, what: str, why: str) -> None:
        del self._asked_at[what]
        self._process.lost_store_at = min(self._process.lost_store_at, self._world.now)
        self._world.note(f"{self._process.name} loses the store", why)
        raise StoreUnavailable(why)

    def close_file(self) -> None:
        """Close it as when the process dies: nothing more is written."""
        if self._db is not None:
            self._db.close()
            self._db = None


class NotingCache(Cache):
    """A cache that informs its process when a call continues without waiting for the store."""

    store: ScriptedStore

    def _go_on_without(self, question: Any) -> None:
        self._note()
        super()._go_on_without(question)

    def _turn_off(self, why: BaseException) -> None:
        self._note()
        super()._turn_off(why)

    async def confirm(
        self, keys: Sequence[bytes], call: int, within: float = PATIENCE
    ) -> set[bytes]:
        asked_at = self.store._world.now
        lost = await super().confirm(keys, call, within)
        if self.store._world.now >= asked_at + min(within, PATIENCE):
            self._note()
        return lost

    def _note(self) -> None:
        process = self.store._process
        process.hurried_at = min(process.hurried_at, self.store._world.now)


def _counted(what: object) -> object:
    if isinstance(what, Claimed):
        return f"{len(what.hits)} found, {len(what.mine)} claimed, {len(what.busy)} busy"
    return len(what) if isinstance(what, (list, tuple, dict, set)) else what
