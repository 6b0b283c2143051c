"""Decides when to retry: exponential backoff with full jitter, and a shared retry budget.

Full jitter is from Brooker's "Exponential Backoff And Jitter" (AWS, 2015). The budget is the retry
throttling of Finagle and the AWS SDKs: a retry costs as much as ten first attempts pay in, so
retries send about 10 % more requests to a dead server, not a multiple.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

BASE_FAULT = 0.25
"""Longest first wait after a fault, in seconds; doubled for each further fault."""
BASE_THROTTLE = 1.0
"""Longest first wait after a rate-limit error, in seconds; a limit takes longer to pass."""
MAX_DELAY = 32.0
"""Longest wait, in seconds, unless the server asks for more."""
MAX_HINT = 300.0
"""Longest wait that the server may ask for, in seconds; after a longer one, the call fails."""


def backoff(retry: int, base: float, uniform: float | None = None) -> float:
    """Return the seconds to wait before retry number ``retry`` (from 1).

    ``uniform`` is the fraction in [0, 1) of the longest wait; random by default.
    """
    ceiling = min(MAX_DELAY, base * 2.0 ** min(retry - 1, 32))
    return ceiling * (random.random() if uniform is None else uniform)


def after_hint(hint: float, uniform: float | None = None) -> float:
    """Return the server's ``hint`` in seconds, plus up to 10 % of jitter."""
    return hint * (1 + 0.1 * (random.random() if uniform is None else uniform))


@dataclass
class RetryBudget:
    """The retries that may still be sent, shared by all calls to one endpoint.

    Every first attempt adds ``deposit``, every retry takes 1, and a retry that succeeds returns the
    1. The balance stays within [0, ``reserve``].
    """

    reserve: float = 10.0
    deposit: float = 0.1
    balance: float = 10.0

    def first_attempt(self) -> None:
        self.balance = min(self.reserve, self.balance + self.deposit)

    def take(self) -> bool:
        """Take one retry; return ``False`` if none is left."""
        if self.balance < 1:
            return False
        self.balance -= 1
        return True

    def refund(self, retries: int) -> None:
        self.balance = min(self.reserve, self.balance + retries)
