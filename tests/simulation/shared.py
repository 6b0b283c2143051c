"""Limits and a budget that processes share through a simulated service."""

from __future__ import annotations

import random

from nexusflow_integrations._core.pace.shared import SlotLimits
from nexusflow_integrations._core.shared_budget import Grant, Grants

from .process import Process
from .world import World


class _Unreachable(Exception):
    """The error of the service's client."""


class _Service:
    """A service that sometimes fails a call, before or after it has done its work."""

    def __init__(self, world: World, name: str, fails: float) -> None:
        self.failures = 0
        self._world = world
        self._chance = random.Random(f"{name} {world.seed}")
        self._fails = fails

    @property
    def _caller(self) -> Process:
        assert self._world.running is not None
        return self._world.running

    def _maybe_fail(self) -> None:
        if self._chance.random() < self._fails:
            self.failures += 1
            self._world.note(f"{self._caller.name} does not reach the service")
            raise _Unreachable


class ScriptedBudget(_Service):
    """A ``SharedBudget``."""

    def __init__(self, world: World, tokens: int, fails: float) -> None:
        super().__init__(world, f"budget of {tokens}", fails)
        self.tokens = tokens
        self.grants = Grants(tokens)

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Grant:
        self._maybe_fail()
        grant = self.grants.draw(
            self._caller.name,
            least=least,
            wanted=wanted,
            unused=unused,
            kept=kept,
            now=self._world.now,
        )
        self._world.note(
            f"{self._caller.name} draws", *grant, f"{least=} {wanted=} {unused=} {kept=}"
        )
        self._maybe_fail()
        return grant


class ScriptedLimits(_Service):
    """The ``SharedLimits`` of all processes."""

    tokens_per_minute = None

    def __init__(self, world: World, requests_per_minute: float, fails: float) -> None:
        super().__init__(world, "limits", fails)
        self.requests_per_minute = requests_per_minute
        self._limits = SlotLimits(requests_per_minute, None)
        self._asked: set[int] = set()

    @property
    def processes(self) -> int:
        return max(1, len(self._asked))

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        self._asked.add(self._caller.pid)
        self._maybe_fail()
        now = self._world.now
        self._limits.adjust(owed_tokens, late)
        slots = [self._limits.slot(tokens, now) - now for _ in range(count)]
        self._maybe_fail()
        return slots

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        self._maybe_fail()
        self._limits.adjust(tokens, late)

    def throttled(self, ago: float) -> None:
        self._maybe_fail()
        now = self._world.now
        self._limits.throttled(sent_at=now - ago, now=now, hint=None)
