"""When to try again: full jitter over a doubling ceiling, and a budget that all calls share.

Full jitter is Brooker's "Exponential Backoff And Jitter" (AWS, 2015); the budget is the retry
throttling of Finagle and of the AWS SDKs: a retry costs what ten ordinary requests pay in, so a
dead server sees about a tenth more requests than it was sent anyway, not a multiple.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

BASE_FAULT = 0.25
"""Seconds; the ceiling of the first wait after a fault, doubled for each further one."""
BASE_THROTTLE = 1.0
"""Seconds; longer than for faults, since a limit is lifted by time alone."""
MAX_DELAY = 32.0
"""Seconds; no wait of ours is longer, only one the server asks for."""
MAX_HINT = 300.0
"""Seconds; a server that asks for more is reported at once rather than waited for."""


def backoff(retry: int, base: float, uniform: float | None = None) -> float:
    """Return the seconds to wait before retry number ``retry`` (from 1).

    ``uniform`` is the draw from [0, 1) that places the wait under the ceiling; by default random.
    """
    ceiling = min(MAX_DELAY, base * 2.0 ** min(retry - 1, 32))
    return ceiling * (random.random() if uniform is None else uniform)


def after_hint(hint: float, uniform: float | None = None) -> float:
    """Return the seconds to wait where the server said how many: never less, a little spread."""
    return hint * (1 + 0.1 * (random.random() if uniform is None else uniform))


@dataclass
class RetryBudget:
    """Retries that may still be sent; shared by all calls to one endpoint.

    Every first attempt pays in ``deposit``, every retry takes 1 out, every retry that succeeds
    puts it back. The balance stays within [0, ``reserve``].
    """

    reserve: float = 10.0
    deposit: float = 0.1
    balance: float = 10.0

    def first_attempt(self) -> None:
        self.balance = min(self.reserve, self.balance + self.deposit)

    def take(self) -> bool:
        """Take out one retry; ``False`` if there is none left."""
        if self.balance < 1:
            return False
        self.balance -= 1
        return True

    def refund(self, retries: int) -> None:
        self.balance = min(self.reserve, self.balance + retries)
