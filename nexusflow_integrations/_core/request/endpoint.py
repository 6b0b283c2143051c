"""What is known about one endpoint, shared by all calls of the process to it.

One lane for each (base URL, key, model): a limit that one call runs into, or a habit of the server
that it learns, is known to all others at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from nexusflow_integrations._core.pace.gate import Gate
from nexusflow_integrations._core.pace.pacing import FoundLimit, Pacer, pacer_for
from nexusflow_integrations._core.pace.window import Window
from nexusflow_integrations._core.request.failures import Failure, Kind
from nexusflow_integrations._core.request.retry import RetryBudget
from nexusflow_integrations._core.settings import Settings

logger = logging.getLogger("nexusflow_integrations")

ALIVE = 10.0
"""Seconds for which a good answer counts as proof that the server lives."""


@dataclass(eq=False)
class Outage:
    """A stretch without a good answer: one request probes, the others wait for what it finds.

    ``began`` is in monotonic seconds.
    """

    began: float
    recovered: bool | None = None
    over: bool = False
    _listeners: list[Callable[[], None]] = field(default_factory=list)

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def end(self, *, recovered: bool | None) -> None:
        """Tell all who wait: ``True`` it works again, ``False`` the probe failed too, ``None`` the
        prober left and somebody else must probe."""
        if self.over:
            return
        self.over, self.recovered = True, recovered
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()


class Lane:
    """Pace, window, retry budget and learnt habits of one endpoint."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.pacer: Pacer = FoundLimit()
        self.window = Window(limit=settings.max_concurrency)
        self.gate = Gate(self.pacer, self.window, clock)
        self.retry_budget = RetryBudget()
        self.batch_limit: int | None = None
        self.base64_refused = False
        self.outage: Outage | None = None
        self._last_good = float("-inf")
        self.given: tuple[float | None, float | None] = (None, None)
        self.paced_by: object = None
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take over what a client gave: the latest limits and the widest window count for all."""
        self.window.raise_limit(settings.max_concurrency)
        requests, tokens = self.given
        given = (settings.requests_per_minute or requests, settings.tokens_per_minute or tokens)
        if given != self.given:
            self.given = given
            self.use_pacer(pacer_for(*given, after=self.pacer))

    def use_pacer(self, pacer: Pacer, paced_by: object = None) -> None:
        """Send at the pace of ``pacer``, which is shared through ``paced_by`` if that is set."""
        self.pacer = self.gate.pacer = pacer
        self.paced_by = paced_by

    def learn_batch_limit(self, limit: int) -> None:
        if self.batch_limit is None or limit < self.batch_limit:
            logger.info("the server takes at most %d texts a request; splitting", limit)
            self.batch_limit = limit

    @property
    def alive(self) -> bool:
        """Whether the server answered well not long ago."""
        return self.clock() - self._last_good < ALIVE

    def good(
        self, now: float, *, sent_at: float, retries: int, estimated: int, billed: int | None
    ) -> None:
        """Note a good answer to a request sent at ``sent_at``."""
        self._last_good = now
        self.pacer.succeeded(now)
        if billed is not None:
            self.pacer.settle(estimated, billed)
        self.window.succeeded(self.gate.in_flight + 1)
        if retries:
            self.retry_budget.refund(retries)
        # What was sent before an outage proves nothing about its end.
        if self.outage is not None and sent_at >= self.outage.began:
            self.outage.end(recovered=True)
            self.outage = None

    def bad(self, failure: Failure | None, sent_at: float, now: float) -> None:
        """Note a failed request; ``failure`` is ``None`` where there was no proper answer."""
        if failure is not None and failure.kind is Kind.THROTTLE:
            self.pacer.throttled(sent_at=sent_at, now=now, hint=failure.retry_after)
        else:
            self.window.failed(sent_at, now)
