"""Limits that all processes of one account share, on one host or on many.

Processes reserve send times from ``SharedLimits``, whose methods block, so a thread calls them. The
admission queue uses ``LeasedPacer``, which never blocks: a thread fetches send times ahead, several
at once if the rate is high.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.offload import Submit, offload
from nexusflow_integrations._core.pace.pacing import LEAST, Gcra, GivenLimits
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import CacheError

if TYPE_CHECKING:
    from nexusflow_integrations._core.key_sources import FunctionKey


MAX_AHEAD = 3600.0
"""Maximum seconds by which a stored send time may be in the future; later ones are moved."""
LEASE_SECONDS = 0.1
"""Number of seconds for which one process may reserve send times at once."""
MOST_AT_ONCE = 128
"""Maximum number of requests that one process may reserve at once."""
IDLE = 0.03
"""An unused send time that is this many seconds old shows that no request waits."""
LAPSE = 0.25
"""An unused send time that is this many seconds old expires."""
PATIENCE = 1.0
"""Seconds that requests wait for send times before the process limits itself."""
ASK_AGAIN = 5.0
"""Seconds for which a process limits itself after the limits could not be reached."""
RECHECK = 0.25
"""Seconds after which the queue checks again whether send times have arrived."""
NO_LIMIT = 1e12
"""The number per minute that stands for no limit."""
FIRST_GUESS = 3_000
"""Tokens charged for a request before any cost is known: ten passages of 300 tokens."""


def account_id(*, base_url: str, key: ApiKey | FunctionKey, model: str) -> bytes:
    """Return 16 bytes that identify an account; the key cannot be recovered from them."""
    parts = ("nexusflow pacer 1", base_url, key.fingerprint(), model)
    framed = b"".join(
        len(data).to_bytes(8, "big") + data for data in (part.encode() for part in parts)
    )
    return hashlib.sha256(framed).digest()[:16]


def given_back(
    charges: list[int], requests_per_second: float, tokens_per_second: float
) -> tuple[float, float]:
    """Return the charge that gives back unused send times: tokens and seconds, both negative.

    Other processes may hold later send times and use them in addition to those given back. The
    server allows the requests of one second at once, and one request uses its part of them.

    Args:
        charges: The tokens charged for each send time.
        requests_per_second: The limit on requests.
        tokens_per_second: The limit on tokens.
    """
    room = max(0.0, 1.0 - 1.0 / requests_per_second)
    seconds = min(len(charges) / requests_per_second, room)
    # The seconds are credited to both limits, the tokens only to the limit on tokens.
    return seconds * tokens_per_second - sum(charges), -seconds


def _nothing(_: object) -> None:
    pass


def _room(units: float, per_second: float) -> float:
    """Return the fraction of a second's units that remains after a request of ``units``.

    The limit allows the units of one second at once.
    """
    return max(0.0, max(1.0, per_second) - units) / per_second


class SharedLimits(Protocol):
    """The limits of one account, from which all processes that share it reserve send times.

    All methods block and are called from one thread at a time. They may raise any ``Exception`` if
    the limits cannot be reached. The process then limits itself to its share, and asks again after
    five seconds. It does the same if a method takes longer than one second, or longer than the
    seconds in the object's attribute ``patience``, if there is one.
    """

    @property
    def requests_per_minute(self) -> float | None:
        """Limit of the account; ``None`` for no limit."""

    @property
    def tokens_per_minute(self) -> float | None:
        """Limit of the account on tokens; ``None`` for no limit."""

    @property
    def processes(self) -> int:
        """How many processes used the limits recently, as far as known; at least 1."""

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        """Reserve ``count`` requests of about ``tokens`` each.

        Args:
            count: Number of requests, one or more.
            tokens: Tokens to charge for each request.
            owed_tokens: Tokens that earlier requests cost beyond their charge; negative if they
                cost less.
            late: Seconds by which earlier requests were sent after their send times.

        Returns: Seconds from now until each request may be sent, in rising order; slightly negative
            for an unused send time that has passed.
        """

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        """Charge ``tokens`` and ``late`` seconds; refund them if negative."""

    def throttled(self, ago: float) -> None:
        """Slow all processes down: a request sent ``ago`` seconds ago exceeded the rate limit."""


class SlotLimits(GivenLimits):
    """``GivenLimits`` for several processes: hands out send times and tracks debts.

    The stored state is the debts in requests and in tokens, and share, share_at and cut_at. The
    time at which the debt is paid off is not stored, because it depends on the limit.
    """

    def load(self, row: tuple[float, ...], *, then: float, now: float) -> None:
        """Continue from the state that ``dump`` returned at ``then``."""
        requests, tokens, self._share, share_at, cut_at = row
        # If the clock was set back, move all stored times back by the same amount.
        shift = min(0.0, now - then)
        for bucket, owed in ((self._requests, requests), (self._tokens, tokens)):
            if bucket is not None:
                bucket.next_at = min(then + shift + owed / bucket.per_second, now + MAX_AHEAD)
        self._share_at, self._cut_at = min(share_at + shift, now), cut_at + shift

    def dump(self, now: float) -> tuple[float, ...]:
        """Return the state at ``now``."""
        requests, tokens = (
            0.0 if bucket is None else (bucket.next_at - now) * bucket.per_second
            for bucket in (self._requests, self._tokens)
        )
        return requests, tokens, self._share, self._share_at, self._cut_at

    def slot(self, tokens: int, now: float) -> float:
        """Reserve and return the first time, not before ``now``, at which a request may be sent."""
        slot = now
        for bucket, units in ((self._requests, 1), (self._tokens, tokens)):
            if bucket is not None:
                # Earlier requests may have been sent up to ``slack`` seconds early. A request that
                # needs all units of a second waits for that time to pass.
                missing = max(0.0, bucket.slack - _room(units, bucket.per_second))
                slot = max(slot, bucket.next_at + missing * 0.999)
        self.take(tokens, slot)
        return slot

    def hold(self, until: float) -> None:
        """Hand out no send time before ``until``."""
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.next_at = max(bucket.next_at, until)

    def adjust(self, tokens: float, seconds: float) -> None:
        if self._requests is not None:
            self._requests.next_at += seconds
        if self._tokens is not None:
            self._tokens.next_at += seconds + tokens / self._tokens.per_second


class LeasedPacer:
    """A ``Pacer`` for an event loop that gets its send times from ``SharedLimits`` in a thread.

    Send times are requested when a request waits for one, and again before the last one is used.
    Once no request waits, unused send times are returned if there are other processes. If the
    limits cannot be reached or do not answer, the process limits itself to its share (the limits
    divided by ``processes``). It asks again every ``ASK_AGAIN`` seconds, but never while it still
    waits for an answer.

    Args:
        shared: The limits from which send times are reserved.
        submit: Runs a function in another thread.
        ready: Called on the loop when send times have arrived; the admission queue passes ``pump``.
        clock: The admission queue's clock, in seconds.
    """

    def __init__(
        self,
        shared: SharedLimits,
        submit: Submit,
        ready: Callable[[], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._shared = shared
        self._patience: float = getattr(shared, "patience", PATIENCE)
        self._submit = submit
        self._ready = ready
        self._clock = clock
        self._limits = shared.requests_per_minute, shared.tokens_per_minute
        self._requests_per_second = max(shared.requests_per_minute or NO_LIMIT, LEAST) / 60
        self._tokens_per_second = max(shared.tokens_per_minute or NO_LIMIT, LEAST) / 60
        self._size = 1
        # Each send time, and the tokens charged for it.
        self._slots: deque[tuple[float, int]] = deque()
        # The tokens that a request is charged in advance: the highest recent cost. If a charge is
        # too low, its correction may come after another process was allowed to send.
        self._charge = 0.0
        self._ratio = 1.0
        self._unreported = 0.0
        self._late_seconds = 0.0
        self._asking = False
        self._waited = 0.0
        self._looked_at = 0.0
        self._is_reporting = False
        self._alone: GivenLimits | None = None
        self._ask_at = 0.0
        self._last: tuple[int, float] | None = None  # tokens and send time of the last request
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent; if unknown, start asking in a thread."""
        if self._alone is not None:
            if now >= self._ask_at:
                self._lease(now)
            return self._alone.wait(now)
        while self._slots and now - self._slots[0][0] > LAPSE:
            self._charge_later(-self._slots.popleft()[1])
            self._size = 1
        if 2 * len(self._slots) <= self._size:
            self._lease(now)
        if self._slots:
            return max(0.0, self._slots[0][0] - now)
        # Do not count the whole time since asking: a suspended process was not waiting.
        self._waited += min(now - self._looked_at, 2 * RECHECK)
        self._looked_at = now
        if self._waited < self._patience:
            return RECHECK
        self._pace_alone(f"no answer within {self._patience:g} s")
        return self.wait(now)

    def take(self, tokens: int, now: float) -> None:
        """Use the next send time for a request of about ``tokens``."""
        self._last = tokens, now
        if self._alone is not None:
            self._alone.take(tokens, now)
            return
        slot, charged = self._slots.popleft()
        cost = tokens * self._ratio
        self._charge_later(cost - charged)
        self._charge = max(cost, self._charge + 0.2 * (cost - self._charge))
        room = min(_room(1, self._requests_per_second), _room(cost, self._tokens_per_second))
        if now - slot > room - Gcra.slack:
            self._late_seconds += now - slot  # otherwise the next request could follow too soon
        if not self._slots:
            self._size = min(MOST_AT_ONCE, 2 * self._size)

    def settle(self, estimated: int, billed: int) -> None:
        """Replace the charge of a request with the tokens that the server billed."""
        if self._alone is not None:
            self._alone.settle(estimated, billed)
        elif estimated > 0:
            self._charge_later(billed - estimated * self._ratio)
            self._ratio += 0.1 * (min(10.0, max(0.1, billed / estimated)) - self._ratio)

    def throttled(self, *, sent_at: float, now: float, hint: float | None) -> None:
        """Record a refusal; all processes of the account slow down a little for a while."""
        if self._alone is not None:
            self._alone.throttled(sent_at=sent_at, now=now, hint=hint)
        else:
            offload(
                self._submit,
                lambda: self._shared.throttled(self._clock() - sent_at),
                lambda _: None,
                self._fail,
            )

    def succeeded(self, now: float, sent_at: float | None = None) -> None:
        """Do nothing: if the limits are given, a success says nothing new."""

    # -- the other thread ----------------------------------------------------------------------

    def _charge_later(self, tokens: float) -> None:
        if self._shared.tokens_per_minute is None:
            return
        self._unreported += tokens
        if not self._is_reporting:
            self._is_reporting = True
            asyncio.get_running_loop().call_soon(self._report)

    def _report(self) -> None:
        """Report the unreported tokens, unless a lease has already included them."""
        if abs(self._unreported) < 1 or self._alone is not None:
            self._is_reporting = False
            return
        unreported, self._unreported = self._unreported, 0.0
        offload(self._submit, lambda: self._shared.adjust(unreported), self._reported, self._fail)

    def _reported(self, _: None) -> None:
        self._report()

    def _lease(self, now: float) -> None:
        if self._asking:
            return
        self._asking = True
        self._waited, self._looked_at = 0.0, now
        charge = math.ceil(self._charge or min(FIRST_GUESS, self._tokens_per_second))
        pace = min(self._requests_per_second, self._tokens_per_second / max(1, charge))
        count = max(
            1, min(self._size, int(min(pace, MOST_AT_ONCE / LEASE_SECONDS) * LEASE_SECONDS))
        )
        unreported, self._unreported = self._unreported, 0.0
        late, self._late_seconds = self._late_seconds, 0.0

        def lease() -> list[tuple[float, int]]:
            waits = self._shared.lease(count, charge, owed_tokens=unreported, late=late)
            now = self._clock()
            slots = [(now + wait, charge) for wait in waits]
            if not slots or not all(math.isfinite(at) for at, _ in slots):
                raise ValueError  # otherwise the pacer would ask for ever, or never send
            return slots

        offload(self._submit, lease, self._leased, self._not_leased)

    def _leased(self, slots: list[tuple[float, int]]) -> None:
        self._asking = False
        was_alone = self._alone is not None
        if self._alone is not None:
            # The shared limits do not know which requests this process sent while it limited
            # itself.
            now = self._clock()
            shift = max(0.0, now + self._alone.wait(now) - slots[0][0])
            slots = [(at + shift, charge) for at, charge in slots]
            self._late_seconds += shift
            self._alone = None
        self._slots.extend(slots)
        self._ready()
        self._watch(self._clock())
        if was_alone:
            logger.warning("the shared limits can be reached again, and are used again")

    def _watch(self, now: float) -> None:
        """Check again when the next send time is overdue: if still unused, no request waits."""
        if self._slots and self._timer is None:
            pause = max(0.0, self._slots[0][0] - now) + IDLE
            self._timer = asyncio.get_running_loop().call_later(pause, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock()
        if not self._slots or now - self._slots[0][0] < IDLE:
            self._watch(now)
            return
        if self._processes() == 1:
            # Keep the send times: no other process needs them, and the next request may make up
            # for the delay.
            return
        unused = [charged for at, charged in self._slots if now - at <= LAPSE]
        self._slots.clear()
        self._size = 1
        tokens, seconds = given_back(unused, self._requests_per_second, self._tokens_per_second)
        offload(self._submit, lambda: self._shared.adjust(tokens, seconds), _nothing, self._fail)

    def _not_leased(self, error: BaseException) -> None:
        self._asking = False
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._is_reporting = False
        if isinstance(error, (StoreUnavailable, CacheError)):
            self._pace_alone(str(error))
        else:  # show only the type: the message may contain an address with a password
            self._pace_alone(type(error).__name__)
        self._ready()

    def _processes(self) -> int:
        try:
            return max(1, self._shared.processes)
        except Exception:  # noqa: BLE001 - a user's limits may raise anything
            return 1

    def _pace_alone(self, why: str) -> None:
        self._ask_at = self._clock() + ASK_AGAIN
        if self._alone is not None:
            return
        requests, tokens = self._limits
        processes = self._processes()
        self._alone = GivenLimits(requests and requests / processes, tokens and tokens / processes)
        if self._last is not None:
            self._alone.take(*self._last)
        self._slots.clear()
        logger.warning(
            "this process sets its own pace until the shared limits can be reached again: %s", why
        )
