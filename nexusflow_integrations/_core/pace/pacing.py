"""Decides how fast to send: up to limits that the user set, or up to a limit found by trial.

Everything here is arithmetic on a clock that the caller passes in (monotonic seconds). A pacer
returns how long to wait (``wait``). The caller reports each request that was sent (``take``), its
cost (``settle``), and whether it exceeded the rate limit (``throttled``) or succeeded
(``succeeded``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol


class Pacer(Protocol):
    """A pacer for the admission queue: a class below, or ``LeasedPacer`` for shared limits."""

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 means now."""

    def take(self, tokens: int, now: float) -> None:
        """Record that a request of about ``tokens`` is being sent."""

    def settle(self, estimated: int, billed: int) -> None:
        """Replace the estimate of a request with the tokens that the server billed."""

    def throttled(self, *, sent_at: float, now: float, hint: float | None) -> None:
        """Record that a request sent at ``sent_at`` exceeded the rate limit."""

    def succeeded(self, now: float, sent_at: float | None = None) -> None:
        """Record that a request succeeded; ``sent_at`` is when it was sent, if known."""


SLACK = 0.1
"""Maximum seconds of delay that later requests may make up for."""


@dataclass
class Gcra:
    """The generic cell rate algorithm: ``per_second`` units each second, without bursts.

    The API limits each second and the growth of the rate, so idle time earns no credit. Later
    requests may make up for a delay of at most ``slack`` seconds, because timers fire late and
    every late wake-up would otherwise waste quota.
    """

    per_second: float
    slack: float = SLACK
    next_at: float = float("-inf")
    taken_at: float = float("-inf")

    def wait(self, now: float) -> float:
        return max(0.0, self.next_at - now)

    def take(self, units: float, now: float) -> None:
        if now - self.next_at > self.slack:
            self.next_at = now
        self.next_at += units / self.per_second
        self.taken_at = now

    def follow(self, former: Gcra) -> None:
        """Take over the debt, in units, that ``former`` had after its last ``take``."""
        owed = max(0.0, former.next_at - former.taken_at) * former.per_second
        self.taken_at = former.taken_at
        self.next_at = former.taken_at + owed / self.per_second


REGAIN = 0.05
"""Share of a given limit that is regained in each second after a refusal."""
SAFETY = 0.99
"""Share of a given limit that is used, because our clock and the server's differ slightly."""
LEAST = 1e-9
"""The lowest limit per minute, one request in two thousand years, to avoid a division by zero."""


def _per_second(per_minute: float) -> float:
    return max(per_minute, LEAST) / 60 * SAFETY


@dataclass
class GivenLimits:
    """Keeps to the user's limits on requests and tokens per minute; ``None`` means no limit."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    _requests: Gcra | None = field(init=False, default=None)
    _tokens: Gcra | None = field(init=False, default=None)
    _ratio: float = field(init=False, default=1.0)
    _share: float = field(init=False, default=1.0)
    _share_at: float = field(init=False, default=float("-inf"))
    _cut_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        if self.requests_per_minute:
            per_second = _per_second(self.requests_per_minute)
            # The server allows the requests of one second at once. One request uses its part of
            # these; only the rest is room to catch up.
            room = max(0.0, 1.0 - 1 / per_second)
            self._requests = Gcra(per_second, slack=min(SLACK, room))
        if self.tokens_per_minute:
            self._tokens = Gcra(_per_second(self.tokens_per_minute))

    def follow(self, former: GivenLimits) -> None:
        """Take over the debts of ``former``."""
        for mine, other in ((self._requests, former._requests), (self._tokens, former._tokens)):
            if mine is not None and other is not None:
                mine.follow(other)
        self._ratio, self._cut_at = former._ratio, former._cut_at
        self._share, self._share_at = former._share, former._share_at

    def wait(self, now: float) -> float:
        return max(
            bucket.wait(now) if bucket is not None else 0.0
            for bucket in (self._requests, self._tokens)
        )

    def take(self, tokens: int, now: float) -> None:
        if self._share < 1.0:
            self._share = min(1.0, self._share + REGAIN * (now - self._share_at))
            self._share_at = now
        if self._requests is not None:
            self._requests.take(1 / self._share, now)
        if self._tokens is not None:
            self._tokens.take(tokens * self._ratio / self._share, now)

    def settle(self, estimated: int, billed: int) -> None:
        if self._tokens is None or estimated <= 0:
            return
        self._tokens.next_at += (billed - estimated * self._ratio) / self._tokens.per_second
        self._ratio += 0.1 * (min(10.0, max(0.1, billed / estimated)) - self._ratio)

    def throttled(self, *, sent_at: float, now: float, hint: float | None) -> None:
        # The server refused a request within the given limit, so someone else uses the same quota.
        # Slow down a little for a while, once for each burst of refusals.
        if sent_at <= self._cut_at:
            return
        self._cut_at = self._share_at = now
        self._share = max(0.1, self._share * 0.9)

    def succeeded(self, now: float, sent_at: float | None = None) -> None:
        pass


BETA = 0.85
"""Factor by which a refusal cuts the rate."""
PLATEAU = 8.0
"""Seconds after a cut until the rate is back where it was refused, and may grow further."""
MIN_RATE = 0.2
"""Requests per second; refusals never push the rate below this."""
SEARCH = 2.0
"""Factor by which the rate grows each second while nothing is known about the limit."""
SEARCH_NEAR = 1.4
"""Factor by which the rate grows each second once a burst has shown roughly where the limit is."""
LONGEST_SEARCH = 30.0
"""Seconds after which the growth stops (at 2^30), so that the power cannot overflow a float."""
UNPACED = 1000.0
"""Requests per second from which on a rate may be forgotten, because it hardly delays anything."""
REMEMBERED = 60.0
"""Seconds after the last refusal for which any rate is kept: a quota may be above ``UNPACED``."""
DOUBTFUL = 4.0
"""Growth since a refusal, as a factor, after which that refusal no longer tells the limit."""
MEASURE = 1.0
"""Seconds over which the rate of successful requests is measured."""


@dataclass
class DetectedLimit:
    """Finds the limit by trial: no pacing until the first refusal, then CUBIC.

    A rate that has grown to ``UNPACED`` is forgotten ``REMEMBERED`` seconds after the last refusal.

    A refusal cuts the rate to ``BETA`` times the rate that the server actually accepted. The rate
    then grows along a cubic curve, flat near the rate that was refused and steep far from it (Ha,
    Rhee and Xu, "CUBIC", 2008; the AWS SDKs pace the same way). Refusals of requests that were sent
    before a cut do not cut again, so one burst counts once.
    """

    rate: float | None = None
    _searching: bool = False
    _is_first: bool = False
    _is_near: bool = False
    _refused_rate: float = 0.0
    _cut_at: float = float("-inf")
    _held_until: float = float("-inf")
    _good: deque[float] = field(default_factory=deque)
    _good_since_cut: bool = True
    _gcra: Gcra = field(default_factory=lambda: Gcra(1.0))

    def wait(self, now: float) -> float:
        if self.rate is None:
            return 0.0
        return max(self._gcra.wait(now), self._held_until - now, 0.0)

    def take(self, tokens: int, now: float) -> None:
        if self.rate is None:
            return
        rate = self._rate_at(now)
        if rate >= UNPACED and now - self._cut_at >= REMEMBERED:
            # Without a rate, calling threads may send queries without asking the event loop.
            self.rate = None
            return
        self.rate = rate
        self._gcra.per_second = rate
        self._gcra.take(1, now)

    def _rate_at(self, now: float) -> float:
        if self._searching:
            passed = min(now - self._cut_at, LONGEST_SEARCH)
            growth: float = (SEARCH_NEAR if self._is_near else SEARCH) ** passed
            return max(MIN_RATE, self._refused_rate * BETA * growth)
        grown: float = ((now - self._cut_at) / PLATEAU - 1.0) ** 3
        return max(MIN_RATE, self._refused_rate * (1.0 + (1.0 - BETA) * grown))

    def settle(self, estimated: int, billed: int) -> None:
        pass

    def throttled(self, *, sent_at: float, now: float, hint: float | None) -> None:
        if sent_at <= self._cut_at:
            return
        passed = self._measured(now)
        known = self.rate
        if known is not None and not self._searching and known > DOUBTFUL * self._refused_rate > 0:
            known = None  # the rate grew during a time of little load, and was not tried
        # The requests of a burst that passed before the first refusal say little about the limit.
        # So search from their rate: up with time, down with each refusal.
        self._is_first = known is None
        self._searching = known is None or (self._searching and now - self._cut_at < MEASURE / 2)
        if passed > 0:
            refused = passed if known is None else min(passed, known)
        else:
            refused = (known or 2.0) / 2
        if hint is not None and not self._good_since_cut:
            # Nothing has succeeded since the last cut, so apply the hint to all requests.
            self._held_until = max(self._held_until, now + min(hint, 60.0))
        self._refused_rate = max(MIN_RATE, refused)
        self._cut_at = now
        self._good_since_cut = False
        self.rate = self._rate_at(now)
        # Wait a moment: the outcome of the other requests of this burst will say more.
        self._gcra = Gcra(self.rate, next_at=now + 0.3 / self.rate)

    def succeeded(self, now: float, sent_at: float | None = None) -> None:
        self._good.append(now)
        self._good_since_cut = True
        while self._good and self._good[0] < now - MEASURE:
            self._good.popleft()
        if self._is_first and sent_at is not None and sent_at <= self._cut_at:
            self._learn_from_burst(now)

    def _learn_from_burst(self, now: float) -> None:
        """Search upwards from the part of the burst that passed before the first refusal.

        The limit applies to each second, so a burst shows at least how many requests one second
        allows.
        """
        passed = len(self._good) / MEASURE
        if passed >= self._refused_rate:
            self._refused_rate, self._is_near = passed, True
            self.rate = self._rate_at(now)
            self._gcra.next_at = min(self._gcra.next_at, now + 1 / self.rate)

    def _measured(self, now: float) -> float:
        """Return the successful requests per second, over at most the last ``MEASURE`` seconds."""
        while self._good and self._good[0] < now - MEASURE:
            self._good.popleft()
        if not self._good:
            return 0.0
        span = now - self._good[0]
        return len(self._good) / max(span, MEASURE / 2)
