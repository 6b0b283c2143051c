"""Estimates the requests, cost and time of embedding texts without sending anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nexusflow_integrations._core.comparing import FIXED_TEXTS
from nexusflow_integrations._core.request.batching import item_of, max_tokens, plan_batches
from nexusflow_integrations._core.request.tokens import RULE_ERROR, estimate_tokens, exact_counter
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import Price


@dataclass(frozen=True)
class Estimate:
    """What a call would send and cost.

    Attributes:
        texts: Texts given.
        repeated: Duplicate texts, which are sent only once.
        cached: Texts whose vector is in the cache; they cost nothing.
        requests: Requests for the rest, without retries.
        tokens: Tokens of the rest. With ``derive=True`` and a cache that has not yet been compared
            with the service, requests and tokens include the comparison, and only vectors of the
            wanted size count as cached.
        exact: Whether tokens were counted with the model's own tokenizer (``pip install
            quicktok-v1``); otherwise the total is off by up to ``token_error``.
        token_error: Largest measured relative error of ``tokens``.
        price: The price that ``cost`` uses.
        seconds: Shortest possible time within the client's limits; ``None`` without limits.
    """

    texts: int
    repeated: int
    cached: int
    requests: int
    tokens: int
    exact: bool
    price: Price
    seconds: float | None

    @property
    def token_error(self) -> float:
        """The relative error of ``tokens``; 0 if the tokens were counted exactly."""
        return 0.0 if self.exact else RULE_ERROR

    @property
    def cost(self) -> float:
        """Price of ``tokens``, in the currency of ``price``."""
        return self.price.of(self.tokens)


def estimate(
    texts: Sequence[str],
    *,
    stored: set[str],
    given: int,
    settings: Settings,
    price: Price,
    comparisons: int = 0,
) -> Estimate:
    """Return the estimate for the distinct ``texts``; ``stored`` are those that the cache holds.

    ``given`` is the number of texts before duplicates were removed, ``comparisons`` the
    number of sizes at which the fixed texts must be embedded.
    """
    missing = [text for text in texts if text not in stored]
    counter = exact_counter()
    tokens = sum(map(counter or estimate_tokens, missing))
    batches = plan_batches(
        (item_of(index, text) for index, text in enumerate(missing)),
        max_texts=settings.batch_size,
        max_tokens=max_tokens(settings),
    )
    requests = sum(1 for _ in batches) + comparisons
    tokens += comparisons * sum(map(counter or estimate_tokens, FIXED_TEXTS))
    return Estimate(
        texts=given,
        repeated=given - len(texts),
        cached=len(texts) - len(missing),
        requests=requests,
        tokens=tokens,
        exact=counter is not None,
        price=price,
        seconds=_seconds(requests, tokens, settings),
    )


def _seconds(requests: int, tokens: int, settings: Settings) -> float | None:
    times = [
        amount / limit * 60
        for amount, limit in (
            (requests, settings.requests_per_minute),
            (tokens, settings.tokens_per_minute),
        )
        if limit is not None
    ]
    return max(times, default=None)
