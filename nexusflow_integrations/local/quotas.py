"""The service's rate limits: per account, for each second, and on growth.

All functions are pure functions of a clock value that the caller passes; they do not wait or do
I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from .arguments import number


@dataclass(frozen=True)
class Quotas:
    """The limits of one server; None is no limit.

    Limits per minute are enforced each second, as the model's documentation says: 600 requests per
    minute allow 10 at once and then one every 0.1 s, not 600 at once.

    Raises:
        ValueError: A limit is not above zero.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int | None = None
    """Maximum number of requests in progress at the same time."""
    growth: float | None = None
    """Maximum number of requests in one second, as a multiple of the busiest of the five seconds
    before; ten are always allowed."""

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrency", "growth"):
            limit = getattr(self, name)
            if limit is not None:
                number(name, limit, "above zero, or None for no limit")


@dataclass(frozen=True)
class Refusal:
    """A 429 response; ``retry_after`` is in seconds."""

    code: str
    type: str
    message: str
    retry_after: float


_GROWTH_FLOOR = 10
_GROWTH_MEMORY = 5
_CONCURRENCY_PAUSE = 0.2


class _Bucket:
    """A token bucket that holds one second of a limit; a larger cost makes the level negative."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.rate = per_minute / 60
        self.capacity = max(1.0, self.rate)
        self.level = self.capacity
        self.updated = now

    def seconds_until(self, cost: float, now: float) -> float:
        self.level = min(self.capacity, self.level + (now - self.updated) * self.rate)
        self.updated = now
        # A cost above the capacity waits for a full bucket; otherwise it would never pass.
        missing = min(cost, self.capacity) - self.level
        return missing / self.rate if missing > 1e-9 else 0.0

    def spend(self, cost: float) -> None:
        self.level -= cost


class QuotaGate:
    """Admits or refuses requests on one event loop; not thread-safe.

    Args:
        quotas: The limits.
        now: The current time, in seconds of any monotonic clock.
    """

    def __init__(self, quotas: Quotas, now: float) -> None:
        self.quotas = quotas
        requests, tokens = quotas.requests_per_minute, quotas.tokens_per_minute
        self._requests = _Bucket(requests, now) if requests is not None else None
        self._tokens = _Bucket(tokens, now) if tokens is not None else None
        self._in_progress = 0
        self._by_second: dict[int, int] = {}

    def admit(self, tokens: int, now: float) -> Refusal | None:
        """Admit a request of ``tokens``, charge the limits and return None; or return the refusal.

        A refused request is not charged. Call `release` once for every admitted request.
        """
        limit = self.quotas.concurrency
        if limit is not None and self._in_progress >= limit:
            return Refusal(
                "rate_limit_exceeded",
                "rate_limit_error",
                f"Too many concurrent requests: {limit} are allowed at once.",
                _CONCURRENCY_PAUSE,
            )
        if self._requests is not None and (wait := self._requests.seconds_until(1, now)):
            return Refusal(
                "limit_requests",
                "limit_requests",
                "You exceeded your current request limit, please try again later.",
                wait,
            )
        if self._tokens is not None and (wait := self._tokens.seconds_until(tokens, now)):
            return Refusal(
                "insufficient_quota",
                "insufficient_quota",
                "Allocated quota exceeded, please increase your quota limit.",
                wait,
            )
        if (wait := self._growth_wait(now)) > 0:
            return Refusal(
                "limit_burst_rate",
                "limit_burst_rate",
                "Request rate increased too quickly. To ensure system stability, please adjust "
                "your client logic to scale requests more smoothly over time.",
                wait,
            )
        if self._requests is not None:
            self._requests.spend(1)
        if self._tokens is not None:
            self._tokens.spend(tokens)
        if self.quotas.growth is not None:
            second = int(now)
            self._by_second[second] = self._by_second.get(second, 0) + 1
        self._in_progress += 1
        return None

    def release(self) -> None:
        """Record that an admitted request was answered."""
        self._in_progress -= 1

    def _growth_wait(self, now: float) -> float:
        if self.quotas.growth is None:
            return 0.0
        second = int(now)
        recent = {s: n for s, n in self._by_second.items() if s >= second - _GROWTH_MEMORY}
        self._by_second = recent
        busiest = max((n for s, n in recent.items() if s < second), default=0)
        allowed = max(_GROWTH_FLOOR, int(busiest * self.quotas.growth))
        return second + 1 - now if recent.get(second, 0) >= allowed else 0.0
