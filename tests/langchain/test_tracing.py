"""LangSmith gets embedding runs with usage, without texts and vectors, at no cost when off."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import LangChainTracer
from langsmith import Client
from langsmith.run_helpers import trace, tracing_context

import nexusflow_integrations
from nexusflow_integrations import errors
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]


class Recorder(Client):
    """A LangSmith client that keeps what it should send."""

    def __init__(self) -> None:
        super().__init__(
            api_url="http://127.0.0.1:9", api_key="none", auto_batch_tracing=False, info={}
        )
        self.kept: dict[str, dict[str, Any]] = {}

    def create_run(self, name: str, inputs: Any, run_type: Any, **rest: Any) -> None:
        told = {"name": name, "inputs": inputs, "run_type": run_type, **rest}
        self.kept[str(rest["id"])] = json.loads(json.dumps(told, default=str))

    def update_run(self, run_id: Any, **rest: Any) -> None:
        told = {name: value for name, value in rest.items() if value is not None}
        self.kept[str(run_id)].update(json.loads(json.dumps(told, default=str)))

    @property
    def embedding_runs(self) -> list[dict[str, Any]]:
        return [run for run in self.kept.values() if run["run_type"] == "embedding"]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def traced(recorder: Recorder) -> Iterator[Recorder]:
    with tracing_context(enabled=True, client=recorder):
        yield recorder


def test_a_call_is_a_run_of_type_embedding_with_its_usage(
    make: Make, traced: Recorder, server: LocalServer
) -> None:
    make().embed_documents([f"text number {number}" for number in range(25)])
    (run,) = traced.kept.values()
    assert run["run_type"] == "embedding"
    assert run["name"] == "NexusFlowEmbeddings"
    assert run["inputs"] == {"role": "document", "count": 25}
    assert run["outputs"] == {"count": 25, "dimensions": 64}
    assert run["end_time"]
    metadata = run["extra"]["metadata"]
    assert metadata["ls_provider"] == "nexusflow"
    assert metadata["ls_model_name"] == "text-embedding-v4"
    tokens = server.stats.tokens
    assert metadata["usage_metadata"] == {
        "input_tokens": tokens,
        "output_tokens": 0,
        "total_tokens": tokens,
    }


async def test_all_four_methods_are_traced(make: Make, traced: Recorder) -> None:
    embeddings = make()
    embeddings.embed_documents(["a", "b"])
    embeddings.embed_query("c")
    await embeddings.aembed_documents(["d"])
    await embeddings.aembed_query("e")
    assert [run["inputs"] for run in traced.kept.values()] == [
        {"role": "document", "count": 2},
        {"role": "query", "count": 1},
        {"role": "document", "count": 1},
        {"role": "query", "count": 1},
    ]
    assert all(run["outputs"]["dimensions"] == 64 for run in traced.kept.values())


def test_a_run_holds_neither_texts_nor_vectors_nor_the_key(
    make: Make, traced: Recorder, key: str
) -> None:
    embeddings = make()
    vector = embeddings.embed_documents(["confidential text"])[0]
    embeddings.embed_query("confidential question")
    shown = json.dumps(list(traced.kept.values()))
    assert len(traced.kept) == 2
    assert "confidential" not in shown
    assert str(vector[0]) not in shown
    assert key not in shown


def test_a_run_holds_the_texts_where_that_was_asked_for(make: Make, traced: Recorder) -> None:
    vector = make(trace_texts=True).embed_documents(["a panda"])[0]
    (run,) = traced.kept.values()
    assert run["inputs"]["texts"] == ["a panda"]
    assert str(vector[0]) not in json.dumps(run)


def test_a_failed_call_is_a_run_with_its_error(make: Make, traced: Recorder, key: str) -> None:
    with pytest.raises(errors.AuthenticationError):
        make(api_key="sk-air-wrong").embed_query("a")
    (run,) = traced.kept.values()
    assert "AuthenticationError" in run["error"]
    assert "sk-air-wrong" not in json.dumps(run)


def test_a_run_is_the_child_of_the_run_around_it(make: Make, traced: Recorder) -> None:
    with trace("outer", run_type="chain", client=traced) as outer:
        make().embed_query("a")
    (run,) = traced.embedding_runs
    assert run["parent_run_id"] == str(outer.id)


def test_a_run_is_a_child_in_a_chain_that_is_traced_by_a_callback(
    make: Make, recorder: Recorder
) -> None:
    embeddings = make()
    chain = RunnableLambda(lambda text: embeddings.embed_query(text))
    chain.invoke("a", {"callbacks": [LangChainTracer(client=recorder)]})
    (run,) = recorder.embedding_runs
    assert run["parent_run_id"] in recorder.kept


async def test_runs_of_concurrent_calls_are_siblings_not_children_of_each_other(
    make: Make, traced: Recorder
) -> None:
    embeddings = make()
    await asyncio.gather(*(embeddings.aembed_query(f"query {number}") for number in range(5)))
    assert len(traced.kept) == 5
    assert {run.get("parent_run_id") for run in traced.kept.values()} == {None}


def test_usage_is_on_the_run_under_a_rate_limiter(
    make: Make, traced: Recorder, server: LocalServer, turns: Callable[..., Any]
) -> None:
    make(rate_limiter=turns(server)).embed_documents([f"text {n}" for n in range(25)])
    (run,) = traced.kept.values()
    assert run["extra"]["metadata"]["usage_metadata"]["total_tokens"] == server.stats.tokens


def test_no_run_is_made_when_nobody_traces(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import langsmith.run_helpers

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a run was made")

    monkeypatch.setattr(langsmith.run_helpers, "trace", refuse)
    make().embed_query("a")
    with tracing_context(enabled=False):
        make().embed_query("a")
    with tracing_context(enabled=True), pytest.raises(AssertionError, match="a run was made"):
        make().embed_query("a")


@pytest.mark.parametrize(
    "name",
    ["LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2"],
)
def test_the_environment_alone_turns_tracing_on(name: str, tmp_path: Path) -> None:
    code = """
import sys
from nexusflow_integrations.langchain.embeddings import _is_traced
print("langsmith.run_helpers" in sys.modules, _is_traced())
"""
    root = str(Path(nexusflow_integrations.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": root, name: "true"},
    )
    assert done.stdout == "False True\n", done.stderr


def test_nothing_to_embed_is_no_run(make: Make, traced: Recorder) -> None:
    make().embed_documents([])
    assert traced.kept == {}
