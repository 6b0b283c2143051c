"""Pydantic or the client refuses a setting of the wrong type by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.llama_index import NexusFlowEmbedding
from nexusflow_integrations.local import LocalServer


@pytest.mark.parametrize("name", [*NexusFlowEmbedding.model_fields, "model", "base_url"])
def test_every_setting_is_used_or_refused_under_the_name_that_was_written(
    name: str, refused: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def make(value: object) -> NexusFlowEmbedding:
        return NexusFlowEmbedding(**{name: value})  # type: ignore[arg-type]

    for value in refused(make, name, pydantic.ValidationError):
        made = make(value)
        repr(made)
        made.to_dict()
        repr(made.client)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model_name", 5), ("api_base", "http://localhost."), ("timeout", "60"), ("budget", 5)],
)
def test_a_field_that_is_changed_later_is_refused_at_once(name: str, value: Any) -> None:
    made = NexusFlowEmbedding(api_key="key")
    with pytest.raises(ConfigurationError, match=f"^{name} must "):
        setattr(made, name, value)


@pytest.mark.parametrize(
    "host", ["anything.localhost", "localhost.", "127.1", "[::ffff:127.0.0.1]"]
)
def test_no_base_url_only_looks_like_this_machine(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://{host}:1/v1"
    for name in ("base_url", "api_base"):
        with pytest.raises(ConfigurationError, match=f"^{name} "):
            NexusFlowEmbedding(**{name: url})  # type: ignore[arg-type]
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", url)
    with pytest.raises(ConfigurationError, match=r"^api_base "):
        NexusFlowEmbedding()


# -- settings chosen by measuring ----------------------------------------------------------------


def test_a_file_that_tune_wrote_makes_an_embedding(server: LocalServer, tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    TunedSettings(dimensions=128, query_instruction="ask: ", document_instruction="text: ").save(
        file
    )
    place = {"api_key": server.api_key, "api_base": server.base_url}
    tuned = NexusFlowEmbedding(**place, **TunedSettings.load(file).for_client())
    plain = NexusFlowEmbedding(**place, dimensions=128)
    assert tuned.get_query_embedding("who?") == plain.get_text_embedding("ask: who?")
    assert tuned.get_text_embedding("they") == plain.get_text_embedding("text: they")
    other = TunedSettings(model="another-model", dimensions=7).for_client()
    assert NexusFlowEmbedding(**place, **other).model_name == "another-model"
