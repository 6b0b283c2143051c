"""A run detects that the service has changed its model before it writes, without false alarms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chromadb
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from nexusflow_integrations import errors
from nexusflow_integrations._core.comparing import TOLERANCE, deviation
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import (
    aadd_documents,
    add_documents,
    aopen_collection,
    copy_collection,
    open_collection,
    sync_documents,
    verifying,
)
from nexusflow_integrations.chroma_collections.verifying import SAMPLE
from nexusflow_integrations.local import LocalServer

from .conftest import KEY
from .test_add_documents import numbered
from .test_embedding_function import Make, answering

Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]

RANDOM = np.random.default_rng(11)
EPSILON = float(np.finfo(np.float32).eps)

CHANGED: dict[str, Change] = {
    "another model": lambda rows: RANDOM.standard_normal(rows.shape).astype(np.float32),
    "cut, the rest zeros": lambda rows: rows * (np.arange(rows.shape[1]) < rows.shape[1] // 2),
    "cut and of unit length again": lambda rows: unit(
        rows * (np.arange(rows.shape[1]) < rows.shape[1] // 2)
    ),
    "another length": lambda rows: rows * np.float32(3.7),
    "other rows": lambda rows: np.roll(rows, 1, axis=0),
    "numbers in another order": lambda rows: rows[:, ::-1],
    "turned round": lambda rows: -rows,
}
SAME: dict[str, Change] = {
    "the same": lambda rows: rows,
    "other last bits": lambda rows: (
        rows * (1 + EPSILON * RANDOM.choice([-1, 1], rows.shape)).astype(np.float32)
    ),
    "rounded to float16": lambda rows: rows.astype(np.float16).astype(np.float32),
}


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Service:
    """Answers with the local server's vectors, as ``change`` makes them."""

    def __init__(self, server: LocalServer) -> None:
        self.change: Change = lambda rows: rows
        self.requests = 0
        self._ask = httpx.Client()
        transport = httpx.MockTransport(self._answer)
        self.options: dict[str, Any] = {
            "http_client": httpx.Client(transport=transport),
            "async_http_client": httpx.AsyncClient(transport=transport),
            "encoding_format": "float",
            "dimensions": 64,
            "api_base": server.base_url,
        }

    def function(self) -> NexusFlowEmbeddingFunction:
        return NexusFlowEmbeddingFunction(KEY, **self.options)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        content = request.read()
        answer = self._ask.post(
            str(request.url), content=content, headers={"authorization": f"Bearer {KEY}"}
        ).json()
        rows = np.array([item["embedding"] for item in answer["data"]], np.float32)
        for item, row in zip(answer["data"], self.change(rows), strict=True):
            item["embedding"] = row.tolist()
        return httpx.Response(200, json=answer)


@pytest.fixture
def service(server: LocalServer) -> Service:
    return Service(server)


@pytest.mark.parametrize("write", [add_documents, sync_documents])
@pytest.mark.parametrize("change", CHANGED)
def test_a_service_that_changed_its_vectors_is_found_before_anything_is_mixed(
    client: Any, service: Service, change: str, write: Any
) -> None:
    add_documents(open_collection(client, "docs", service.function()), **numbered(20))
    service.change, before = CHANGED[change], service.requests
    collection = open_collection(client, "docs", service.function())
    with pytest.raises(errors.ConfigurationError, match="differently") as caught:
        write(collection, **numbered(40))
    assert (collection.count(), service.requests - before) == (20, 1)
    assert caught.value.finished == {}


def test_a_collection_moves_to_the_vectors_of_a_service_that_changed(
    client: Any, service: Service
) -> None:
    add_documents(open_collection(client, "docs", service.function()), **numbered(20))
    service.change = CHANGED["cut and of unit length again"]
    done = copy_collection(client, "docs", "docs-2", service.function(), embed_again=True)
    assert (done.embedded, done.copied, done.exchanged) == (20, 0, True)
    collection = open_collection(client, "docs", service.function(), verify=True)
    assert add_documents(collection, **numbered(40)).added == 20


@pytest.mark.parametrize("change", SAME)
def test_a_service_that_rounds_differently_raises_no_false_alarm(
    client: Any, service: Service, change: str
) -> None:
    add_documents(open_collection(client, "docs", service.function()), **numbered(20))
    service.change = SAME[change]
    assert add_documents(open_collection(client, "docs", service.function()), **numbered(40)).added


@pytest.mark.parametrize(("filled", "asked"), [("hash", "minilm"), ("minilm", "hash")])
def test_another_model_behind_the_address_of_the_local_server_is_found(
    client: Any, monkeypatch: pytest.MonkeyPatch, filled: str, asked: str
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    for model in (filled, asked):
        with LocalServer(model) as server:
            monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
            collection = open_collection(client, "docs", NexusFlowEmbeddingFunction(dimensions=64))
            if model == filled:
                add_documents(collection, **numbered(20))
            else:
                with pytest.raises(errors.ConfigurationError, match="differently"):
                    add_documents(collection, **numbered(40))
    assert collection.count() == 20


async def test_the_async_functions_compare_as_well(
    chroma_port: int, service: Service, request: Any
) -> None:
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)
    name = "compared-docs"
    await aadd_documents(await aopen_collection(client, name, service.function()), **numbered(20))
    collection = await aopen_collection(client, name, service.function())
    assert (await aadd_documents(collection, **numbered(25))).added == 5
    service.change = CHANGED["another model"]
    collection = await aopen_collection(client, name, service.function())
    with pytest.raises(errors.ConfigurationError, match="differently"):
        await aadd_documents(collection, **numbered(40))
    assert await collection.count() == 25
    assert (await aadd_documents(collection, **numbered(40), verify=False)).added == 15


def test_it_costs_one_request_of_short_documents_once_for_each_function(
    client: Any, make: Make, server: LocalServer, tmp_path: Any
) -> None:
    words = {"ids": [*"abcdef"], "documents": ["long " * 50, "one", "long " * 60, "two", "x", "3"]}
    add_documents(open_collection(client, "docs", make()), **words)
    assert server.stats.texts == 6
    collection = open_collection(client, "docs", make(cache=tmp_path / "cache.sqlite"))
    server.reset_stats()
    done = sync_documents(collection, **words)
    dry = sync_documents(collection, **numbered(5), dry_run=True)
    assert (done.unchanged, dry.added, server.stats.requests) == (6, 5, 0)
    done = sync_documents(collection, **numbered(5), remove=False)
    assert server.stats.received[: server.stats.texts] == (
        "one",
        "x",
        "3",
        *numbered(5)["documents"],
    )
    assert (done.usage.requests, done.usage.texts) == (2, 5 + SAMPLE)
    sync_documents(collection, **numbered(7), remove=False)
    assert server.stats.texts == 5 + SAMPLE + 2


def test_a_client_compares_again_after_an_hour(
    client: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = open_collection(client, "docs", service.function())
    add_documents(collection, **numbered(20))
    service.change = CHANGED["another model"]
    monkeypatch.setattr(verifying, "VALID", 0.0)
    with pytest.raises(errors.ConfigurationError, match="differently"):
        add_documents(collection, **numbered(40))


def test_one_vector_of_the_callers_own_is_no_alarm_where_others_agree(
    client: Any, make: Make
) -> None:
    collection = open_collection(client, "docs", make())
    add_documents(collection, **numbered(3))
    collection.update(ids=["id1"], embeddings=[[1.0] * 64])
    assert add_documents(open_collection(client, "docs", make()), **numbered(5)).added == 2
    with pytest.raises(errors.ConfigurationError, match="'id1'"):
        open_collection(client, "docs", make(), verify=True)


def test_documents_that_the_service_refuses_by_now_stop_nothing(client: Any, make: Make) -> None:
    collection = open_collection(client, "docs", make())
    add_documents(collection, **numbered(3))
    later = open_collection(client, "docs", make())
    later.update(ids=["id0"], documents=["x " * 9_000], embeddings=[[1.0] * 64])
    later.update(ids=["id1"], documents=["y " * 9_000], embeddings=[[1.0] * 64])
    assert add_documents(later, **numbered(5)).added == 2


@pytest.mark.parametrize("own", [False, True], ids=["plain", "subclass"])
def test_long_documents_that_were_split_do_not_stop_a_sync(
    client: Any, make: Make, server: LocalServer, own: bool
) -> None:
    class Own(NexusFlowEmbeddingFunction):
        def __call__(self, input: Any) -> Any:  # noqa: A002
            return super().__call__(input)

    reports = {f"report {n}": f"Report {n}. " + "word " * 20_000 for n in range(3)}
    collection = open_collection(client, "docs", make(on_too_long="split"))
    sync_documents(collection, ids=reports.keys(), documents=reports.values())
    kind: Any = Own if own else NexusFlowEmbeddingFunction
    for short in ({}, {"a": "short"}, {"b": "short, too"}):
        reports |= short
        later = open_collection(
            client, "docs", kind(api_key=KEY, api_base=server.base_url, dimensions=64)
        )
        done = sync_documents(later, ids=reports.keys(), documents=reports.values())
        assert (done.added, done.unchanged) == (len(short), len(reports) - len(short))
    later.update(ids=["a", "b"], embeddings=[[1.0] * 64] * 2)
    with pytest.raises(errors.ConfigurationError, match="differently"):
        add_documents(
            open_collection(
                client, "docs", kind(api_key=KEY, api_base=server.base_url, dimensions=64)
            ),
            ids=["c"],
            documents=["short"],
        )


def test_a_single_document_that_the_service_refuses_by_now_stops_nothing(
    client: Any,
) -> None:
    refused: list[str] = []

    def refuse(request: Any) -> Any:
        if {*refused} & {*request["input"]}:
            return 400, {"error": {"code": "data_inspection_failed", "message": "no"}}
        return 200

    add_documents(open_collection(client, "docs", answering(status=refuse)), **numbered(1))
    refused.append("document 0")
    later = open_collection(client, "docs", answering(status=refuse))
    assert add_documents(later, **numbered(2)).added == 1


def test_ten_thousand_comparisons_raise_no_false_alarm_and_miss_no_change() -> None:
    rows = unit(RANDOM.standard_normal((10_000, 256)).astype(np.float32))

    def apart(change: Change) -> NDArray[np.float64]:
        fresh = change(rows)
        return np.array([deviation(old, new) for old, new in zip(rows, fresh, strict=True)])

    for name, change in SAME.items():
        assert apart(change).max() < TOLERANCE / 10, name
    for name, change in CHANGED.items():
        assert apart(change).min() > TOLERANCE * 10, name
    assert deviation(rows[0], rows[0, :128]) == float("inf")
