"""Many workers under one quota, as discrete events around the package's own code.

Real, line by line what a worker runs: ``exchange`` with its retries, ``EndpointState``,
``AdmissionQueue``, ``Window`` and ``LeasedPacer``; ``SlotLimits`` where the send times are kept;
and ``QuotaGate``, the local server's account of what a service lets through. Modelled, with numbers
that are measured or said to be assumed: how long a request takes, a worker's CPU, and the keeper of
the send times (a Ray actor, a Redis, a file), which serves one call after the other, some way off.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nexusflow_integrations._core.call.job import drive
from nexusflow_integrations._core.pace.pacing import GivenLimits, Pacer
from nexusflow_integrations._core.pace.shared import LeasedPacer, SlotLimits
from nexusflow_integrations._core.pace.terms import Terms
from nexusflow_integrations._core.request.batching import Batch, Item
from nexusflow_integrations._core.request.endpoint import EndpointState
from nexusflow_integrations._core.request.exchange import Call, Reply, Send, exchange
from nexusflow_integrations._core.request.wire import Answer
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations.errors import NexusFlowError
from nexusflow_integrations.local.protocol import ApiError, write_answer
from nexusflow_integrations.local.quotas import QuotaGate, Quotas

from .clock import SimulatedLoop

TEXTS = 10
"""A request; the model takes no more."""
ACTIVE = 10.0
"""Who asked this long ago still counts as one who shares the limits. This and the next two are
what the Ray actor keeps to."""
PATIENCE = 20.0
"""Seconds that a worker waits for a keeper that is away, before it paces alone for a while."""
PAUSE = 1.0
"""Seconds for which a keeper that comes back hands out no send time."""


@dataclass(frozen=True)
class Scene:
    """What to simulate. Times in seconds."""

    workers: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    seconds: float = 30.0
    warm: float = 10.0
    """Seconds before ``seconds`` that do not count."""
    seed: int = 1
    in_flight: int = 32
    """Most requests of a worker at once."""
    tokens: int = 300
    """A text, in the mean."""
    latency: float = 0.15
    """Median of a request; lognormal."""
    spread: float = 0.3
    """Standard deviation of the logarithm of that."""
    faults: float = 0.0
    """Share of the requests that the service admits and then answers with 503."""
    cpu: float = 28e-6
    """A worker's CPU for a text."""
    service: float = 0.68e-3
    """What the keeper takes for a call, in the mean; exponential."""
    trip: float = 0.25e-3
    """One way between worker and keeper."""
    late: float = 1e-3
    """A worker's timers fire up to so much late."""
    shared: bool = True
    """Whether the workers ask the keeper; else each paces alone, to the whole limit."""
    lost: tuple[float, int] | None = None
    """When, and how many workers are lost at once, with all they hold."""
    down: tuple[float, float] | None = None
    """When, and for how long the keeper is away. It comes back knowing nothing, but each worker
    says how far ahead it holds send times when it asks again."""


@dataclass
class Found:
    """What came of a scene; counts are of the seconds that count."""

    sent: int = 0
    admitted: int = 0
    refused: int = 0
    good: int = 0
    faults: int = 0
    failed: int = 0
    """Batches whose retries ran out; a job would have to be run again for them."""
    tokens: int = 0
    calls: int = 0
    """To the keeper."""
    busy: float = 0.0
    """Seconds that the keeper worked."""
    lost: int = 0
    """Texts in flight of workers that were lost: paid for, and to be paid for again."""
    replies: list[float] = field(default_factory=list)
    """Seconds from asking the keeper to its answer."""
    waits: list[float] = field(default_factory=list)
    """Seconds from a batch's readiness to its sending."""
    admitted_at: Counter[int] = field(default_factory=Counter)
    refused_at: Counter[int] = field(default_factory=Counter)


class Keeper:
    """Keeps the send times: one call after the other, in the order of arrival."""

    def __init__(self, scene: Scene, chance: random.Random) -> None:
        self.scene = scene
        self.free_at = 0.0
        self.chance = chance
        self.back_at = 0.0
        self.fail(0.0, 0.0)

    def fail(self, now: float, seconds: float) -> None:
        """Be away for so long, and forget."""
        self.limits = SlotLimits(self.scene.requests_per_minute, self.scene.tokens_per_minute)
        self.asked: dict[int, float] = {}
        if seconds:
            self.back_at = now + seconds
            self.limits.hold(self.back_at + PAUSE)

    def processes(self, now: float) -> int:
        return max(1, sum(now - at < ACTIVE for at in self.asked.values()))

    def turn(self, now: float) -> tuple[float, float]:
        """Return when a call that arrives now will have been served, and the work that it is."""
        work = self.chance.expovariate(1 / self.scene.service) if self.scene.service else 0.0
        self.free_at = max(now, self.free_at) + work
        return self.free_at, work


class Asked:
    """A worker's ``SharedLimits``, and the thread that asks them: one call at a time."""

    patience = 20.0  # as `ClusterLimits` has

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.requests_per_minute = fleet.scene.requests_per_minute
        self.tokens_per_minute = fleet.scene.tokens_per_minute
        self.processes = 1
        self._fleet = fleet
        self._number = number
        self._held_until = 0.0
        self._before: asyncio.Task[None] | None = None
        self._ahead = 0.0

    # What runs at the keeper, at the moment when it serves the call.

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        keeper, now = self._fleet.keeper, self._fleet.loop.time()
        if self._number not in keeper.asked:
            keeper.limits.hold(self._held_until)
        keeper.asked[self._number] = now
        self.processes = keeper.processes(now)
        keeper.limits.owe(owed_tokens, late)
        slots = [keeper.limits.slot(tokens, now) for _ in range(count)]
        self._held_until = slots[-1]
        return [slot - now for slot in slots]

    def owe(self, tokens: float, late: float = 0.0) -> None:
        self._fleet.keeper.limits.owe(tokens, late)

    def throttled(self, ago: float) -> None:
        now = self._fleet.loop.time()
        self._fleet.keeper.limits.throttled(sent_at=now - ago, now=now, hint=None)

    # What runs at the worker.

    def clock(self) -> float:
        """The worker's: while the keeper works for it, the time when it will have the answer."""
        return self._fleet.loop.time() + self._ahead

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._before = self._fleet.task(self._call(work, future, self._before))
        return future

    async def _call(
        self, work: Callable[[], Any], future: Future[Any], before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await before
        fleet, scene = self._fleet, self._fleet.scene
        loop, keeper, asked_at = fleet.loop, fleet.keeper, fleet.loop.time()
        await loop.elapse(scene.trip)
        if keeper.back_at > asked_at + PATIENCE:
            await loop.elapse(asked_at + PATIENCE - loop.time())
            # It is done all the same, once the keeper is back, and nobody uses what it gives.
            loop.call_at(keeper.back_at, work)
            future.set_exception(TimeoutError("the keeper is away"))
            return
        await loop.elapse(max(0.0, keeper.back_at - loop.time()))
        served_at, took = keeper.turn(loop.time())
        await loop.elapse(served_at - loop.time())
        self._ahead = scene.trip
        answer = work()
        self._ahead = 0.0
        await loop.elapse(scene.trip)
        if fleet.counting:
            fleet.found.calls += 1
            fleet.found.busy += took
            fleet.found.replies.append(loop.time() - asked_at)
        future.set_result(answer)


class Nowhere:
    """A sink for rows that nobody wants."""

    def rows(self, batch: Batch, vectors: object) -> None:
        pass

    def refused(self, item: Item, error: object) -> None:
        raise AssertionError("the service refuses no text")


class Worker:
    """A process that has more to embed than it will ever get done."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        scene = fleet.scene
        self.fleet = fleet
        self.settings = Settings(
            base_url="http://127.0.0.1", max_concurrency=scene.in_flight, dimensions=64
        )
        self.endpoint = EndpointState(fleet.loop.time)
        self.endpoint.begin(Terms(self.settings))
        self.endpoint.use_pacer(self.pacer(number))
        self.chance = random.Random(f"{scene.seed} {number}")
        self.cpu_free_at = 0.0
        self.paying = 0
        self.tasks = [fleet.task(self.run()) for _ in range(scene.in_flight)]

    def pacer(self, number: int) -> Pacer:
        scene = self.fleet.scene
        if not scene.shared:
            return GivenLimits(scene.requests_per_minute, scene.tokens_per_minute)
        asked = Asked(self.fleet, number)
        return LeasedPacer(asked, asked.submit, self.endpoint.admission.pump, asked.clock)

    async def run(self) -> None:
        found = self.fleet.found
        while True:
            mean = self.fleet.scene.tokens
            sizes = [max(1, int(self.chance.gauss(mean, mean / 5))) for _ in range(TEXTS)]
            batch = [Item(n, "x", size) for n, size in enumerate(sizes)]
            # Estimates of real corpora were up to 15 % off, in the same direction for all texts.
            billed = int(sum(sizes) * self.chance.uniform(1.0, 1.15))
            call = Call(texts=(), settings=self.settings, key=ApiKey("sk-air-x"), ledger=Ledger())
            call.endpoint, call.sink = self.endpoint, Nowhere()
            try:
                await drive(exchange(batch, call), partial(self.send, billed))
            except NexusFlowError:
                found.failed += self.fleet.counting

    async def send(self, billed: int, step: Send) -> Reply:
        clock, admission = self.fleet.loop.time, self.endpoint.admission
        ready_at = clock()
        await admission.enter(step.tokens)
        step.admitted = True
        sent_at = clock()
        if self.fleet.counting:
            self.fleet.found.waits.append(sent_at - ready_at)
        self.cpu_free_at = max(sent_at, self.cpu_free_at) + TEXTS * self.fleet.scene.cpu
        self.paying += 1
        try:
            await self.fleet.loop.elapse(self.cpu_free_at - sent_at)
            answer = await self.fleet.service.answer(billed)
        finally:
            self.paying -= 1
            admission.leave()
        return Reply(answer, sent_at, clock())

    def die(self) -> None:
        """End at once; what is in flight is paid for all the same."""
        self.fleet.found.lost += self.paying * TEXTS
        for task in self.tasks:
            task.cancel()


class Service:
    """The service: a quota per second, some time for each request, and faults."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        scene = fleet.scene
        self.fleet = fleet
        self.chance = chance
        quotas = Quotas(scene.requests_per_minute, scene.tokens_per_minute)
        self.admission = QuotaGate(quotas, fleet.loop.time())
        body = write_answer(np.ones((TEXTS, 64), np.float32), tokens=0, encoding_format="base64")
        self.body = body.replace(b'_tokens":0', b'_tokens":%d')

    async def answer(self, tokens: int) -> Answer:
        fleet, found = self.fleet, self.fleet.found
        took = fleet.scene.latency * self.chance.lognormvariate(0, fleet.scene.spread)
        await fleet.loop.elapse(took / 4)
        refusal = self.admission.admit(tokens, fleet.loop.time())
        counting, second = fleet.counting, int(fleet.loop.time())
        found.sent += counting
        if refusal is not None:
            found.refused += counting
            found.refused_at[second] += 1
            await fleet.loop.elapse(took / 4)
            error = ApiError(
                429, refusal.code, refusal.message, refusal.type, retry_after=refusal.retry_after
            )
            return Answer(429, error.headers(), error.body())
        found.admitted += counting
        found.admitted_at[second] += 1
        found.tokens += counting * tokens
        await fleet.loop.elapse(took * 3 / 4)
        self.admission.release()
        if self.chance.random() < fleet.scene.faults:
            found.faults += fleet.counting
            return Answer(503, {}, b"")
        found.good += fleet.counting
        return Answer(200, {}, self.body % (tokens, tokens))


class Fleet:
    """All of it, for one run."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.loop = SimulatedLoop(scene.late, scene.seed)
        self.found = Found()
        self.counting = False
        self.keeper = Keeper(scene, random.Random(f"{scene.seed} keeper"))
        self.service = Service(self, random.Random(f"{scene.seed} service"))
        self.workers: list[Worker] = []
        self.errors: list[BaseException] = []

    def task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start ``work``; what goes wrong in it is a fault of the model and ends the run badly."""
        task = self.loop.create_task(work)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    def run(self) -> Found:
        # The cycles that tasks leave behind are few; looking for them costs more than the model.
        gc.disable()
        quiet = logging.getLogger("nexusflow_integrations")
        level, quiet.level = quiet.level, logging.CRITICAL
        try:
            self.loop.run_until_complete(self._run())
        finally:
            quiet.level = level
            self.loop.close()
            gc.enable()
            gc.collect()
        if self.errors:
            raise self.errors[0]
        return self.found

    async def _run(self) -> None:
        scene = self.scene
        if scene.lost is not None:
            self.loop.call_later(scene.lost[0], self._lose)
        if scene.down is not None:
            self.loop.call_later(scene.down[0], self.keeper.fail, *scene.down)
        # Workers of a cluster come up over the first second, not in one moment.
        for number in range(scene.workers):
            self.loop.call_later(number / scene.workers, self._start, number)
        await asyncio.sleep(scene.warm)
        self.counting = True
        await asyncio.sleep(scene.seconds)
        self.counting = False
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _start(self, number: int) -> None:
        self.workers.append(Worker(self, number))

    def _lose(self) -> None:
        assert self.scene.lost is not None
        count = self.scene.lost[1]
        for worker in self.workers[:count]:
            worker.die()
        # The engine starts others in their place.
        for number in range(count):
            self.loop.call_later(5.0, self._start, self.scene.workers + number)


def simulate(scene: Scene) -> Found:
    """Run ``scene``; the same seed gives the same result."""
    return Fleet(scene).run()
