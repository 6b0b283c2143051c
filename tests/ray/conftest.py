"""Fixtures: a small Ray cluster for all tests here, and a server whose key the workers have."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations.local import LocalServer

KEY = "sk-air-of-the-ray-tests-0123456789"
WITHOUT = "sk-air-of-the-driver-alone-98765"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # or ray.init writes a token into the home
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

Limits = Callable[..., Any]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """Start Ray on this machine, and return the path of its logs."""
    import ray

    before = os.environ.get("NEXUSFLOW_API_KEY")
    os.environ["NEXUSFLOW_API_KEY"] = KEY  # workers inherit it
    context = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=150_000_000)
    yield Path(context.address_info["session_dir"]) / "logs"
    ray.shutdown()
    os.environ.pop("NEXUSFLOW_API_KEY")
    if before is not None:
        os.environ["NEXUSFLOW_API_KEY"] = before


@pytest.fixture
def limits(cluster: Path) -> Iterator[Limits]:
    """Start limits with a name of their own, and end them with the test."""
    from nexusflow_integrations.ray import ClusterLimits

    made: list[ClusterLimits] = []

    def make(**options: Any) -> ClusterLimits:
        made.append(ClusterLimits(name=f"test-{uuid.uuid4().hex}", **options).start())
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer("hash", api_key=KEY, record_texts=True) as running:
        yield running
