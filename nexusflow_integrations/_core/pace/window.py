"""How many requests may be in flight: slow start, additive increase, multiplicative decrease.

The loss signal is a server fault (5xx, timeout, reset), not a rate limit, which the pacer handles.
As in TCP (RFC 5681), each round trip multiplies the window until the first fault, and adds one
request after it. The window does not grow while it is not full.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 12
"""The size at the start: if the quota is small, only a part of such a burst is refused."""
SLOW_START = 2
"""Growth for each success before the first fault.

In the second round trip, the window reaches the default limit. So starting small costs no extra
round trip if there are 200 requests.
"""
DECREASE = 0.7
FULL = 10.0
"""Seconds for which the window does not grow after the server refused more requests at once."""


@dataclass
class Window:
    """The window: ``size`` requests may be in flight; ``size`` never exceeds ``limit``."""

    limit: int
    size: float = START
    _slow_start: bool = True
    _cut_at: float = float("-inf")
    _full_until: float = float("-inf")

    def __post_init__(self) -> None:
        self.size = float(min(self.size, self.limit))

    def set_limit(self, limit: int) -> None:
        """Set the maximum size to ``limit``."""
        self.limit = limit
        self.size = min(self.size, float(limit))

    def allows(self, in_flight: int) -> bool:
        return in_flight < int(self.size)

    def succeeded(self, in_flight: int, now: float) -> None:
        """Record a success while ``in_flight`` requests, including this one, were in flight."""
        if in_flight * 2 < self.size or now < self._full_until:
            return
        self.size = min(
            float(self.limit), self.size + (SLOW_START if self._slow_start else 1 / self.size)
        )

    def failed(self, sent_at: float, now: float) -> None:
        """Record a fault of a request that was sent at ``sent_at``; a burst counts once."""
        if sent_at <= self._cut_at:
            return
        self._cut_at = now
        self._slow_start = False
        self.size = max(1.0, self.size * DECREASE)

    def full(self, in_flight: int, now: float) -> None:
        """Record that the server refused a request because ``in_flight`` others were in flight."""
        self._slow_start = False
        self._full_until = now + FULL
        self.size = max(1.0, min(self.size, float(in_flight)))
