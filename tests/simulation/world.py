"""Simulated time: runs event loops and outside events one step at a time.

Nothing here waits. When all loops are idle, the clock jumps to the next timer or event. The seed
decides what asyncio and the operating system leave open: which of several loops runs next, and the
order of simultaneous events.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import sys
from asyncio import base_events
from collections.abc import AsyncGenerator, Callable
from itertools import count
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from .process import Process
    from .store import ScriptedStore

START = 1000.0
"""Monotonic time in seconds at the start of every run."""
TURN = 5e-6
"""Seconds for one turn of a loop."""
CHECKED_EVERY = 16
"""Turns between checks whether the run is over."""
MOST_TURNS = 400_000
"""A run with more turns counts as an endless loop."""


class Broken(AssertionError):
    """A run violated an invariant; the message begins with its name."""


class World:
    """A clock, loops and events, and a record of what happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = START
        self.wall_clock_ahead = 1.8e9 - START
        self.loops: list[Loop] = []
        self.complaints: list[tuple[Process, str]] = []
        self.stores: list[ScriptedStore] = []
        self.running: Process | None = None
        self.trace: list[tuple[Any, ...]] = []
        self._generators: dict[int, Loop] = {}
        self._events: list[tuple[float, float, int, Callable[[], object]]] = []
        self._number = count()
        self._order = random.Random(f"order {seed}")

    def note(self, what: str, *details: object) -> None:
        """Add a line to the record."""
        self.trace.append((round(self.now, 6), what, *details))

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        """Call ``do`` outside of all loops, ``seconds`` from now."""
        event = (self.now + seconds, self._order.random(), next(self._number), do)
        heapq.heappush(self._events, event)

    def run(self, is_over: Callable[[], bool], *, at_most: float) -> bool:
        """Run until ``is_over``; return ``False`` if that takes more than ``at_most`` seconds."""
        end = self.now + at_most
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._adopt, self._finalize)
        try:
            for turn in range(MOST_TURNS):
                if turn % CHECKED_EVERY == 0 and is_over():
                    return True
                if not self._go_on(end):
                    self.now = max(self.now, end)
                    return is_over()
        finally:
            sys.set_asyncgen_hooks(*hooks)
        raise Broken("it ends: the loops run endlessly")

    def _adopt(self, generator: AsyncGenerator[Any, Any]) -> None:
        loop = self._generators[id(generator)] = cast(Loop, asyncio.get_running_loop())
        loop._asyncgen_firstiter_hook(generator)

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators.pop(id(generator))._asyncgen_finalizer_hook(generator)

    def _go_on(self, end: float) -> bool:
        """Run one turn of a loop or one event; return ``False`` if there is none before ``end``."""
        now, events = self.now, self._events
        soonest = events[0][0] if events else float("inf")
        due = soonest <= now
        loops = []
        for loop in self.loops:
            if not loop.process.runs:
                continue
            if loop._ready:
                loops.append(loop)
            elif loop._scheduled:
                at = loop._scheduled[0].when()
                if at <= now:
                    loops.append(loop)
                soonest = min(soonest, at)
        if not loops and not due:
            if soonest > end:
                return False
            self.now = soonest
            return True
        choice = int(self._order.random() * (len(loops) + due))
        if choice < len(loops):
            self.now += TURN
            loops[choice].turn()
        else:
            heapq.heappop(events)[-1]()
        return True


class Loop(base_events.BaseEventLoop):
    """asyncio's loop without sockets, on the clock of a ``World``, which runs each turn."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__()
        self._world = world
        self.process = process
        self._tasks: list[asyncio.Task[Any]] = []
        self._selector = self  # the base class asks this for ready sockets
        world.loops.append(self)

    def time(self) -> float:
        return self._world.now

    def select(self, timeout: float | None) -> tuple[()]:
        return ()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._world.complaints.append((self.process, f"{context.get('message')}: {context!r}"))

    def _process_events(self, events: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **options)
        self._tasks.append(task)
        return task

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """Tasks that have not ended."""
        self._tasks = [task for task in self._tasks if not task.done()]
        return self._tasks

    def turn(self) -> None:
        """Run ready callbacks, as ``run_forever`` does."""
        self._world.running = self.process
        asyncio._set_running_loop(self)
        try:
            self._run_once()
        finally:
            asyncio._set_running_loop(None)
            self._world.running = None
