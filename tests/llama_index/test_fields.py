"""The constructor accepts the documented arguments, and nothing shows the key."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import SecretStr

import nexusflow_integrations
from nexusflow_integrations import Budget, Price
from nexusflow_integrations.errors import (
    AuthenticationError,
    BudgetExceededError,
    ConfigurationError,
)
from nexusflow_integrations.llama_index import NexusFlowEmbedding
from nexusflow_integrations.local import LocalServer


def test_it_is_an_embedding_model_named_after_itself() -> None:
    assert issubclass(NexusFlowEmbedding, BaseEmbedding)
    assert NexusFlowEmbedding.class_name() == "NexusFlowEmbedding"
    assert nexusflow_integrations.NexusFlowEmbedding is NexusFlowEmbedding


def test_building_one_needs_no_key_and_no_server() -> None:
    embedding = NexusFlowEmbedding(api_base="http://127.0.0.1:9/v1")
    assert embedding.usage.requests == 0


def test_an_unknown_argument_is_refused_by_name_with_a_hint() -> None:
    with pytest.raises(TypeError, match=r"no argument 'mode'$"):  # not 'model'
        NexusFlowEmbedding(mode="similarity")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no argument 'dimension'; did you mean 'dimensions'"):
        NexusFlowEmbedding(dimension=512)  # type: ignore[call-arg]


def test_a_key_under_a_wrong_name_is_not_printed(key: str) -> None:
    with pytest.raises(TypeError, match="apikey") as caught:
        NexusFlowEmbedding(apikey=key)  # type: ignore[call-arg]
    assert key not in repr(caught.value)


def test_model_and_base_url_are_other_names_of_model_name_and_api_base() -> None:
    embedding = NexusFlowEmbedding(  # type: ignore[call-arg]
        model="other", base_url="http://127.0.0.1:9/v1/"
    )
    assert (embedding.model_name, embedding.api_base) == ("other", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("dimensions", 100, "dimensions must be one of"),
        ("timeout", -1, "timeout must be a number above 0"),
        ("embed_batch_size", 0, "embed_batch_size must be a whole number from 1 to 2,048"),
        ("num_workers", -1, "num_workers must be a whole number from 0"),
        ("api_base", "nowhere", "api_base must look like"),
        ("cache", "True", "cache is the text 'True'"),
        ("rate_limiter", 5, "rate_limiter must be a rate limiter of LlamaIndex or None"),
    ],
)
def test_a_field_that_is_changed_is_checked_and_stays_what_it_was(
    name: str, value: Any, said: str
) -> None:
    embedding = NexusFlowEmbedding(dimensions=256)
    before = getattr(embedding, name)
    with pytest.raises(ConfigurationError, match=f"^{said}"):
        setattr(embedding, name, value)
    assert getattr(embedding, name) == before
    embedding.dimensions = 512
    assert embedding.client.dimensions == 512


def test_an_object_passed_to_another_framework_names_the_right_class() -> None:
    with pytest.raises(AttributeError, match=r"LangChain takes a nexusflow_integrations\.langcha"):
        NexusFlowEmbedding().embed_documents  # type: ignore[attr-defined]  # noqa: B018


def test_two_names_of_one_setting_at_once_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="model_name and model"):
        NexusFlowEmbedding(model="a", model_name="b")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "impossible",
    [
        {"dimensions": 100},
        {"api_base": "http://example.com/v1"},
        {"api_base": "ftp://example.com"},
        {"api_key": "sk-air-\nsecret"},
        {"max_concurrency": 0},
        {"max_retries": -1},
        {"timeout": float("inf")},
        {"num_workers": -1},
        {"default_headers": {"Authorization": "x"}},
    ],
    ids=lambda given: "-".join(given),
)
def test_an_impossible_setting_is_refused_at_once(impossible: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        NexusFlowEmbedding(**impossible)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -1, 2049, "ten"])
def test_an_impossible_batch_size_is_refused_at_once(size: Any) -> None:
    with pytest.raises(ValueError, match="embed_batch_size"):
        NexusFlowEmbedding(embed_batch_size=size)


def test_a_wrong_type_is_refused_without_printing_what_was_given() -> None:
    with pytest.raises(ValueError, match="default_headers") as caught:
        NexusFlowEmbedding(default_headers={"X-Secret": b"\xffhidden"})  # type: ignore[dict-item]
    assert "hidden" not in str(caught.value)


def test_settings_come_from_the_environment_once(
    monkeypatch: pytest.MonkeyPatch, server: LocalServer, key: str
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
    embedding = NexusFlowEmbedding(dimensions=64)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "http://127.0.0.1:9/v1")
    assert len(embedding.get_text_embedding("a text")) == 64


def test_a_changed_field_counts_from_the_next_call_on(embedding: NexusFlowEmbedding) -> None:
    assert len(embedding.get_text_embedding("a text")) == 64
    embedding.dimensions = 128
    assert len(embedding.get_text_embedding("a text")) == 128


def test_no_dimensions_takes_the_size_of_the_server(server: LocalServer, key: str) -> None:
    embedding = NexusFlowEmbedding(api_key=key, api_base=server.base_url)
    assert len(embedding.get_query_embedding("a text")) == 1024


@pytest.mark.parametrize("wrap", [str, SecretStr], ids=["text", "SecretStr"])
def test_the_key_is_in_no_form_of_the_object(server: LocalServer, key: str, wrap: Any) -> None:
    embedding = NexusFlowEmbedding(api_key=wrap(key), api_base=server.base_url, dimensions=64)
    embedding.get_text_embedding("a text")
    forms = [
        repr(embedding),
        str(embedding),
        str(embedding.to_dict()),
        embedding.to_json(),
        str(embedding.model_dump()),
        json.dumps(embedding.model_dump(mode="json")),
        embedding.model_dump_json(),
        str(embedding.to_payload()),
        repr(embedding.client),
        repr(pickle.dumps(embedding)),
    ]
    assert not [form for form in forms if key in form]


def test_the_key_is_not_in_the_error_of_a_server_that_refuses_it(server: LocalServer) -> None:
    wrong = "sk-air-a-wrong-one"
    embedding = NexusFlowEmbedding(api_key=wrong, api_base=server.base_url)
    with pytest.raises(AuthenticationError) as caught:
        embedding.get_text_embedding_batch(["a text"])
    assert wrong not in f"{caught.value!r} {vars(caught.value)}"


IMPORT_WITHOUT = """
import sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name == {0!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing)
try:
    import nexusflow_integrations.llama_index
except ImportError as error:
    print(error)
"""


def _import_without(module: str) -> str:
    run = [sys.executable, "-c", IMPORT_WITHOUT.format(module)]
    return subprocess.run(run, capture_output=True, text=True, timeout=600).stdout.strip()


@pytest.mark.parametrize("missing", ["llama_index", "llama_index.core"])
def test_without_llama_index_the_import_says_what_to_install(missing: str) -> None:
    assert _import_without(missing) == (
        "nexusflow_integrations.llama_index needs llama-index:"
        ' pip install "nexusflow-integrations[llama-index]"'
    )


def test_another_missing_module_is_reported_as_itself() -> None:
    said = _import_without("llama_index_instrumentation")
    assert "llama_index_instrumentation" in said
    assert "pip install" not in said


# -- what a changed field does to budget and usage -------------------------------------------------


def _spend(embedding: NexusFlowEmbedding, number: int) -> None:
    with contextlib.suppress(BudgetExceededError):
        embedding.get_text_embedding_batch([f"{number} text number {n} " * 8 for n in range(40)])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("timeout", [10.0, 20.0, 30.0, 40.0, 50.0]),
        ("deadline", [100.0, 200.0, None, 300.0, 400.0]),
        ("dimensions", [128, 256, 64, 128, 256]),
        ("max_retries", [1, 2, 3, 4, 5]),
        ("query_instruction", ["a", "b", None, "c", "d"]),
        ("embed_batch_size", [1, 2, 3, 4, 5]),
        ("num_workers", [1, 2, 3, 4, 5]),
        ("default_headers", [{"X-A": "1"}, None, {"X-A": "2"}, None, {"X-A": "3"}]),
    ],
)
def test_a_budget_and_the_usage_outlive_a_change_of_any_other_field(
    server: LocalServer, key: str, name: str, values: list[Any]
) -> None:
    embedding = NexusFlowEmbedding(
        api_key=key, api_base=server.base_url, dimensions=64, budget=Budget(tokens=1000)
    )
    for number, value in enumerate(values):
        setattr(embedding, name, value)
        _spend(embedding, number)
    assert 0 < server.stats.tokens <= 1000
    assert embedding.usage.tokens == server.stats.tokens
    assert embedding.client.usage == embedding.usage


def test_a_copy_with_another_field_spends_from_the_same_budget(
    server: LocalServer, key: str
) -> None:
    embedding = NexusFlowEmbedding(
        api_key=key, api_base=server.base_url, dimensions=64, budget=Budget(tokens=1000)
    )
    for number in range(4):
        _spend(embedding.model_copy(update={"timeout": 10.0 + number}), number)
    assert 0 < server.stats.tokens <= 1000
    assert embedding.usage.tokens == server.stats.tokens


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", Budget(tokens=500)),
        ("price", Price(per_million_tokens=2.0)),
        ("api_key", "sk-air-another"),
        ("api_base", "http://127.0.0.1:9/v1"),
    ],
)
def test_a_change_of_budget_price_or_account_starts_anew(
    embedding: NexusFlowEmbedding, name: str, value: Any
) -> None:
    embedding.get_text_embedding("a text")
    setattr(embedding, name, value)
    assert embedding.usage.requests == 0


class Own(NexusFlowEmbedding):
    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return super()._get_text_embeddings(texts)


@pytest.mark.parametrize("cls", [NexusFlowEmbedding, Own])
@pytest.mark.parametrize(
    "make",
    [lambda: np.array(["a", "b"]), lambda: iter(["a", "b"]), lambda: {"a": 0, "b": 0}.keys()],
    ids=["numpy", "iterator", "keys"],
)
async def test_any_iterable_of_texts_is_taken(
    server: LocalServer, key: str, cls: type[NexusFlowEmbedding], make: Any
) -> None:
    embedding = cls(api_key=key, api_base=server.base_url, dimensions=64)
    right = embedding.get_text_embedding_batch(["a", "b"])
    assert np.allclose(embedding.get_text_embedding_batch(make()), right)
    assert np.allclose(await embedding.aget_text_embedding_batch(make()), right)
