"""The model's thread: the loop never waits for it, and waiting requests share a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import httpx
import numpy as np
import pytest

from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.local.app import LocalApi
from nexusflow_integrations.local.runner import ModelRunner


class HeldEncoder:
    """Encodes when told to; each row says the length of its text."""

    name = "held"
    native_size = 2048
    block = 2048
    instant = False

    def __init__(self) -> None:
        self.may_load = threading.Event()
        self.may_encode = threading.Semaphore(0)
        self.runs: list[list[str]] = []
        self.failure: Exception | None = None

    def check(self) -> None: ...

    def load(self) -> None:
        assert self.may_load.wait(10)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.runs.append(list(texts))
        assert self.may_encode.acquire(timeout=10)
        if self.failure is not None:
            raise self.failure
        rows = np.zeros((len(texts), 2048), np.float32)
        rows[:, 0] = [len(text) for text in texts]
        return rows


@pytest.fixture
def held() -> HeldEncoder:
    return HeldEncoder()


async def until(true: object) -> None:
    while not true():  # type: ignore[operator]
        await asyncio.sleep(0.005)


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
    held.may_encode.release(2)
    rows = [await task for task in (first, *others)]
    runner.stop()
    assert held.runs == [["a"], ["bb", "c", "bbb", "c", "bbbb", "c"]]
    assert [row[:, 0].tolist() for row in rows] == [[1], [2, 1], [3, 1], [4, 1]]


async def test_a_run_takes_a_bounded_number_of_texts(held: HeldEncoder) -> None:
    held.may_load.set()
    runner = ModelRunner(held, lambda: None)
    runner.start()
    held.may_encode.release(100)
    await asyncio.gather(*(runner.encode(["x"] * 10) for _ in range(30)))
    runner.stop()
    assert sum(map(len, held.runs)) == 300
    assert max(map(len, held.runs)) < 64 + 10


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
    held.may_encode.release()
    assert (await task).shape == (1, 2048)
    assert await counted == [3]
    assert runner.loaded
    runner.stop()


async def test_a_failing_run_fails_its_requests_and_not_the_next(held: HeldEncoder) -> None:
    held.may_load.set()
    runner = ModelRunner(held, lambda: None)
    runner.start()
    held.failure = ArithmeticError("no")
    held.may_encode.release()
    with pytest.raises(ArithmeticError, match="no"):
        await runner.encode(["a"])
    held.failure = None
    held.may_encode.release()
    assert (await runner.encode(["a"])).shape == (1, 2048)
    runner.stop()


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
    held.may_encode.release(2)
    await asyncio.gather(first, third)
    runner.stop()
    assert held.runs == [["a"], ["c"]]


async def test_the_server_answers_while_the_model_loads_and_runs(
    held: HeldEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nexusflow_integrations.local.app.make_encoder", lambda model, threads: held
    )
    async with LocalServer() as server:
        root = server.base_url.removesuffix("/v1")
        headers = {"Authorization": f"Bearer {server.api_key}"}
        body = {"model": "text-embedding-v4", "input": "four"}
        async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=30) as client:
            waiting = asyncio.create_task(client.post(f"{server.base_url}/embeddings", json=body))
            health = (await client.get(f"{root}/health")).json()
            assert health["status"] == "loading"
            held.may_load.set()
            await until(lambda: held.runs)
            health = (await client.get(f"{root}/health")).json()
            assert health["status"] == "ok"
            assert not waiting.done()
            assert server.stats.in_flight == 1
            held.may_encode.release()
            assert (await waiting).json()["usage"]["total_tokens"] == 4


async def test_the_app_runs_in_process_without_a_socket() -> None:
    api = LocalApi(model="hash")
    api.runner.start()
    transport = httpx.ASGITransport(app=api.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://local/v1") as client:
        answer = await client.post(
            "/embeddings",
            json={"model": "text-embedding-v4", "input": "x"},
            headers={"Authorization": "Bearer k"},
        )
    assert answer.status_code == 200
    assert api.counts.snapshot().requests == 1
