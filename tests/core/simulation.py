"""Simulate a rate-limited server and a client with a pacer, as discrete events."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from nexusflow_integrations._core.pace.pacing import Pacer


class Bucket:
    """A token bucket: ``rate(t)`` units per second, at most ``burst`` seconds' worth at once."""

    def __init__(self, rate: Callable[[float], float], burst: float = 1.0) -> None:
        self.rate = rate
        self.burst = burst
        self.level = max(1.0, rate(0.0) * burst)
        self.at = 0.0

    def refill(self, now: float) -> None:
        rate = self.rate(now)
        self.level = min(max(1.0, rate * self.burst), self.level + (now - self.at) * rate)
        self.at = now


@dataclass
class Outcome:
    """The result of a simulation; ``by_second`` counts successes."""

    sent: int = 0
    good: int = 0
    refused: int = 0
    tokens: int = 0
    by_second: Counter[int] = field(default_factory=Counter)
    refused_by_second: Counter[int] = field(default_factory=Counter)

    def rate(self, start: float, end: float) -> float:
        """Return successes per second between two times."""
        return sum(self.by_second[s] for s in range(int(start), int(end))) / (end - start)

    @property
    def refused_share(self) -> float:
        return self.refused / max(1, self.sent)


def simulate(
    pacer: Pacer,
    duration: float,
    *,
    requests: Bucket | None = None,
    tokens: Bucket | None = None,
    size: Callable[[], int] = lambda: 100,
    bill: Callable[[int], int] = lambda estimated: estimated,
    latency: float = 0.15,
    hint: float | None = None,
    concurrency: Callable[[float], int] = lambda _: 32,
    refusing: float | None = None,
    seed: int = 1,
) -> Outcome:
    """Send as fast as ``pacer`` allows; timers are up to 3 ms late, latencies up to 30 % longer.

    ``concurrency`` returns how many requests may be in flight at a time.
    A refusal takes as long as an answer, or ``refusing`` seconds after the request has arrived.
    ``size`` returns a request's estimated tokens, ``bill`` what the server bills for them.
    """
    chance = random.Random(seed)
    out = Outcome()
    now, order, in_flight = 0.0, 0, 0
    events: list[tuple[float, int, float, bool, int, int]] = []
    waiting = size()

    def admit(at: float, cost: int) -> bool:
        buckets = [(bucket, units) for bucket, units in ((requests, 1), (tokens, cost)) if bucket]
        for bucket, _ in buckets:
            bucket.refill(at)
        if any(bucket.level < units for bucket, units in buckets):
            return False
        for bucket, units in buckets:
            bucket.level -= units
        return True

    arrivals: list[tuple[float, int, float, float, int]] = []
    while now < duration:
        while in_flight < concurrency(now) and pacer.wait(now) <= 0:
            pacer.take(waiting, now)
            out.sent += 1
            in_flight += 1
            order += 1
            took = latency * (1 + 0.3 * chance.random())
            heapq.heappush(arrivals, (now + took / 2, order, now, now + took, waiting))
            waiting = size()
        times = [arrivals[0][0]] if arrivals else []
        times += [events[0][0]] if events else []
        if in_flight < concurrency(now):
            times.append(now + pacer.wait(now) + 0.003 * chance.random())
        now = min(times, default=now + 0.1)
        while arrivals and arrivals[0][0] <= now:
            at, n, sent_at, ends, estimated = heapq.heappop(arrivals)
            billed = bill(estimated)
            fine = admit(at, billed)
            if refusing is not None and not fine:
                ends = at + refusing
            heapq.heappush(events, (ends, n, sent_at, fine, estimated, billed))
        while events and events[0][0] <= now:
            _, _, sent_at, fine, estimated, billed = heapq.heappop(events)
            in_flight -= 1
            if fine:
                out.good += 1
                out.tokens += billed
                out.by_second[int(now)] += 1
                pacer.succeeded(now, sent_at)
                pacer.settle(estimated, billed)
            else:
                out.refused += 1
                out.refused_by_second[int(now)] += 1
                pacer.throttled(sent_at=sent_at, now=now, hint=hint)
    return out
