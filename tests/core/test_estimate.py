"""An estimate equals what the call then sends and costs."""

from __future__ import annotations

import pytest

from nexusflow_integrations._core.call import estimate as module
from nexusflow_integrations._core.call.estimate import estimate
from nexusflow_integrations._core.request.tokens import RULE_ERROR
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import Price

TEXTS = [f"text number {n}" for n in range(25)]


@pytest.fixture(autouse=True)
def _no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "exact_counter", lambda: None)


def of(stored: set[str] = frozenset(), given: int = 25, **options: float) -> module.Estimate:  # type: ignore[assignment]
    settings = Settings(base_url="https://x.invalid", **options)  # type: ignore[arg-type]
    return estimate(TEXTS, stored=set(stored), given=given, settings=settings, price=Price())


def test_requests_are_the_batches_and_repetitions_are_counted_apart() -> None:
    found = of(given=30)
    assert (found.texts, found.repeated, found.cached, found.requests) == (30, 5, 0, 3)


def test_texts_in_the_cache_cost_nothing() -> None:
    found = of(stored=set(TEXTS[:20]))
    assert (found.cached, found.requests) == (20, 1)
    assert found.tokens < of().tokens
    assert of(stored=set(TEXTS)).cost == 0


def test_the_rule_gives_its_error() -> None:
    assert not of().exact
    assert of().token_error == RULE_ERROR


def test_an_exact_counter_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "exact_counter", lambda: len)
    found = of()
    assert found.exact
    assert found.token_error == 0
    assert found.tokens == sum(map(len, TEXTS))


def test_the_cost_is_the_tokens_at_the_price() -> None:
    assert of().cost == pytest.approx(of().tokens * 0.5 / 1e6)


def test_the_time_is_that_of_the_limit_that_binds_and_unknown_without_limits() -> None:
    assert of().seconds is None
    assert of(requests_per_minute=60).seconds == pytest.approx(3.0)
    tokens = of().tokens
    found = of(requests_per_minute=6000, tokens_per_minute=60)
    assert found.seconds == pytest.approx(tokens)


def test_under_a_token_limit_no_request_exceeds_one_second_of_it() -> None:
    assert of(tokens_per_minute=60).requests == len(TEXTS)
    assert of(tokens_per_minute=6_000_000).requests == 3
