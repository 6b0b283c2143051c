"""Threads of the program that make sync calls, stepped by the world so that runs are reproducible.

Each is a real thread, but only one thread of a run executes at any time: it runs until it waits for
the network or for the event loop, and then the world goes on. It also pauses between lines of the
modules whose state calling threads and the event loop share without a lock, as often as the seed
decides, and may be interrupted there as by Ctrl-C.
"""

from __future__ import annotations

import json
import queue
import random
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core.call import coalescing, direct, results
from nexusflow_integrations._core.pace import admission
from nexusflow_integrations._core.request import endpoint
from nexusflow_integrations._core.request.exchange import Call
from nexusflow_integrations._core.request.transport import timed_out
from nexusflow_integrations._core.request.wire import Answer, TransportFault

if TYPE_CHECKING:
    from .process import Process
    from .server import Sent, Server

HOP = 50e-6
"""Seconds until a thread runs after it has been woken."""
SHARED = {module.__file__ for module in (admission, coalescing, direct, endpoint, results)}
"""The files between whose lines a thread may pause."""
PAUSES = (0.0, 5e-6, 20e-6, 1e-3, 0.02)
"""Seconds of a pause between two lines."""
UNCONNECTED = 0.1
"""Probability that a thread has no connection, so that the event loop has to send."""

_running = threading.local()


class Buried(BaseException):
    """Raised in a thread to end it when its process was killed."""


class ProgramThread:
    """A thread of ``process``; ``chance`` decides where it pauses, ``paused`` seconds in all."""

    def __init__(self, process: Process, chance: random.Random) -> None:
        self.process = process
        self.call: Call | None = None
        self.sent: Sent | None = None
        self.has_ended = False
        self.interrupted = False
        self.paused = 0.0
        self.connected_from = 0.0
        self._chance = chance
        self._likely = chance.choice([0.0, 0.05, 0.3])
        # Locked until the other side lets go; a semaphore would be slower.
        self._go = threading.Lock()
        self._go.acquire()
        self._paused = threading.Lock()
        self._paused.acquire()
        self._waits = 0
        self._raise: BaseException | None = None
        process.program_threads.append(self)

    def start(self, work: Callable[[], None]) -> None:
        """Do ``work`` in the thread until it waits for the first time."""
        # An empty context: the thread must not see the variables of the world's.
        self._thread = threading.Thread(target=Context().run, args=(self._run, work), daemon=True)
        self._thread.start()
        self._step()

    @staticmethod
    def current() -> ProgramThread:
        thread: ProgramThread = _running.thread
        return thread

    def _run(self, work: Callable[[], None]) -> None:
        self._go.acquire()
        _running.thread = self
        if self._likely:
            sys.settrace(self._trace)
        try:
            work()
        except Buried:
            pass
        finally:
            sys.settrace(None)
            self.has_ended = True
            self._paused.release()

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._at_line if frame.f_code.co_filename in SHARED else None

    def _at_line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and self._chance.random() < self._likely:
            seconds = self._chance.choice(PAUSES)
            self.paused += seconds
            self.wait(seconds)
        return self._at_line

    # -- in the thread -------------------------------------------------------------------------

    def wait(self, seconds: float | None) -> None:
        """Continue the simulation until ``wake`` or for ``seconds``."""
        if seconds is not None:
            self.wake(seconds)
        self._paused.release()
        self._go.acquire()
        if self._raise is not None:
            error = self._raise
            if not isinstance(error, Buried):
                self._raise = None
            raise error

    # -- outside -------------------------------------------------------------------------------

    def wake(self, seconds: float = HOP) -> None:
        """End the current or next wait in ``seconds``."""
        self.process.later(seconds, partial(self._wake, self._waits))

    def interrupt(self) -> None:
        """Raise ``KeyboardInterrupt`` where the thread waits, like Ctrl-C."""
        if not self.has_ended:
            self.interrupted = True
            self._raise = KeyboardInterrupt()
            self._step()

    def bury(self) -> None:
        """End the thread wherever it waits."""
        self._likely = 0.0
        self._raise = Buried()
        while not self.has_ended:
            self._step()
        self._thread.join()

    def _wake(self, number: int) -> None:
        if number == self._waits and not self.has_ended:
            self._step()

    def _step(self) -> None:
        self._waits += 1
        self._go.release()
        self._paused.acquire()
        if self.has_ended:
            self._thread.join()


class SimulatedQueue:
    """``queue.SimpleQueue`` for one thread that reads."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._reader: ProgramThread | None = None

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._reader is not None:
            self._reader.wake()

    def get(self, timeout: float | None = None) -> Any:
        if not self._items:
            self._reader = ProgramThread.current()
            try:
                self._reader.wait(timeout)
            finally:
                self._reader = None
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


class SimulatedQueues:
    """The module ``queue``."""

    SimpleQueue = SimulatedQueue
    Empty = queue.Empty


class SimulatedBlockingSender:
    """Sends the requests of calling threads to the scripted server."""

    def __init__(self, server: Server, chance: random.Random) -> None:
        self._server = server
        self._chance = chance

    def connection(self, timeout: float) -> object | None:
        if self._chance.random() < UNCONNECTED:
            return None
        patience, needed = timeout / 4, self._server.travel()
        thread = ProgramThread.current()
        thread.connected_from = thread.process.world.now
        thread.wait(min(patience, needed))
        return self if needed < patience else None

    def send(self, connection: object, body: bytes, timeout: float) -> Answer | TransportFault:
        thread = ProgramThread.current()
        assert thread.call is not None
        found: list[Answer | TransportFault] = []
        has_ended = False

        def answered(outcome: Answer | TransportFault) -> None:
            if not found and not has_ended:
                found.append(outcome)
                thread.wake()

        sent = self._server.take(thread.process, thread.call, json.loads(body), answered)
        thread.sent = sent
        sent.began_at = thread.connected_from
        try:
            thread.wait(timeout)
            if not found:
                return timed_out(timeout)
        finally:
            has_ended = True
            self._server.close(sent)
        sent.answered = True
        return found[0]
