"""The adapter works as a plugin of ``llm``, from its command and from Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import llm
import pytest

from nexusflow_integrations.errors import AuthenticationError, InvalidInputError
from nexusflow_integrations.local import LocalServer

TEXTS = {
    "animals": "Red pandas climb trees.",
    "ships": "Submarines dive under the ice.",
    "food": "Bread needs flour and water.",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for the keys and the database of ``llm``."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    return tmp_path


def run(*words: str, given: str | None = None) -> str:
    """Run ``llm`` as a user does and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "llm", *words],
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_embeds_a_file_and_finds_what_is_similar(home: Path) -> None:
    rows = home / "rows.json"
    rows.write_text(json.dumps([{"id": name, "text": text} for name, text in TEXTS.items()]))
    run("embed-multi", "texts", str(rows), "-m", "nexusflow-256", "--store")
    found = json.loads(run("similar", "texts", "-c", "Which pandas climb?", "-n", "1"))
    assert (found["id"], found["content"]) == ("animals", TEXTS["animals"])


def test_the_command_lists_the_model_in_all_sizes() -> None:
    listed = run("embed-models")
    for size in ("nexusflow\n", "nexusflow-2048\n", "nexusflow-64\n"):
        assert f"NexusFlowEmbeddingModel: {size}" in listed


def test_the_key_can_be_the_one_that_llm_keeps(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.delenv("NEXUSFLOW_API_KEY")
    run("keys", "set", "nexusflow", "--value", key)
    assert len(json.loads(run("embed", "-m", "nexusflow-64", "-c", "pandas"))) == 64


def test_a_missing_key_is_explained_by_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXUSFLOW_API_KEY")
    with pytest.raises(llm.NeedsKeyException, match="llm keys set nexusflow"):
        llm.get_embedding_model("nexusflow").embed("pandas")


def test_a_model_embeds_in_its_size_and_the_plain_one_in_the_servers() -> None:
    assert len(llm.get_embedding_model("nexusflow-512").embed("pandas")) == 512
    assert len(llm.get_embedding_model("nexusflow").embed("pandas")) == 1024


def test_many_texts_come_back_in_order() -> None:
    model = llm.get_embedding_model("nexusflow-64")
    texts = [f"text number {number}" for number in range(25)]
    together = list(model.embed_multi(iter(texts)))
    assert together == [model.embed(text) for text in texts]


def test_one_call_has_many_requests_in_flight(slow_server: LocalServer) -> None:
    model = llm.get_embedding_model("nexusflow-64")
    vectors = list(model.embed_multi(f"text number {number}" for number in range(120)))
    assert len(vectors) == 120
    assert slow_server.stats.requests == 12
    assert slow_server.stats.max_in_flight >= 4


def test_errors_are_ours(wrong_key: str) -> None:
    with pytest.raises(AuthenticationError) as refused:
        llm.get_embedding_model("nexusflow").embed("pandas")
    assert wrong_key not in str(refused.value)


def test_a_blank_text_is_named() -> None:
    with pytest.raises(InvalidInputError, match="text 1 is blank"):
        list(llm.get_embedding_model("nexusflow").embed_multi(["pandas", ""]))


def test_bytes_are_refused_before_anything_is_sent(server: LocalServer) -> None:
    with pytest.raises(ValueError, match="binary"):
        llm.get_embedding_model("nexusflow").embed(b"pandas")
    assert server.stats.requests == 0


def test_the_key_is_not_shown(key: str) -> None:
    model = llm.get_embedding_model("nexusflow-64")
    model.embed("pandas")
    assert key not in repr(model)
    assert key not in str(vars(model))


def test_loading_the_plugin_imports_nothing_that_sends_or_counts() -> None:
    code = (
        "import sys, llm\n"
        "before = set(sys.modules)\n"
        "import nexusflow_integrations.llm\n"
        "heavy = {'numpy', 'httpx', 'aiohttp', 'orjson', 'sqlite3'}\n"
        "found = heavy & (set(sys.modules) - before)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ})
