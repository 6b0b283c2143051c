"""The key comes from the documented places and is in no file, log or error."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import chromadb
import pytest

from nexusflow_integrations import errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.local import LocalServer

from .conftest import KEY
from .test_embedding_function import Make


def rebuilt(function: NexusFlowEmbeddingFunction) -> NexusFlowEmbeddingFunction:
    """What Chroma makes of a function: through JSON and back."""
    return NexusFlowEmbeddingFunction.build_from_config(
        json.loads(json.dumps(function.get_config()))
    )


def test_making_and_rebuilding_need_no_key() -> None:
    function = NexusFlowEmbeddingFunction()
    assert not function.is_legacy()
    with pytest.raises(errors.ConfigurationError, match="NEXUSFLOW_API_KEY"):
        function(["a"])
    with pytest.raises(errors.ConfigurationError, match="NEXUSFLOW_API_KEY"):
        rebuilt(function)(["a"])


def test_the_key_is_read_when_it_is_needed(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = NexusFlowEmbeddingFunction(
        api_base=server.base_url, api_key_env_var="NEXUSFLOW_TEAM_KEY", dimensions=64
    )
    again = rebuilt(function)
    monkeypatch.setenv("NEXUSFLOW_TEAM_KEY", "sk-air-wrong")
    with pytest.raises(errors.AuthenticationError):
        function(["a"])
    monkeypatch.setenv("NEXUSFLOW_TEAM_KEY", KEY)
    assert function(["a"])[0].shape == (64,)
    assert again.embed_query(["a"])[0].shape == (64,)


def test_a_rebuilt_function_has_the_key_that_was_passed_in_this_process(make: Make) -> None:
    assert rebuilt(make())(["a"])[0].shape == (64,)


def test_a_key_is_not_remembered_for_another_configuration(make: Make) -> None:
    make()
    with pytest.raises(errors.ConfigurationError, match="no API key"):
        rebuilt(make(api_key=None, dimensions=128))(["a"])


def test_making_one_without_a_key_does_not_make_the_process_forget(make: Make) -> None:
    make()
    keyless = make(api_key=None)
    assert rebuilt(keyless)(["a"])[0].shape == (64,)


def test_a_key_passed_later_is_remembered_too(make: Make) -> None:
    keyless = make(api_key=None)
    make()
    assert rebuilt(keyless)(["a"])[0].shape == (64,)


def test_the_last_of_several_functions_with_one_key_lends_its_settings(make: Make) -> None:
    make(timeout=5)
    last = make(timeout=6)
    assert rebuilt(last).client.settings.timeout == 6


def test_of_two_different_keys_none_is_guessed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = make(), make(api_key="sk-air-of-another-tenant")
    assert right(["a"])[0].shape == (64,)
    with pytest.raises(errors.AuthenticationError):
        wrong(["a"])
    with pytest.raises(errors.ConfigurationError, match="different keys") as caught:
        rebuilt(right)(["a"])
    assert "sk-air" not in str(caught.value)
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    assert rebuilt(right)(["a"])[0].shape == (64,)


def test_chroma_goes_on_with_the_key_passed_once(client: Any, make: Make, strict: None) -> None:
    client.create_collection("docs", embedding_function=make()).add(
        ids=["1", "2"], documents=["red pandas", "blue whales"]
    )
    reopened = client.get_collection("docs")
    reopened.add(ids=["3"], documents=["green frogs"])
    assert reopened.query(query_texts=["red pandas"], n_results=1)["ids"] == [["1"]]
    assert reopened.configuration["embedding_function"].get_config() == make().get_config()


def test_the_key_is_in_no_file_log_or_error(
    tmp_path: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    try:
        client = chromadb.PersistentClient(path=str(tmp_path))
        for name, key in (("by-argument", KEY), ("by-environment", None)):
            function = NexusFlowEmbeddingFunction(
                key,
                api_base=server.base_url,
                dimensions=64,
                default_headers={"X-Secret": "sk-air-in-a-header"},
            )
            collection = client.create_collection(name, embedding_function=function)
            collection.add(ids=["1"], documents=["red pandas"])
            collection.modify(configuration={"embedding_function": function})
            collection.query(query_texts=["pandas"])
            with pytest.raises(errors.InvalidInputError) as caught:
                collection.add(ids=["2"], documents=[""])
            assert KEY not in str(caught.value)
    finally:
        logging.getLogger().removeHandler(handler)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert b"nexusflow" in content
    assert b"NEXUSFLOW_API_KEY" in content
    for secret in (KEY, "sk-air-in-a-header"):
        assert secret.encode() not in content
        assert secret not in log.getvalue()
