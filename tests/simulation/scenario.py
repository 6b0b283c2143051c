"""The scenario for a seed: processes, calls, and the behaviour of server and store."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from .server import FAULTS, POISON, TERMINAL, ServerScript
from .store import StoreScript
from .world import START

ARRIVALS = 6.0
"""Seconds within which all calls begin."""


@dataclass
class Visit:
    """One call of a program; ``begin`` is in seconds from the start.

    Attributes:
        kind: "embed", "query", "stream" or "unordered stream".
        cancel_after: Seconds after which the caller cancels.
        reads: Number of results of a stream after which the reader stops.
        reading: Seconds that the reader takes for one result.
        drops: Whether it then leaves the stream to the garbage collector.
        is_in_thread: Whether a thread of the program makes it as a sync call; cancelling it is
            Ctrl-C.
    """

    begin: float
    process: int
    client: int
    kind: str
    texts: list[str]
    cancel_after: float | None = None
    reads: int | None = None
    reading: float = 0.0
    drops: bool = False
    is_in_thread: bool = False

    @property
    def reports(self) -> bool:
        """Whether the caller gets progress reports. A sync call then needs the event loop."""
        return self.kind == "embed" and not self.is_in_thread


@dataclass
class Incident:
    """An event in a process, ``at`` seconds from the start.

    Attributes:
        what: "stop", "die", "fork", or "set the clock" of its host.
        seconds: How long it is stopped, or by how much the clock jumps.
        visits: The calls of the child of a fork.
    """

    at: float
    process: int
    what: str
    seconds: float
    visits: list[Visit]


@dataclass
class Scenario:
    """Everything in a run except the order of simultaneous events.

    Attributes:
        clients: The arguments of each; numbers stand for ``pacer`` and ``shared_budget``.
        service_fails: Probability that a call to a shared service fails.
        delay: Mean seconds of a thread's work.
    """

    processes: int
    clients: list[dict[str, Any]]
    visits: list[Visit]
    server: ServerScript
    store: StoreScript | None = None
    incidents: list[Incident] = field(default_factory=list)
    service_fails: float = 0.0
    delay: float = 0.0005
    is_calm: bool = False


def scenario(seed: int) -> Scenario:
    """Return the scenario of ``seed``."""
    chance = random.Random(f"scenario {seed}")
    is_calm = chance.random() < 0.15
    processes = chance.choices([1, 2, 3], [6, 3, 1])[0]
    server = _server(chance, is_calm=is_calm)
    is_cached = chance.random() < (0.5 if processes == 1 else 0.7)
    store = _store(chance, is_calm=is_calm) if is_cached else None
    limits = _limits(chance, server, is_cached=store is not None)
    clients = [
        _client(chance, limits, is_cached=store is not None and chance.random() < 0.9)
        for _ in range(chance.choice([1, 1, 2, 3]))
    ]
    vocabulary = [f"text {number}" for number in range(chance.choice([4, 20, 60]))]
    if chance.random() < 0.3:
        every = chance.randint(2, 20)
        vocabulary = [
            f"{POISON} {number}" if number % every == 0 else text
            for number, text in enumerate(vocabulary)
        ]
    visits = [
        _visit(chance, processes, clients, vocabulary)
        for _ in range(processes * chance.choice([1, 2, 3, 5]))
    ]
    incidents = [] if is_calm else _incidents(chance, processes, clients, vocabulary)
    if store is None:  # calls with a cache go through the event loop
        _use_threads(
            random.Random(f"program threads {seed}"), processes, clients, visits, vocabulary
        )
    return Scenario(
        processes,
        clients,
        sorted(visits, key=lambda visit: visit.begin),
        server,
        store,
        incidents,
        service_fails=0.0 if is_calm else chance.choice([0.0, 0.0, 0.0, 0.1]),
        delay=0.0005 if is_calm else chance.choice([0.0005, 0.0005, 0.02, 0.3]),
        is_calm=is_calm,
    )


def _server(chance: random.Random, *, is_calm: bool) -> ServerScript:
    script = ServerScript(
        latency=chance.choice([0.01, 0.1, 0.1, 0.5, 4.0]),
        size=chance.choice([4, 8]),
        batch_limit=chance.choice([None, None, None, 1, 4]),
        quota=chance.choice([None, None, 2.0, 20.0]),
        refuses_base64=chance.random() < 0.15,
        hides_usage=chance.choice([0.0, 0.0, 0.3]),
    )
    if is_calm:
        return script
    for fault in FAULTS:
        if chance.random() < 0.3:
            script.faults[fault] = chance.choice([0.02, 0.1, 0.4])
    if chance.random() < 0.08:
        script.faults[chance.choice(TERMINAL)] = 0.05
    while chance.random() < 0.25:
        begin = START + ARRIVALS * chance.random()
        end = begin + chance.choice([0.5, 3.0, 30.0])
        script.outages.append((begin, end, chance.choice(FAULTS)))
    return script


def _store(chance: random.Random, *, is_calm: bool) -> StoreScript:
    script = StoreScript()
    if is_calm:
        return script
    while chance.random() < 0.2:
        begin = START + ARRIVALS * chance.random()
        script.locks.append((begin, begin + chance.choice([0.1, 2.0, 5.0, 20.0])))
    if chance.random() < 0.05:
        script.gone = START + ARRIVALS * chance.random()
    if chance.random() < 0.05:
        script.raises = 0.05
    return script


def _limits(chance: random.Random, server: ServerScript, *, is_cached: bool) -> dict[str, float]:
    if server.quota is None or chance.random() < 0.4:
        return {}
    shared = chance.random() < (0.1 if is_cached else 0.5)
    return {"pacer" if shared else "requests_per_minute": server.quota * 60}


def _client(chance: random.Random, limits: dict[str, float], *, is_cached: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dimensions": chance.choice([None, None, None, 64]),
        "batch_size": chance.choice([1, 3, 10]),
        "max_concurrency": chance.choice([1, 2, 4, 32]),
        "timeout": chance.choice([1.0, 5.0, 60.0]),
        "max_retries": chance.choice([0, 2, 6, 6]),
        "deadline": chance.choice([None, None, 0.5, 3.0, 15.0]),
        "on_refused": chance.choice(["raise", "collect"]),
        "cache": is_cached,
        **limits,
    }
    if chance.random() < 0.3:
        options["budget"] = chance.choice([30, 200, 1000])
    elif chance.random() < 0.15:
        options["shared_budget"] = chance.choice([100, 1000, 5000])
    return options


def _visit(
    chance: random.Random, processes: int, clients: list[dict[str, Any]], vocabulary: list[str]
) -> Visit:
    kind = chance.choices(["embed", "query", "stream", "unordered stream"], [5, 2, 2, 1])[0]
    count = 1 if kind == "query" else chance.choice([1, 4, 12, 30])
    visit = Visit(
        begin=chance.choice([0.0, ARRIVALS * chance.random()]),
        process=chance.randrange(processes),
        client=chance.randrange(len(clients)),
        kind=kind,
        texts=[chance.choice(vocabulary) for _ in range(count)],
    )
    if chance.random() < 0.15:
        visit.cancel_after = chance.choice([0.0, 0.05, 0.5, 3.0]) * chance.random()
    if "stream" in kind:
        visit.reading = chance.choice([0.0, 0.0, 0.1])
        if chance.random() < 0.3:
            visit.reads = chance.randrange(count + 1)
            visit.drops = chance.random() < 0.5
    return visit


def _use_threads(
    chance: random.Random,
    processes: int,
    clients: list[dict[str, Any]],
    visits: list[Visit],
    vocabulary: list[str],
) -> None:
    """Let some seeds make sync calls in threads, most of them without the event loop."""
    if chance.random() < 0.3:
        return
    for visit in visits:
        visit.is_in_thread = "stream" not in visit.kind and chance.random() < 0.5
    if chance.random() < 0.2:
        return
    widest = chance.choice([None, 1, 2])
    for options in clients:
        options["max_concurrency"] = widest or options["max_concurrency"]
        for name in ("pacer", "requests_per_minute", "budget", "shared_budget"):
            options.pop(name, None)
    # The first call of a process needs the event loop, so bursts come after some others.
    for _ in range(chance.choice([1, 2, 4])):
        begin = ARRIVALS * (0.2 + 0.8 * chance.random())
        for _ in range(chance.choice([2, 3, 5])):
            visit = _visit(chance, processes, clients, vocabulary)
            if "stream" in visit.kind:
                visit.kind, visit.texts = "query", [chance.choice(vocabulary)]
            visit.begin = begin + chance.choice([0.0, 0.0, 1e-5, 0.1]) * chance.random()
            visit.is_in_thread = chance.random() < 0.8
            visits.append(visit)


def _incidents(
    chance: random.Random, processes: int, clients: list[dict[str, Any]], vocabulary: list[str]
) -> list[Incident]:
    incidents = []
    while chance.random() < (0.3 if processes == 1 else 0.5):
        what = chance.choices(["stop", "die", "fork", "set the clock"], [5, 2, 2, 2])[0]
        # A process that is suspended for more than ten seconds loses its claims.
        seconds = chance.choice([0.05, 1.0, 4.0, 15.0, 30.0])
        visits = []
        if what == "set the clock":
            seconds = chance.choice([-60.0, 60.0, -3600.0, 5.0])
        elif what == "fork":
            visits = [_visit(chance, 1, clients, vocabulary) for _ in range(chance.choice([1, 3]))]
        at = ARRIVALS * chance.random()
        incidents.append(Incident(at, chance.randrange(processes), what, seconds, visits))
    return incidents
