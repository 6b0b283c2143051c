"""A signal handler forks in the middle of a call; the child gets an error for that call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from faults.server import marked

from .scene import KEY, hold, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

SCRIPT = """
    import os, signal, sys, threading, time
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations.errors import APIConnectionError, NexusFlowError

    base_url, key, door = sys.argv[1:4]
    signal.alarm(250)
    texts = [f"text {n}" for n in range(30)]
    settings = {"dimensions": 64, "max_retries": 0, "timeout": 120}
    client = NexusFlow(key, base_url=base_url, **settings)

    def by_langchain():
        from nexusflow_integrations.langchain import NexusFlowEmbeddings
        return NexusFlowEmbeddings(api_key=key, base_url=base_url, **settings).embed_documents

    def by_llama_index():
        from nexusflow_integrations.llama_index import NexusFlowEmbedding
        made = NexusFlowEmbedding(api_key=key, base_url=base_url, **settings)
        return made.get_text_embedding_batch

    embed = {
        "embed": lambda: client.embed,
        "stream": lambda: lambda texts: list(client.embed_stream(texts)),
        "unordered": lambda: lambda texts: list(client.embed_stream(texts, ordered=False)),
        "deadline": lambda: NexusFlow(key, base_url=base_url, deadline=100, **settings).embed,
        "langchain": by_langchain,
        "llama_index": by_llama_index,
    }[door]()
    client.embed("warm")

    child = None
    def handler(*_):
        global child
        child = os.fork()
        if child == 0:
            signal.alarm(60)
        else:
            os.kill(os.getpid(), signal.SIGUSR2)

    class Stop(BaseException):
        pass

    def stop(*_):
        raise Stop

    signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR2, stop)
    def later():
        while not os.path.exists(sys.argv[4]):
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR1)
    threading.Thread(target=later, daemon=True).start()
    try:
        embed(texts)
    except APIConnectionError as error:
        assert child == 0, error
        assert "forked" in str(error), error
        client.embed("warm")  # further calls of the child work
        os._exit(0)
    except Stop:
        status = os.waitpid(child, 0)[1]
        print("child", status)
"""


@pytest.mark.parametrize(
    "door",
    [
        "embed",
        "deadline",
        *(
            pytest.param(door, marks=pytest.mark.slow)
            for door in ("stream", "unordered", "langchain", "llama_index")
        ),
    ],
)
def test_the_child_of_a_handler_gets_an_error_for_the_call_that_it_interrupted(
    server: Any, door: str, tmp_path: Path
) -> None:
    if door in ("langchain", "llama_index"):
        pytest.importorskip({"langchain": "langchain_core"}.get(door, "llama_index.core"))
    arrived = tmp_path / "arrived"

    def behave(wire: Any) -> None:
        arrived.touch()
        hold(wire)

    server.script = marked("text", behave)
    code, out, err = run(SCRIPT, server.base_url, KEY, door, str(arrived))
    assert (code, out.strip()) == (0, "child 0"), err[-3000:]
