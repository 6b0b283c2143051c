"""Limits and a budget that several objects share, as a user would write them."""

from __future__ import annotations

from nexusflow_integrations import Grant


class Limits:
    """Keeps limits and a budget of 1,000 tokens in memory."""

    requests_per_minute = 60_000.0
    tokens_per_minute = None
    processes = 1
    tokens = 1_000

    def __init__(self) -> None:
        self.leases = 0
        self.granted = 0

    def lease(self, count: int, tokens: int, **late: float) -> list[float]:
        self.leases += 1
        return [0.0] * count

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        pass

    def throttled(self, ago: float) -> None:
        pass

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Grant:
        self.granted -= unused
        given = min(max(least, wanted), self.tokens - self.granted)
        given = given if given >= least else 0
        self.granted += given
        return Grant(given, self.tokens - self.granted, False)
