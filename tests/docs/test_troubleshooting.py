"""Troubleshooting is organised by error message, and users really get each of the messages."""

from __future__ import annotations

import os
import pickle
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chromadb
import pytest
import trustme
from chromadb.api.shared_system_client import SharedSystemClient
from faults import behaviours as b
from faults.server import Behaviour, FaultServer, marked
from filelock import FileLock
from langchain_core.rate_limiters import BaseRateLimiter

from nexusflow_integrations import Budget, NexusFlow, errors
from nexusflow_integrations._core.one_writer import LOCK_FILE
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection, sync_documents
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.llama_index import NexusFlowEmbedding
from nexusflow_integrations.local import LocalServer

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
NOWHERE = "http://127.0.0.1:1/v1"


class Case(NamedTuple):
    """What to do to get a message; ``instead`` is what the page shows for what varies."""

    produce: Callable[[], object]
    instead: Mapping[str, str] = {}


def _asked(behaviour: Behaviour, texts: object = "a text", **settings: Any) -> Callable[[], object]:
    def ask() -> object:
        with FaultServer(behaviour, dimensions=64, lifetime=30) as server:
            # A key of its own: pace and trouble of an account are remembered.
            key = f"key-{server.base_url}"
            settings_ = {"max_retries": 0, "dimensions": 64} | settings
            return NexusFlow(key, base_url=server.base_url, **settings_).embed(texts)  # type: ignore[call-overload]

    return ask


def _status(status: int, code: str, message: str) -> Case:
    return Case(_asked(b.says(status, b.error(code, message))))


def _not_trusted() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with FaultServer(tls=context) as server:
        NexusFlow("key", base_url=server.base_url, max_retries=0).embed("a text")


def _over_a_proxy(url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTPS_PROXY", url)
        NexusFlow("key", base_url="https://service.invalid/v1").embed("a text")


class DataFrame:
    """Iterates as one of pandas does: over the names of its columns."""

    columns = ("id", "text")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


def _over_budget() -> None:
    with LocalServer("hash") as server:
        client = NexusFlow("key", base_url=server.base_url, budget=Budget(tokens=5))
        client.embed("more words than the budget has tokens")


def _failing_limiter() -> None:
    class Failing(BaseRateLimiter):
        def acquire(self, *, blocking: bool = True) -> bool:
            raise ValueError("no tokens")

        async def aacquire(self, *, blocking: bool = True) -> bool:
            return self.acquire()

    embeddings = NexusFlowEmbeddings(api_key="k", base_url=NOWHERE, rate_limiter=Failing())
    embeddings.embed_documents(["a text"])


def _foreign_cache() -> None:
    Path("notes.txt").write_text("These are notes, and no cache. " * 100)
    NexusFlow("key", base_url=NOWHERE, cache="notes.txt").embed("a text")


def _collection_being_written() -> None:
    client = chromadb.PersistentClient("chroma")
    function = NexusFlowEmbeddingFunction("key", api_base=NOWHERE)
    collection = open_collection(client, "texts", function)
    with FileLock(Path("chroma", LOCK_FILE)):
        sync_documents(collection, ids=["1"], documents=["a text"])


def _collection_of_another_size() -> None:
    client = chromadb.PersistentClient("chroma")
    open_collection(client, "texts", NexusFlowEmbeddingFunction(dimensions=256))
    open_collection(client, "texts", NexusFlowEmbeddingFunction(dimensions=512))


def _collection_of_nobody() -> None:
    client = chromadb.PersistentClient("chroma")
    client.create_collection("texts", embedding_function=None)
    open_collection(client, "texts", NexusFlowEmbeddingFunction())


def _collection_of_another_function() -> None:
    client = chromadb.PersistentClient("chroma")
    client.create_collection("texts")
    client.get_or_create_collection("texts", embedding_function=NexusFlowEmbeddingFunction())


def _vectors_of_another_size() -> None:
    collection = chromadb.PersistentClient("chroma").create_collection("texts")
    collection.add(ids=["1"], embeddings=[[1.0] * 256])
    collection.query(query_embeddings=[[1.0] * 512])


def _rebuilt(**config: str) -> None:
    NexusFlowEmbeddingFunction.build_from_config({"model_name": "m", **config})(["a text"])


def _unpickled() -> None:
    pickle.loads(pickle.dumps(NexusFlowEmbedding(api_key="key"))).get_text_embedding("a text")


def _without(package: str, module: str, then: str = "") -> Callable[[], object]:
    def import_it() -> None:
        code = f"import sys; sys.modules[{package!r}] = None; import {module}; {then}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
        raise ImportError(done.stderr.decode().strip().rpartition("ImportError: ")[2])

    return import_it


PRODUCED: Mapping[str, Mapping[str, Case]] = {
    "ConfigurationError": {
        "no API key: pass api_key=": Case(lambda: NexusFlow().embed("a text")),
        "no API key in this process": Case(_unpickled),
        "no API key: this embedding function was rebuilt": Case(_rebuilt),
        "api_key contains": Case(lambda: NexusFlow("key\n")),
        "base_url is plain http": Case(lambda: NexusFlow(base_url="http://10.0.0.7/v1")),
        "base_url must name its host": Case(lambda: NexusFlow(base_url="http://localhost./v1")),
        "the environment names a socks5": Case(lambda: _over_a_proxy("socks5://127.0.0.1:1")),
        "collection 'texts' was made with": Case(_collection_of_another_size),
        "collection 'texts' stores": Case(_collection_of_nobody),
        "this collection's stored configuration": Case(
            lambda: _rebuilt(api_base="https://elsewhere.example/v1")
        ),
    },
    "InvalidInputError": {
        "text 1 is blank": Case(lambda: NexusFlow("key").embed(["a text", "  "])),
        "text 0 holds": Case(lambda: NexusFlow("key").embed(["\ud800"])),
        "expected a list of texts, not DataFrame": Case(
            lambda: NexusFlow("key").embed(DataFrame())
        ),
    },
    "APIConnectionError": {
        "cannot connect": Case(
            lambda: NexusFlow("key", base_url=NOWHERE, max_retries=0).embed("a text")
        ),
        "the server's TLS certificate": Case(_not_trusted),
        "the connection broke": Case(_asked(lambda wire: wire.reset())),
    },
    "APITimeoutError": {
        "no complete response": Case(
            _asked(lambda wire: wire.hold(), timeout=0.3), {"0.3 s": "60 s"}
        ),
        "the deadline": Case(_asked(lambda wire: wire.hold(), deadline=1.0), {"1 s": "300 s"}),
    },
    "APIStatusError": {
        "302": Case(_asked(b.says(302, b"", [("Location", "https://login.example/")]))),
    },
    "BadRequestError": {
        "400": _status(400, "invalid_request_error", "Unknown field"),
    },
    "AuthenticationError": {
        "401": _status(401, "invalid_api_key", "Incorrect API key provided"),
    },
    "PermissionDeniedError": {
        "403": _status(403, "insufficient_quota", "The balance is not sufficient"),
    },
    "NotFoundError": {
        "404": _status(404, "model_not_found", "The model does not exist"),
    },
    "RateLimitError": {
        "429": _status(429, "rate_limit_exceeded", "Requests per minute exceeded"),
    },
    "InternalServerError": {
        "503": _status(503, "server_error", "Overloaded"),
    },
    "InvalidResponseError": {
        "the response has 0 vectors": Case(
            _asked(b.says(200, {"object": "list", "data": []}), ["one", "two"])
        ),
    },
    "RefusedTextsError": {
        "the server refused": Case(
            _asked(
                marked("bad", b.says(400, b.error("content_filter", "Inappropriate content"))),
                ["good", "bad"],
            )
        ),
    },
    "BudgetExceededError": {"the budget": Case(_over_budget)},
    "LimiterError": {"the rate limiter failed": Case(_failing_limiter)},
    "CacheError": {"/home/me/notes.txt": Case(_foreign_cache)},
    "CollectionError": {"another process (or": Case(_collection_being_written)},
    "ImportError": {
        "nexusflow_integrations.langchain": Case(
            _without("langchain_core", "nexusflow_integrations.langchain")
        ),
        "LocalServer": Case(
            _without(
                "starlette",
                "nexusflow_integrations.local",
                "nexusflow_integrations.local.LocalServer()",
            )
        ),
    },
    "NexusFlowError": {},
    "Errors of the frameworks": {
        "1 validation error": Case(lambda: NexusFlowEmbeddings(dimension=256)),  # type: ignore[call-arg]
        "An embedding function already exists": Case(_collection_of_another_function),
        "Collection expecting": Case(_vectors_of_another_size),
    },
}
"""Section of the page to the beginnings of its messages, and how each is brought about."""


def _messages() -> dict[str, list[str]]:
    """Return the page's sections, and the messages that stand in the headings of each."""
    sections: dict[str, list[str]] = {}
    for level, title in re.findall(r"^(##|###) (.+)$", PAGE.read_text(), re.MULTILINE):
        if level == "##":
            sections[title] = []
        else:
            sections[list(sections)[-1]].append(title.strip("`").strip())
    return sections


def test_every_public_error_has_its_section() -> None:
    assert set(errors.__all__) <= set(_messages())


def test_every_message_of_the_page_is_brought_about_here() -> None:
    shown = {name: messages for name, messages in _messages().items() if name != "Log lines"}
    assert set(shown) == set(PRODUCED)
    for section, messages in shown.items():
        begun = [
            [message for message in messages if message.startswith(beginning)]
            for beginning in PRODUCED[section]
        ]
        assert sorted(message for found in begun for message in found) == sorted(messages)
        assert all(len(found) == 1 for found in begun), section


@pytest.mark.parametrize(
    ("section", "beginning"),
    [(section, beginning) for section, cases in PRODUCED.items() for beginning in cases],
)
def test_a_message_of_the_page_is_what_a_user_gets(
    section: str, beginning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SharedSystemClient.clear_system_cache()  # another test's ./chroma is not this one's
    monkeypatch.chdir(tmp_path)
    for variable in ("NEXUSFLOW_API_KEY", "NEXUSFLOW_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    case = PRODUCED[section][beginning]
    [shown] = [message for message in _messages()[section] if message.startswith(beginning)]
    with pytest.raises(Exception) as caught:
        case.produce()
    if section != "Errors of the frameworks":
        assert type(caught.value).__name__ == section
    said = str(caught.value).replace(os.path.realpath(tmp_path), "/home/me")
    for real, instead in case.instead.items():
        said = said.replace(real, instead)
    if shown.endswith(" ..."):
        assert " ".join(said.split()).startswith(shown.removesuffix(" ..."))
    else:
        assert said == shown


def test_the_log_lines_of_the_page_are_those_of_the_code() -> None:
    core = PAGE.parents[1] / "nexusflow_integrations" / "_core"
    code = "\n".join(path.read_text() for path in core.rglob("*.py"))
    lines = _messages()["Log lines"]
    assert len(lines) >= 2
    for line in lines:
        assert line.replace("320", "%d").replace("...", "%s") in code
