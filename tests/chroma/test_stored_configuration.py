"""A configuration that was altered in the database must not send the key to another server."""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import httpx
import pytest

from nexusflow_integrations import NexusFlow, errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.local import LocalServer

from .conftest import KEY
from .test_embedding_function import Body

Make = Callable[..., NexusFlowEmbeddingFunction]


Sends = Callable[[dict[str, Any]], list[tuple[str, str]]]


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> Sends:
    """Embed with a function rebuilt from a configuration; say to which URL which key went."""
    seen: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers["authorization"]))
        data = [{"index": 0, "embedding": [1.0] * 64}]
        return httpx.Response(200, stream=Body({"data": data}))

    unplugged = {"http_client": httpx.Client(transport=httpx.MockTransport(answer))}
    real = NexusFlow.__init__
    monkeypatch.setattr(
        NexusFlow, "__init__", lambda self, key, **options: real(self, key, **options | unplugged)
    )

    def sends(config: dict[str, Any]) -> list[tuple[str, str]]:
        seen.clear()
        NexusFlowEmbeddingFunction.build_from_config(config).embed_query(["a question"])
        return list(seen)

    return sends


@pytest.mark.parametrize(
    "base",
    [
        "https://nexusflow.vip/v1",
        "https://NEXUSFLOW.vip:443/v1/",
        "http://127.0.0.1:9/v1",
        "http://localhost:9/v1",
        "http://[::1]:9/v1",
    ],
)
def test_the_key_goes_to_the_default_host_and_to_this_machine(
    base: str, sends: Sends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    ((url, key),) = sends({"api_base": base})
    assert url.lower().startswith(str(httpx.URL(base.rstrip("/"))).lower())
    assert key == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "base",
    [
        "https://evil.example/v1",
        "http://evil.example/v1",
        "http://nexusflow.vip/v1",
        "https://nexusflow.vip:8443/v1",
        "https://nexusflow.vip.evil.example/v1",
        "https://api.nexusflow.vip/v1",
        "https://nexusflow.vip./v1",
        "http://127.0.0.1.evil.example/v1",
        "http://127.0.0.1.nip.io/v1",
        "http://anything.localhost/v1",
        "https://anything.localhost/v1",
        "http://localhost./v1",
        "http://[::ffff:127.0.0.1]/v1",
        "http://[::1%25lo]/v1",
        "http://127.1/v1",
        "http://0x7f.0.0.1/v1",
        "http://0.0.0.0:9/v1",
        "http://10.0.0.1/v1",
        "http://2130706433/v1",
        "https://evil.example/127.0.0.1",
    ],
)
def test_the_key_goes_to_no_host_that_only_the_configuration_names(
    base: str, sends: Sends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    with pytest.raises(errors.ConfigurationError) as caught:
        sends({"api_base": base})
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "base",
    [
        "https://nexusflow.vip@evil.example/v1",
        "https://evil.example\\@nexusflow.vip/v1",
        "https://nexusflow.vip\t.evil.example/v1",
        "https://evil.example#@nexusflow.vip/v1",
        "https://evil.example?@nexusflow.vip/v1",
        "//evil.example/v1",
        "file:///etc/passwd",
        "https://nexusflow.vip:99999999/v1",
    ],
)
def test_a_url_that_two_parsers_may_read_differently_is_refused(
    base: str, sends: Sends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    with pytest.raises(errors.ConfigurationError):
        sends({"api_base": base})


def test_the_environment_can_name_a_host(sends: Sends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "https://proxy.example/nexusflow/v1")
    config = {"api_base": "https://proxy.example/v1"}
    assert sends(config) == [("https://proxy.example/v1/embeddings", f"Bearer {KEY}")]
    with pytest.raises(errors.ConfigurationError, match="has not configured"):
        sends({"api_base": "https://proxy.example:444/v1"})


def test_a_function_made_in_this_process_can_name_a_host(
    sends: Sends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    config = {"api_base": "https://proxy.example/v1", "dimensions": 64}
    with pytest.raises(errors.ConfigurationError, match=r"proxy\.example"):
        sends(config)
    NexusFlowEmbeddingFunction(api_base="https://proxy.example/v1")
    assert sends(config) == [("https://proxy.example/v1/embeddings", f"Bearer {KEY}")]


def test_rebuilding_names_no_host(sends: Sends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    config = {"api_base": "https://evil.example/v1"}
    for _ in range(2):
        NexusFlowEmbeddingFunction.build_from_config(config)
        with pytest.raises(errors.ConfigurationError, match="has not configured"):
            sends(config)


def test_a_pickled_rebuilt_function_is_still_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    config = {"api_base": "https://evil.example/v1"}
    pickled = pickle.dumps(NexusFlowEmbeddingFunction.build_from_config(config))
    with pytest.raises(errors.ConfigurationError, match="has not configured"):
        pickle.loads(pickled)(["a"])


def test_plain_http_needs_this_process_to_allow_it(
    sends: Sends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    config = {"api_base": "http://proxy.example/v1", "dimensions": 64}
    with pytest.raises(errors.ConfigurationError):
        sends(config)
    NexusFlowEmbeddingFunction(api_base="http://proxy.example/v1", allow_http=True)
    assert sends(config) == [("http://proxy.example/v1/embeddings", f"Bearer {KEY}")]


def test_only_variables_of_ours_are_read(sends: Sends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-elses")
    monkeypatch.setenv("NEXUSFLOW_TEAM_KEY", "sk-air-of-the-team")
    with pytest.raises(errors.ConfigurationError, match="api_key_env_var"):
        sends({"api_key_env_var": "OPENAI_API_KEY"})
    ((_, key),) = sends({"api_key_env_var": "NEXUSFLOW_TEAM_KEY"})
    assert key == "Bearer sk-air-of-the-team"


def test_a_key_passed_here_goes_only_where_it_was_passed_for(
    sends: Sends,
) -> None:
    NexusFlowEmbeddingFunction(KEY, api_base="https://proxy.example/v1", dimensions=64)
    for config in (
        {"api_base": "https://proxy.example/other", "dimensions": 64},
        {"api_base": "http://127.0.0.1:9/v1", "dimensions": 64},
        {"dimensions": 64},
    ):
        with pytest.raises(errors.ConfigurationError, match="no API key"):
            sends(config)


# -- through Chroma ------------------------------------------------------------------------------


def poison(folder: Path, change: dict[str, Any]) -> int:
    """Write ``change`` into the stored configurations of a database; say how many rows changed."""
    changed = 0
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        columns = {row[1] for row in database.execute("pragma table_info(collections)")}
        for column in columns & {"schema_str", "config_json_str"}:
            rows = database.execute(f"select id, {column} from collections").fetchall()
            for name, stored in rows:
                if stored and '"nexusflow"' in stored:
                    text = json.dumps(_changed(json.loads(stored), change))
                    database.execute(
                        f"update collections set {column} = ? where id = ?", (text, name)
                    )
                    changed += 1
    return changed


def _changed(node: Any, change: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_changed(item, change) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("name") == "nexusflow":
        return node | {"config": node["config"] | change}
    return {name: _changed(value, change) for name, value in node.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"api_base": "https://evil.example/v1"}, "has not configured"),
        ({"api_key_env_var": "OTHER_SECRET"}, "api_key_env_var"),
        ({"default_headers": {"X": "y"}}, "default_headers"),
        ({"dimensions": 63}, "dimensions"),
    ],
)
def test_a_poisoned_collection_sends_nothing_and_can_still_be_read(
    change: dict[str, Any],
    reason: str,
    tmp_path: Path,
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("OTHER_SECRET", "sk-somebody-elses")
    folder = tmp_path / "db"
    first = chromadb.PersistentClient(path=str(folder))
    function = NexusFlowEmbeddingFunction(api_base=server.base_url, dimensions=64)
    first.create_collection("docs", embedding_function=function).add(
        ids=["1"], documents=["red pandas"]
    )
    copy = _copied(folder, tmp_path / "copy")
    assert poison(copy, change) >= 1
    server.reset_stats()

    collection = chromadb.PersistentClient(path=str(copy)).get_collection("docs")
    assert collection.count() == 1
    assert collection.get()["documents"] == ["red pandas"]
    with pytest.raises(ValueError, match=reason) as caught:
        collection.query(query_texts=["pandas"])
    assert KEY not in str(caught.value)
    assert "sk-somebody" not in str(caught.value)
    assert server.stats.requests == 0


def _copied(folder: Path, target: Path) -> Path:
    # A client keeps its database open for the life of the process, and reads a copy afresh.
    shutil.copytree(folder, target)
    return target


def test_derive_belongs_to_the_process_and_is_not_stored(
    make: Make, server: LocalServer, tmp_path: Path
) -> None:
    documents = [f"document {number}" for number in range(12)]
    make(dimensions=2048, cache=tmp_path / "cache.sqlite", derive=True)(documents)
    function = make(dimensions=64, cache=tmp_path / "cache.sqlite", derive=True)
    assert "derive" not in function.get_config()
    rows = function(documents)
    assert function.usage.derived == function.usage.cached == len(documents)
    for row, plain in zip(rows, make()(documents), strict=True):
        assert row == pytest.approx(plain, abs=1e-6)
    assert NexusFlowEmbeddingFunction.build_from_config(function.get_config()).dimensions == 64
    with pytest.raises(errors.ConfigurationError, match="derive=True needs a cache"):
        make(derive=True)
