"""Usage, prices and budgets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from math import isnan, nan
from typing import Any

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.checks import attribute, has_methods, number, refuse, whole, word
from nexusflow_integrations._core.models import DEFAULT_MODEL, MODELS, model_named
from nexusflow_integrations.errors import ConfigurationError

_MOST_TOKENS = 1 << 62


@dataclass(frozen=True)
class Price:
    """The price of a million tokens; ``None`` means unknown, and ``of`` then returns NaN.

    The default is the list price of ``text-embedding-v4``.
    """

    per_million_tokens: float | None = MODELS[DEFAULT_MODEL].per_million_tokens
    currency: str = MODELS[DEFAULT_MODEL].currency

    def __post_init__(self) -> None:
        price = self.per_million_tokens
        if price is not None:
            price = number("price: per_million_tokens", price, least=0, optional=True)
        object.__setattr__(self, "per_million_tokens", price)
        currency = word("price: currency", self.currency, "a name like 'CNY'")
        object.__setattr__(self, "currency", currency)

    def of(self, tokens: int) -> float:
        """Return the price of ``tokens``, in ``currency``."""
        if self.per_million_tokens is None:
            return nan
        return tokens * self.per_million_tokens / 1_000_000


def known(cost: float) -> float | None:
    """Return ``cost``, or ``None`` if it is not known, because JSON has no NaN."""
    return None if isnan(cost) else cost


@dataclass(frozen=True)
class Usage:
    """The requests, tokens and cost of one call, or of all calls of a client so far.

    Attributes:
        requests: HTTP requests, including retries.
        retries: Requests that repeated a failed request.
        texts: Texts that were passed in.
        cached: Texts whose vector was in the cache or came from another process or call.
        repeated: Duplicate texts of a call, which are sent only once.
        refused: Texts that the server refused.
        tokens: Tokens that the server billed; estimated for responses without a count.
        estimated_tokens: The part of ``tokens`` that is an estimate.
        repaid: Texts that another process had sent but not stored when it ended, or when it was
            suspended until its claims expired. At most these texts are paid for twice.
        split: Texts that were too long and were sent in pieces.
        truncated: Texts that were too long and were cut at the limit.
        derived: Texts whose vector was cut from a larger one, which was stored or fetched
            (``derive=True``).
        price: The price that ``cost`` uses.
    """

    requests: int = 0
    retries: int = 0
    texts: int = 0
    cached: int = 0
    repeated: int = 0
    refused: int = 0
    tokens: int = 0
    estimated_tokens: int = 0
    repaid: int = 0
    split: int = 0
    truncated: int = 0
    derived: int = 0
    price: Price = field(default_factory=Price)

    @property
    def cost(self) -> float:
        """Price of ``tokens``, in ``currency``; NaN if the model's price is unknown."""
        return self.price.of(self.tokens)

    @property
    def currency(self) -> str:
        """The currency of ``cost``."""
        return self.price.currency

    def __add__(self, other: Usage) -> Usage:
        return self._plus(other, 1)

    def __sub__(self, other: Usage) -> Usage:
        return self._plus(other, -1)

    def _plus(self, other: Usage, sign: int) -> Usage:
        counts = {
            item.name: getattr(self, item.name) + sign * getattr(other, item.name)
            for item in fields(self)
            if item.name != "price"
        }
        return Usage(**counts, price=self.price)


@dataclass
class Ledger:
    """The running counts of one call; ``snapshot`` turns them into a ``Usage``."""

    requests: int = 0
    retries: int = 0
    texts: int = 0
    cached: int = 0
    repeated: int = 0
    refused: int = 0
    tokens: int = 0
    estimated_tokens: int = 0
    repaid: int = 0
    split: int = 0
    truncated: int = 0
    derived: int = 0

    def sent(self, *, retry: bool) -> None:
        self.requests += 1
        self.retries += retry

    def billed(self, tokens: int | None, estimated: int) -> None:
        if tokens is None:
            self.tokens += estimated
            self.estimated_tokens += estimated
        else:
            self.tokens += tokens

    def add(self, other: Ledger) -> None:
        """Add the counts of ``other``."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)

    def reset(self) -> None:
        vars(self).update(_NOTHING)

    def snapshot(self, price: Price) -> Usage:
        return Usage(**vars(self), price=price)


_NOTHING = vars(Ledger())


class Total:
    """The sum of many ledgers.

    Any thread, and a signal handler at any moment, may add to the sum and read it without waiting.
    No lock is needed: each change of the list is one atomic operation of the interpreter, and the
    sum is correct after each operation.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, ...]] = []

    def add(self, ledger: Ledger) -> None:
        self._parts.append(tuple(vars(ledger).values()))
        if len(self._parts) > _MOST_PARTS:
            self._fold()

    def _fold(self) -> None:
        folding = _folding
        if folding.acquire(blocking=False):  # if this fails, another thread is folding
            try:
                count = len(self._parts)  # other threads only append parts
                self._parts[:count] = [_sum(self._parts[:count])]
            finally:
                folding.release()

    def snapshot(self, price: Price) -> Usage:
        counts = _sum(self._parts.copy())
        return Usage(**dict(zip(_COUNTS, counts, strict=False)), price=price)

    def copy(self) -> Total:
        """Return an independent copy."""
        twin = Total()
        twin._parts = self._parts.copy()
        return twin


_COUNTS = [item.name for item in fields(Ledger)]


def _sum(parts: list[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*parts, strict=True)))


_MOST_PARTS = 32
_folding = threading.Lock()


def _renew_lock() -> None:
    global _folding
    _folding = threading.Lock()


forks.in_child(_renew_lock)


@dataclass(frozen=True)
class Budget:
    """The most that a client may spend: ``tokens``, ``money`` in the price's currency, or both."""

    tokens: int | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        if self.tokens is None and self.money is None:
            raise ConfigurationError("budget: pass tokens=..., money=..., or both")
        if self.tokens is not None:
            # Floats such as 1e6 are allowed.
            tokens = number("budget: tokens", self.tokens, least=0)
            object.__setattr__(self, "tokens", min(int(tokens), _MOST_TOKENS))
        if self.money is not None:
            object.__setattr__(self, "money", number("budget: money", self.money, least=0))

    def in_tokens(self, price: Price) -> int:
        """Return the budget as whole tokens at ``price``.

        Raises:
            ConfigurationError: The budget is in money, and the price is unknown.
        """
        limits = [_MOST_TOKENS if self.tokens is None else self.tokens]
        if self.money is not None and price.per_million_tokens is None:
            raise ConfigurationError(
                "budget: money=... needs the price of the model, which is unknown: pass"
                " price=Price(...), or give the budget in tokens"
            )
        if self.money is not None and price.per_million_tokens:
            tokens = self.money * 1_000_000 / price.per_million_tokens
            limits.append(int(min(tokens, _MOST_TOKENS)))
        return min(limits)


def check_price(value: object, model: object = DEFAULT_MODEL) -> Price:
    """Return ``value``; for ``None``, return the list price of ``model``, which may be unknown."""
    if value is None:
        known = model_named(model)
        return Price(known.per_million_tokens, known.currency)
    if isinstance(value, Price):
        return value
    raise refuse("price", "Price(per_million_tokens=...) or None", value)


def check_budget(value: object) -> Any:
    """Return a ``Budget``, an object with the methods of ``SharedBudget``, or ``None``."""
    if value is None or isinstance(value, Budget):
        return value
    if isinstance(value, type) or not has_methods(value, "draw"):
        raise refuse("budget", "Budget(tokens=...), a shared budget or None", value)
    whole("budget.tokens", attribute(value, "tokens"), 0)
    return value


@dataclass
class BudgetGuard:
    """Keeps track of a budget: tokens spent, and tokens that requests in flight may still cost.

    Before a request is sent, it reserves the most that it can cost, so ``spent`` never exceeds
    ``limit``.
    """

    limit: int
    spent: int = 0
    reserved: int = 0
    _listeners: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        forks.in_child(self._forget)

    def _forget(self) -> None:
        # After a fork, the requests in flight belong to the parent, and would never be settled
        # here.
        self.reserved, self._listeners = 0, []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` once, when the tokens left may have changed."""
        self._listeners.append(listener)

    def reserve(self, most: int) -> bool:
        if self.spent + self.reserved + most > self.limit:
            return False
        self.reserved += most
        return True

    @property
    def pending(self) -> bool:
        """Whether a reservation that did not fit may fit later."""
        return self.reserved > 0

    def settle(self, most: int, billed: int) -> None:
        """Replace a reservation with the tokens billed (0 if the request cost nothing)."""
        self.spent += billed
        self._free(most)

    async def give_back(self) -> None:
        """Return unused tokens to a shared budget; this budget is not shared, so do nothing."""

    def _free(self, most: int) -> None:
        self.reserved -= most
        self._tell()

    def _tell(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()
