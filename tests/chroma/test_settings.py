"""A setting of the wrong type is refused at once, by its name in this package."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.client import ClientOptions
from nexusflow_integrations.errors import ConfigurationError

OWN = inspect.signature(NexusFlowEmbeddingFunction).parameters.keys() - {"options"}
SETTINGS = sorted(OWN | ClientOptions.__optional_keys__)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_used_or_refused(
    name: str, refused: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in refused(lambda value: NexusFlowEmbeddingFunction(**{name: value}), name):
        function = NexusFlowEmbeddingFunction(**{name: value})
        config = function.get_config()
        assert json.loads(json.dumps(config)) == config
        NexusFlowEmbeddingFunction.build_from_config(config)
        repr(function)


@pytest.mark.parametrize(
    "name", ["model_name", "dimensions", "api_base", "api_key_env_var", "query_instruction"]
)
def test_every_stored_setting_is_used_or_refused(
    name: str, refused: Callable[..., list[Any]]
) -> None:
    config = {"model_name": "a-model"}
    refused(
        lambda value: NexusFlowEmbeddingFunction.build_from_config({**config, name: value}), name
    )


def test_no_document_may_be_left_without_a_vector() -> None:
    NexusFlowEmbeddingFunction(on_too_long="split")
    wanted = "'error', 'split', 'truncate' or 'send'"
    with pytest.raises(ConfigurationError, match=f"^on_too_long must be {wanted}"):
        NexusFlowEmbeddingFunction(on_too_long="collect")  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [None, [], "x", 5, [["model_name", "x"]]])
def test_an_invalid_stored_configuration_is_refused(config: Any) -> None:
    with pytest.raises(ConfigurationError, match="the configuration is not a JSON object"):
        NexusFlowEmbeddingFunction.build_from_config(config)


@pytest.mark.parametrize(
    ("name", "hint"), [("time_out", "; did you mean 'timeout'?"), ("on_refused", ""), ("zzz", "")]
)
def test_an_unknown_argument_is_named_without_its_value(name: str, hint: str) -> None:
    with pytest.raises(TypeError) as caught:
        NexusFlowEmbeddingFunction(**{name: "sk-air-a-secret"})  # type: ignore[arg-type]
    assert str(caught.value) == f"NexusFlowEmbeddingFunction has no argument {name!r}{hint}"
