"""Pydantic or the client refuses a setting of the wrong type by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.langchain import NexusFlowEmbeddings

OTHER_NAMES = ("api_key", "base_url", "timeout", "batch_size", "async_http_client")
SETTINGS = [*NexusFlowEmbeddings.model_fields, *OTHER_NAMES]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_used_or_refused_under_the_name_that_was_written(
    name: str, refused: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def make(value: object) -> NexusFlowEmbeddings:
        return NexusFlowEmbeddings(**{name: value})

    for value in refused(make, name, pydantic.ValidationError):
        repr(make(value).client)


@pytest.mark.parametrize("chunk_size", [0, -1, True, 2.5, "ten", b"1"])
def test_a_chunk_size_of_a_call_is_refused_before_anything_is_sent(chunk_size: Any) -> None:
    embeddings = NexusFlowEmbeddings(api_key="key", base_url="http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"^chunk_size must be a whole number from 1 up"):
        embeddings.embed_documents(["a text"], chunk_size=chunk_size)
    assert embeddings.usage.requests == 0


@pytest.mark.parametrize(
    "host", ["anything.localhost", "localhost.", "127.1", "[::ffff:127.0.0.1]"]
)
def test_no_base_url_only_looks_like_this_machine(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://{host}:1/v1"
    for name in ("base_url", "nexusflow_api_base", "openai_api_base"):
        with pytest.raises(ConfigurationError, match=f"^{name} "):
            NexusFlowEmbeddings(**{name: url})
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", url)
    with pytest.raises(ConfigurationError, match=r"^base_url "):
        NexusFlowEmbeddings()
