"""What the tests run in separate processes: ``python workers.py JOB OPTIONS``."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from nexusflow_integrations._core.cache.cache import store_at
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.cache.keys import Keyer
from nexusflow_integrations._core.redis.address import address_or_path
from nexusflow_integrations._core.unavailable import StoreUnavailable

SIZE = 64


KEYER = Keyer(base_url="https://a.example/v1", model="m", dimensions=SIZE)


def key_of(number: int) -> bytes:
    return KEYER(f"text {number}")


def vector_of(key: bytes) -> np.ndarray:
    """The one right vector of a key."""
    seed = int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def note(log: str, keys: list[bytes]) -> None:
    """Append keys to a file, a line each; a kill may cut off the last ones."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"\n" + b"".join(key.hex().encode() + b"\n" for key in keys))
    os.close(fd)


def wait_for_the_others(ready: str) -> None:
    """Say that this process is ready, and continue at the same moment as the others."""
    Path(f"{ready}.{os.getpid()}").touch()
    while not Path(ready).exists():
        time.sleep(0.005)


def embed(
    path: str,
    count: int,
    log: str,
    *,
    seed: int,
    group: int = 10,
    claim_seconds: float = 60.0,
    pay_seconds: float = 0.002,
    dies: tuple[int, float] | None = None,
) -> dict[str, int]:
    """Get all vectors, paying for those that no other process pays for, a group at a time.

    ``dies``: the process kills itself so many seconds after it has kept so many.
    """
    order = random.Random(seed)
    store = store_at(address_or_path(path))
    store.claim_seconds = claim_seconds
    left = [key_of(number) for number in range(count)]
    order.shuffle(left)
    found = paid = repaid = wrong = kept = 0
    while left:
        asked = left[:group]
        claimed = store.claim(asked, SIZE)
        repaid += claimed.repaid
        for key, vector in claimed.hits.items():
            wrong += not np.array_equal(vector, vector_of(key))
        if claimed.mine:
            assert store.confirm(claimed.mine) == set()
            note(f"{log}.paid", claimed.mine)
            time.sleep(pay_seconds)
            store.put([(key, vector_of(key)) for key in claimed.mine])
            note(f"{log}.kept", claimed.mine)
            kept += len(claimed.mine)
            if dies is not None and kept >= dies[0]:
                threading.Timer(dies[1], os.kill, (os.getpid(), signal.SIGKILL)).start()
                dies = None
        found += len(claimed.hits)
        paid += len(claimed.mine)
        left = left[group:] + claimed.busy
        if claimed.busy and not claimed.mine:
            time.sleep(0.02)
    store.close()
    return {"found": found, "paid": paid, "repaid": repaid, "wrong": wrong}


def fill(path: str, limit: int | None, rows: int = 2_000) -> dict[str, Any]:
    """Put vectors until there is no more room; report how many were kept, and the error."""
    if limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = VectorStore(path)
    kept = 0
    said = None
    try:
        for start in range(0, rows, 10):
            keys = [key_of(number) for number in range(start, start + 10)]
            store.put([(key, vector_of(key)) for key in keys])
            kept += 10
    except StoreUnavailable as error:
        said = str(error)
    present = len(store.present([key_of(number) for number in range(rows)]))
    store.close()
    return {"kept": kept, "said": said, "present": present}


def reserve(
    path: str,
    requests_per_minute: float,
    tokens_per_minute: float | None,
    tokens: int,
    count: int,
    ready: str,
) -> list[float]:
    """Reserve and wait, one request after another; report the send time of each."""
    from nexusflow_integrations._core.pace.in_file import SharedPacer

    read = 0.0

    def clock() -> float:
        nonlocal read
        read = time.time()
        return read

    store = VectorStore(path, clock=clock)
    pacer = SharedPacer(
        store,
        b"account",
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    given = []
    wait_for_the_others(ready)
    for _ in range(count):
        (wait,) = pacer.lease(1, tokens)
        given.append(read + wait)  # counted from the last look at the clock, however long ago
        time.sleep(max(0.0, given[-1] - time.time()))
    store.close()
    return given


def embed_through_gate(
    path: str,
    base_url: str,
    api_key: str,
    limits: dict[str, float],
    texts: int,
    count: int,
    ready: str,
) -> dict[str, int]:
    """Send requests as fast as a leased pacer lets them; count the refused."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    import aiohttp

    from nexusflow_integrations._core.call.engine import limits_kept_in
    from nexusflow_integrations._core.pace.admission import AdmissionQueue
    from nexusflow_integrations._core.pace.shared import LeasedPacer, account_id
    from nexusflow_integrations._core.pace.window import Window
    from nexusflow_integrations._core.secret import ApiKey

    counts = {"sent": 0, "refused": 0}

    async def run() -> None:
        store = store_at(address_or_path(path))
        thread = ThreadPoolExecutor(1)
        account = account_id(base_url=base_url, key=ApiKey(api_key), model="m")
        shared = limits_kept_in(
            store, account, limits.get("requests_per_minute"), limits.get("tokens_per_minute")
        )
        window = Window(limit=32)
        admission: AdmissionQueue = AdmissionQueue(
            LeasedPacer(shared, thread.submit, lambda: admission.pump()), window, time.monotonic
        )
        left = count
        body = {"model": "text-embedding-v4", "input": ["a few words"] * texts}
        headers = {"Authorization": f"Bearer {api_key}"}
        async with aiohttp.ClientSession(headers=headers) as session:

            async def work() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    await admission.enter(texts * 5)
                    sent_at = time.monotonic()
                    async with session.post(f"{base_url}/embeddings", json=body) as answer:
                        data = await answer.json()
                    admission.leave()
                    counts["sent"] += 1
                    if answer.status == 200:
                        admission.pacer.settle(texts * 5, data["usage"]["total_tokens"])
                    else:
                        counts["refused"] += 1
                        admission.pacer.throttled(sent_at=sent_at, now=time.monotonic(), hint=None)

            await asyncio.wait_for(asyncio.gather(*(work() for _ in range(8))), 120)
        thread.submit(store.close).result()

    wait_for_the_others(ready)
    asyncio.run(run())
    return counts


def change_stores(claim_seconds: float | None, clock: str) -> None:
    """Change how long claims are valid, and set the clock ahead by the seconds in a file."""
    from nexusflow_integrations._core.cache import cache

    make = cache.store_at

    def made(place: Any) -> Any:
        store: Any = make(place)
        store.claim_seconds = claim_seconds or store.claim_seconds
        if clock:
            store.clock = lambda: time.time() + float(Path(clock).read_text())
        return store

    cache.store_at = made


def call(
    path: str,
    base_url: str,
    api_key: str,
    texts: list[str],
    settings: dict[str, Any],
    ready: str,
    claim_seconds: float | None = None,
    clock: str = "",
    stream: bool = False,
) -> dict[str, Any]:
    """Embed through the client; report the cost."""
    from nexusflow_integrations import NexusFlow

    change_stores(claim_seconds, clock)

    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("nexusflow_integrations").addHandler(handler)
    logging.getLogger("nexusflow_integrations").setLevel(logging.INFO)
    client = NexusFlow(api_key, base_url=base_url, cache=path, **settings)
    if ready:
        wait_for_the_others(ready)
    if stream:
        vectors = np.stack([item.vector for item in client.embed_stream(texts)])  # type: ignore[misc]
    else:
        vectors = client.embed(texts)
    usage = client.usage
    return {
        "shape": list(vectors.shape),
        "checksum": float(vectors.sum()),
        "logged": logged,
        **{name: getattr(usage, name) for name in ("requests", "retries", "cached", "repaid")},
    }


if __name__ == "__main__":
    job = {
        "embed": embed,
        "fill": fill,
        "reserve": reserve,
        "admission": embed_through_gate,
        "call": call,
    }
    print(json.dumps(job[sys.argv[1]](**json.loads(sys.argv[2]))))
