"""A scripted server and its sender: responses, faults, latency, quotas and billing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nexusflow_integrations._core.request.exchange import Call
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations._core.vectors import Vectors

from .world import World

if TYPE_CHECKING:
    from .process import Process

POISON = "poison"
"""Moderation refuses texts that contain this word."""


@lru_cache(maxsize=4096)
def vector_of(text: str, size: int) -> Vectors:
    """Return the vector of a text: float32 of shape (size,), up to 64 dimensions."""
    digest = np.frombuffer(hashlib.sha512(text.encode()).digest()[:size], np.uint8)
    return (digest.astype(np.float32) + 1) / np.float32(7)


@lru_cache(maxsize=4096)
def _encoded(text: str, size: int, as_base64: bool) -> Any:
    vector = vector_of(text, size)
    return base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()


def tokens_of(text: str) -> int:
    """Return the tokens that this server bills for a text."""
    return 1 + len(text.encode()) // 3


@dataclass
class ServerScript:
    """The behaviour of a server; probabilities are per request.

    Attributes:
        latency: Approximate seconds of a response.
        size: Dimensions of a vector if the request does not say.
        faults: The name of a fault (below) and its probability.
        outages: (from, to, name of a fault): every request in between has this fault.
        batch_limit: Maximum texts per request.
        quota: Requests per second, with a burst of one second. More requests get a 429.
        refuses_base64: Whether it supports only floats.
        hides_usage: Probability that a response does not contain the usage.
    """

    latency: float = 0.1
    size: int = 4
    faults: dict[str, float] = field(default_factory=dict)
    outages: list[tuple[float, float, str]] = field(default_factory=list)
    batch_limit: int | None = None
    quota: float | None = None
    refuses_base64: bool = False
    hides_usage: float = 0.0


@dataclass(eq=False)
class Sent:
    """One request, as recorded by the simulation.

    ``fate`` is what the server did; ``billed`` and ``reported`` are in tokens, ``reported`` as in
    the response.
    ``began_at`` is when the client began to connect for it, ``closed_at`` when it finished it, and
    ``answered`` whether it got a response.
    """

    number: int
    process: Process
    call: Call
    texts: list[str]
    size: int
    sent_at: float
    fate: str = "under way"
    billed: int = 0
    billed_at: float = 0.0
    reported: int | None = None
    closed_at: float = float("inf")
    answered: bool = False
    hint: float | None = None
    began_at: float = 0.0

    @property
    def arrived(self) -> bool:
        """Whether the vectors reached the client."""
        return self.answered and self.fate == "right"


class Server:
    """Serves all processes with one script."""

    def __init__(self, world: World, script: ServerScript) -> None:
        self.script = script
        self.sent: list[Sent] = []
        self._world = world
        self._chance = random.Random(f"server {world.seed}")
        self._level = max(1.0, script.quota or 0.0)
        self._level_at = world.now

    def sender(self, process: Process, call: Call) -> SimulatedSender:
        return SimulatedSender(self, process, call)

    def take(
        self,
        process: Process,
        call: Call,
        asked: dict[str, Any],
        answered: Callable[[Answer | TransportFault], object],
    ) -> Sent:
        """Send a request; ``answered`` is called with the response, outside of all loops."""
        world, number = self._world, len(self.sent)
        size = asked.get("dimensions", self.script.size)
        sent = Sent(number, process, call, asked["input"], size, world.now)
        sent.began_at = world.now
        self.sent.append(sent)
        world.note(f"{process.name} sends request {number}", _short(sent.texts))

        def receive() -> None:
            if sent.closed_at < world.now - self.script.latency:
                return  # the connection was closed before the request arrived
            outcome, thinking = self.receive(sent, asked)
            world.note(f"request {number}: {sent.fate}", sent.billed)
            if thinking < float("inf"):
                world.after(thinking + self.travel(), partial(answered, outcome))

        world.after(self.travel(), receive)
        return sent

    def close(self, sent: Sent) -> None:
        """Record that the client has finished a request."""
        sent.closed_at = self._world.now
        self._world.note(f"{sent.process.name} finishes request {sent.number}")

    def travel(self) -> float:
        """Return random seconds for the network time of a request or a response."""
        return self.script.latency * (0.3 + 0.4 * self._chance.random())

    def receive(self, sent: Sent, body: dict[str, Any]) -> tuple[Answer | TransportFault, float]:
        """Return the response to a request, and the seconds until it is sent."""
        chance = self._chance
        fault = self._fault()
        if fault is not None:
            sent.fate = fault
            return getattr(self, f"_{fault}")(sent, body)
        thinking = 0.0 if chance.random() < 0.95 else 10 * self.script.latency * chance.random()
        return self._judge(sent, body), thinking

    def _fault(self) -> str | None:
        now = self._world.now
        for begin, end, fault in self.script.outages:
            if begin <= now < end:
                return fault
        for fault, likely in self.script.faults.items():
            if self._chance.random() < likely:
                return fault
        return None

    def _judge(self, sent: Sent, body: dict[str, Any]) -> Answer:
        script, texts = self.script, sent.texts
        if not self._within_quota():
            sent.fate = "quota"
            return self._too_fast(sent)
        if script.refuses_base64 and body["encoding_format"] == "base64":
            sent.fate = "base64 refused"
            return _no(400, "invalid_request", "encoding_format base64 is not supported")
        if script.batch_limit is not None and len(texts) > script.batch_limit:
            sent.fate = "too many texts"
            return _no(
                400,
                "InvalidParameter",
                f"batch size is invalid, it should not be larger than {script.batch_limit}",
            )
        if any(POISON in text for text in texts):
            sent.fate = "refused"
            return _no(400, "DataInspectionFailed", "inappropriate content")
        return self._right(sent, body)

    def _within_quota(self) -> bool:
        quota, now = self.script.quota, self._world.now
        if quota is None:
            return True
        self._level = min(max(1.0, quota), self._level + (now - self._level_at) * quota)
        self._level_at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True

    # -- answers -------------------------------------------------------------------------------

    def _right(self, sent: Sent, body: dict[str, Any]) -> Answer:
        sent.fate = "right"
        self._bill(sent)
        return self._answer(sent, self._data(sent, body))

    def _bill(self, sent: Sent) -> None:
        sent.billed = sum(map(tokens_of, sent.texts))
        sent.billed_at = self._world.now

    def _data(self, sent: Sent, body: dict[str, Any]) -> list[dict[str, Any]]:
        as_base64 = body["encoding_format"] == "base64"
        if self._chance.random() < 0.03:
            as_base64 = not as_base64
        data = [
            {"index": index, "embedding": _encoded(text, sent.size, as_base64)}
            for index, text in enumerate(sent.texts)
        ]
        if self._chance.random() < 0.2:
            self._chance.shuffle(data)
        elif self._chance.random() < 0.1:
            for item in data:
                del item["index"]
        return data

    def _answer(self, sent: Sent, data: list[dict[str, Any]]) -> Answer:
        answer: dict[str, Any] = {"data": data}
        if self._chance.random() >= self.script.hides_usage:
            sent.reported = sum(map(tokens_of, sent.texts))
            answer["usage"] = {"total_tokens": sent.reported}
        return Answer(200, {}, json.dumps(answer).encode())

    # -- faults: what the client gets, and after how many seconds ------------------------------

    def _too_fast(self, sent: Sent) -> Answer:
        if self._chance.random() < 0.5:
            sent.hint = round(0.2 + 3 * self._chance.random(), 2)
            return _no(429, "rate_limit_exceeded", "too many requests", retry_after=f"{sent.hint}")
        return _no(429, "rate_limit_exceeded", "too many requests")

    def _throttled(self, sent: Sent, body: dict[str, Any]) -> tuple[Answer, float]:
        return self._too_fast(sent), 0.0

    def _overloaded(self, sent: Sent, body: dict[str, Any]) -> tuple[Answer, float]:
        status = self._chance.choice([500, 502, 503, 504, 529])
        if self._chance.random() < 0.3:
            sent.hint = round(0.2 + 3 * self._chance.random(), 2)
            return _no(status, "overloaded", "later", retry_after=f"{sent.hint}"), 0.0
        return _no(status, "overloaded", "later"), 0.0

    def _unreachable(self, sent: Sent, body: dict[str, Any]) -> tuple[TransportFault, float]:
        return TransportFault("cannot connect", maybe_billed=False), 0.0

    def _reset(self, sent: Sent, body: dict[str, Any]) -> tuple[TransportFault, float]:
        if self._chance.random() < 0.5:
            self._bill(sent)
        return TransportFault("the connection broke"), 0.0

    def _silent(self, sent: Sent, body: dict[str, Any]) -> tuple[Answer, float]:
        """Never respond; usually bill the request."""
        if self._chance.random() < 0.7:
            self._bill(sent)
        return _no(504, None, "nobody reads this"), float("inf")

    def _short(self, sent: Sent, body: dict[str, Any]) -> tuple[Answer, float]:
        self._bill(sent)
        return self._answer(sent, self._data(sent, body)[1:]), 0.0

    def _doubled(self, sent: Sent, body: dict[str, Any]) -> tuple[Answer, float]:
        """Return one vector twice, and leave out another."""
        self._bill(sent)
        data = [
            {"index": min(index, len(sent.texts) - 2), "embedding": [1.0] * sent.size}
            for index in range(len(sent.texts))
        ]
        return self._answer(sent, data), 0.0

    def _broken(self, sent: Sent, body: dict[str, Any]) -> tuple[Answer, float]:
        """Return a truncated response, or vectors with NaN or of the wrong size."""
        self._bill(sent)
        data = self._data(sent, body)
        how = self._chance.randrange(3)
        if how == 0:
            whole = self._answer(sent, data).body
            return Answer(200, {}, whole[: len(whole) // 2]), 0.0
        if how == 1:
            data[0]["embedding"] = [0.0] * sent.size
        else:
            data[-1]["embedding"] = [1.0] * (sent.size + 1 if len(data) > 1 else 0)
        return self._answer(sent, data), 0.0

    def _forbidden(self, sent: Sent, body: dict[str, Any]) -> tuple[Answer, float]:
        return _no(401, "invalid_api_key", "no such key"), 0.0

    def _unpaid(self, sent: Sent, body: dict[str, Any]) -> tuple[Answer, float]:
        return _no(402, "insufficient_balance", "recharge"), 0.0


FAULTS = ("throttled", "overloaded", "unreachable", "reset", "silent", "short", "doubled", "broken")
"""Faults after which a retry may succeed."""
TERMINAL = ("forbidden", "unpaid")


def _no(status: int, code: str | None, message: str, **headers: str) -> Answer:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    return Answer(status, {k.replace("_", "-"): v for k, v in headers.items()}, body)


class SimulatedSender:
    """The sender of one call."""

    def __init__(self, server: Server, process: Process, call: Call) -> None:
        self._server = server
        self._process = process
        self._call = call

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer | TransportFault] = loop.create_future()

        def settle(outcome: Answer | TransportFault) -> None:
            if not answered.done():
                answered.set_result(outcome)

        arrived = partial(loop.call_soon_threadsafe, settle)
        sent = self._server.take(self._process, self._call, json.loads(body), arrived)
        late = TransportFault(f"no complete response within {timeout:.3g} s", timed_out=True)
        timer = loop.call_later(timeout, settle, late)
        try:
            outcome = await answered
        finally:
            timer.cancel()
            self._server.close(sent)
        sent.answered = outcome is not late
        return outcome


def _short(texts: Sequence[str]) -> str:
    return " ".join(texts)[:60]
