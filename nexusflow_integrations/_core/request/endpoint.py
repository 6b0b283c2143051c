"""The state of one endpoint, which all calls of the process to this endpoint share.

There is one state for each combination of base URL, key and model. So whatever one call learns
about the server, such as a rate limit, applies to all other calls at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.pace.admission import AdmissionQueue
from nexusflow_integrations._core.pace.pacing import DetectedLimit, GivenLimits, Pacer
from nexusflow_integrations._core.pace.terms import EffectiveLimits, Terms
from nexusflow_integrations._core.pace.window import Window
from nexusflow_integrations._core.request.failures import Failure, Kind
from nexusflow_integrations._core.request.retry import RetryBudget
from nexusflow_integrations._core.settings import DEFAULT_MAX_CONCURRENCY

if TYPE_CHECKING:
    from nexusflow_integrations._core.pace.shared import SharedLimits


ALIVE = 10.0
"""Seconds for which a success counts as proof that the server works."""
MOST_REPORTS = 64
"""Number of reports from calling threads after which the event loop is woken to read them."""


@dataclass(eq=False)
class Outage:
    """A period without a success: one request probes the server, and all others wait.

    ``began`` is in monotonic seconds.
    """

    began: float
    recovered: bool | None = None
    over: bool = False
    _listeners: list[Callable[[], None]] = field(default_factory=list)

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def end(self, *, recovered: bool | None) -> None:
        """Wake all requests that wait.

        ``recovered`` is ``True`` if the server works again, ``False`` if the probe failed, and
        ``None`` if the probe was given up and another request must probe.
        """
        if self.over:
            return
        self.over, self.recovered = True, recovered
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()


class EndpointState:
    """The pacer, window and retry budget of one endpoint, and the limits that its server reported.

    The limits that users set apply while their clients are in use. The limits that the server
    reported stay when clients are closed.

    Args:
        clock: Returns seconds.
        pace_with: Called to make the endpoint use shared limits.
        later: Schedules a function on the event loop of the endpoint, from any thread.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        pace_with: Callable[[EndpointState, SharedLimits], None] | None = None,
        later: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self.clock = clock
        self._pace_with = pace_with
        self._later = later
        self._limits = EffectiveLimits()
        self._detected = DetectedLimit()
        self._last_given: GivenLimits | None = None
        self.pacer: Pacer = self._detected
        self.window = Window(limit=DEFAULT_MAX_CONCURRENCY)
        self.admission = AdmissionQueue(self.pacer, self.window, clock)
        self.retry_budget = RetryBudget()
        self.batch_limit: int | None = None
        self.base64_refused = False
        self.outage: Outage | None = None
        self._last_good = float("-inf")
        self.given: tuple[float | None, float | None] = (None, None)
        self.paced_by: object = None
        self._shared: SharedLimits | None = None
        self._reports: deque[Success] = deque()

    @property
    def is_in_use(self) -> bool:
        """Whether there is a client, or a call in flight."""
        return bool(self._limits)

    def knows(self, terms: Terms) -> bool:
        """Return whether a client's limits already apply here; any thread may call this."""
        return terms in self._limits

    def report(self, success: Success) -> None:
        """In a calling thread, record the success of a request that this thread has sent."""
        self._reports.append(success)
        if self._later is not None and (
            self.outage is not None or len(self._reports) >= MOST_REPORTS
        ):
            self._later(self.read_reports)

    def read_reports(self) -> None:
        """Apply what calling threads have reported, on the event loop."""
        while self._reports:
            success = self._reports.popleft()
            self.retry_budget.first_attempt()
            self._good(success.now, success.sent_at, success.estimated, success.billed, 0)
            self.window.succeeded(success.in_flight, success.now)

    def begin(self, terms: Terms) -> None:
        """Record the start of a call by a client with these ``terms``."""
        self._limits.begin(terms, self._client_ended)
        self._apply()

    def end(self, terms: Terms) -> None:
        """Record that a call has ended."""
        if self._limits.end(terms):
            self.review()

    def review(self) -> None:
        """Apply the limits of the clients that are still in use."""
        self._limits.review()
        self._apply()

    def _client_ended(self) -> None:
        if self._later is not None:
            self._later(self.review)

    def _apply(self) -> None:
        effective = self._limits
        if self._reports:
            self.read_reports()
        self.window.set_limit(effective.max_concurrency)
        self.admission.lend()
        given = (effective.requests_per_minute, effective.tokens_per_minute)
        if given == self.given and effective.pacer is self._shared:
            return
        if effective.pacer is not None and self._pace_with is not None:
            self._pace_with(self, effective.pacer)
        elif given == (None, None):
            self.use_pacer(self._detected)
        else:
            limits = GivenLimits(*given)
            if self._last_given is not None:
                limits.follow(self._last_given)  # keep the debt of the previous pacer
            self._last_given = limits
            self.use_pacer(limits)
        self.given, self._shared = given, effective.pacer
        self.admission.pump()  # the times at which waiting requests are due may have changed

    def use_pacer(self, pacer: Pacer, paced_by: object = None) -> None:
        """Use ``pacer``, which is shared through ``paced_by`` if that argument is set."""
        self.pacer = self.admission.pacer = pacer
        self.paced_by = paced_by
        self.admission.lend()

    def learn_batch_limit(self, limit: int) -> None:
        if self.batch_limit is None or limit < self.batch_limit:
            logger.info("the server accepts at most %d texts per request; splitting", limit)
            self.batch_limit = limit

    @property
    def alive(self) -> bool:
        """Whether a request succeeded recently."""
        return self.clock() - self._last_good < ALIVE

    def good(
        self, now: float, *, sent_at: float, retries: int, estimated: int, billed: int | None
    ) -> None:
        """Record a success of a request sent at ``sent_at``."""
        self._good(now, sent_at, estimated, billed, retries)
        self.window.succeeded(self.admission.in_flight + 1, now)

    def _good(
        self, now: float, sent_at: float, estimated: int, billed: int | None, retries: int
    ) -> None:
        self._last_good = now
        self.pacer.succeeded(now, sent_at)
        if billed is not None:
            self.pacer.settle(estimated, billed)
        if retries:
            self.retry_budget.refund(retries)
        # A request that was sent before the outage does not prove that the outage is over.
        if self.outage is not None and sent_at >= self.outage.began:
            self.outage.end(recovered=True)
            self.outage = None

    def bad(self, failure: Failure | None, sent_at: float, now: float) -> None:
        """Record a failed request; ``failure`` is ``None`` if there was no valid response."""
        if self._reports:
            self.read_reports()
        if failure is not None and failure.too_many_at_once:
            self.window.full(self.admission.in_flight, now)
        elif failure is not None and failure.kind is Kind.THROTTLE:
            self.pacer.throttled(sent_at=sent_at, now=now, hint=failure.retry_after)
        else:
            self.window.failed(sent_at, now)
        self.admission.lend()


@dataclass(frozen=True, slots=True)
class Success:
    """A calling thread's report about a request: its tokens, and times in monotonic seconds.

    ``in_flight`` is the number of requests, including this one, that calling threads had in flight.
    """

    now: float
    sent_at: float
    estimated: int
    billed: int | None
    in_flight: int


class NeedsLoop(Exception):  # noqa: N818 - it never leaves the core
    """An exchange in a calling thread needs something that only the event loop may do."""


class SeenFromThread:
    """An endpoint for an exchange in a calling thread, which may only read and report a success.

    Raises:
        NeedsLoop: The exchange tries to change anything else.
    """

    __slots__ = ("_endpoint",)

    def __init__(self, endpoint: EndpointState) -> None:
        self._endpoint = endpoint

    @property
    def clock(self) -> Callable[[], float]:
        return self._endpoint.clock

    @property
    def batch_limit(self) -> int | None:
        return self._endpoint.batch_limit

    @property
    def base64_refused(self) -> bool:
        return self._endpoint.base64_refused

    @base64_refused.setter
    def base64_refused(self, _: bool) -> None:
        raise NeedsLoop

    @property
    def retry_budget(self) -> SeenFromThread:
        return self

    def first_attempt(self) -> None:
        """Do nothing: the request is counted by the report or by the loop's exchange."""

    def good(
        self, now: float, *, sent_at: float, retries: int, estimated: int, billed: int | None
    ) -> None:
        if retries:
            raise NeedsLoop
        in_flight = len(self._endpoint.admission.threads)
        self._endpoint.report(Success(now, sent_at, estimated, billed, in_flight))

    def __getattr__(self, name: str) -> Any:
        raise NeedsLoop
