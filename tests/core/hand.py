"""Step through an exchange: with a manual clock and a server that is a function."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nexusflow_integrations._core.pace.terms import Terms
from nexusflow_integrations._core.request.batching import Item, item_of
from nexusflow_integrations._core.request.endpoint import EndpointState
from nexusflow_integrations._core.request.exchange import (
    AwaitSettled,
    Call,
    Follow,
    Reply,
    Send,
    Sleep,
    exchange,
)
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import APIStatusError

KEY = "sk-air-by-hand-0123456789"
SIZE = 4


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Sink:
    """Records the results, and fails if it gets one twice."""

    def __init__(self) -> None:
        self.vectors: dict[int, Vectors] = {}
        self.refusals: dict[int, APIStatusError] = {}

    def rows(self, batch: Sequence[Item], vectors: Vectors) -> None:
        assert len(batch) == len(vectors)
        for item, vector in zip(batch, vectors, strict=True):
            assert item.index not in self.vectors
            assert item.index not in self.refusals
            self.vectors[item.index] = vector

    def refused(self, item: Item, error: APIStatusError) -> None:
        assert item.index not in self.vectors
        assert item.index not in self.refusals
        self.refusals[item.index] = error

    def is_refused(self, item: Item) -> bool:
        return item.index in self.refusals


def vector_of(text: str, size: int = SIZE) -> Vectors:
    """Return the vector of a text in these tests."""
    raw = np.frombuffer(text.encode("utf-8", "surrogatepass").ljust(size, b"~")[:size], np.uint8)
    return (raw.astype(np.float32) + len(text)) / np.float32(7)


def right(request: dict[str, Any], *, size: int = SIZE, usage: bool = True) -> Answer:
    """The valid response to a request body."""
    base64_asked = request["encoding_format"] == "base64"
    data = []
    for index, text in enumerate(request["input"]):
        vector = vector_of(text, request.get("dimensions", size))
        coded: Any = (
            base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if base64_asked
            else [float(x) for x in vector]
        )
        data.append({"object": "embedding", "index": index, "embedding": coded})
    body: dict[str, Any] = {"object": "list", "data": data}
    if usage:
        tokens = sum(len(text) for text in request["input"])
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return ok(body)


def ok(body: Any, **headers: str) -> Answer:
    return Answer(200, headers, json.dumps(body).encode())


def no(status: int, code: str | None = None, message: str = "", **headers: str) -> Answer:
    """An error response in the documented format; header names with ``_`` for ``-``."""
    body = json.dumps({"error": {"code": code, "message": message, "type": "x"}}).encode()
    return Answer(status, {k.replace("_", "-"): v for k, v in headers.items()}, body)


Server = Callable[[dict[str, Any], int], Answer | TransportFault]


def script(*outcomes: Answer | TransportFault | None) -> Server:
    """Return the outcomes in order, then valid responses; ``None`` is a valid response too."""

    def serve(request: dict[str, Any], number: int) -> Answer | TransportFault:
        outcome = outcomes[number] if number < len(outcomes) else None
        return right(request) if outcome is None else outcome

    return serve


def lane_of(settings: Settings, clock: Callable[[], float]) -> EndpointState:
    """Return an endpoint with one client with these settings, which is always in use."""
    endpoint = EndpointState(clock)
    endpoint.begin(Terms(settings))
    return endpoint


def call(clock: Clock | None = None, endpoint: EndpointState | None = None, **options: Any) -> Call:
    """Return a call with its own sink, ledger and endpoint; ``options`` set it or its settings."""
    ours = {name: options.pop(name) for name in ("guard", "size", "urgent") if name in options}
    until = options.pop("until", float("inf"))
    settings = Settings(base_url="https://hand.invalid/v1", **options)
    made = Call(texts=(), settings=settings, key=ApiKey(KEY), ledger=Ledger(), **ours)
    made.endpoint = endpoint or lane_of(settings, clock or Clock())
    made.sink, made.until = Sink(), until
    return made


def items(texts: Sequence[str]) -> list[Item]:
    return [item_of(index, text) for index, text in enumerate(texts)]


@dataclass
class Run:
    """The steps that an exchange yielded."""

    steps: list[Any] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.bodies)

    @property
    def slept(self) -> list[float]:
        return [step.seconds for step in self.steps if isinstance(step, Sleep)]


def run(texts: Sequence[str], of: Call, server: Server, *, latency: float = 0.1) -> Run:
    """Run one exchange to its end; its errors are raised."""
    done = Run()
    of.ledger.texts += len(texts)
    clock = of.endpoint.clock
    assert isinstance(clock, Clock)
    steps = exchange(items(texts), of)
    reply: Reply | None = None
    try:
        while True:
            step = steps.send(reply)
            done.steps.append(step)
            assert len(done.steps) < 1000, "an exchange without end"
            reply = None
            if isinstance(step, Send):
                request = json.loads(step.body)
                sent = clock.now
                outcome = server(request, done.requests)
                done.bodies.append(request)
                clock.now += latency
                reply = Reply(outcome, sent, clock.now)
            elif isinstance(step, Sleep):
                clock.now += step.seconds
            elif isinstance(step, (Follow, AwaitSettled)):
                raise AssertionError(f"a single exchange must not wait for others: {step}")
    except StopIteration:
        return done
    except Exception as error:
        error.run = done  # type: ignore[attr-defined]
        raise


def answer_to(step: Send, outcome: Answer | TransportFault | None, clock: Clock) -> Reply:
    """The reply to a step, for tests that drive an exchange themselves."""
    return Reply(outcome or right(json.loads(step.body)), clock.now, clock.now)
