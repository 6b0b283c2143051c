"""How fast to send: to a limit that was given, or to one that is found out.

Everything here is arithmetic on a clock that the caller passes in (monotonic seconds). A pacer says
how long to wait (``wait``), is told what was sent (``take``), what it really cost (``settle``),
what was refused (``throttled``) and what came back well (``succeeded``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol


class Pacer(Protocol):
    """What the admission queue asks; implemented in memory here and over a file in ``store``."""

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; 0 for now."""

    def take(self, tokens: int, now: float) -> None:
        """Note that a request of about ``tokens`` is being sent."""

    def settle(self, estimated: int, billed: int) -> None:
        """Correct the estimate of a request by what the server billed."""

    def throttled(self, *, sent_at: float, now: float, hint: float | None) -> None:
        """Note that a request sent at ``sent_at`` was refused as too fast."""

    def succeeded(self, now: float) -> None:
        """Note that a request was answered well."""


SLACK = 0.1
"""Seconds of delay that are caught up."""


@dataclass
class Gcra:
    """Generic cell rate algorithm: one unit each ``interval`` seconds, without saved-up bursts.

    Limits of this API hold per second and on growth, so after a rest nothing is saved up. Only a
    delay of at most ``slack`` seconds is caught up: timers fire late, and without it every late
    wake-up would be quota lost.
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
        """Owe what ``former`` owed when it last took: as many units, at this rate."""
        owed = max(0.0, former.next_at - former.taken_at) * former.per_second
        self.taken_at = former.taken_at
        self.next_at = former.taken_at + owed / self.per_second


REGAIN = 0.05
"""How much of a given limit is won back each second after a refusal."""
SAFETY = 0.99
"""Share of a given limit that is used: our clock and the server's never quite agree."""


LEAST = 1e-9
"""Per minute; a lower limit counts as this one, which is a request in two thousand years."""


def _per_second(per_minute: float) -> float:
    return max(per_minute, LEAST) / 60 * SAFETY


@dataclass
class GivenLimits:
    """Paces to limits that the user gave, requests and tokens per minute; ``None`` is no limit."""

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
            # A server lets through a second's worth at once: what one request needs of that is no
            # room for catching up.
            room = max(0.0, 1.0 - 1 / per_second)
            self._requests = Gcra(per_second, slack=min(SLACK, room))
        if self.tokens_per_minute:
            self._tokens = Gcra(_per_second(self.tokens_per_minute))

    def follow(self, former: GivenLimits) -> None:
        """Owe what ``former`` owed."""
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
        # The limit was given and is still refused: somebody else uses the same quota. Yield a
        # little, for a while, once for each burst of refusals.
        if sent_at <= self._cut_at:
            return
        self._cut_at = self._share_at = now
        self._share = max(0.1, self._share * 0.9)

    def succeeded(self, now: float) -> None:
        pass


BETA = 0.85
"""What is left of the rate after a refusal."""
PLATEAU = 8.0
"""Seconds after a cut until the rate is back where it was refused, and only then grows beyond."""
MIN_RATE = 0.2
"""Requests a second below which no number of refusals pushes the rate."""
SEARCH = 2.0
"""Factor by which the rate grows each second while the limit is still unknown."""
LONGEST_SEARCH = 30.0
"""Seconds of growth after which a rate is as good as none; more would be no float any more."""
MEASURE = 1.0
"""Seconds over which the rate of good answers is measured."""


@dataclass
class FoundLimit:
    """Finds the limit by itself: no pacing until the first refusal, then CUBIC around it.

    A refusal cuts the rate to ``BETA`` of what the server really let through; the rate then grows
    along a cubic that is flat where it was refused and steep far from it (Ha, Rhee and Xu, "CUBIC",
    2008; the SDKs of AWS pace the same way). All refusals of requests sent before a cut belong to
    that cut: one burst counts once.
    """

    rate: float | None = None
    _searching: bool = False
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
        self.rate = self._rate_at(now)
        self._gcra.per_second = self.rate
        self._gcra.take(1, now)

    def _rate_at(self, now: float) -> float:
        if self._searching:
            growth: float = SEARCH ** min(now - self._cut_at, LONGEST_SEARCH)
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
        # What passed before the first refusal, in a burst, says little about the rate: search from
        # it, upwards with time and downwards with each refusal, before settling.
        self._searching = known is None or (self._searching and now - self._cut_at < MEASURE / 2)
        if passed > 0:
            refused = passed if known is None else min(passed, known)
        else:
            refused = (known or 2.0) / 2
        if hint is not None and not self._good_since_cut:
            # Nothing gets through at all: believe the hint for everyone.
            self._held_until = max(self._held_until, now + min(hint, 60.0))
        self._refused_rate = max(MIN_RATE, refused)
        self._cut_at = now
        self._good_since_cut = False
        self.rate = self._rate_at(now)
        self._gcra = Gcra(self.rate, next_at=now)

    def succeeded(self, now: float) -> None:
        self._good.append(now)
        self._good_since_cut = True
        while self._good and self._good[0] < now - MEASURE:
            self._good.popleft()

    def _measured(self, now: float) -> float:
        """Good answers a second, over the last ``MEASURE`` seconds or what there is of them."""
        while self._good and self._good[0] < now - MEASURE:
            self._good.popleft()
        if not self._good:
            return 0.0
        span = now - self._good[0]
        return len(self._good) / max(span, MEASURE / 2)
