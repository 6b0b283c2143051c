"""The whole policy for one batch is tested step by step, without sockets or sleeping."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import pkgutil
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nexusflow_integrations
from nexusflow_integrations import errors
from nexusflow_integrations._core.request import retry
from nexusflow_integrations._core.request.batching import item_of
from nexusflow_integrations._core.request.endpoint import EndpointState
from nexusflow_integrations._core.request.exchange import (
    AwaitSettled,
    Call,
    Follow,
    LearntSize,
    Reply,
    Send,
    Sleep,
    Stopped,
    exchange,
)
from nexusflow_integrations._core.request.tokens import token_bound
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import BudgetGuard, Ledger

from .hand import (
    KEY,
    SIZE,
    Clock,
    Server,
    Sink,
    answer_to,
    call,
    items,
    lane_of,
    no,
    ok,
    right,
    run,
    script,
    vector_of,
)

TEXTS = [f"text {n}" for n in range(10)]
RESET = TransportFault("the connection broke")
LATE = TransportFault("no complete response", timed_out=True)
MODERATED = no(400, "data_inspection_failed", "inappropriate content")


def all_right(sink: Any, texts: list[str], *, but: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    assert isinstance(sink, Sink)
    assert set(sink.vectors) == set(range(len(texts))) - but
    assert set(sink.refusals) == but
    for index, vector in sink.vectors.items():
        assert np.array_equal(vector, vector_of(texts[index]))


def lane_with(clock: Clock, **options: Any) -> EndpointState:
    return lane_of(Settings(base_url="https://hand.invalid/v1", **options), clock)


# ---- success


def test_a_good_answer_is_one_request_and_every_text_gets_its_own_vector() -> None:
    of = call()
    done = run(TEXTS, of, script())
    assert done.requests == 1
    all_right(of.sink, TEXTS)
    assert (of.ledger.requests, of.ledger.retries) == (1, 0)
    assert of.ledger.tokens == sum(map(len, TEXTS))
    assert of.ledger.estimated_tokens == 0


def test_a_missing_usage_is_replaced_by_the_estimate_and_marked() -> None:
    of = call()
    run(TEXTS, of, lambda request, _: right(request, usage=False))
    all_right(of.sink, TEXTS)
    assert of.ledger.tokens == of.ledger.estimated_tokens > 0


@pytest.mark.parametrize("format_", ["base64", "float"])
def test_the_format_asked_for_is_the_settings(format_: Any) -> None:
    of = call(encoding_format=format_)
    assert run(TEXTS, of, script()).bodies[0]["encoding_format"] == format_
    all_right(of.sink, TEXTS)


def test_the_size_is_asked_for_and_checked() -> None:
    of = call(dimensions=64)
    assert run(["a"], of, script()).bodies[0]["dimensions"] == 64
    of = call(dimensions=64, max_retries=3)
    with pytest.raises(errors.InvalidResponseError, match=r"4 dimensions .* 64") as caught:
        run(["a"], of, lambda request, _: right({**request, "dimensions": 4}))
    assert caught.value.run.requests == 1, "another try would only cost again"  # type: ignore[attr-defined]


def test_without_dimensions_later_responses_must_have_the_size_of_the_first() -> None:
    size = LearntSize()
    run(["a"], call(size=size), script())
    assert size.dimensions == SIZE
    with pytest.raises(errors.InvalidResponseError, match="8 dimensions"):
        run(["b"], call(size=size), lambda request, _: right(request, size=8))


def test_the_deadline_shortens_the_timeout_of_an_attempt() -> None:
    clock = Clock()
    done = run(["a"], call(clock, timeout=60.0, deadline=5.0, until=clock() + 5.0), script())
    assert done.steps[0].timeout == pytest.approx(5.0)
    assert run(["a"], call(timeout=7.0), script()).steps[0].timeout == 7.0


# ---- retries

TROUBLE: dict[str, Answer | TransportFault] = {
    "500": no(500, "server_error"),
    "502": Answer(502, {}, b"<html><title>Bad Gateway</title>"),
    "503": no(503),
    "429": no(429, "rate_limit_exceeded"),
    "408": no(408),
    "529": no(529),
    "reset": RESET,
    "timeout": LATE,
    "cut json": Answer(200, {}, b'{"data":[{"emb'),
    "html under 200": Answer(200, {}, b"<html>login"),
    "one short": ok({"data": []}),
    "error under 200": ok({"error": {"code": "odd", "message": "what"}}),
    "throttle under 200": ok({"error": {"code": "rate_limit_exceeded", "message": ""}}),
    "bad gzip": Answer(200, {"content-encoding": "gzip"}, b"no gzip"),
}
TYPES = {
    "500": errors.InternalServerError,
    "502": errors.InternalServerError,
    "503": errors.InternalServerError,
    "429": errors.RateLimitError,
    "408": errors.InternalServerError,
    "529": errors.InternalServerError,
    "reset": errors.APIConnectionError,
    "timeout": errors.APITimeoutError,
    "cut json": errors.InvalidResponseError,
    "html under 200": errors.InvalidResponseError,
    "one short": errors.InvalidResponseError,
    "error under 200": errors.InvalidResponseError,
    "throttle under 200": errors.RateLimitError,
    "bad gzip": errors.InvalidResponseError,
}


@pytest.mark.parametrize("name", TROUBLE)
def test_a_fault_that_passes_is_retried_after_one_wait(name: str) -> None:
    of = call()
    done = run(TEXTS, of, script(TROUBLE[name]))
    assert [type(step) for step in done.steps] == [Send, Sleep, Send]
    all_right(of.sink, TEXTS)
    assert (of.ledger.requests, of.ledger.retries) == (2, 1)


@pytest.mark.parametrize("name", TROUBLE)
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_fault_that_persists_is_a_typed_error_after_all_retries(name: str, retries: int) -> None:
    of = call(max_retries=retries)
    with pytest.raises(TYPES[name]) as caught:
        run(TEXTS, of, lambda *_: TROUBLE[name])
    assert type(caught.value) is TYPES[name]
    assert caught.value.attempts == retries + 1
    assert caught.value.run.requests == retries + 1  # type: ignore[attr-defined]
    assert of.ledger.retries == retries


@pytest.mark.parametrize(
    "answer",
    [
        no(400, "invalid_request_error"),
        no(401, "invalid_api_key"),
        no(402),
        no(403, "insufficient_quota", "You exceeded your current quota"),
        no(404, "model_not_found"),
        no(415),
        no(422),
        no(429, "PrepaidBillOverdue"),
        no(400, "Arrearage"),
        no(501),
        Answer(307, {"location": "https://other.example"}, b""),
        ok({"error": {"code": "invalid_api_key", "message": "x"}}),
        TransportFault("the certificate was not accepted", retryable=False),
    ],
)
def test_a_terminal_error_is_not_retried(answer: Answer | TransportFault) -> None:
    with pytest.raises(errors.NexusFlowError) as caught:
        run(TEXTS, call(), lambda *_: answer)
    assert caught.value.run.requests == 1  # type: ignore[attr-defined]
    assert caught.value.attempts == 1


def test_waits_stay_under_doubling_ceilings_longer_for_throttling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry.random, "random", lambda: 0.999)
    for answer, base in ((no(503), 0.25), (no(429), 1.0)):
        done = run(["a"], call(), script(*[answer] * 5))
        assert done.slept == pytest.approx([base * 2**n * 0.999 for n in range(5)])


def test_a_wait_that_the_server_asks_for_is_kept() -> None:
    done = run(["a"], call(), script(no(429, None, "", retry_after="7")))
    assert 7.0 <= done.slept[0] <= 7.7


def test_an_unreasonable_wait_is_an_error_at_once_with_its_length() -> None:
    with pytest.raises(errors.RateLimitError) as caught:
        run(["a"], call(), lambda *_: no(429, None, "", retry_after="3600"))
    assert caught.value.retry_after == 3600.0
    assert caught.value.run.requests == 1  # type: ignore[attr-defined]


def test_the_request_id_of_a_broken_answer_is_on_the_error_without_the_key() -> None:
    broken = Answer(200, {"x-request-id": f"r-9-{KEY}"}, b"")
    with pytest.raises(errors.InvalidResponseError, match="r-9") as caught:
        run(["a"], call(max_retries=0), lambda *_: broken)
    assert caught.value.request_id == "r-9-[API key]"


# ---- base64 refused


def test_refused_base64_is_requested_as_floats_at_once_and_remembered_by_the_endpoint() -> None:
    clock = Clock()
    endpoint = lane_with(clock)

    def serve(request: dict[str, Any], _: int) -> Answer:
        if request["encoding_format"] == "base64":
            return no(400, "InvalidParameter", "encoding_format only supports float")
        return right(request)

    of = call(clock, endpoint)
    done = run(TEXTS, of, serve)
    assert [body["encoding_format"] for body in done.bodies] == ["base64", "float"]
    assert done.slept == []
    all_right(of.sink, TEXTS)
    again = run(TEXTS, call(clock, endpoint), serve)
    assert [body["encoding_format"] for body in again.bodies] == ["float"]


def test_floats_refused_too_is_an_error_not_a_loop() -> None:
    refusal = no(400, "InvalidParameter", "encoding_format is wrong")
    with pytest.raises(errors.BadRequestError) as caught:
        run(TEXTS, call(), lambda *_: refusal)
    assert caught.value.run.requests == 2  # type: ignore[attr-defined]


# ---- too many texts, too large, or a text at fault


def at_most(limit: int, refusal: Answer) -> Server:
    return lambda request, _: refusal if len(request["input"]) > limit else right(request)


@pytest.mark.parametrize("limit", range(1, 11))
def test_a_batch_limit_is_learnt_from_one_refusal_and_kept_by_the_endpoint(limit: int) -> None:
    clock = Clock()
    endpoint = lane_with(clock)
    refusal = no(400, "InvalidParameter", f"batch size should not be larger than {limit}.")
    of = call(clock, endpoint)
    done = run(TEXTS, of, at_most(limit, refusal))
    all_right(of.sink, TEXTS)
    assert done.requests == math.ceil(10 / limit) + (limit < 10)
    again = run(TEXTS, call(clock, endpoint), at_most(limit, refusal))
    assert again.requests == math.ceil(10 / limit)


def test_a_server_that_refuses_any_number_of_texts_ends_in_an_error() -> None:
    refusal = no(400, "InvalidParameter", "batch size should not be larger than 10.")
    with pytest.raises(errors.BadRequestError) as caught:
        run(TEXTS, call(), lambda *_: refusal)
    assert caught.value.run.requests <= 10  # type: ignore[attr-defined]


@pytest.mark.parametrize("limit", [1, 2, 4, 7])
def test_413_halves_until_it_fits(limit: int) -> None:
    of = call()
    done = run(TEXTS, of, at_most(limit, no(413)))
    all_right(of.sink, TEXTS)
    assert done.requests <= 2 * math.ceil(10 / max(1, limit // 2 + limit % 2)) - 1
    assert done.slept == []


def test_413_of_a_single_text_refuses_that_text_and_keeps_the_others() -> None:
    of = call()
    run(TEXTS, of, lambda request, _: no(413) if "text 4" in request["input"] else right(request))
    all_right(of.sink, TEXTS, but={4})


def test_a_token_limit_below_the_batch_is_split_not_waited_for() -> None:
    of = call()
    answer = no(429, "tpm", "Limit 40, Requested 90")
    done = run(TEXTS, of, at_most(5, answer))
    all_right(of.sink, TEXTS)
    assert done.requests == 3
    assert done.slept == []


def poisoned(*bad: int, refusal: Answer = MODERATED) -> Server:
    names = {f"text {n}" for n in bad}
    return lambda request, _: refusal if names & set(request["input"]) else right(request)


@pytest.mark.parametrize("n", range(1, 11))
def test_one_text_at_fault_costs_about_twice_the_logarithm_wherever_it_stands(n: int) -> None:
    for bad in range(n):
        of = call()
        done = run(TEXTS[:n], of, poisoned(bad))
        all_right(of.sink, TEXTS[:n], but={bad})
        assert done.requests <= 2 * math.ceil(math.log2(n)) + 1 if n > 1 else done.requests == 1
        assert of.ledger.refused == 1


@given(st.sets(st.integers(0, 9)))
def test_any_texts_at_fault_are_found_and_the_others_survive(bad: set[int]) -> None:
    of = call()
    done = run(TEXTS, of, poisoned(*bad))
    all_right(of.sink, TEXTS, but=bad)
    assert of.ledger.refused == len(bad)
    assert done.requests <= 1 + len(bad) * 2 * math.ceil(math.log2(10))
    for index in bad:
        assert "data_inspection_failed" in str(of.sink.refusals[index])  # type: ignore[attr-defined]


def test_a_refused_text_in_pieces_does_not_affect_the_other_batches_of_its_call() -> None:
    clock = Clock()
    of = call(clock, on_too_long="split", max_text_tokens=100)
    long = " ".join(f"word{number}" for number in range(120))

    def answered(step: Any) -> Reply:
        refused = any("word1 " in text or text == "bad" for text in sent(step))
        return answer_to(step, MODERATED if refused else None, clock)

    def sent(step: Any) -> list[str]:
        texts: list[str] = json.loads(step.body)["input"]
        return texts

    in_pieces = exchange([item_of(3, long)], of)
    others = exchange(items(["bad", "fine", "good"]), of)
    step = next(in_pieces)
    while len(sent(step)) > 1:
        step = in_pieces.send(answered(step))
    step = in_pieces.send(answered(step))  # a piece was refused
    other = next(others)
    while sent(other) != ["fine"]:
        other = others.send(answered(other))
    with contextlib.suppress(StopIteration):
        while True:
            step = in_pieces.send(answered(step))
    with contextlib.suppress(StopIteration):
        while True:
            other = others.send(answered(other))
    all_right(of.sink, ["bad", "fine", "good", long], but={0, 3})
    assert of.ledger.refused == 2


def test_a_refusal_and_a_passing_fault_do_not_disturb_each_other() -> None:
    serve = poisoned(6)
    faults = {0, 2, 5}
    of = call()
    run(TEXTS, of, lambda request, n: no(503) if n in faults else serve(request, n))
    all_right(of.sink, TEXTS, but={6})


def test_vectors_finished_before_a_terminal_error_stay_in_the_sink() -> None:
    def serve(request: dict[str, Any], n: int) -> Answer:
        if len(request["input"]) > 5:
            return no(413)
        return right(request) if "text 0" in request["input"] else no(401, "invalid_api_key")

    of = call()
    with pytest.raises(errors.AuthenticationError):
        run(TEXTS, of, serve)
    assert set(of.sink.vectors) == {0, 1, 2, 3, 4}  # type: ignore[attr-defined]


# ---- the retry budget


def test_a_dead_server_gets_at_most_a_fifth_more_requests() -> None:
    clock = Clock()
    endpoint = lane_with(clock)
    seen = 0

    def dead(*_: Any) -> Answer:
        nonlocal seen
        seen += 1
        return no(503)

    for _ in range(100):
        with pytest.raises(errors.InternalServerError):
            run(["a"], call(clock, endpoint), dead)
    assert 100 <= seen <= 120


def test_while_other_requests_succeed_an_empty_retry_budget_is_waited_for() -> None:
    clock = Clock()
    endpoint = lane_with(clock)
    endpoint.retry_budget.balance = 0.0
    endpoint.good(clock(), sent_at=clock(), retries=0, estimated=1, billed=1)
    waits = []
    steps = exchange(items(["a"]), call(clock, endpoint))
    reply = answer_to(next(steps), no(503), clock)  # type: ignore[arg-type]
    for _ in range(3):
        step = steps.send(reply)
        assert isinstance(step, Sleep)
        waits.append(step.seconds)
        reply = None  # type: ignore[assignment]
    endpoint.retry_budget.refund(2)
    assert isinstance(steps.send(None), Sleep)
    assert isinstance(steps.send(None), Send)


def test_a_success_after_retries_gives_them_back() -> None:
    clock = Clock()
    endpoint = lane_with(clock)
    run(["a"], call(clock, endpoint), script(no(503), no(503)))
    assert endpoint.retry_budget.balance == endpoint.retry_budget.reserve


# ---- the deadline


def test_no_sleep_exceeds_the_deadline_the_error_comes_at_once_with_its_cause() -> None:
    clock = Clock()
    of = call(clock, deadline=5.0, until=clock() + 5.0)
    with pytest.raises(errors.APITimeoutError, match="deadline of 5 s") as caught:
        run(["a"], of, lambda *_: no(429, "rate_limit_exceeded", "slow down", retry_after="30"))
    assert clock() < 1005
    assert isinstance(caught.value.__cause__, errors.RateLimitError)
    assert isinstance(caught.value, TimeoutError)


@given(st.floats(0.2, 60), st.floats(0.01, 3))
def test_with_every_request_failing_the_deadline_is_never_exceeded(
    deadline: float, latency: float
) -> None:
    clock = Clock()
    of = call(clock, deadline=deadline, until=clock() + deadline, max_retries=50)
    with pytest.raises((errors.APITimeoutError, errors.InternalServerError)) as caught:
        run(["a"], of, lambda *_: no(503), latency=latency)
    for step in caught.value.run.steps:  # type: ignore[attr-defined]
        if isinstance(step, Send):
            assert step.timeout <= deadline + 1e-6
    assert clock() <= 1000 + deadline + latency


def test_a_deadline_that_has_passed_sends_nothing() -> None:
    clock = Clock()
    with pytest.raises(errors.APITimeoutError) as caught:
        run(["a"], call(clock, deadline=1.0, until=clock() - 1), script())
    assert caught.value.run.requests == 0  # type: ignore[attr-defined]


def test_a_timeout_at_the_deadline_is_the_deadlines_error() -> None:
    clock = Clock()
    with pytest.raises(errors.APITimeoutError, match="deadline of 2 s"):
        run(["a"], call(clock, deadline=2.0, until=clock() + 2), lambda *_: LATE, latency=2.0)


# ---- in an outage, one request probes and the others wait


def failing(endpoint: EndpointState, clock: Clock, **options: Any) -> tuple[Any, Any]:
    """An exchange whose first request has failed, and the step that it yields next."""
    of = call(clock, endpoint, **options)
    steps = exchange(items(["a"]), of)
    send = next(steps)
    assert isinstance(send, Send)
    return steps, steps.send(answer_to(send, no(503), clock))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def endpoint(clock: Clock) -> EndpointState:
    return lane_with(clock)


def finished(steps: Any, reply: Any) -> None:
    with pytest.raises(StopIteration):
        steps.send(reply)


def test_in_an_outage_one_sleeps_and_probes_the_others_follow(
    endpoint: EndpointState, clock: Clock
) -> None:
    leader, step = failing(endpoint, clock)
    assert isinstance(step, Sleep)
    followers = [failing(endpoint, clock) for _ in range(5)]
    assert all(isinstance(step, Follow) for _, step in followers)
    probe = leader.send(None)
    assert isinstance(probe, Send)
    finished(leader, answer_to(probe, None, clock))
    for steps, follow in followers:
        assert follow.outage.over
        send = steps.send(None)
        assert isinstance(send, Send), "the server is back: nobody need wait longer"
        finished(steps, answer_to(send, None, clock))
    assert endpoint.outage is None


def test_a_probe_that_fails_costs_its_followers_a_retry_but_no_request(
    endpoint: EndpointState, clock: Clock
) -> None:
    leader, _ = failing(endpoint, clock, max_retries=3)
    follower, _ = failing(endpoint, clock, max_retries=1)
    last, step = failing(endpoint, clock, max_retries=3)
    assert isinstance(step, Follow)
    probe = leader.send(None)
    after = leader.send(answer_to(probe, no(503), clock))
    assert isinstance(after, Sleep), "the leader opens the next outage"
    with pytest.raises(errors.InternalServerError):
        follower.send(None)
    assert isinstance(last.send(None), Follow)


def test_when_a_probe_is_given_up_a_follower_probes_and_loses_no_retry(
    endpoint: EndpointState, clock: Clock
) -> None:
    leader, _ = failing(endpoint, clock)
    follower, step = failing(endpoint, clock, max_retries=1)
    assert isinstance(step, Follow)
    leader.close()  # cancelled while it slept
    assert step.outage.recovered is None
    assert isinstance(follower.send(None), Sleep)
    send = follower.send(None)
    finished(follower, answer_to(send, None, clock))


def test_a_follower_that_takes_over_the_probe_has_only_its_own_retries(
    endpoint: EndpointState, clock: Clock
) -> None:
    leader, _ = failing(endpoint, clock)
    follower, _ = failing(endpoint, clock, max_retries=1)
    leader.close()
    assert isinstance(follower.send(None), Sleep)
    probe = follower.send(None)
    with pytest.raises(errors.InternalServerError):
        follower.send(answer_to(probe, no(503), clock))


@pytest.mark.parametrize(("passed", "rest"), [(4.0, 6.0), (9.5, 0.5), (30.0, None)])
def test_the_rest_of_the_wait_that_the_server_asked_for_is_kept_after_an_outage(
    endpoint: EndpointState,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    passed: float,
    rest: float | None,
) -> None:
    monkeypatch.setattr(retry.random, "random", lambda: 0.0)
    leader, _ = failing(endpoint, clock)
    steps = exchange(items(["a"]), call(clock, endpoint))
    follow = steps.send(answer_to(next(steps), no(429, retry_after="10"), clock))
    assert isinstance(follow, Follow)
    clock.now += passed
    follow.outage.end(recovered=True)
    step = steps.send(None)
    if rest is None:
        assert isinstance(step, Send)
    else:
        assert isinstance(step, Sleep)
        assert step.seconds == pytest.approx(rest)
    leader.close()


def test_a_prober_cancelled_in_its_request_lets_another_probe(
    endpoint: EndpointState, clock: Clock
) -> None:
    leader, _ = failing(endpoint, clock)
    follower, step = failing(endpoint, clock)
    assert isinstance(leader.send(None), Send)
    leader.close()
    assert step.outage.over
    assert isinstance(follower.send(None), Sleep)


def test_a_success_of_another_call_ends_the_outage_for_all(
    endpoint: EndpointState, clock: Clock
) -> None:
    leader, _ = failing(endpoint, clock)
    follower, step = failing(endpoint, clock)
    run(["b"], call(clock, endpoint), script())
    assert step.outage.recovered is True
    assert isinstance(follower.send(None), Send)
    assert isinstance(leader.send(None), Send)


def test_an_outage_of_many_calls_sees_few_probes(endpoint: EndpointState, clock: Clock) -> None:
    requests = 0
    running = [failing(endpoint, clock, max_retries=4) for _ in range(100)]
    requests += 100
    over = 0
    for _ in range(1000):
        if not running:
            break
        still = []
        for steps, step in running:
            if isinstance(step, Follow) and not step.outage.over:
                still.append((steps, step))
                continue
            reply = None
            if isinstance(step, Send):
                requests += 1
                reply = answer_to(step, no(503), clock)
            try:
                still.append((steps, steps.send(reply)))
            except errors.InternalServerError:
                over += 1
        running = still
    assert over == 100
    assert requests <= 120


# ---- the call has failed in another batch


def test_a_stopping_call_sends_nothing_more(clock: Clock) -> None:
    of = call(clock)
    of.stopping = True
    with pytest.raises(Stopped):
        next(exchange(items(["a"]), of))


def test_a_stopping_call_keeps_what_was_in_flight_and_does_not_retry(clock: Clock) -> None:
    of = call(clock)
    steps = exchange(items(["a"]), of)
    send = next(steps)
    of.stopping = True
    finished(steps, answer_to(send, None, clock))  # type: ignore[arg-type]
    assert set(of.sink.vectors) == {0}  # type: ignore[attr-defined]
    of = call(clock)
    steps = exchange(items(["a"]), of)
    send = next(steps)
    of.stopping = True
    with pytest.raises(errors.InternalServerError):
        steps.send(answer_to(send, no(503), clock))  # type: ignore[arg-type]


# ---- the budget


def bound(text: str) -> int:
    return token_bound(len(json.dumps(text)))


def test_a_budget_counts_what_was_billed_and_gives_back_the_rest() -> None:
    guard = BudgetGuard(limit=1000)
    run(TEXTS, call(guard=guard), script())
    assert (guard.spent, guard.reserved) == (sum(map(len, TEXTS)), 0)


def test_a_batch_beyond_the_budget_is_cut_down_and_what_fits_is_still_embedded() -> None:
    guard = BudgetGuard(limit=3 * bound("text 0"))
    of = call(guard=guard)
    with pytest.raises(errors.BudgetExceededError, match="was not sent") as caught:
        run(TEXTS, of, script())
    assert guard.spent <= guard.limit
    assert guard.reserved == 0
    assert len(of.sink.vectors) >= 3  # type: ignore[attr-defined]
    assert isinstance(caught.value, errors.NexusFlowError)


def test_with_a_budget_of_zero_nothing_is_sent() -> None:
    with pytest.raises(errors.BudgetExceededError) as caught:
        run(TEXTS, call(guard=BudgetGuard(limit=0)), script())
    assert caught.value.run.requests == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("outcome", "billed"),
    [
        (no(503), False),
        (no(429), False),
        (RESET, True),
        (LATE, True),
        (Answer(200, {}, b"<html>"), True),
        (TransportFault("cannot connect", maybe_billed=False), False),
    ],
)
def test_a_request_counts_in_full_if_it_may_have_been_billed_and_otherwise_not_at_all(
    outcome: Any, billed: bool
) -> None:
    guard = BudgetGuard(limit=10_000)
    run(["text"], call(guard=guard), script(outcome))
    assert guard.spent == len("text") + (bound("text") if billed else 0)
    assert guard.reserved == 0


def test_a_request_waits_for_a_reservation_that_may_come_back(
    clock: Clock, endpoint: EndpointState
) -> None:
    guard = BudgetGuard(limit=bound("a") + 1)
    first = exchange(items(["a"]), call(clock, endpoint, guard=guard))
    send = next(first)
    second = exchange(items(["a"]), call(clock, endpoint, guard=guard))
    assert isinstance(next(second), AwaitSettled)
    told = []
    guard.listen(lambda: told.append(1))
    finished(first, answer_to(send, None, clock))  # type: ignore[arg-type]
    assert told == [1]
    send = second.send(None)
    assert isinstance(send, Send)


@pytest.mark.parametrize("admitted", [True, False])
def test_a_request_that_is_given_up_is_billed_in_full_only_if_it_was_in_flight(
    clock: Clock, admitted: bool
) -> None:
    guard = BudgetGuard(limit=100)
    steps = exchange(items(["a"]), call(clock, guard=guard))
    send = next(steps)
    assert isinstance(send, Send)
    send.admitted = admitted
    steps.close()
    assert (guard.spent, guard.reserved) == (bound("a") if admitted else 0, 0)


def test_a_call_that_stops_before_it_sends_leaves_no_reservation(clock: Clock) -> None:
    guard = BudgetGuard(limit=100)
    for of in (
        call(clock, guard=guard, deadline=1.0, until=clock() - 1),
        call(clock, guard=guard),
    ):
        of.stopping = of.until == float("inf")
        with pytest.raises((errors.APITimeoutError, Stopped)):
            next(exchange(items(["a"]), of))
        assert (guard.spent, guard.reserved) == (0, 0)


OUTCOMES = st.sampled_from(
    [None, None, no(503), no(429), RESET, LATE, MODERATED, no(413), Answer(200, {}, b"")]
)


@given(st.lists(OUTCOMES, max_size=30), st.integers(0, 400))
def test_no_sequence_of_answers_exceeds_the_budget_or_leaves_a_reservation(
    outcomes: list[Any], limit: int
) -> None:
    guard = BudgetGuard(limit=limit)
    of = call(guard=guard, max_retries=3)
    with contextlib.suppress(errors.NexusFlowError):
        run(TEXTS, of, script(*outcomes))
    assert guard.reserved == 0
    assert guard.spent <= limit


ANY = st.sampled_from([*TROUBLE.values(), MODERATED, no(413), None, None, None])


@given(st.lists(ANY, max_size=40))
def test_no_sequence_of_answers_gives_a_wrong_vector_or_an_untyped_error(
    outcomes: list[Any],
) -> None:
    of = call(max_retries=3)
    try:
        run(TEXTS, of, script(*outcomes))
    except errors.NexusFlowError:
        whole = False
    else:
        whole = True
    sink = of.sink
    assert isinstance(sink, Sink)
    for index, vector in sink.vectors.items():
        assert np.array_equal(vector, vector_of(TEXTS[index]))
    if whole:
        assert len(sink.vectors) + len(sink.refusals) == len(TEXTS)


# ---- messages


def test_a_wait_up_to_the_longest_is_waited_and_a_longer_one_raised() -> None:
    longest = int(retry.MAX_HINT)
    done = run(["a"], call(), script(no(429, retry_after=f"{longest}")))
    assert longest <= done.slept[0] <= 1.1 * longest
    with pytest.raises(errors.RateLimitError):
        run(["a"], call(), script(no(429, retry_after=f"{longest + 1}")))


def test_a_retry_that_would_be_due_after_the_deadline_is_not_waited_for_and_names_the_cause() -> (
    None
):
    clock = Clock()
    of = call(clock, deadline=5.0, until=clock() + 5.0)
    with pytest.raises(
        errors.APITimeoutError,
        match=r"deadline of 5 s .*: the next retry was due in [78]\.\d s after .*429",
    ) as caught:
        run(["a"], of, script(no(429, retry_after="7")))
    assert isinstance(caught.value.__cause__, errors.RateLimitError)
    assert caught.value.run.slept == []  # type: ignore[attr-defined]


def test_a_deadline_that_passes_in_flight_or_before_a_request_says_which() -> None:
    clock = Clock()
    of = call(clock, deadline=5.0, until=clock() + 5.0)
    with pytest.raises(errors.APITimeoutError, match=r"would pass: a request was in flight$"):
        run(["a"], of, lambda _, __: LATE, latency=5.0)
    with pytest.raises(errors.APITimeoutError, match=r"would pass: nothing was in flight$"):
        run(["a"], call(clock, deadline=5.0, until=clock()), script())


def test_a_broken_connection_says_what_broke() -> None:
    with pytest.raises(errors.APIConnectionError, match=r"^the connection broke$"):
        run(["a"], call(max_retries=0), script(RESET))


def test_a_broken_answer_names_the_request_for_support_and_nothing_where_there_is_no_id() -> None:
    with pytest.raises(errors.InvalidResponseError, match=r"\(request r-1\)$") as caught:
        run(["a"], call(max_retries=0), script(Answer(200, {"x-request-id": "r-1"}, b"{")))
    assert caught.value.request_id == "r-1"
    with pytest.raises(errors.InvalidResponseError) as caught:
        run(["a"], call(max_retries=0), script(Answer(200, {}, b"{")))
    assert caught.value.request_id is None
    assert "request" not in str(caught.value)
    with pytest.raises(errors.InvalidResponseError) as caught:
        run(["a"], call(max_retries=0), script(Answer(200, {"x-request-id": "r" * 300}, b"{")))
    assert len(str(caught.value.request_id)) == 200


def test_a_retry_is_logged_with_its_reason_its_number_and_its_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "nexusflow_integrations"):
        run(["a"], call(max_retries=3), script(no(503, message="so busy")))
    assert re.search(r"so busy.*; retry 1 of 3 in \d+\.\d\d s", caplog.text)


def test_a_budget_that_is_used_up_says_what_is_left_and_what_was_asked() -> None:
    most = token_bound(len(items(["abc"])[0].encoded))
    of = call(guard=BudgetGuard(limit=most + 1, spent=2))
    with pytest.raises(
        errors.BudgetExceededError,
        match=rf"budget of {most + 1} tokens has {most - 1} left.* up to {most};",
    ):
        run(["abc"], of, script())
    assert of.ledger.requests == 0


def test_the_error_about_a_budget_of_one_token_uses_the_singular() -> None:
    with pytest.raises(errors.BudgetExceededError, match=r"budget of 1 token has 1 left"):
        run(["abc"], call(guard=BudgetGuard(limit=1, spent=0)), script())


def test_of_two_texts_of_which_the_budget_holds_one_that_one_is_embedded() -> None:
    most = token_bound(len(items(["a"])[0].encoded))
    of = call(guard=BudgetGuard(limit=most))
    with pytest.raises(errors.BudgetExceededError):
        run(["a", "b"], of, lambda request, _: right(request, usage=False))
    assert list(of.sink.vectors) == [0]  # type: ignore[attr-defined]


def test_waiting_for_others_to_settle_names_the_guard() -> None:
    guard = BudgetGuard(limit=20, reserved=20)
    step = next(exchange(items(["a"]), call(guard=guard)))
    assert isinstance(step, AwaitSettled)
    assert step.guard is guard


# -- the repr of a call that is not complete ------------------------------------------------------


def test_a_call_whose_fields_are_not_set_has_a_repr() -> None:
    settings = Settings(base_url="https://hand.invalid/v1")
    half = Call(texts=["a text"], settings=settings, key=ApiKey(KEY), ledger=Ledger())
    assert repr(half).startswith("Call(texts=['a text'], settings=Settings(")
    assert "endpoint" not in repr(half)
    assert KEY not in repr(half)
    half.sender = half
    assert "sender=Call(...)" in repr(half)
    assert repr(object.__new__(Call)) == "Call()"  # a signal handler interrupted the constructor


def test_no_dataclass_has_a_repr_that_needs_a_field_that_is_set_later() -> None:
    package = nexusflow_integrations._core
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for thing in vars(importlib.import_module(info.name)).values():
            if dataclasses.is_dataclass(thing) and thing.__dataclass_params__.repr:  # type: ignore[attr-defined]
                for field in dataclasses.fields(thing):
                    is_set = field.default is not dataclasses.MISSING or (
                        field.default_factory is not dataclasses.MISSING
                    )
                    assert field.init or is_set or not field.repr, f"{thing}: {field.name}"
