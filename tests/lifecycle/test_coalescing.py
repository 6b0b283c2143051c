"""Calls that share texts pay for them once, and no call waits forever if the payer fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import APITimeoutError, BadRequestError
from nexusflow_integrations.local import LocalServer

from .scene import assert_right, client_of, passengers, until

TEXTS = [f"a text that several want {number}" for number in range(45)]


@pytest.fixture
def slow() -> Iterator[LocalServer]:
    with LocalServer(model="hash", latency_ms=150) as running:
        yield running


def test_four_calls_at_once_pay_once(server: Any) -> None:
    def when_all_are_there(wire: Any) -> None:
        until(lambda: passengers() == 3)
        wire.right()

    server.script = type(server.script)(when_all_are_there)
    client = client_of(server)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(client.embed(TEXTS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 4
    for rows in found:
        assert_right(rows, TEXTS)
    assert sum(server.texts.values()) == len(TEXTS)


@pytest.mark.timeout(300)
def test_a_call_that_waits_for_another_embeds_itself_what_that_one_leaves(
    slow: LocalServer,
) -> None:
    settings = {"base_url": slow.base_url, "dimensions": 64, "max_concurrency": 1}
    hurried = NexusFlow(slow.api_key, deadline=0.6, **settings)
    patient = NexusFlow(slow.api_key, **settings)
    failed: list[BaseException] = []

    def hurry() -> None:
        try:
            hurried.embed(TEXTS)
        except APITimeoutError as error:
            failed.append(error)

    first = threading.Thread(target=hurry)
    first.start()
    until(lambda: slow.stats.in_flight or failed)
    rows = patient.embed(TEXTS)  # joins the coalescer of the first call, which never end well
    first.join(120)
    assert failed
    assert np.array_equal(rows, patient.embed(TEXTS))


@pytest.mark.timeout(300)
def test_a_call_whose_progress_raises_leaves_nobody_waiting(slow: LocalServer) -> None:
    client = NexusFlow(slow.api_key, base_url=slow.base_url, dimensions=64, max_concurrency=2)

    class Enough(BaseException):
        pass

    def stop(_: int) -> None:
        raise Enough

    for _ in range(3):
        with pytest.raises(Enough):
            client.embed(TEXTS, progress=stop)
        assert client.embed(TEXTS).shape == (45, 64)


def refuse(wire: Any) -> None:
    from faults.behaviours import error, says

    says(400, error("data_inspection_failed"))(wire)


def test_a_duplicate_text_that_is_refused_is_refused_in_both_places(server: Any) -> None:
    from faults.server import marked

    server.script = marked("unwanted", refuse)
    texts = ["a", "unwanted", "b", "unwanted"]
    found = client_of(server).embed(texts, on_refused="collect")
    assert sorted(found.refused) == [1, 3]
    assert_right([found[0], found[2]], ["a", "b"])
    assert found[1] is found[3] is None


def test_a_refusal_reaches_whoever_waits_for_the_same_text_and_is_not_asked_for_twice(
    server: Any,
) -> None:
    def when_both_are_there(wire: Any) -> None:
        until(lambda: passengers() == 1)
        refuse(wire)

    server.script = type(server.script)(when_both_are_there)
    client = client_of(server)
    raised: list[BadRequestError] = []

    def ask() -> None:
        try:
            client.embed("unwanted")
        except BadRequestError as error:
            raised.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [error.code for error in raised] == ["data_inspection_failed"] * 2
    assert server.attempts == 1
