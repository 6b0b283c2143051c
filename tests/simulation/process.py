"""A simulated process: an engine, its loops and threads, which may be stopped, killed or forked."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core.call import engine as engine_module
from nexusflow_integrations._core.call.background import BackgroundLoop
from nexusflow_integrations._core.call.engine import Engine
from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.request.exchange import Call
from nexusflow_integrations._core.request.transport import Sender

from .threads import ProgramThread, SimulatedBlockingSender
from .world import Loop, World

if TYPE_CHECKING:
    from .server import Server
    from .store import StoreScript


HOP = 50e-6
"""Seconds until a loop gets the result of a thread."""


class Wait(BaseException):
    """Raised by work in a thread that must wait: it is started again after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Process:
    """One process with its background loop and the loop of its program.

    ``delay`` returns random seconds for the work of a thread.
    """

    def __init__(
        self, world: World, server: Server, store_script: StoreScript, delay: Callable[[], float]
    ) -> None:
        self.world = world
        self.server = server
        self.store_script = store_script
        self.delay = delay
        self.lost_store_at = float("inf")
        self.hurried_at = float("inf")  # when a call first went on without the store's answer
        self.kept_at: dict[bytes, float] = {}  # when it had a key's vector stored
        self.pid = 1 + len({loop.process.pid for loop in world.loops})
        self.name = f"process {self.pid}"
        self.runs = self.is_alive = True
        self.stops: list[tuple[float, float]] = []
        self.threads: list[SimulatedThread] = []
        self.program_threads: list[ProgramThread] = []
        self.on_call: Callable[[Call], object] = lambda _: None
        self._held: list[Callable[[], object]] = []
        self.loop = Loop(world, self)
        self.background = _Background(Loop(world, self))
        self.engine = _Engine(self)
        engine_module._engines[self.background] = self.engine

    def later(self, seconds: float, do: Callable[[], object]) -> None:
        """Call ``do`` in another thread after ``seconds``, or when the process is resumed."""
        self.world.after(seconds, partial(self._do, do))

    def _do(self, do: Callable[[], object]) -> None:
        if not self.is_alive:
            return
        if not self.runs:
            self._held.append(do)
            return
        self.world.running = self
        try:
            do()
        finally:
            self.world.running = None

    def stop(self, seconds: float) -> None:
        """Stop the process like SIGSTOP, and continue it after ``seconds``."""
        if not self.runs:
            return
        now = self.world.now
        self.world.note(f"{self.name} stops", seconds)
        self.runs = False
        self.stops.append((now, now + seconds))
        self.world.after(seconds, self._go_on)

    def _go_on(self) -> None:
        if self.is_alive:
            self.world.note(f"{self.name} is resumed")
            self.runs = True
            held, self._held = self._held, []
            for do in held:
                self._do(do)

    def die(self) -> None:
        """End the process like SIGKILL."""
        self.world.note(f"{self.name} dies")
        self.runs = self.is_alive = False
        self.stops.append((self.world.now, float("inf")))

    def stopped_for(self, begin: float, end: float) -> float:
        """Return the seconds between ``begin`` and ``end`` in which the process was stopped."""
        return sum(max(0.0, min(end, to) - max(begin, since)) for since, to in self.stops)


class _Background(BackgroundLoop):
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._closers = []
        self.calls = set()


class _Engine(Engine):
    """The engine, with senders to the scripted server."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.background)
        self._process = process
        self.ended: dict[Call, float] = {}

    def _sender(self, call: Call) -> Sender:
        return self._process.server.sender(self._process, call)

    def _make_sender_here(self, *_: Any) -> Any:
        process = self._process
        name = f"sender {process.world.seed} {process.pid}"
        return SimulatedBlockingSender(process.server, random.Random(name))

    def embed_here(
        self, call: Call, begun: Callable[[], object] | None = None
    ) -> CallResults | None:
        self._process.on_call(call)
        ProgramThread.current().call = call
        results = None
        try:
            results = super().embed_here(call, begun)
        finally:
            if results is not None:
                self.ended[call] = self._process.world.now
        return results

    async def embed(self, call: Call, *args: Any, **options: Any) -> CallResults:
        self._process.on_call(call)
        try:
            return await super().embed(call, *args, **options)
        finally:
            self.ended[call] = self._process.world.now

    def leftovers(self) -> Iterator[str]:
        """Yield everything that calls left behind and should have removed."""
        for endpoint in self._endpoints.values():
            if endpoint.admission.in_flight:
                yield f"{endpoint.admission.in_flight} requests in flight"
            if any(not turn.done() for *_, turn in endpoint.admission._waiting):
                yield "a waiting request in the admission queue"
            if endpoint.admission.threads:
                yield f"{len(endpoint.admission.threads)} requests of calling threads in flight"
        for coalescer in self._coalescers.values():
            if coalescer._carriers:
                yield f"texts registered as in flight: {sorted(coalescer._carriers)}"
            if coalescer._of_threads:
                yield f"texts of calling threads in flight: {sorted(coalescer._of_threads)}"


class SimulatedThread:
    """A ``Worker`` whose work takes no simulated time."""

    def __init__(self, world: World) -> None:
        assert world.running is not None
        self._process = world.running
        self._process.threads.append(self)
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._is_busy = False

    @property
    def is_idle(self) -> bool:
        return not self._jobs and not self._is_busy

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.append((future, work))
        if not self._is_busy:
            self._is_busy = True
            self._process.later(self._process.delay(), self._begin)
        return future

    def _begin(self) -> None:
        while self._jobs:
            future, work = self._jobs.popleft()
            if future.set_running_or_notify_cancel():
                self._work(future, work)
                return
        self._is_busy = False

    def _work(self, future: Future[Any], work: Callable[[], Any]) -> None:
        try:
            report = partial(future.set_result, work())
        except Wait as wait:
            self._process.later(wait.seconds, partial(self._work, future, work))
            return
        except BaseException as error:
            report = partial(future.set_exception, error)
        self._process.later(HOP, partial(self._end, report))

    def _end(self, report: Callable[[], None]) -> None:
        report()
        self._begin()

    def end(self) -> None:
        pass
