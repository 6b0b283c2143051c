"""The embedding function works inside Chroma, with Chroma's methods, results and errors."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nexusflow_integrations import errors
from nexusflow_integrations.local import LocalServer

from .test_embedding_function import Make, answering


def test_everything_one_does_with_a_collection_warns_of_nothing(
    client: Any, make: Make, strict: None
) -> None:
    function = make()
    made = client.create_collection("docs", embedding_function=function)
    made.add(ids=["1", "2"], documents=["red pandas", "blue whales"])
    made.upsert(ids=["2", "3"], documents=["blue birds", "green frogs"])
    made.update(ids=["2"], documents=["blue whales"])
    made.modify(configuration={"hnsw": {"ef_search": 200}, "embedding_function": function})
    for collection in (
        made,
        client.get_collection("docs"),
        client.get_collection("docs", embedding_function=function),
        client.get_or_create_collection("docs", embedding_function=function),
        client.get_or_create_collection("docs", configuration={"embedding_function": function}),
        *client.list_collections(),
    ):
        found = collection.query(query_texts=["blue whales", "green frogs"], n_results=1)
        assert found["ids"] == [["2"], ["3"]]
        assert collection.configuration["embedding_function"].name() == "nexusflow"
        assert collection.configuration["hnsw"]["space"] == "cosine"


def test_a_space_that_the_user_sets_is_kept(client: Any, make: Make) -> None:
    for space in ("l2", "ip", "cosine"):
        collection = client.create_collection(
            f"docs-{space}", embedding_function=make(), configuration={"hnsw": {"space": space}}
        )
        assert collection.configuration["hnsw"]["space"] == space


def test_several_queries_are_one_request_with_the_instruction(
    client: Any, make: Make, server: LocalServer
) -> None:
    collection = client.create_collection("docs", embedding_function=make(query_instruction="Q: "))
    collection.add(ids=["1"], documents=["red pandas"])
    server.reset_stats()
    client.get_collection("docs").query(query_texts=["a", "b", "c"])
    assert server.stats.received == ("Q: a", "Q: b", "Q: c")
    assert server.stats.requests == 1


def test_changing_model_or_size_by_modify_is_refused_and_can_be_undone(
    client: Any, make: Make
) -> None:
    collection = client.create_collection("docs", embedding_function=make())
    with pytest.raises(errors.ConfigurationError, match="change it back"):
        collection.modify(configuration={"embedding_function": make(dimensions=128)})
    # Chroma asks when it has already stored the change.
    assert _stored(client)["dimensions"] == 128
    client.get_collection("docs")
    with pytest.raises(errors.ConfigurationError):
        client.get_collection("docs").modify(configuration={"embedding_function": make()})
    assert _stored(client)["dimensions"] == 64


def _stored(client: Any) -> Any:
    return client.get_collection("docs").configuration_json["embedding_function"]["config"]


def test_our_errors_pass_through_chroma_with_all_their_attributes(client: Any) -> None:
    def refuse(request: Any) -> Any:
        bad = "document 3" in request["input"]
        return (400, {"error": {"code": "data_inspection_failed", "message": "no"}}) if bad else 200

    collection = client.create_collection("docs", embedding_function=answering(status=refuse))
    documents = [f"document {n}" for n in range(12)]
    with pytest.raises(errors.RefusedTextsError, match=r"in add\.") as caught:
        collection.add(ids=documents, documents=documents)
    assert set(caught.value.refused) == {3}
    assert sorted(caught.value.finished) == [n for n in range(12) if n != 3]
    assert collection.count() == 0


def test_no_documents_are_an_error_of_chromas_before_any_request(
    make: Make, server: LocalServer
) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        make()([])
    assert server.stats.requests == 0


def test_threads_may_share_a_collection(client: Any, make: Make) -> None:
    collection = client.create_collection("docs", embedding_function=make())

    def work(thread: int) -> None:
        for n in range(5):
            names = [f"{thread}-{n}-{k}" for k in range(10)]
            collection.add(ids=names, documents=[f"document {name}" for name in names])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert collection.count() == 400
    found = collection.query(query_texts=["document 3-4-5"], n_results=1)
    assert found["ids"] == [["3-4-5"]]


# -- importing and forking -----------------------------------------------------------------------


def in_a_process(code: str) -> str:
    """What ``code`` prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["chroma", "chroma_collections"])
def test_without_chroma_the_import_says_what_to_install(module: str) -> None:
    code = f"""
import sys
sys.modules["chromadb"] = None
try:
    import nexusflow_integrations.{module}
except ImportError as error:
    print(error)
"""
    assert in_a_process(code) == (
        "nexusflow_integrations.chroma needs chromadb 1.1 or newer:"
        ' pip install "nexusflow-integrations[chroma]"'
    )


def test_a_package_that_chroma_itself_misses_is_named_as_it_is() -> None:
    code = """
import sys
sys.modules["overrides"] = None
try:
    import nexusflow_integrations.chroma
except ImportError as error:
    print(error.name, "pip install" in str(error))
"""
    assert in_a_process(code) == "overrides False"


def test_the_root_imports_no_chroma() -> None:
    code = "import sys, nexusflow_integrations; print('chromadb' in sys.modules)"
    assert in_a_process(code) == "False"


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="needs fork")
def test_a_fork_while_another_thread_makes_a_function_does_not_hang() -> None:
    code = """
import os, signal, threading
from nexusflow_integrations import chroma
held, leave = threading.Event(), threading.Event()
def hold():
    with chroma._lock.mutex:
        held.set()
        leave.wait(60)
thread = threading.Thread(target=hold)
thread.start()
held.wait(60)
if os.fork() == 0:
    signal.alarm(20)
    chroma.NexusFlowEmbeddingFunction(dimensions=64)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
leave.set()
thread.join()
"""
    assert in_a_process(code) == "0"


def test_importing_it_from_the_root_registers_it() -> None:
    code = """
import nexusflow_integrations
from chromadb.utils.embedding_functions import known_embedding_functions
before = "nexusflow" in known_embedding_functions
nexusflow_integrations.NexusFlowEmbeddingFunction
print(before, "nexusflow" in known_embedding_functions)
"""
    assert in_a_process(code) == "False True"
