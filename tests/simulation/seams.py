"""Simulated modules of the standard library: time, random numbers, process ids, threads.

During a run, only the package's modules see them; the rest of the interpreter sees the real ones.
Functions that are not simulated raise an error, so that new uses cannot silently make runs
irreproducible.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import nexusflow_integrations._core
import nexusflow_integrations.client
from nexusflow_integrations._core.cache import cache as cache_module
from nexusflow_integrations._core.call import caller as caller_module
from nexusflow_integrations._core.call import engine as engine_module
from nexusflow_integrations._core.offload import Worker

from .process import Process, SimulatedThread
from .store import NotingCache, ScriptedStore
from .threads import SimulatedQueues
from .world import World


class SimulatedTime:
    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.now

    perf_counter = monotonic

    def time(self) -> float:
        return self._world.now + self._world.wall_clock_ahead


class SimulatedOs:
    """The real ``os``, except for the process id and random numbers."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def getpid(self) -> int:
        return self._world.running.pid if self._world.running else os.getpid()

    def urandom(self, count: int) -> bytes:
        return self._chance.randbytes(count)


def _modules() -> list[ModuleType]:
    core = nexusflow_integrations._core
    names = [info.name for info in pkgutil.walk_packages(core.__path__, f"{core.__name__}.")]
    return [nexusflow_integrations.client, *map(importlib.import_module, names)]


MODULES = _modules()


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """Make the package's modules use ``world``."""
    chance = random.Random(f"package {world.seed}")
    for_real = {
        "time": (time, SimulatedTime(world)),
        "random": (random, chance),
        "os": (os, SimulatedOs(world, chance)),
        "Worker": (Worker, lambda _: SimulatedThread(world)),
    }
    replaced: list[tuple[ModuleType, str, object]] = []

    def replace(module: ModuleType, name: str, value: object) -> None:
        replaced.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def store_at(place: str) -> ScriptedStore:
        return ScriptedStore(place, world)

    for module in MODULES:
        for name, (real, stand_in) in for_real.items():
            if module.__dict__.get(name) is real:
                replace(module, name, stand_in)
    replace(cache_module, "store_at", store_at)
    replace(cache_module, "Cache", NotingCache)
    replace(caller_module, "queue", SimulatedQueues)
    replace(engine_module, "proxy_for", lambda _: None)
    replace(engine_module, "background_loop", lambda: _running(world).background)
    engines = dict(engine_module._engines)
    try:
        yield
    finally:
        for module, name, value in reversed(replaced):
            setattr(module, name, value)
        engine_module._engines.clear()
        engine_module._engines.update(engines)


def _running(world: World) -> Process:
    assert world.running is not None
    return world.running
