"""Simulate many workers that share one quota, as discrete events around the package's own code.

The workers run the real ``exchange`` with its retries, ``EndpointState``, ``AdmissionQueue``,
``Window`` and ``LeasedPacer``. Send times come from the real ``SlotLimits``, and the quota of the
service is the local server's ``QuotaGate``. Simulated, with measured or stated numbers, are the
time of a request, a worker's CPU, and the coordinator (a Ray actor, Redis or a file), which serves
one call after the other.
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
"""Texts per request, the API's maximum."""
PIECE = 25
"""Requests of a piece of a worker that pauses: a batch of 250 rows."""
ACTIVE = 10.0
"""Seconds since its last call for which a worker counts as active. This and the next two are the
values of the Ray actor."""
PATIENCE = 20.0
"""Seconds that a worker waits for an unavailable coordinator before it paces alone for a while."""
PAUSE = 1.0
"""Seconds for which a restarted coordinator grants no send times."""


@dataclass(frozen=True)
class Scene:
    """What to simulate. Times in seconds."""

    workers: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    seconds: float = 30.0
    warm: float = 10.0
    """Warm-up seconds before ``seconds``, which are not counted."""
    seed: int = 1
    in_flight: int = 32
    """The most requests of a worker in flight."""
    tokens: int = 300
    """Mean tokens of a text."""
    latency: float = 0.15
    """Median time of a request; lognormal."""
    spread: float = 0.3
    """Standard deviation of the logarithm of the latency."""
    faults: float = 0.0
    """Share of the admitted requests that the service answers with 503."""
    cpu: float = 28e-6
    """A worker's CPU time for a text."""
    service: float = 0.68e-3
    """Mean time of the coordinator for a call; exponential."""
    trip: float = 0.25e-3
    """Network time between worker and coordinator, one way."""
    late: float = 1e-3
    """The most by which a worker's timers fire late."""
    shared: bool = True
    """Whether the workers use the coordinator; else each paces alone, with the whole limit."""
    pause: float = 0.0
    """Seconds between a worker's pieces of ``PIECE`` requests, in which it sends nothing."""
    known: bool = True
    """Whether the workers know the quota; else each finds it by trial."""
    concurrency: int | None = None
    """The most requests that the service processes at once; unknown to the workers."""
    lost: tuple[float, int] | None = None
    """When, and how many workers are lost at once, with all they hold."""
    down: tuple[float, float] | None = None
    """When, and for how long the coordinator is unavailable. It restarts without state, but each
    worker reports how far ahead it holds send times when it asks again."""


@dataclass
class Found:
    """The result of a scene; counts do not include the warm-up."""

    sent: int = 0
    admitted: int = 0
    refused: int = 0
    good: int = 0
    faults: int = 0
    failed: int = 0
    """Batches that ran out of retries; a job would have to be repeated for them."""
    tokens: int = 0
    calls: int = 0
    """Calls to the coordinator."""
    busy: float = 0.0
    """Seconds that the coordinator was busy."""
    lost: int = 0
    """Texts in flight of lost workers, which are paid for twice."""
    replies: list[float] = field(default_factory=list)
    """Response times of the coordinator, in seconds."""
    waits: list[float] = field(default_factory=list)
    """Seconds that batches waited before they were sent."""
    admitted_at: Counter[int] = field(default_factory=Counter)
    refused_at: Counter[int] = field(default_factory=Counter)


class Coordinator:
    """Keeps the send times: one call after the other, in the order of arrival."""

    def __init__(self, scene: Scene, chance: random.Random) -> None:
        self.scene = scene
        self.free_at = 0.0
        self.chance = chance
        self.back_at = 0.0
        self.fail(0.0, 0.0)

    def fail(self, now: float, seconds: float) -> None:
        """Become unavailable for ``seconds``, and lose all state."""
        self.limits = SlotLimits(self.scene.requests_per_minute, self.scene.tokens_per_minute)
        self.asked: dict[int, float] = {}
        if seconds:
            self.back_at = now + seconds
            self.limits.hold(self.back_at + PAUSE)

    def processes(self, now: float) -> int:
        return max(1, sum(now - at < ACTIVE for at in self.asked.values()))

    def turn(self, now: float) -> tuple[float, float]:
        """Return the time at which a call that arrives now is finished, and its duration."""
        work = self.chance.expovariate(1 / self.scene.service) if self.scene.service else 0.0
        self.free_at = max(now, self.free_at) + work
        return self.free_at, work


class Asked:
    """A worker's ``SharedLimits`` and the thread that calls them, one call at a time."""

    patience = 20.0  # as in `ClusterLimits`

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.requests_per_minute = fleet.scene.requests_per_minute
        self.tokens_per_minute = fleet.scene.tokens_per_minute
        self.processes = 1
        self._fleet = fleet
        self._number = number
        self._held_until = 0.0
        self._before: asyncio.Task[None] | None = None
        self._ahead = 0.0

    # Runs in the coordinator, when it serves the call.

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        coordinator, now = self._fleet.coordinator, self._fleet.loop.time()
        if self._number not in coordinator.asked:
            coordinator.limits.hold(self._held_until)
        coordinator.asked[self._number] = now
        self.processes = coordinator.processes(now)
        coordinator.limits.adjust(owed_tokens, late)
        slots = [coordinator.limits.slot(tokens, now) for _ in range(count)]
        self._held_until = slots[-1]
        return [slot - now for slot in slots]

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        self._fleet.coordinator.limits.adjust(tokens, late)

    def throttled(self, ago: float) -> None:
        now = self._fleet.loop.time()
        self._fleet.coordinator.limits.throttled(sent_at=now - ago, now=now, hint=None)

    # Runs in the worker.

    def clock(self) -> float:
        """The worker's clock: while it waits for the coordinator, the time of the answer."""
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
        loop, coordinator, asked_at = fleet.loop, fleet.coordinator, fleet.loop.time()
        await loop.elapse(scene.trip)
        if coordinator.back_at > asked_at + PATIENCE:
            await loop.elapse(asked_at + PATIENCE - loop.time())
            # The call is still executed when the coordinator is back; its result is not used.
            loop.call_at(coordinator.back_at, work)
            future.set_exception(TimeoutError("the coordinator is away"))
            return
        await loop.elapse(max(0.0, coordinator.back_at - loop.time()))
        served_at, took = coordinator.turn(loop.time())
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
    """A sink that discards rows."""

    def rows(self, batch: Batch, vectors: object) -> None:
        pass

    def refused(self, item: Item, error: object) -> None:
        raise AssertionError("the service refuses no text")

    def is_refused(self, item: Item) -> bool:
        return False


class Worker:
    """A process with an endless supply of texts."""

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
        if scene.pause:
            self.tasks = [fleet.task(self.run_in_pieces())]
        else:
            self.tasks = [fleet.task(self.run()) for _ in range(scene.in_flight)]

    def pacer(self, number: int) -> Pacer:
        scene = self.fleet.scene
        if not scene.known:
            return self.endpoint.pacer
        if not scene.shared:
            return GivenLimits(scene.requests_per_minute, scene.tokens_per_minute)
        asked = Asked(self.fleet, number)
        return LeasedPacer(asked, asked.submit, self.endpoint.admission.pump, asked.clock)

    async def run(self) -> None:
        while True:
            await self.embed()

    async def run_in_pieces(self) -> None:
        while True:
            await asyncio.gather(*(self.embed() for _ in range(PIECE)))
            await self.fleet.loop.elapse(self.fleet.scene.pause)

    async def embed(self) -> None:
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
            self.fleet.found.failed += self.fleet.counting

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
        """End at once; requests in flight are still paid for."""
        self.fleet.found.lost += self.paying * TEXTS
        for task in self.tasks:
            task.cancel()


class Service:
    """The service: a quota per second, some time for each request, and faults."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        scene = fleet.scene
        self.fleet = fleet
        self.chance = chance
        quotas = Quotas(scene.requests_per_minute, scene.tokens_per_minute, scene.concurrency)
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
        self.coordinator = Coordinator(scene, random.Random(f"{scene.seed} coordinator"))
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
            self.loop.call_later(scene.down[0], self.coordinator.fail, *scene.down)
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
