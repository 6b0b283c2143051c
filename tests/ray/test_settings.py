"""A setting of the wrong type is refused by its name, on the driver, before Ray starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("ray.exceptions")  # "ray" alone is also the name of this folder

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.ray import ClusterLimits, EmbedBatch

pytestmark = pytest.mark.ray
OWN = ("api_key", "text", "embedding", "error", "limits", "on_error")
CLIENT = inspect.signature(NexusFlow).parameters


@pytest.mark.parametrize("name", [*OWN, *(CLIENT.keys() - {"api_key"})])
def test_an_embed_batch_refuses_by_name(name: str, refused: Callable[..., list[Any]]) -> None:
    refused(lambda value: EmbedBatch(**{name: value}), name)


@pytest.mark.parametrize("name", inspect.signature(ClusterLimits).parameters)
def test_cluster_limits_refuse_by_name(name: str, refused: Callable[..., list[Any]]) -> None:
    for value in refused(lambda value: ClusterLimits(**{name: value}), name):
        repr(ClusterLimits(**{name: value}))


def test_limits_without_a_budget_are_no_budget() -> None:
    with pytest.raises(ConfigurationError, match=r"^budget\.tokens must be a whole number"):
        NexusFlow(budget=ClusterLimits(requests_per_minute=60))
