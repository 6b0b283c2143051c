"""One pace for all processes that use one account, on one host or on many.

``SharedLimits`` is where processes reserve send times: asked in a thread, since it blocks.
``LeasedPacer`` is what the admission queue asks: it never blocks, but has send times fetched ahead
by another thread, a few at once where the pace is high.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from nexusflow_integrations._core.offload import Submit, offload
from nexusflow_integrations._core.pace.pacing import LEAST, Gcra, GivenLimits
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import CacheError

if TYPE_CHECKING:
    from nexusflow_integrations._core.key_sources import AskedKey

logger = logging.getLogger("nexusflow_integrations")

MAX_AHEAD = 3600.0
"""Seconds; a send time further in the future is not believed."""
LEASE_SECONDS = 0.1
"""How much of the pace one process may reserve at once; what it leaves unused is lost to all."""
MOST_AT_ONCE = 128
"""The same as a number of requests."""
LAPSE = 0.25
"""Seconds after its time at which a reserved send time is given up."""
PATIENCE = 1.0
"""Seconds that requests wait for send times before the process paces alone."""
ASK_AGAIN = 5.0
"""Seconds for which a process paces alone after the limits could not be asked."""
RECHECK = 0.25
"""Seconds after which the queue asks again if nothing arrived, which should not happen."""
NO_LIMIT = 1e12
"""Per minute."""
FIRST_GUESS = 3_000
"""Tokens that a request is taken for before the first is known: ten passages of 300."""


def account_id(*, base_url: str, key: ApiKey | AskedKey, model: str) -> bytes:
    """Return 16 bytes that stand for an account; the key cannot be got back from them."""
    parts = ("nexusflow pacer 1", base_url, key.fingerprint(), model)
    framed = b"".join(
        len(data).to_bytes(8, "big") + data for data in (part.encode() for part in parts)
    )
    return hashlib.sha256(framed).digest()[:16]


def _room(units: float, per_second: float) -> float:
    """Return how many seconds of a limit, which lets through one second's worth at once, are left
    over by a request of ``units``."""
    return max(0.0, max(1.0, per_second) - units) / per_second


class SharedLimits(Protocol):
    """The limits of one account, and who may send when: the same for all processes that ask.

    All methods block, are called from one thread at a time, and may raise any ``Exception`` where
    the limits cannot be asked. The process then paces alone to its share of them, and asks again
    after five seconds. So it does when an answer takes longer than one second, or longer than the
    seconds in an attribute ``patience`` of the object, if it has one.
    """

    @property
    def requests_per_minute(self) -> float | None:
        """Limit of the account; ``None`` is none."""

    @property
    def tokens_per_minute(self) -> float | None:
        """The same for tokens."""

    @property
    def processes(self) -> int:
        """How many processes asked of late, as far as is known; at least 1."""

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        """Reserve ``count`` requests of about ``tokens`` each.

        Args:
            count: How many, one or more.
            tokens: What each is charged.
            owed_tokens: What earlier requests cost beyond their charge; less than 0 if they cost
                less.
            late: Seconds by which earlier requests went out after their time.

        Returns:
            Seconds from now until each may be sent, rising; a little below 0 where a send time has
            passed that nobody used.
        """

    def owe(self, tokens: float, late: float = 0.0) -> None:
        """Charge ``tokens`` (give them back if less than 0), and ``late`` seconds."""

    def throttled(self, ago: float) -> None:
        """Note that a request sent ``ago`` seconds ago was refused as too fast: all yield."""


class SlotLimits(GivenLimits):
    """``GivenLimits`` for many who send: it hands out send times, and owes what they owe.

    Its state, for those who keep it in a row: the requests and tokens that were owed then, share,
    share_at and cut_at. Not when they will be paid off, which is another time for each limit.
    """

    def load(self, row: tuple[float, ...], *, then: float, now: float) -> None:
        """Go on from what ``dump`` returned at ``then``."""
        requests, tokens, self._share, share_at, cut_at = row
        # A clock that was set back stands before ``then``: all times go back with it.
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
        """Return the first time from ``now`` on at which a request may be sent, and use it."""
        slot = now
        for bucket, units in ((self._requests, 1), (self._tokens, tokens)):
            if bucket is not None:
                # Earlier requests may have caught up with a delay, so that up to ``slack`` seconds
                # of the limit are missing just now. One that needs them waits for them.
                missing = max(0.0, bucket.slack - _room(units, bucket.per_second))
                slot = max(slot, bucket.next_at + missing * 0.999)
        self.take(tokens, slot)
        return slot

    def hold(self, until: float) -> None:
        """Hand out no send time before ``until``."""
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.next_at = max(bucket.next_at, until)

    def owe(self, tokens: float, seconds: float) -> None:
        if self._requests is not None:
            self._requests.next_at += seconds
        if self._tokens is not None:
            self._tokens.next_at += seconds + tokens / self._tokens.per_second


class LeasedPacer:
    """The ``Pacer`` of an admission queue on its event loop, over ``SharedLimits`` in a thread.

    A send time is asked for when somebody waits for one, the next while the last is still to come.
    Those that go unused lapse: for all others they are as good as used. If the limits cannot be
    asked, or do not answer, the process paces alone, to its share of them: one of ``processes``. It
    asks again every ``ASK_AGAIN`` seconds, and never while the last question is still out.

    Args:
        shared: Where send times come from.
        submit: Runs a function in another thread.
        ready: Called on the loop when send times have come in: the admission queue's ``pump``.
        clock: The admission queue's, in seconds.
    """

    def __init__(
        self,
        shared: SharedLimits,
        submit: Submit,
        ready: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
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
        self._slots: deque[tuple[float, int]] = deque()  # when, and what it was charged
        # What a request is charged in advance: the highest of late, since the correction of a
        # charge that was too low may come after another process has been told to send.
        self._charge = 0.0
        self._ratio = 1.0
        self._owed = 0.0
        self._late = 0.0
        self._asking = False
        self._waited = 0.0
        self._looked_at = 0.0
        self._owing = False
        self._alone: GivenLimits | None = None
        self._ask_at = 0.0
        self._last: tuple[int, float] | None = None  # tokens of the last request, and when

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent, if it is known; else ask for it."""
        if self._alone is not None:
            if now >= self._ask_at:
                self._lease(now)
            return self._alone.wait(now)
        while self._slots and now - self._slots[0][0] > LAPSE:
            self._owe(-self._slots.popleft()[1])
            self._size = 1
        if 2 * len(self._slots) <= self._size:
            self._lease(now)
        if self._slots:
            return max(0.0, self._slots[0][0] - now)
        # Not simply since it was asked: a process that was stopped has not waited meanwhile.
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
        self._owe(cost - charged)
        self._charge = max(cost, self._charge + 0.2 * (cost - self._charge))
        room = min(_room(1, self._requests_per_second), _room(cost, self._tokens_per_second))
        if now - slot > room - Gcra.slack:
            self._late += now - slot  # or the next one could come too soon after it
        if not self._slots:
            self._size = min(MOST_AT_ONCE, 2 * self._size)

    def settle(self, estimated: int, billed: int) -> None:
        """Correct the charge of a request by what the server billed."""
        if self._alone is not None:
            self._alone.settle(estimated, billed)
        elif estimated > 0:
            self._owe(billed - estimated * self._ratio)
            self._ratio += 0.1 * (min(10.0, max(0.1, billed / estimated)) - self._ratio)

    def throttled(self, *, sent_at: float, now: float, hint: float | None) -> None:
        """Note a refusal; all processes with the account yield a little, for a while."""
        if self._alone is not None:
            self._alone.throttled(sent_at=sent_at, now=now, hint=hint)
        else:
            offload(
                self._submit,
                lambda: self._shared.throttled(self._clock() - sent_at),
                lambda _: None,
                self._fail,
            )

    def succeeded(self, now: float) -> None:
        """Note a good answer, which teaches nothing where the limits are given."""

    # -- the other thread ----------------------------------------------------------------------

    def _owe(self, tokens: float) -> None:
        if self._shared.tokens_per_minute is None:
            return
        self._owed += tokens
        if not self._owing:
            self._owing = True
            asyncio.get_running_loop().call_soon(self._pay)

    def _pay(self) -> None:
        """Pass on what is owed, unless a lease has taken it along by now."""
        if abs(self._owed) < 1 or self._alone is not None:
            self._owing = False
            return
        owed, self._owed = self._owed, 0.0
        offload(self._submit, lambda: self._shared.owe(owed), self._paid, self._fail)

    def _paid(self, _: None) -> None:
        self._pay()

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
        owed, late, self._owed, self._late = self._owed, self._late, 0.0, 0.0

        def lease() -> list[tuple[float, int]]:
            waits = self._shared.lease(count, charge, owed_tokens=owed, late=late)
            now = self._clock()
            slots = [(now + wait, charge) for wait in waits]
            if not slots or not all(math.isfinite(at) for at, _ in slots):
                raise ValueError  # or it would be asked for ever, or never send
            return slots

        offload(self._submit, lease, self._leased, self._not_leased)

    def _leased(self, slots: list[tuple[float, int]]) -> None:
        self._asking = False
        if self._alone is not None:
            # Where send times are kept, nobody knows what was sent alone.
            now = self._clock()
            shift = max(0.0, now + self._alone.wait(now) - slots[0][0])
            slots = [(at + shift, charge) for at, charge in slots]
            self._late += shift
            self._alone = None
            logger.warning("the shared limits are kept together again")
        self._slots.extend(slots)
        self._ready()

    def _not_leased(self, error: BaseException) -> None:
        self._asking = False
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._owing = False
        if isinstance(error, (StoreUnavailable, CacheError)):
            self._pace_alone(str(error))
        else:  # by its name only: what it says may hold an address with a password
            self._pace_alone(type(error).__name__)
        self._ready()

    def _pace_alone(self, why: str) -> None:
        self._ask_at = self._clock() + ASK_AGAIN
        if self._alone is not None:
            return
        logger.warning("pacing alone until the shared limits can be asked again: %s", why)
        requests, tokens = self._limits
        try:
            processes = max(1, self._shared.processes)
        except Exception:  # noqa: BLE001 - whatever the user's own limits raise
            processes = 1
        self._alone = GivenLimits(requests and requests / processes, tokens and tokens / processes)
        if self._last is not None:
            self._alone.take(*self._last)
        self._slots.clear()
