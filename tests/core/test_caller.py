"""A call asks and informs its caller, in a thread and on an event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest

from nexusflow_integrations._core.call import caller as caller_module
from nexusflow_integrations._core.call.background import BackgroundLoop, background_loop
from nexusflow_integrations._core.call.caller import (
    NO_HOOKS,
    BatchEnd,
    CallingTask,
    CallingThread,
    Hooks,
)
from nexusflow_integrations._core.call.engine import Engine
from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.request.exchange import Call
from nexusflow_integrations._core.request.wire import Answer
from nexusflow_integrations._core.settings import ApiKey, Settings
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations.errors import APITimeoutError, AuthenticationError, LimiterError

from .hand import KEY, no, right, vector_of

SIZE = 64
TEXTS = [f"text {number}" for number in range(40)]
REFUSED = no(400, "data_inspection_failed", "inappropriate content")
WRONG_KEY = no(401, "invalid_api_key", "no such key")


class Server:
    """Answers each request according to its texts; records the texts in order."""

    def __init__(self, answer: Callable[[list[str]], Answer | None] = lambda texts: None) -> None:
        self.asked: list[list[str]] = []
        self._answer = answer

    async def send(self, body: bytes, timeout: float) -> Answer:
        request = json.loads(body)
        texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
        self.asked.append(texts)
        await asyncio.sleep(0.01)
        return self._answer(texts) or right(request)


Run = Callable[..., CallResults]


@pytest.fixture(params=["thread", "task"])
def run(request: pytest.FixtureRequest) -> Run:
    """Embed texts with a server, waiting in a thread or on an event loop; hooks are functions."""

    def embed(
        server: Server, hooks: Hooks, texts: list[str] = TEXTS, progress: Any = None, **options: Any
    ) -> CallResults:
        settings = Settings(base_url="https://hand.invalid/v1", dimensions=SIZE, **options)
        call = Call(texts=texts, settings=settings, key=ApiKey(KEY), ledger=Ledger())
        engine = Engine(background_loop())
        engine._sender = lambda _: server  # type: ignore[method-assign,assignment,return-value]
        if request.param == "thread":
            caller = CallingThread(hooks, progress, deadline=settings.deadline)
            return caller.wait(background_loop(), engine.embed(call, caller))

        async def main() -> CallResults:
            awaited = {item.name: _awaited(getattr(hooks, item.name)) for item in fields(Hooks)}
            mine = CallingTask(Hooks(**awaited), progress)
            return await mine.wait(background_loop(), engine.embed(call, mine))

        return asyncio.run(main())

    return embed


def _awaited(hook: Callable[..., Any] | None) -> Callable[..., Any] | None:
    if hook is None:
        return None

    async def wait(*arguments: Any) -> Any:
        return hook(*arguments)

    return wait


def test_each_batch_is_permitted_once_in_order_and_sent_after_that(run: Run) -> None:
    server = Server()
    permitted: list[list[str]] = []
    before: list[int] = []

    def permit(texts: list[str]) -> None:
        before.append(len(server.asked))
        permitted.append(texts)

    results = run(server, Hooks(permit=permit))
    assert permitted == [TEXTS[start : start + 10] for start in range(0, 40, 10)]
    assert all(sent <= turn for turn, sent in enumerate(before))
    assert results.done.count(1) == 40


def test_hooks_run_where_the_call_came_from(run: Run) -> None:
    where = set()
    note = lambda _: where.add(threading.current_thread())  # noqa: E731
    run(Server(), Hooks(permit=note, ended=note), progress=note)
    assert where == {threading.current_thread()}


def test_a_retry_is_not_permitted_again(run: Run) -> None:
    failed: list[list[str]] = []

    def once(texts: list[str]) -> Answer | None:
        failed.append(texts)
        return no(500, "internal_error", "oops") if len(failed) == 1 else None

    permitted: list[list[str]] = []
    ends: list[BatchEnd] = []
    server = Server(once)
    run(server, Hooks(permit=permitted.append, ended=ends.append), TEXTS[:10])
    assert len(server.asked) == 2
    assert permitted == [TEXTS[:10]]
    assert [(end.ledger.requests, end.ledger.retries) for end in ends] == [(2, 1)]


def test_an_end_reports_the_texts_the_vectors_and_the_usage_of_the_batch_alone(run: Run) -> None:
    ends: list[BatchEnd] = []
    run(Server(), Hooks(ended=ends.append))
    assert sorted(end.texts for end in ends) == sorted(
        TEXTS[start : start + 10] for start in range(0, 40, 10)
    )
    for end in ends:
        expected = [vector_of(text, SIZE).tolist() for text in end.texts]
        assert end.vectors.tolist() == expected
        assert (end.ledger.texts, end.ledger.requests) == (10, 1)


def test_an_end_leaves_out_what_was_refused(run: Run) -> None:
    ends: list[BatchEnd] = []
    server = Server(lambda texts: REFUSED if "text 3" in texts else None)
    results = run(server, Hooks(ended=ends.append), TEXTS[:10])
    assert list(results.refusals) == [3]
    (end,) = ends
    assert end.texts == [text for text in TEXTS[:10] if text != "text 3"]
    assert len(end.vectors) == 9


def test_the_end_of_a_batch_of_refused_texts_is_reported_too(run: Run) -> None:
    ends: list[BatchEnd] = []
    run(Server(lambda texts: REFUSED), Hooks(ended=ends.append), TEXTS[:1])
    assert [(end.texts, len(end.vectors)) for end in ends] == [([], 0)]


def test_a_batch_that_failed_without_a_vector_has_no_end(run: Run) -> None:
    ends: list[BatchEnd] = []
    server = Server(lambda texts: WRONG_KEY if "text 15" in texts else None)
    with pytest.raises(AuthenticationError) as raised:
        run(server, Hooks(ended=ends.append), TEXTS[:20])
    assert [end.texts for end in ends] == [TEXTS[:10]]
    assert sorted(raised.value.finished) == list(range(10))


def test_a_call_that_failed_waits_for_no_permission(run: Run) -> None:
    asked: list[list[str]] = []
    server = Server(lambda texts: WRONG_KEY)

    def permit(texts: list[str]) -> None:
        asked.append(texts)
        time.sleep(0.05)  # the first answer has arrived

    with pytest.raises(AuthenticationError):
        run(server, Hooks(permit=permit))
    assert len(asked) <= 2
    assert len(server.asked) == 1


def test_a_permission_that_fails_ends_the_call_with_what_is_finished(run: Run) -> None:
    turns: list[list[str]] = []

    def permit(texts: list[str]) -> None:
        turns.append(texts)
        if len(turns) == 3:
            raise ValueError("no")

    with pytest.raises(LimiterError, match=r"^the rate limiter failed: ValueError: no$") as raised:
        run(Server(), Hooks(permit=permit))
    assert isinstance(raised.value.__cause__, ValueError)
    assert sorted(raised.value.finished) == list(range(20))


def test_an_error_at_the_end_of_a_batch_loses_nothing(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        results = run(Server(), Hooks(ended=lambda _: 1 / 0))
    assert results.done.count(1) == 40
    assert len(caplog.records) == 1
    assert "ZeroDivisionError" in caplog.text


def test_ends_are_worked_on_before_the_call_returns(run: Run) -> None:
    worked: list[int] = []

    def ended(end: BatchEnd) -> None:
        time.sleep(0.02)
        worked.append(len(end.texts))

    run(Server(), Hooks(ended=ended))
    assert sum(worked) == 40


async def test_tasks_of_an_async_caller_run_in_parallel_and_are_awaited() -> None:
    running = most = 0

    async def ended(end: BatchEnd) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.1)
        running -= 1

    settings = Settings(base_url="https://hand.invalid/v1", dimensions=SIZE)
    call = Call(texts=TEXTS, settings=settings, key=ApiKey(KEY), ledger=Ledger())
    engine = Engine(background_loop())
    engine._sender = lambda _: Server()  # type: ignore[method-assign,assignment,return-value]
    caller = CallingTask(Hooks(ended=ended), None)
    await caller.wait(background_loop(), engine.embed(call, caller))
    assert most > 1
    assert running == 0


async def test_a_cancelled_async_caller_leaves_no_task_behind() -> None:
    started = asyncio.Event()

    async def permit(texts: list[str]) -> None:
        started.set()
        await asyncio.sleep(60)

    settings = Settings(base_url="https://hand.invalid/v1", dimensions=SIZE)
    call = Call(texts=TEXTS, settings=settings, key=ApiKey(KEY), ledger=Ledger())
    engine = Engine(background_loop())
    server = Server()
    engine._sender = lambda _: server  # type: ignore[method-assign,assignment,return-value]
    caller = CallingTask(Hooks(permit=permit), None)
    before = asyncio.all_tasks()
    task = asyncio.create_task(caller.wait(background_loop(), engine.embed(call, caller)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert server.asked == []


@pytest.mark.parametrize("bounded", [False, True])
def test_only_under_a_deadline_is_a_permission_waited_for_in_another_thread(bounded: bool) -> None:
    where = set()
    settings = Settings(
        base_url="https://hand.invalid/v1", dimensions=SIZE, deadline=60.0 if bounded else None
    )
    call = Call(texts=TEXTS, settings=settings, key=ApiKey(KEY), ledger=Ledger())
    engine = Engine(background_loop())
    engine._sender = lambda _: Server()  # type: ignore[method-assign,assignment,return-value]
    hooks = Hooks(permit=lambda _: where.add(threading.current_thread()))
    caller = CallingThread(hooks, None, deadline=settings.deadline)
    caller.wait(background_loop(), engine.embed(call, caller))
    assert (threading.current_thread() in where) is not bounded


@pytest.fixture
def blocked_loop() -> Iterator[BackgroundLoop]:
    """A loop whose thread is blocked until the test is over."""
    background, leave = BackgroundLoop(), threading.Event()

    async def block() -> None:
        leave.wait(60)

    background.submit(block())
    yield background
    leave.set()
    background.close()


def bounded_call() -> Call:
    settings = Settings(base_url="https://hand.invalid/v1", dimensions=SIZE, deadline=0.1)
    return Call(texts=TEXTS, settings=settings, key=ApiKey(KEY), ledger=Ledger())


def test_a_deadline_holds_although_the_loop_is_blocked(
    blocked_loop: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller_module, "GRACE", 0.1)
    call, caller = bounded_call(), CallingThread(NO_HOOKS, None, deadline=0.1)
    with pytest.raises(APITimeoutError, match=r"deadline of 0.1 s .* does not answer"):
        caller.wait(blocked_loop, Engine(blocked_loop).embed(call, caller))


async def test_a_deadline_holds_for_an_async_caller_although_the_loop_is_blocked(
    blocked_loop: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller_module, "GRACE", 0.1)
    call, caller = bounded_call(), CallingTask(NO_HOOKS, None, deadline=0.1)
    with pytest.raises(APITimeoutError, match=r"deadline of 0.1 s .* does not answer"):
        await caller.wait(blocked_loop, Engine(blocked_loop).embed(call, caller))
