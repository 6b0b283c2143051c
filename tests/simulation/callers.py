"""Simulated programs: they embed, stream and cancel, and record the results."""

from __future__ import annotations

import asyncio
import copy
import random
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.request.exchange import Call
from nexusflow_integrations._core.shared_budget import SharedBudgetGuard
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations._core.vectors import Vectors

from .process import Process
from .scenario import Visit
from .threads import Buried, ProgramThread

VISIT: ContextVar[Outcome | None] = ContextVar("VISIT", default=None)
"""The caller of the current call, which is also set on the engine's loop."""
KEY = "sk-air-simulated-0123456789"


@dataclass(eq=False)
class Client:
    """A client in one process. ``given`` and ``spent_before`` come from the parent of a fork."""

    number: int
    process: Process
    real: NexusFlow
    given: Usage = field(default_factory=Usage)
    spent_before: int = 0

    def forked(self, child: Process) -> Client:
        """Return a copy for the child of a fork."""
        twin = copy.copy(self.real)
        twin._size = copy.copy(self.real._size)
        spent = 0
        if self.real._guard is not None:
            twin._guard = copy.copy(self.real._guard)
            twin._guard._forget()  # as `forks` does in a child
            spent = twin._guard.spent
        return Client(self.number, child, twin, self.real.usage, spent)


def client(number: int, process: Process, options: dict[str, Any]) -> Client:
    """Return client ``number`` of a process."""
    real = NexusFlow(KEY, base_url="https://simulated.invalid/v1", **options)
    if isinstance(real._guard, SharedBudgetGuard):
        real._guard._clock = lambda: process.world.now
    return Client(number, process, real)


@dataclass(eq=False)
class Outcome:
    """The result of a visit so far. ``rows`` and ``refused`` are by index.

    ``calls`` are the engine's calls for the visit. A stream has several.
    """

    visit: Visit
    client: Client
    began: float
    ended: float | None = None
    error: BaseException | None = None
    rows: dict[int, Vectors] = field(default_factory=dict)
    refused: dict[int, BaseException] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    progress: int = 0
    thread: ProgramThread | None = None
    is_complete: bool = False


class Callers:
    """All visits of a run."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def start(self, visit: Visit, of: Client) -> None:
        """Begin ``visit`` in the process of its client."""
        process = of.process
        process.on_call = _note_call
        outcome = Outcome(visit, of, process.world.now)
        self.outcomes.append(outcome)
        process.world.note(f"{process.name} begins to {visit.kind}", len(visit.texts))
        if visit.is_in_thread:
            name = f"thread {process.world.seed} {len(self.outcomes)}"
            thread = outcome.thread = ProgramThread(process, random.Random(name))
            thread.start(partial(_visit_here, outcome))
            if visit.cancel_after is not None:
                process.later(visit.cancel_after, thread.interrupt)
            return
        task = process.loop.create_task(_visit(outcome))
        if visit.cancel_after is not None:
            cancel = partial(process.loop.call_soon_threadsafe, task.cancel)
            process.later(visit.cancel_after, cancel)

    @property
    def are_done(self) -> bool:
        return all(o.ended is not None or not o.client.process.is_alive for o in self.outcomes)


def _note_call(call: Call) -> None:
    if (outcome := VISIT.get()) is not None:
        outcome.calls.append(call)


async def _visit(outcome: Outcome) -> None:
    VISIT.set(outcome)
    try:
        if "stream" in outcome.visit.kind:
            await _stream(outcome)
        else:
            await _embed(outcome)
    except BaseException as error:
        _note_error(outcome, error)
    _note_end(outcome)


def _visit_here(outcome: Outcome) -> None:
    """Make a sync call, in a thread of the program."""
    VISIT.set(outcome)
    visit, real = outcome.visit, outcome.client.real
    try:
        if visit.kind == "query":
            outcome.rows[0] = real.embed(visit.texts[0], role="query")
        else:
            _note_result(outcome, real.embed(visit.texts))
        outcome.is_complete = True
    except Buried:
        raise
    except BaseException as error:
        _note_error(outcome, error)
    _note_end(outcome)


def _note_result(outcome: Outcome, result: Any) -> None:
    outcome.rows.update((i, row) for i, row in enumerate(result) if row is not None)
    outcome.refused.update(getattr(result, "refused", {}))


def _note_error(outcome: Outcome, error: BaseException) -> None:
    outcome.error = error.with_traceback(None)
    outcome.rows.update(getattr(error, "finished", {}))


def _note_end(outcome: Outcome) -> None:
    process, world = outcome.client.process, outcome.client.process.world
    outcome.ended = world.now
    came = type(outcome.error).__name__ if outcome.error else "well"
    world.note(f"{process.name} ends to {outcome.visit.kind}", came)


async def _embed(outcome: Outcome) -> None:
    visit, real = outcome.visit, outcome.client.real

    def progress(fresh: int) -> None:
        outcome.progress += fresh

    if visit.kind == "query":
        found = await real.aembed(visit.texts[0], role="query")
        outcome.rows[0] = found
    else:
        _note_result(outcome, await real.aembed(visit.texts, progress=progress))
    outcome.is_complete = True


async def _stream(outcome: Outcome) -> None:
    visit, real = outcome.visit, outcome.client.real
    stream = real.aembed_stream(visit.texts, ordered=visit.kind == "stream")
    try:
        count = 0
        if visit.reads == 0:
            return
        async for item in stream:
            assert item.index not in outcome.rows
            assert item.index not in outcome.refused
            if item.vector is not None:
                outcome.rows[item.index] = item.vector
            else:
                assert item.error is not None
                outcome.refused[item.index] = item.error
            count += 1
            if count == visit.reads:
                return
            if visit.reading:
                await asyncio.sleep(visit.reading)
        outcome.is_complete = True
    finally:
        if not visit.drops:
            await stream.aclose()
