"""While one server's response is validated, calls to other servers continue."""

from __future__ import annotations

import gzip
import threading
import time

import pytest
from faults import behaviours as b
from faults.server import Behaviour, FaultServer

from nexusflow_integrations import NexusFlowError

from .scene import client_of, texts

LISTS = b",".join([b"[" * 500 + b"]" * 500] * 3_900)


def many_times_gzipped() -> bytes:
    body = b"batch size " * 1_000_000
    for _ in range(20):
        body = gzip.compress(body, 1)
    return body


# Each kept the event loop for 0.5 to 12 s.
HOSTILE: dict[str, Behaviour] = {
    "15 MB under a 400": b.says(400, b"batch size " * 1_400_000),
    "a JSON message of 3.9 MB": b.says(400, b.error("c", "batch size " * 350_000)),
    "a title of 15 MB": b.says(500, b"<title>" + b"a" * (15 << 20)),
    "3.9 million brackets under a 500": b.says(500, b"[" + LISTS + b"]"),
    "3.9 million brackets as vectors": b.says(200, b'{"data":[' + LISTS + b"]}"),
    "7 million numbers as vectors": b.says(
        200, b'{"data":[' + b",".join([b'{"embedding":[' + b"1," * 700_000 + b"1]}"] * 10) + b"]}"
    ),
    "gzip twenty times": b.says(
        400, many_times_gzipped(), [("Content-Encoding", ", ".join(["gzip"] * 20))]
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_query_to_another_server_does_not_wait_while_an_answer_is_judged(
    name: str, server: FaultServer
) -> None:
    with FaultServer(HOSTILE[name]) as hostile:
        other = client_of(server)
        other.embed("warm")
        attacked = client_of(hostile, max_retries=0, deadline=30)
        ended = threading.Event()

        def attack() -> None:
            with pytest.raises(NexusFlowError):
                attacked.embed(texts(10, "attacked"))
            ended.set()

        thread = threading.Thread(target=attack)
        began = time.monotonic()
        thread.start()
        longest, queries = 0.0, 0
        while not ended.is_set() or queries == 0:
            asked = time.monotonic()
            other.embed(f"query {queries}")
            longest = max(longest, time.monotonic() - asked)
            queries += 1
        thread.join()
        assert longest < 1.5  # milliseconds, on a machine that has nothing else to do
        assert time.monotonic() - began < 15
