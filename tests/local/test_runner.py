"""The loop never waits for the model's thread, and waiting requests share a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import httpx
import numpy as np
import pytest

from nexusflow_integrations.local import LocalServer, create_app
from nexusflow_integrations.local.runner import ModelRunner


class HeldEncoder:
    """Encodes when the test allows it; each row contains the length of its text."""

    name = "held"
    native_size = 2048
    block = 2048
    instant = False

    def __init__(self) -> None:
        self.may_load = threading.Event()
        self.may_encode = threading.Event()
        self.runs: list[list[str]] = []
        self.failure: Exception | None = None

    def check(self) -> None: ...

    def load(self) -> None:
        assert self.may_load.wait(60)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.runs.append(list(texts))
        assert self.may_encode.wait(60)
        if self.failure is not None:
            raise self.failure
        rows = np.zeros((len(texts), 2048), np.float32)
        rows[:, 0] = [len(text) for text in texts]
        return rows


@pytest.fixture
def held() -> HeldEncoder:
    return HeldEncoder()


async def until(true: Callable[[], object]) -> None:
    for _ in range(12000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


async def test_requests_that_wait_share_the_next_run_and_get_their_own_rows(
    held: HeldEncoder,
) -> None:
    held.may_load.set()
    runner = ModelRunner(held, lambda: None)
    runner.start()
    first = asyncio.create_task(runner.encode(["a"]))
    await until(lambda: held.runs)
    others = [asyncio.create_task(runner.encode(["b" * n, "c"])) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    held.may_encode.set()
    rows = [await task for task in (first, *others)]
    runner.stop()
    assert held.runs == [["a"], ["bb", "c", "bbb", "c", "bbbb", "c"]]
    assert [row[:, 0].tolist() for row in rows] == [[1], [2, 1], [3, 1], [4, 1]]


async def test_a_run_takes_a_bounded_number_of_texts(held: HeldEncoder) -> None:
    held.may_load.set()
    runner = ModelRunner(held, lambda: None)
    runner.start()
    held.may_encode.set()
    await asyncio.gather(*(runner.encode(["x"] * 10) for _ in range(30)))
    runner.stop()
    assert sum(map(len, held.runs)) == 300
    assert max(map(len, held.runs)) < 64 + 10


async def test_few_long_texts_share_a_run_so_that_stopping_is_quick(held: HeldEncoder) -> None:
    held.may_load.set()
    runner = ModelRunner(held, lambda: None)
    runner.start()
    tasks = [asyncio.create_task(runner.encode(["x" * 15_000])) for _ in range(9)]
    await until(lambda: held.runs)
    held.may_encode.set()
    await asyncio.gather(*tasks)
    runner.stop()
    assert max(map(len, held.runs)) <= 2


async def test_requests_wait_for_the_model_to_load(held: HeldEncoder) -> None:
    runner = ModelRunner(held, lambda: None)
    runner.start()
    task = asyncio.create_task(runner.encode(["a"]))
    counted = asyncio.create_task(runner.count_tokens(["abc"]))
    await asyncio.sleep(0.05)
    assert not task.done()
    assert not counted.done()
    assert not runner.loaded
    held.may_load.set()
    held.may_encode.set()
    assert (await task).shape == (1, 2048)
    assert await counted == [3]
    assert runner.loaded
    runner.stop()


async def test_a_failing_run_fails_its_requests_and_not_the_next(held: HeldEncoder) -> None:
    held.may_load.set()
    runner = ModelRunner(held, lambda: None)
    runner.start()
    held.failure = ArithmeticError("no")
    held.may_encode.set()
    with pytest.raises(ArithmeticError, match="no"):
        await runner.encode(["a"])
    held.failure = None
    assert (await runner.encode(["a"])).shape == (1, 2048)
    runner.stop()


async def test_a_request_that_fails_the_model_does_not_fail_those_beside_it(
    held: HeldEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = held.encode

    def choosy(texts: Sequence[str]) -> np.ndarray:
        rows = encode(texts)
        if "bad" in texts:
            raise ArithmeticError("bad")
        return rows

    monkeypatch.setattr(held, "encode", choosy)
    held.may_load.set()
    runner = ModelRunner(held, lambda: None)
    runner.start()
    first = asyncio.create_task(runner.encode(["a"]))
    await until(lambda: held.runs)
    others = [asyncio.create_task(runner.encode([text])) for text in ("b", "bad", "c")]
    await asyncio.sleep(0)
    held.may_encode.set()
    outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    runner.stop()
    assert [isinstance(outcome, ArithmeticError) for outcome in outcomes] == [
        False,
        False,
        True,
        False,
    ]


async def test_a_model_that_does_not_load_fails_every_request(held: HeldEncoder) -> None:
    def fail() -> None:
        raise MemoryError("too big")

    held.load = fail  # type: ignore[method-assign]
    runner = ModelRunner(held, lambda: None)
    runner.start()
    with pytest.raises(MemoryError, match="too big"):
        await runner.encode(["a"])
    with pytest.raises(MemoryError, match="too big"):
        await runner.count_tokens(["a"])
    assert not runner.loaded
    runner.stop()


async def test_a_cancelled_request_costs_no_run(held: HeldEncoder) -> None:
    held.may_load.set()
    runner = ModelRunner(held, lambda: None)
    runner.start()
    first = asyncio.create_task(runner.encode(["a"]))
    await until(lambda: held.runs)
    second = asyncio.create_task(runner.encode(["b"]))
    third = asyncio.create_task(runner.encode(["c"]))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    held.may_encode.set()
    await asyncio.gather(first, third)
    runner.stop()
    assert held.runs == [["a"], ["c"]]


@pytest.fixture
def served(held: HeldEncoder, monkeypatch: pytest.MonkeyPatch) -> HeldEncoder:
    """The held encoder, as what every server runs."""
    monkeypatch.setattr(
        "nexusflow_integrations.local.app.make_encoder", lambda model, threads: held
    )
    return held


def client_of(server: LocalServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=server.base_url,
        headers={"Authorization": f"Bearer {server.api_key}"},
        trust_env=False,
        timeout=120,
    )


BODY = {"model": "text-embedding-v4", "input": "four"}


async def test_the_server_answers_while_the_model_loads_and_runs(served: HeldEncoder) -> None:
    async with LocalServer() as server, client_of(server) as client:
        health = server.base_url.replace("/v1", "/health")
        waiting = asyncio.create_task(client.post("/embeddings", json=BODY))
        assert (await client.get(health)).json()["status"] == "loading"
        served.may_load.set()
        await until(lambda: served.runs)
        assert (await client.get(health)).json()["status"] == "ok"
        assert not waiting.done()
        served.may_encode.set()
        assert (await waiting).json()["usage"]["total_tokens"] == 4


async def test_requests_in_flight_and_connections_are_counted(served: HeldEncoder) -> None:
    served.may_load.set()
    async with LocalServer() as server, client_of(server) as client:
        tasks = [asyncio.create_task(client.post("/embeddings", json=BODY)) for _ in range(4)]
        await until(lambda: server.stats.in_flight == 4)
        server.reset_stats()
        assert server.stats.in_flight == server.stats.max_in_flight == 4
        served.may_encode.set()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        assert server.stats.in_flight == 0
        assert server.stats.max_in_flight == 4
        served.may_encode.clear()
        tasks = [asyncio.create_task(client.post("/embeddings", json=BODY)) for _ in range(6)]
        await until(lambda: server.stats.in_flight == 6)
        assert server.stats.connections == 2
        served.may_encode.set()
        await asyncio.gather(*tasks)


async def test_requests_over_the_concurrency_are_refused_and_pass_later(
    served: HeldEncoder,
) -> None:
    served.may_load.set()
    async with LocalServer(concurrency=3) as server, client_of(server) as client:
        tasks = [asyncio.create_task(client.post("/embeddings", json=BODY)) for _ in range(8)]
        await until(lambda: sum(task.done() for task in tasks) == 5)
        served.may_encode.set()
        statuses = sorted(answer.status_code for answer in await asyncio.gather(*tasks))
        assert statuses == [200] * 3 + [429] * 5
        assert (await client.post("/embeddings", json=BODY)).status_code == 200


async def test_texts_of_a_client_that_hangs_up_are_not_encoded_and_do_not_delay_the_stop(
    served: HeldEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    served.may_load.set()
    async with LocalServer() as server, client_of(server) as client:
        tasks = [asyncio.create_task(client.post("/embeddings", json=BODY))]
        await until(lambda: served.runs)
        tasks += [asyncio.create_task(client.post("/embeddings", json=BODY)) for _ in range(3)]
        await until(lambda: server.stats.in_flight == 4)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(lambda: server.stats.in_flight == 0)
        served.may_encode.set()
    assert len(served.runs) == 1
    assert not caplog.records, "uvicorn had no request to cancel"


async def test_a_block_that_fails_does_not_wait_for_requests(
    served: HeldEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    served.may_load.set()
    with pytest.raises(KeyError):  # noqa: PT012
        async with LocalServer() as server:
            client = client_of(server)
            waiting = asyncio.create_task(client.post("/embeddings", json=BODY))
            await until(lambda: served.runs)
            # Later than the server waits for requests in progress.
            asyncio.get_running_loop().call_later(2.5, served.may_encode.set)
            raise KeyError
    with pytest.raises(httpx.TransportError):
        await waiting
    await client.aclose()
    assert not caplog.records, "uvicorn had no request to cancel"


async def test_a_request_may_come_before_the_start(held: HeldEncoder) -> None:
    held.may_load.set()
    held.may_encode.set()
    runner = ModelRunner(held, lambda: None)
    task = asyncio.create_task(runner.encode(["a"]))
    await asyncio.sleep(0)
    runner.start()
    assert (await task).shape == (1, 2048)
    runner.stop()


async def test_the_app_runs_in_process_without_a_socket() -> None:
    transport = httpx.ASGITransport(app=create_app(model="hash"))
    async with httpx.AsyncClient(transport=transport, base_url="http://local/v1") as client:
        answer = await client.post(
            "/embeddings", json=BODY, headers={"Authorization": "Bearer any"}
        )
    assert answer.status_code == 200
    assert answer.headers["X-Local-Model"] == "hash"
