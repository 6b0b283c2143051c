"""Any number of threads and event loops may use one object, at once or in turn."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.usage import Ledger

from .scene import assert_right, client_of, texts, until


def test_thirty_two_threads_on_one_object_get_the_right_vectors(server: Any) -> None:
    client = client_of(server)
    barrier = threading.Barrier(32)

    def work(n: int) -> None:
        barrier.wait(60)
        for k in range(4):
            mine = texts(13, f"thread {n} {k}")
            assert_right(client.embed(mine), mine)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))
    assert client.usage.texts == 32 * 4 * 13
    assert server.max_in_flight <= 32
    assert server.connections <= 40, "connections about as many as requests in flight"


def test_asyncio_run_three_times_on_one_object_works_without_a_warning(server: Any) -> None:
    client = client_of(server)

    async def call(n: int) -> None:
        mine = [texts(15, f"run {n} {k}") for k in range(3)]
        for rows, of in zip(
            await asyncio.gather(*[client.aembed(t) for t in mine]), mine, strict=True
        ):
            assert_right(rows, of)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(3):
            asyncio.run(call(n))
            gc.collect()
    assert server.connections <= 8, "the pool outlives the loops"


def test_loops_in_threads_at_once(server: Any) -> None:
    client = client_of(server)

    async def call(n: int) -> None:
        for k in range(3):
            mine = texts(12, f"loop {n} {k}")
            assert_right(await client.aembed(mine), mine)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: asyncio.run(call(n)), range(6)))


async def test_a_sync_call_inside_a_running_loop_works(server: Any) -> None:
    client = client_of(server)
    mine = texts(12)
    assert_right(client.embed(mine), mine)
    assert_right(await client.aembed(mine), mine)


async def test_async_calls_leave_the_callers_loop_free(server: Any) -> None:
    ticks = 0

    def answer_a_free_loop(wire: Any) -> None:
        until(lambda: ticks >= 10, 50)
        wire.right()

    server.script = type(server.script)(answer_a_free_loop)
    client = client_of(server)

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.ensure_future(tick())
    await client.aembed(texts(20))
    ticker.cancel()


async def test_progress_of_an_async_call_comes_on_its_own_loop_and_adds_up(server: Any) -> None:
    heard: list[tuple[int, int]] = []
    client = client_of(server)
    await client.aembed(texts(55), progress=lambda n: heard.append((n, threading.get_ident())))
    await asyncio.sleep(0.05)
    assert sum(n for n, _ in heard) == 55
    assert {thread for _, thread in heard} == {threading.get_ident()}


def test_a_stream_in_one_thread_and_calls_in_others_do_not_mix(server: Any) -> None:
    client = client_of(server)

    def stream() -> None:
        mine = texts(300, "stream")
        results = list(client.embed_stream(iter(mine)))
        assert [result.index for result in results] == list(range(300))
        assert_right([result.vector for result in results], mine)

    def call(n: int) -> None:
        mine = texts(25, f"call {n}")
        assert_right(client.embed(mine), mine)

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(stream), *[pool.submit(call, n) for n in range(10)]]
        for future in futures:
            future.result(120)


def test_usage_is_read_consistently_while_other_threads_count() -> None:
    client = NexusFlow("key-of-this-test")
    call = Ledger(requests=1, texts=1, tokens=1)
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            client._spent.add(call)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                pool.submit(count)
            read = [client.usage for _ in range(5_000)]
            done.set()
    finally:
        done.set()
        sys.setswitchinterval(before)
    assert all(usage.requests == usage.texts == usage.tokens for usage in read)
