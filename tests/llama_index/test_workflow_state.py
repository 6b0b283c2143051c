"""The state of a LlamaIndex workflow can be written and read by its serializers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.workflow import JsonSerializer

from nexusflow_integrations import Budget
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.llama_index import EmbedNodes, NexusFlowEmbedding


class Own(NexusFlowEmbedding):
    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        return {**super().to_dict(**kwargs)}


@pytest.mark.parametrize("cls", [NexusFlowEmbedding, Own])
def test_limits_and_timeouts_survive(cls: type[NexusFlowEmbedding], tmp_path: Path) -> None:
    settings = {
        "dimensions": 256,
        "requests_per_minute": 60.0,
        "tokens_per_minute": 1000.0,
        "timeout": 5.0,
        "max_concurrency": 3,
        "embed_batch_size": 4,
        "cache": str(tmp_path / "vectors.sqlite3"),
    }
    serializer = JsonSerializer()
    written = serializer.serialize({"model": cls(api_key="sk-air-a-key", **settings)})
    assert "sk-air" not in written
    again = serializer.deserialize(written)["model"]
    assert {name: getattr(again, name) for name in settings} == settings
    assert again.client.settings.requests_per_minute == 60


def test_a_step_survives_with_its_settings_and_its_model() -> None:
    model = NexusFlowEmbedding(dimensions=256, requests_per_minute=60.0)
    step = EmbedNodes(embed_model=model, on_blank="raise", on_refused="raise", on_too_long="split")
    serializer = JsonSerializer()
    again = serializer.deserialize(serializer.serialize(step))
    assert (again.on_blank, again.on_refused, again.on_too_long) == ("raise", "raise", "split")
    assert (again.embed_model.dimensions, again.embed_model.requests_per_minute) == (256, 60.0)


def test_the_password_of_a_redis_server_is_not_written() -> None:
    model = NexusFlowEmbedding(cache="redis://:a-password@127.0.0.1:6379")
    written = JsonSerializer().serialize(model)
    assert "a-password" not in written
    assert "127.0.0.1:6379" in written


def test_a_plain_model_has_the_same_state_as_before() -> None:
    model = NexusFlowEmbedding(dimensions=256)
    assert json.loads(JsonSerializer().serialize(model))["value"] == model.to_dict()


@pytest.mark.parametrize("name", ["budget", "pacer"])
def test_values_that_json_cannot_hold_are_refused(name: str) -> None:
    class Limits:
        requests_per_minute = 60.0
        tokens_per_minute = None

        def lease(self, *args: Any, **options: Any) -> list[float]:
            return []

        def adjust(self, *args: Any, **options: Any) -> None:
            pass

        def throttled(self, ago: float) -> None:
            pass

    value: Any = Budget(tokens=10) if name == "budget" else Limits()
    model = NexusFlowEmbedding(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError) as caught:
        JsonSerializer().serialize(model)
    cause = caught.value.__cause__ or caught.value.__context__ or caught.value
    assert isinstance(cause, ConfigurationError)
    assert f"cannot hold the {name} of" in str(cause)


def test_the_hash_of_a_pipeline_does_not_depend_on_limits() -> None:
    limited = NexusFlowEmbedding(dimensions=256, requests_per_minute=60, budget=Budget(tokens=10))
    assert limited.to_dict() == NexusFlowEmbedding(dimensions=256).to_dict()
