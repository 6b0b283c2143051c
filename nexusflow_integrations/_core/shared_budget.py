"""One budget for many processes on one or many hosts. Processes draw tokens before using them.

A process draws from a ``SharedBudget``, whose methods block, so a thread calls them. ``Grants``
does the arithmetic for an implementation. ``SharedBudgetGuard`` keeps a client within a shared
budget and never blocks.

Granted tokens count as spent until they are returned. So a process that dies, or an answer that is
lost, may waste a part of the budget, but the budget is never exceeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.offload import Worker, offload
from nexusflow_integrations._core.usage import BudgetGuard
from nexusflow_integrations.errors import BudgetExceededError

LOST = 120.0
"""Seconds for which others wait for a process's tokens after it last drew some."""
REQUESTS_AHEAD = 32
"""A process draws enough tokens for this many requests of the size of its largest one."""
PATIENCE = 60.0
"""Seconds that requests wait for tokens to be drawn before they fail."""
PAUSE = 0.25
"""Seconds until a process that was granted too few tokens asks again."""
LULL = 0.2
"""Seconds without a request in flight after which a process returns its tokens."""


class Grant(NamedTuple):
    """The result of a draw, in tokens.

    ``left`` is the number of tokens that no process holds; ``pending`` says whether other
    processes may still return some.
    """

    tokens: int
    left: int
    pending: bool


class SharedBudget(Protocol):
    """A budget that many processes draw from."""

    @property
    def tokens(self) -> int:
        """The whole budget."""

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Grant:
        """Return ``unused`` tokens and draw new ones.

        The method blocks, and only one thread at a time calls it.

        Args:
            least: Grant nothing if fewer tokens are left.
            wanted: Maximum number of tokens to grant.
            unused: Number of tokens that were granted before and are returned now.
            kept: Number of tokens that were granted before and that the process keeps; some may be
                returned later.

        A request waits up to a minute for the result, and is not sent if there is no result by
        then.

        Raises:
            Exception: The budget cannot be reached. The tokens returned or granted may be lost.
        """


@dataclass
class Grants:
    """The arithmetic of a shared budget; the clock is passed in, in seconds.

    Args:
        limit: The budget, in tokens.
        granted: Tokens that were granted and not returned; at most this many have been spent.
    """

    limit: int
    granted: int = 0
    _held: dict[str, tuple[int, float]] = field(default_factory=dict)

    def draw(
        self, holder: str, *, least: int, wanted: int, unused: int, kept: int, now: float
    ) -> Grant:
        """Take back ``unused`` tokens from ``holder``, and grant it from ``least`` to ``wanted``.

        Grants get smaller as the budget runs out, so that no process holds tokens that others need.
        """
        held, _ = self._held.get(holder, (0, now))
        self.granted -= min(unused, held)  # only tokens of this budget can be returned
        others = [
            tokens
            for name, (tokens, seen) in self._held.items()
            if name != holder and tokens and now - seen < LOST
        ]
        left = self.limit - self.granted
        tokens = 0
        if least <= left:
            tokens = min(wanted, left, max(least, left // (2 * (len(others) + 1))))
        self.granted += tokens
        self._held[holder] = (min(kept, max(0, held - unused)) + tokens, now)
        return Grant(tokens, left - tokens, bool(others))

    @property
    def at_rest(self) -> bool:
        """Whether no process holds tokens, so that ``granted`` is the number of tokens spent."""
        return not any(tokens for tokens, _ in self._held.values())


class SharedBudgetGuard(BudgetGuard):
    """A ``BudgetGuard`` for one event loop that draws from a ``SharedBudget`` in a thread.

    Args:
        shared: The budget from which tokens are drawn.
        clock: Returns seconds.
    """

    def __init__(self, shared: SharedBudget, clock: Callable[[], float] = monotonic) -> None:
        self._shared = shared
        self._clock = clock
        self._hold_nothing()
        super().__init__(shared.tokens)

    def _forget(self) -> None:
        # After a fork, the tokens that were drawn belong to the parent.
        super()._forget()
        self._hold_nothing()

    def _hold_nothing(self) -> None:
        self._available = 0
        self._held = 0  # tokens that the shared budget counts as held by this process
        self._largest = 0
        self._drawing = False
        self._is_overdue = False
        self._timer: asyncio.TimerHandle | None = None
        self._pausing = False
        self._denied: tuple[int, float, str | None] | None = None
        self._worker: Worker | None = None

    @property
    def pending(self) -> bool:
        return self.reserved > 0 or self._drawing or self._pausing

    def reserve(self, most: int) -> bool:
        self._largest = max(most, self._largest)
        if most <= self._available:
            self._available -= most
            self.reserved += most
            if 2 * self._available < REQUESTS_AHEAD * self._largest:
                self._draw(0)
            return True
        if self._denied is not None:
            least, until, failure = self._denied
            if self._clock() < until and most >= least:
                if failure is not None:
                    raise _not_asked(failure)
                return False
        if self._is_overdue:
            raise _not_asked("no answer")
        self._draw(most)
        return False

    def settle(self, most: int, billed: int) -> None:
        self._available += most - billed
        self._denied = None
        self._free(most)
        self._rest_later()

    async def give_back(self) -> None:
        """Return the tokens that no request needs, and wait until that is done."""
        while self._drawing or self._has_news:
            self._give_back()
            changed = asyncio.Event()
            self.listen(changed.set)
            await changed.wait()

    @property
    def _has_news(self) -> bool:
        """Whether there are tokens to return, or whether others wait while all tokens are spent."""
        return self.reserved == 0 and (self._available > 0 or self._held > 0)

    def _rest_later(self) -> None:
        if self._has_news:
            with suppress(RuntimeError):  # without a running loop, the interpreter is shutting down
                asyncio.get_running_loop().call_later(LULL, self._give_back)

    def _give_back(self) -> None:
        if self._has_news:
            self._draw(0, rest=True)

    def _draw(self, least: int, *, rest: bool = False) -> None:
        """Draw tokens in a thread.

        If ``least`` is not 0, a request waits for that many tokens, and the tokens left here are
        returned first. If ``rest`` is set, the tokens left are returned and none are drawn. If
        neither is set, tokens are drawn for later requests.
        """
        if self._drawing or self._pausing:
            return
        self._drawing = True
        # The number is negative if the server billed more than a text can cost. Such a debt is paid
        # first.
        unused = max(0, self._available) if least or rest else 0
        self._available -= unused
        owed = -min(0, self._available) if least else 0
        wanted = 0 if rest else owed + max(least, REQUESTS_AHEAD * self._largest)
        self._held = kept = self.reserved + max(0, self._available)
        if self._worker is None:
            self._worker = Worker("nexusflow-budget")
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._overdue)
        offload(
            self._worker.submit,
            lambda: _checked(self._shared.draw(least + owed, wanted, unused, kept)),
            lambda grant: self._drawn(grant, least),
            self._failed,
        )

    def _overdue(self) -> None:
        self._is_overdue = True
        self._tell()

    def _end_drawing(self) -> None:
        self._drawing = self._is_overdue = False
        if self._timer is not None:
            self._timer.cancel()

    def _drawn(self, grant: Grant, least: int) -> None:
        self._end_drawing()
        self._available += grant.tokens
        self._held += grant.tokens
        self.spent = self.limit - grant.left
        if least and self._available < least:
            if grant.pending:
                self._pausing = True
                asyncio.get_running_loop().call_later(PAUSE, self._resume)
            else:
                self._denied = (least, self._clock() + PAUSE, None)
        self._tell()
        self._rest_later()

    def _failed(self, error: BaseException) -> None:
        self._end_drawing()
        self._held = 0
        # Keep only the type: the message may contain an address with a password.
        self._denied = (0, self._clock() + PAUSE, type(error).__name__)
        self._tell()

    def _resume(self) -> None:
        self._pausing = False
        self._tell()
        self._rest_later()


def _checked(grant: Any) -> Grant:
    """Return ``grant`` if it is valid, because a user's code may return anything."""
    whole = isinstance(grant, Grant) and all(type(part) is int for part in grant[:2])
    if not whole or grant.tokens < 0:
        raise TypeError
    return cast(Grant, grant)


def _not_asked(why: str) -> BudgetExceededError:
    return BudgetExceededError(
        f"the shared budget could not be reached ({why}); nothing is sent without it"
    )
