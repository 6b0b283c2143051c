"""A server with a quota, and faults of tests/faults in one request of twenty.

Prints one line of JSON with its port; ends with its standard input and then prints the faults.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))
from faults import behaviours as b
from faults.server import FaultServer, Wire

SHARE = 0.05
LATENCY = 0.02

FAULTS = {
    "reset before the answer": b.resets_on_request,
    "closed before the answer": b.closes_on_request,
    "reset in the body": b.resets_mid_body,
    "closed in the body": b.closes_mid_body,
    "500": b.says(500, b.error("server_error")),
    "502 from a gateway": b.html(502, "Bad Gateway"),
    "503": b.says(503, b.error("server_error")),
    "429 with Retry-After": b.says(
        429, b.error("limit_requests", "Requests rate limit exceeded"), [("Retry-After", "1")]
    ),
    "NaN in a vector": b.literal_element("NaN"),
    "an index twice": b.edited(b.index_becomes(lambda place: 0)),
    "a vector missing": b.edited(lambda body: body["data"].pop()),
    "items out of order": b.edited(b.shuffle),
    "closed after the answer": b.then_closes(lambda wire: wire.right()),
    "floats for base64": b.edited(b.unchanged, "float"),
}


class Storm:
    def __init__(self, per_second: float) -> None:
        self.quota = b.Quota(per_second, burst=20)
        self.dice = random.Random(20261122)
        self.thrown: Counter[str] = Counter()

    def __call__(self, wire: Wire) -> None:
        wire.pause(LATENCY)
        with wire.server.lock:
            fault = None
            if self.dice.random() < SHARE:
                fault = self.dice.choice(list(FAULTS))
                self.thrown[fault] += 1
        (self.quota if fault is None else FAULTS[fault])(wire)


if __name__ == "__main__":
    storm = Storm(float(sys.argv[1]))
    limits = {"max_bytes": 4 << 30, "lifetime": 600.0}
    with FaultServer(storm, **limits) as server:
        print(json.dumps({"port": server.port}), flush=True)
        sys.stdin.readline()
        statuses = {"requests": len(server.requests), "connections": server.connections}
        print(json.dumps({"thrown": dict(storm.thrown), **statuses}), flush=True)
        sys.stdin.read()
