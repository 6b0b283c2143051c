"""Simulate one seed, check the invariants, and clean up."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import random
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nexusflow_integrations import Budget
from nexusflow_integrations._core.cache.in_file import VectorStore

from .callers import Callers, Client, client
from .invariants import check, check_closed
from .process import Process
from .scenario import Incident, Scenario, Visit, scenario
from .seams import simulated
from .server import Server
from .shared import ScriptedBudget, ScriptedLimits
from .store import StoreScript
from .world import Broken, World

LONGEST = 7200.0
"""Simulated seconds after which a caller that still waits counts as hanging."""
LAST_EVENTS = 25
EMPTY = "empty.sqlite3"
"""An empty cache file. It is copied, since creating one takes longer than most runs."""


class Run:
    """One run of one scenario in a ``folder`` of ``undisturbed``."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.scenario: Scenario = scenario(seed)
        self.world = World(seed)
        self.server = Server(self.world, self.scenario.server)
        self.callers = Callers()
        self.processes: list[Process] = []
        self.clients: list[Client] = []
        self.store_script = self.scenario.store or StoreScript()
        self.path = folder / "cache.sqlite3"
        self.limits: ScriptedLimits | None = None
        self.budgets: dict[int, ScriptedBudget] = {}
        self.options = [
            self._options(number, arguments)
            for number, arguments in enumerate(self.scenario.clients)
        ]
        self._delays = random.Random(f"delays {seed}")

    def _options(self, number: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a client; the scenario refers to shared objects by number."""
        options = {**arguments, "cache": str(self.path) if arguments["cache"] else None}
        fails = self.scenario.service_fails
        if "budget" in options:
            options["budget"] = Budget(tokens=options["budget"])
        elif "shared_budget" in options:
            budget = ScriptedBudget(self.world, options.pop("shared_budget"), fails)
            options["budget"] = self.budgets[number] = budget
        if "pacer" in options:
            self.limits = self.limits or ScriptedLimits(self.world, options["pacer"], fails)
            options["pacer"] = self.limits
        return options

    def play(self) -> None:
        """Simulate everything, and check the invariants.

        Raises:
            Broken: One is violated.
        """
        with simulated(self.world):
            try:
                self._begin()
                if not self.world.run(self._is_over, at_most=LONGEST):
                    raise Broken("it ends: a caller hangs")
                self._come_to_rest()
                check(self)
                self._close()
            finally:
                self._bury()

    def _begin(self) -> None:
        plan = self.scenario
        if plan.store is not None:
            shutil.copyfile(self.path.with_name(EMPTY), self.path)
        for _ in range(plan.processes):
            process = self._process()
            self.clients += [
                client(number, process, options) for number, options in enumerate(self.options)
            ]
        self._to_come = len(plan.visits) + len(plan.incidents)
        for visit in plan.visits:
            of = self.clients[visit.process * len(plan.clients) + visit.client]
            self.world.after(visit.begin, partial(self._visit, visit, of))
        for incident in plan.incidents:
            self.world.after(incident.at, partial(self._befall, incident))

    def _process(self) -> Process:
        mean = self.scenario.delay
        process = Process(
            self.world, self.server, self.store_script, lambda: self._delays.expovariate(1 / mean)
        )
        self.processes.append(process)
        return process

    def _visit(self, visit: Visit, of: Client) -> None:
        self._to_come -= 1
        of.process._do(lambda: self.callers.start(visit, of))

    def _befall(self, incident: Incident) -> None:
        self._to_come -= 1
        process = self.processes[incident.process]
        if not process.is_alive:
            return
        if incident.what == "stop":
            process.stop(incident.seconds)
        elif incident.what == "die":
            process.die()
        elif incident.what == "set the clock":
            self.world.note("the clock is set", incident.seconds)
            self.world.wall_clock_ahead += incident.seconds
        else:
            process._do(lambda: self._fork(process, incident))

    def _fork(self, process: Process, incident: Incident) -> None:
        child = self._process()
        self.world.note(f"{process.name} forks {child.name}")
        twins = [one.forked(child) for one in self.clients if one.process is process]
        self.clients += twins
        for visit in incident.visits:
            self._to_come += 1
            self.world.after(visit.begin, partial(self._visit, visit, twins[visit.client]))

    def _is_over(self) -> bool:
        return (
            not self._to_come
            and all(process.runs or not process.is_alive for process in self.processes)
            and self.callers.are_done
        )

    def _come_to_rest(self) -> None:
        """Wait until all living processes are idle."""
        for _ in range(120):
            self.world.run(lambda: False, at_most=0.5)
            if all(map(_rests, self.living)):
                return

    @property
    def living(self) -> list[Process]:
        return [process for process in self.processes if process.is_alive]

    def _close(self) -> None:
        """Shut down all living processes."""
        self._finish(
            one.process.loop.create_task(one.real.aclose())
            for one in self.clients
            if one.process.is_alive
        )
        # A client waits at most until its deadline for a slow service.
        self.world.run(lambda: all(map(_has_idle_threads, self.living)), at_most=60)
        check_closed(self)
        self._finish(
            process.background.loop.create_task(process.background._wind_up())
            for process in self.living
        )

    def _finish(self, closing: Iterable[asyncio.Task[None]]) -> None:
        tasks = list(closing)
        if not self.world.run(lambda: all(task.done() for task in tasks), at_most=10):
            raise Broken("it ends: a process does not exit")
        for task in tasks:
            task.result()

    def live_claims(self) -> int:
        """Return how many claims in the store a living process holds."""
        troubled = any(
            not p.is_alive or min(p.lost_store_at, p.hurried_at) < float("inf")
            for p in self.processes
        )
        later = 10.5 if troubled else 0.0
        now = self.world.now + later
        store = VectorStore(self.path, clock=lambda: now)
        try:
            return store.info().in_flight
        finally:
            store.close()

    def _bury(self) -> None:
        """Clean up all processes, dead ones included, so that nothing outlives the run."""
        for process in self.processes:
            process.runs = process.is_alive = True
        for _ in range(50):
            tasks = [task for loop in self.world.loops for task in loop.tasks]
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            for loop in self.world.loops:
                loop.turn()
        for process in self.processes:
            for thread in process.program_threads:
                if not thread.has_ended:
                    process._do(thread.bury)
        for loop in self.world.loops:
            loop.close()
        for store in self.world.stores:
            store.close_file()
        for path in self.path.parent.glob("cache.sqlite3*"):
            path.unlink()

    @property
    def fingerprint(self) -> str:
        """Return a hash of all events."""
        return hashlib.sha256(repr(self.world.trace).encode()).hexdigest()[:16]

    @property
    def last_events(self) -> str:
        return "\n".join(
            f"  {at:.4f} {' '.join(map(str, what))}"
            for at, *what in self.world.trace[-LAST_EVENTS:]
        )


def _has_idle_threads(process: Process) -> bool:
    return all(thread.is_idle for thread in process.threads)


def _rests(process: Process) -> bool:
    threads_have_ended = all(one.has_ended for one in process.program_threads)
    are_idle = _has_idle_threads(process) and threads_have_ended
    return are_idle and not process.loop.tasks and not process.background.loop.tasks


def failure_of(run: Run) -> str | None:
    """Execute ``run``; return a short report if it violates an invariant."""
    try:
        run.play()
    except Broken as broken:
        return f"seed {run.seed}: {broken}\n{run.last_events}"
    return None


def failures(seeds: Iterable[int]) -> Generator[tuple[int, str | None], None, None]:
    """Run ``seeds`` one by one; yield each with a report if it violates an invariant.

    Logging is off until it is closed.
    """
    with undisturbed() as folder:
        for number, seed in enumerate(seeds):
            if number % 100 == 99:
                gc.collect()
            yield seed, failure_of(Run(seed, folder))


@contextmanager
def undisturbed() -> Iterator[Path]:
    """Yield a folder for runs, with logging and automatic garbage collection turned off."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    collects, disabled = gc.isenabled(), logging.root.manager.disable
    gc.disable()
    logging.disable()
    try:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            store = VectorStore(Path(folder, EMPTY))
            store.open()
            store.close()
            yield Path(folder)
    finally:
        logging.disable(disabled)
        if collects:
            gc.enable()
