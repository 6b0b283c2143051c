"""Users of LangChain get the arguments they know, and errors for unknown ones."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydantic
import pytest
from langchain_core.load import dumps
from pydantic import SecretStr

import nexusflow_integrations
from nexusflow_integrations import errors
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]

NAMES = [
    ("api_key", "nexusflow_api_key", SecretStr("sk-air-1")),
    ("base_url", "nexusflow_api_base", "https://example.com/v1"),
    ("timeout", "request_timeout", 5.0),
    ("batch_size", "chunk_size", 3),
    ("async_http_client", "http_async_client", httpx.AsyncClient()),
]


@pytest.mark.parametrize(("alias", "field", "value"), NAMES, ids=[name for name, _, _ in NAMES])
def test_a_setting_is_taken_by_its_field_name_and_by_its_usual_name(
    alias: str, field: str, value: Any
) -> None:
    assert getattr(NexusFlowEmbeddings(**{alias: value}), field) == value
    assert getattr(NexusFlowEmbeddings(**{field: value}), field) == value


def test_every_setting_of_the_client_reaches_it() -> None:
    told: dict[str, Any] = {
        "model": "another",
        "dimensions": 256,
        "encoding_format": "float",
        "max_concurrency": 7,
        "timeout": 3.5,
        "deadline": 9.0,
        "query_timeout": 1.5,
        "query_deadline": 2.5,
        "max_retries": 2,
        "requests_per_minute": 60.0,
        "tokens_per_minute": 6000.0,
        "query_instruction": "Q: ",
        "document_instruction": "D: ",
        "extra_body": {"a": 1},
        "default_query": {"b": 2},
        "default_headers": {"X-Team": "red"},
    }
    settings = NexusFlowEmbeddings(
        **told, chunk_size=4, base_url="http://service.internal/v1", allow_http=True
    ).client.settings
    assert {name: getattr(settings, name) for name in told} == told
    assert settings.batch_size == 4
    assert settings.base_url == "http://service.internal/v1"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match=r"dimension\n.*not permitted"):
        NexusFlowEmbeddings(dimension=64)  # type: ignore[call-arg]


def test_an_impossible_size_is_an_error_in_one_sentence_when_the_object_is_made() -> None:
    with pytest.raises(errors.ConfigurationError, match=r"one of 2048, .*, not 1000$"):
        NexusFlowEmbeddings(dimensions=1000)


def test_a_setting_cannot_be_changed_behind_the_clients_back(make: Make) -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        make().dimensions = 128


def test_plain_http_to_another_host_is_refused() -> None:
    with pytest.raises(errors.ConfigurationError, match="plain http"):
        NexusFlowEmbeddings(base_url="http://example.com/v1")


def test_no_key_is_an_error_only_when_one_is_needed(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    embeddings = NexusFlowEmbeddings(base_url=server.base_url, dimensions=64)
    with pytest.raises(errors.ConfigurationError, match="NEXUSFLOW_API_KEY"):
        embeddings.embed_query("a")
    monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
    assert len(embeddings.embed_query("a")) == 64


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "")
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "")
    embeddings = NexusFlowEmbeddings()
    assert embeddings.client.base_url == "https://nexusflow.vip/v1"
    assert embeddings.nexusflow_api_key is None


def test_the_class_is_found_at_the_root() -> None:
    assert nexusflow_integrations.NexusFlowEmbeddings is NexusFlowEmbeddings


# -- replacing OpenAIEmbeddings --------------------------------------------------------------------

OPENAI_STYLE: dict[str, Any] = {
    "model": "text-embedding-v4",
    "dimensions": 64,
    "chunk_size": 10,
    "max_retries": 2,
    "timeout": 30,
    "show_progress_bar": False,
    "default_headers": {"X-Team": "red"},
    "check_embedding_ctx_length": False,
    "embedding_ctx_length": 8191,
    "tiktoken_enabled": False,
    "tiktoken_model_name": "cl100k_base",
}


@pytest.mark.parametrize("prefix", ["", "openai_"])
def test_replacing_openai_embeddings_is_a_change_of_import(
    server: LocalServer, key: str, prefix: str
) -> None:
    openai = pytest.importorskip("langchain_openai").OpenAIEmbeddings
    base = "base_url" if not prefix else "openai_api_base"
    told = {**OPENAI_STYLE, f"{prefix}api_key": key, base: server.base_url}
    theirs = openai(**told)
    with pytest.warns(UserWarning, match="does not need"):
        ours = NexusFlowEmbeddings(**told)
    texts = [f"text {number}" for number in range(12)]
    assert ours.embed_documents(texts) == pytest.approx(
        np.array(theirs.embed_documents(texts)), abs=1e-6
    )
    assert ours.embed_documents(texts, chunk_size=5) == ours.embed_documents(texts)


def test_the_tokenizing_arguments_of_openai_embeddings_cause_one_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        NexusFlowEmbeddings(check_embedding_ctx_length=False, tiktoken_enabled=True)  # type: ignore[call-arg]
        NexusFlowEmbeddings(check_embedding_ctx_length=False)  # type: ignore[call-arg]
    (note,) = caught
    assert "check_embedding_ctx_length, tiktoken_enabled" in str(note.message)
    assert note.filename == __file__


def test_a_chunk_size_from_openai_of_a_thousand_means_ten(make: Make, server: LocalServer) -> None:
    make(chunk_size=1000).embed_documents([f"text {number}" for number in range(25)])
    assert server.stats.requests == 3
    assert server.stats.statuses == {200: 3}


# -- the key ---------------------------------------------------------------------------------------


def test_the_key_is_in_no_representation(make: Make, key: str) -> None:
    embeddings = make(api_key=key)
    shown = [repr(embeddings), str(embeddings), repr(embeddings.client)]
    shown += [str(embeddings.model_dump()), embeddings.model_dump_json()]
    assert not [text for text in shown if key in text]


@pytest.mark.parametrize(
    "told",
    [
        {"api_kee": "sk-air-secret"},
        {"api_key": "sk-air-secret", "dimensions": 1000},
        {"api_key": "sk-air-secret", "chunk_size": 0},
        {"api_key": ["sk-air-secret"]},
        {"api_key": "sk-air-secret\nx"},
        {"timeout": "sk-air-secret"},
    ],
    ids=lambda told: ",".join(told),
)
def test_the_key_is_in_no_error_about_settings(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as raised:
        NexusFlowEmbeddings(**told)
    shown = "".join(traceback.format_exception(raised.value))
    assert "sk-air-secret" not in shown.replace(repr(told), "")
    if isinstance(raised.value, pydantic.ValidationError):
        assert "sk-air-secret" not in repr(raised.value.errors())


def test_a_default_header_is_in_no_representation(make: Make) -> None:
    embeddings = make(default_headers={"X-Gateway-Token": "hidden-token"})
    assert "hidden-token" not in repr(embeddings) + str(embeddings.model_dump())


def test_nothing_is_logged_at_warning_or_above_by_a_good_call(
    make: Make, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    caplog.set_level(logging.DEBUG)
    make().embed_documents(["a", "b"])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert key not in caplog.text


# -- imports ---------------------------------------------------------------------------------------


def run(code: str, tmp_path: Path, **environment: str) -> str:
    """Run ``code`` in a process of its own and return what it printed."""
    root = Path(nexusflow_integrations.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_missing_langchain_is_named_with_what_to_type(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["langchain_core"] = None
try:
    import nexusflow_integrations.langchain
except ImportError as error:
    print(error)
"""
    assert run(code, tmp_path).strip() == (
        "nexusflow_integrations.langchain needs langchain-core 1.6 or newer:"
        ' pip install "nexusflow-integrations[langchain]"'
    )


def test_a_langchain_too_old_for_its_model_errors_is_named_alike(tmp_path: Path) -> None:
    code = """
import langchain_core.exceptions
del langchain_core.exceptions.ModelRateLimitError
try:
    import nexusflow_integrations.langchain
except ImportError as error:
    print(error)
"""
    assert "langchain-core 1.6 or newer" in run(code, tmp_path)


def test_a_dependency_missing_inside_langchain_is_not_disguised(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["pydantic"] = None
try:
    import nexusflow_integrations.langchain
except ImportError as error:
    print(error)
"""
    printed = run(code, tmp_path)
    assert "pydantic" in printed
    assert "needs langchain" not in printed


def test_neither_import_nor_a_call_loads_langsmith_or_tqdm_when_nobody_asks(
    tmp_path: Path, server: LocalServer, key: str
) -> None:
    code = """
import sys
from nexusflow_integrations.langchain import NexusFlowEmbeddings
assert len(NexusFlowEmbeddings(dimensions=64).embed_query("a")) == 64
print(sorted({"langsmith.run_helpers", "tqdm", "openai", "tiktoken"} & sys.modules.keys()))
"""
    printed = run(code, tmp_path, NEXUSFLOW_API_KEY=key, NEXUSFLOW_BASE_URL=server.base_url)
    assert printed.strip() == "[]"


def test_derive_serves_a_size_from_larger_vectors_and_is_written_by_dumps(
    server: LocalServer, key: str, tmp_path: Path
) -> None:
    def make(size: int) -> NexusFlowEmbeddings:
        settings: dict[str, Any] = {"cache": tmp_path / "cache.sqlite", "derive": True}
        return NexusFlowEmbeddings(
            api_key=key, base_url=server.base_url, dimensions=size, **settings
        )

    texts = [f"text {number}" for number in range(12)]
    make(2048).embed_documents(texts)
    small = make(64)
    vectors = small.embed_documents(texts)
    assert small.usage.derived == small.usage.cached == len(texts)
    assert len(small.embed_documents(texts, dimensions=128)[0]) == 128
    assert small.usage.derived == 2 * len(texts)
    plain = NexusFlowEmbeddings(api_key=key, base_url=server.base_url, dimensions=64)
    np.testing.assert_allclose(vectors, plain.embed_documents(texts), atol=1e-6)
    assert small.lc_attributes["cache"] == str(tmp_path / "cache.sqlite")
    assert '"derive": true' in dumps(small)
    with pytest.raises(errors.ConfigurationError, match="derive=True needs a cache"):
        NexusFlowEmbeddings(dimensions=64, derive=True)
