"""Calls that share texts: paid for once, and nobody is left waiting when the payer fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import APITimeoutError
from nexusflow_integrations.local import LocalServer

TEXTS = [f"a text that several want {number}" for number in range(45)]


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(model="hash", latency_ms=150, record_texts=True) as running:
        yield running


def test_two_calls_at_once_pay_once(server: LocalServer) -> None:
    client = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(client.embed(TEXTS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert all(np.array_equal(rows, found[0]) for rows in found)
    assert server.stats.texts == len(TEXTS)


@pytest.mark.timeout(60)
def test_a_call_that_waits_for_another_embeds_itself_what_that_one_leaves(
    server: LocalServer,
) -> None:
    settings = {"base_url": server.base_url, "dimensions": 64, "max_concurrency": 1}
    hurried = NexusFlow(server.api_key, deadline=0.4, **settings)
    patient = NexusFlow(server.api_key, **settings)
    failed: list[BaseException] = []

    def hurry() -> None:
        try:
            hurried.embed(TEXTS)
        except APITimeoutError as error:
            failed.append(error)

    first = threading.Thread(target=hurry)
    first.start()
    while server.stats.requests == 0 and server.stats.in_flight == 0:
        pass
    rows = patient.embed(TEXTS)  # joins the flights of the first call, which never end well
    first.join(30)
    assert failed
    assert np.array_equal(rows, patient.embed(TEXTS))


@pytest.mark.timeout(60)
def test_a_call_whose_progress_raises_leaves_nobody_waiting(server: LocalServer) -> None:
    client = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64, max_concurrency=2)

    class Enough(BaseException):
        pass

    def stop(_: int) -> None:
        raise Enough

    for _ in range(3):
        with pytest.raises(Enough):
            client.embed(TEXTS, progress=stop)
        assert client.embed(TEXTS).shape == (45, 64)
