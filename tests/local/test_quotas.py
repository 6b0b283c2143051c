"""Quotas are tested with a simulated clock, then once over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from nexusflow_integrations.local import Quotas
from nexusflow_integrations.local.quotas import QuotaGate

if TYPE_CHECKING:
    from conftest import Wire


def admitted(gate: QuotaGate, now: float, *, tokens: int = 1, tries: int = 1000) -> int:
    """How many requests pass at one instant, each ended at once."""
    passed = 0
    for _ in range(tries):
        if gate.admit(tokens, now) is None:
            gate.release()
            passed += 1
    return passed


def test_without_quotas_everything_passes() -> None:
    assert admitted(QuotaGate(Quotas(), 0.0), 0.0, tokens=10**9) == 1000


def test_requests_per_minute_admit_one_second_at_a_time() -> None:
    gate = QuotaGate(Quotas(requests_per_minute=600), 0.0)
    assert admitted(gate, 0.0) == 10
    assert admitted(gate, 0.05) == 0
    assert admitted(gate, 0.1) == 1
    assert admitted(gate, 1.1) == 10
    assert admitted(gate, 100.0) == 10


def test_a_minute_admits_its_quota_and_one_second_more() -> None:
    gate = QuotaGate(Quotas(requests_per_minute=120), 0.0)
    assert sum(admitted(gate, step / 10, tries=5) for step in range(600)) == pytest.approx(
        122, abs=1
    )


def test_a_quota_under_one_a_second_still_admits_one() -> None:
    gate = QuotaGate(Quotas(requests_per_minute=6), 0.0)
    assert admitted(gate, 0.0) == 1
    assert admitted(gate, 9.9) == 0
    assert admitted(gate, 10.0) == 1


def test_refused_requests_cost_nothing_and_get_a_retry_after() -> None:
    gate = QuotaGate(Quotas(requests_per_minute=60), 0.0)
    assert gate.admit(1, 0.0) is None
    for _ in range(5):
        refusal = gate.admit(1, 0.25)
        assert refusal is not None
        assert refusal.retry_after == pytest.approx(0.75)
    assert gate.admit(1, 1.0) is None


def test_tokens_per_minute_are_an_allocated_quota() -> None:
    gate = QuotaGate(Quotas(tokens_per_minute=6000), 0.0)
    assert gate.admit(60, 0.0) is None
    refusal = gate.admit(60, 0.0)
    assert refusal is not None
    assert refusal.code == "insufficient_quota"
    assert refusal.message.startswith("Allocated quota exceeded")
    assert refusal.retry_after == pytest.approx(0.2)
    assert gate.admit(60, 0.2) is None


def test_a_request_of_more_tokens_than_a_second_has_waits_for_a_full_second_and_is_in_debt() -> (
    None
):
    gate = QuotaGate(Quotas(tokens_per_minute=600), 0.0)
    assert gate.admit(50, 0.0) is None
    refusal = gate.admit(50, 0.0)
    assert refusal is not None
    assert refusal.retry_after == pytest.approx(5.0)
    assert gate.admit(50, 5.0) is None


def test_concurrency_counts_requests_until_they_end() -> None:
    gate = QuotaGate(Quotas(concurrency=2), 0.0)
    assert gate.admit(1, 0.0) is None
    assert gate.admit(1, 0.0) is None
    refusal = gate.admit(1, 0.0)
    assert refusal is not None
    assert refusal.code == "rate_limit_exceeded"
    gate.release()
    assert gate.admit(1, 0.0) is None


def test_growth_refuses_a_burst_and_admits_a_ramp() -> None:
    gate = QuotaGate(Quotas(growth=2), 0.0)
    assert [admitted(gate, float(second)) for second in range(4)] == [10, 20, 40, 80]
    refusal = gate.admit(1, 3.25)
    assert refusal is not None
    assert refusal.code == "limit_burst_rate"
    assert "increased too quickly" in refusal.message
    assert refusal.retry_after == pytest.approx(0.75)
    assert admitted(gate, 60.0) == 10


@pytest.mark.parametrize(
    "name", ["requests_per_minute", "tokens_per_minute", "concurrency", "growth"]
)
def test_a_quota_must_be_above_zero(name: str) -> None:
    for limit in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=name):
            Quotas(**{name: limit})


def test_a_429_says_when_to_come_back_in_both_headers(wire_to: Callable[..., Wire]) -> None:
    wire = wire_to(requests_per_minute=1)
    assert wire.post(input="x").status_code == 200
    answer = wire.post(input="x")
    error = wire.error(answer, 429)
    assert error["code"] == "limit_requests"
    assert "request limit" in error["message"]
    seconds = int(answer.headers["Retry-After"])
    milliseconds = int(answer.headers["retry-after-ms"])
    assert 1 <= seconds <= 60
    assert 0 < milliseconds <= seconds * 1000
    assert wire.server.stats.texts == 1


def test_a_token_quota_holds_over_the_wire(wire_to: Callable[..., Wire]) -> None:
    wire = wire_to(tokens_per_minute=60)
    assert wire.post(input="word " * 100).status_code == 200
    assert wire.error(wire.post(input="x"), 429)["code"] == "insufficient_quota"


def test_requests_refused_for_other_reasons_do_not_count_against_quotas(
    wire_to: Callable[..., Wire],
) -> None:
    wire = wire_to(requests_per_minute=1)
    for _ in range(3):
        assert wire.post(input="").status_code == 400
    assert wire.post(input="x").status_code == 200
