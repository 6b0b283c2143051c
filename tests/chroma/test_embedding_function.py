"""The embedding function answers every call that Chroma may make."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from chromadb.utils.embedding_functions import known_embedding_functions

import nexusflow_integrations
from nexusflow_integrations import Budget, chroma, errors
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.local import LocalServer

from .conftest import KEY

Make = Callable[..., NexusFlowEmbeddingFunction]


def test_importing_registers_it_under_a_name_that_no_built_in_has() -> None:
    assert known_embedding_functions["nexusflow"] is NexusFlowEmbeddingFunction
    assert NexusFlowEmbeddingFunction.name() == "nexusflow"
    from chromadb.utils import embedding_functions

    built_in = {getattr(embedding_functions, name) for name in embedding_functions.get_builtins()}
    names = {
        function.name()
        for function in built_in
        if hasattr(function, "name") and function is not NexusFlowEmbeddingFunction
    }
    assert "nexusflow" not in names
    assert "openai" in names


def test_it_is_importable_from_the_root() -> None:
    assert nexusflow_integrations.NexusFlowEmbeddingFunction is NexusFlowEmbeddingFunction


def test_a_call_takes_no_lock_of_the_function(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    function = make()
    function(["a text"])
    monkeypatch.setattr(chroma, "_lock", None)
    assert len(function(["another text"])) == len(function.embed_query(["why?"])) == 1


@pytest.mark.parametrize("method", ["__call__", "embed_query", "aembed", "aembed_query"])
def test_every_method_gives_float32_rows_in_the_order_of_the_input(make: Make, method: str) -> None:
    function = make()
    texts = [f"text {n}" for n in range(25)]
    rows = getattr(function, method)(input=texts)
    rows = asyncio.run(rows) if asyncio.iscoroutine(rows) else rows
    assert isinstance(rows, list)
    assert [type(row) for row in rows] == [np.ndarray] * 25
    assert {(row.dtype, row.shape) for row in rows} == {(np.dtype(np.float32), (64,))}
    alone = [function([text])[0] for text in texts]
    np.testing.assert_array_equal(rows, alone)


@pytest.mark.parametrize("method", ["__call__", "embed_query"])
def test_rows_are_views_of_one_block(make: Make, method: str) -> None:
    first, second, third = getattr(make(), method)(input=["a", "b", "c"])
    assert first.base is second.base is third.base
    assert first.base.shape == (3, 64)
    assert second.ctypes.data - first.ctypes.data == first.nbytes


def test_chroma_keeps_the_rows_it_was_given(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    function = make()
    embed = function.client.embed
    monkeypatch.setattr(
        function.client, "embed", lambda *a, **k: given.append(embed(*a, **k)) or given[0]
    )
    rows = function(["a", "b"])
    assert all(np.shares_memory(row, given[0]) for row in rows)


def test_only_queries_get_the_instruction(make: Make, server: LocalServer) -> None:
    function = make(query_instruction="Represent the question: ")
    function(["a document"])
    function.embed_query(["a question"])
    asyncio.run(function.aembed(["another document"]))
    asyncio.run(function.aembed_query(["another question"]))
    assert server.stats.received == (
        "a document",
        "Represent the question: a question",
        "another document",
        "Represent the question: another question",
    )


def test_a_thousand_documents_are_sent_ten_at_a_time_and_in_parallel() -> None:
    with LocalServer("hash", latency_ms=50) as distant:
        function = NexusFlowEmbeddingFunction(KEY, api_base=distant.base_url, dimensions=64)
        assert len(function([f"document {n}" for n in range(1000)])) == 1000
        assert distant.stats.statuses == {200: 100}
        assert distant.stats.max_in_flight > 1


def test_equal_documents_are_sent_once(make: Make, server: LocalServer) -> None:
    rows = make()(["same"] * 100)
    assert len(rows) == 100
    assert server.stats.received == ("same",)


@pytest.mark.parametrize(
    "texts", ["one string", [""], ["fine", None], ["fine", 3], ["\ud800"]], ids=repr
)
def test_bad_input_is_refused_before_any_request(
    make: Make, server: LocalServer, texts: Any
) -> None:
    function = make()
    for method in (function, function.embed_query):
        with pytest.raises(errors.InvalidInputError):
            method(texts)
    assert server.stats.requests == 0


def test_no_queries_give_no_vectors_and_no_request(make: Make, server: LocalServer) -> None:
    assert make().embed_query([]) == []
    assert server.stats.requests == 0


Item = dict[str, Any]


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """JSON that comes in one piece, also with NaN in it, which httpx's own refuses."""

    def __init__(self, content: Any) -> None:
        self._content = json.dumps(content).encode()

    def __iter__(self) -> Iterator[bytes]:
        yield self._content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


def answering(
    edit: Callable[[list[Item]], Any] = lambda data: None,
    status: Callable[[Any], Any] = lambda request: 200,
    **settings: Any,
) -> NexusFlowEmbeddingFunction:
    """A function whose server gives text ``n`` the vector of 64 times ``n + 1``, then edited.

    ``status`` says for a request's JSON 200, or a status and a body.
    """

    def answer(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        if (verdict := status(asked)) != 200:
            return httpx.Response(verdict[0], stream=Body(verdict[1]))
        data: list[Item] = [
            {"object": "embedding", "index": index, "embedding": [float(index + 1)] * 64}
            for index in range(len(asked["input"]))
        ]
        edit(data)
        return httpx.Response(200, stream=Body({"data": data}))

    transport = httpx.MockTransport(answer)
    settings = {
        "dimensions": 64,
        "max_retries": 0,
        "http_client": httpx.Client(transport=transport),
        "async_http_client": httpx.AsyncClient(transport=transport),
    } | settings
    return NexusFlowEmbeddingFunction(KEY, **settings)


FAULTS: dict[str, Callable[[list[Item]], Any]] = {
    "not a number": lambda data: data[-1]["embedding"].__setitem__(5, float("nan")),
    "infinite": lambda data: data[0]["embedding"].__setitem__(5, 1e39),
    "all zeros": lambda data: data[1].update(embedding=[0.0] * 64),
    "one too few": lambda data: data.pop(),
    "one too many": lambda data: data.append(data[0] | {"index": 3}),
    "one twice": lambda data: data[1].update(index=0),
    "another size": lambda data: [item.update(embedding=[1.0] * 128) for item in data],
    "one of another size": lambda data: data[1].update(embedding=[1.0] * 128),
}


@pytest.mark.parametrize("method", ["__call__", "embed_query"])
@pytest.mark.parametrize("fault", FAULTS)
def test_vectors_that_chroma_would_take_are_refused(fault: str, method: str) -> None:
    with pytest.raises(errors.InvalidResponseError):
        getattr(answering(FAULTS[fault]), method)(input=["a", "b", "c"])


@pytest.mark.parametrize("method", ["__call__", "embed_query"])
def test_answers_out_of_order_are_put_in_order(method: str) -> None:
    rows = getattr(answering(list.reverse), method)(input=["a", "b", "c"])
    assert [row[0] for row in rows] == [1.0, 2.0, 3.0]


def test_it_works_inside_a_running_loop(make: Make) -> None:
    async def notebook() -> Any:
        return make()(["a", "b"])

    assert len(asyncio.run(notebook())) == 2


def test_embedding_asynchronously_lets_the_loop_run(make: Make) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def run(url: str) -> None:
        ticking = asyncio.ensure_future(tick())
        await make(api_base=url).aembed([f"text {n}" for n in range(40)])
        ticking.cancel()

    with LocalServer(model="hash", latency_ms=200) as slow:
        asyncio.run(run(slow.base_url))
    assert ticks > 10


# -- configuration -----------------------------------------------------------------------------


def test_the_configuration_holds_what_changes_the_vector_and_no_key() -> None:
    function = NexusFlowEmbeddingFunction(
        KEY,
        model_name="text-embedding-v4",
        dimensions=256,
        api_base="https://example.com/v1/",
        api_key_env_var="NEXUSFLOW_TEAM_KEY",
        query_instruction="Find: ",
        default_headers={"X-Team": "secret header"},
        timeout=5,
    )
    assert json.loads(json.dumps(function.get_config())) == {
        "model_name": "text-embedding-v4",
        "dimensions": 256,
        "api_base": "https://example.com/v1",
        "api_key_env_var": "NEXUSFLOW_TEAM_KEY",
        "query_instruction": "Find: ",
    }


def test_the_default_configuration_names_the_service_but_no_address_to_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default = {"model_name": "text-embedding-v4", "api_key_env_var": "NEXUSFLOW_API_KEY"}
    for address, service in {
        "": "https://nexusflow.vip",
        "https://nexusflow.vip:443/v1": "https://nexusflow.vip",
        "https://Proxy.example:8443/a/v1": "https://proxy.example:8443",
        "http://127.0.0.1:4711/v1": "localhost",
        "http://[::1]:4711/v1": "localhost",
        "https://[2001:db8::1]/v1": "https://[2001:db8::1]",
    }.items():
        monkeypatch.setenv("NEXUSFLOW_BASE_URL", address)
        assert NexusFlowEmbeddingFunction().get_config() == {**default, "service": service}


@pytest.mark.parametrize(
    "settings", [{}, {"dimensions": 64}, {"query_instruction": "Q: "}, {"model_name": "other"}]
)
def test_a_rebuilt_function_has_the_same_configuration(settings: dict[str, Any]) -> None:
    function = NexusFlowEmbeddingFunction(**settings)
    rebuilt = NexusFlowEmbeddingFunction.build_from_config(function.get_config())
    assert rebuilt.get_config() == function.get_config()
    assert not rebuilt.is_legacy()
    assert (rebuilt.model_name, rebuilt.dimensions) == (function.model_name, function.dimensions)


def test_settings_missing_in_a_configuration_have_their_defaults() -> None:
    rebuilt = NexusFlowEmbeddingFunction.build_from_config({})
    assert {**rebuilt.get_config(), "service": "https://nexusflow.vip"} == (
        NexusFlowEmbeddingFunction().get_config()
    )


def test_changing_the_returned_configuration_changes_nothing() -> None:
    function = NexusFlowEmbeddingFunction(dimensions=64)
    function.get_config()["dimensions"] = 128
    assert function.get_config()["dimensions"] == 64


@pytest.mark.parametrize(
    "config",
    [
        {"__invalid_test_config__": True},
        {"api_key": "sk-air-in-the-config"},
        {"default_headers": {"Authorization": "Bearer x"}},
        {"dimensions": 1000},
        {"dimensions": "1024"},
        {"dimensions": True},
        {"model_name": ""},
        {"model_name": 7},
        {"query_instruction": ["x"]},
        {"api_base": "ftp://nexusflow.vip"},
        {"api_base": "https://user:password@nexusflow.vip/v1"},
        {"api_base": 5},
        {"api_key_env_var": 5},
        {"api_key_env_var": "OPENAI_API_KEY"},
        {"api_key_env_var": "NEXUSFLOW_API_KEY\n"},
        {"api_key_env_var": "nexusflow_api_key"},
        {"api_key_env_var": "sk-air-0123456789"},
    ],
    ids=repr,
)
def test_an_impossible_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigurationError) as validated:
        NexusFlowEmbeddingFunction.validate_config(config)
    with pytest.raises(errors.ConfigurationError):
        NexusFlowEmbeddingFunction.build_from_config(config)
    assert isinstance(validated.value, ValueError)
    assert "sk-air" not in str(validated.value)
    assert "Bearer" not in str(validated.value)
    assert "password@" not in str(validated.value)


def test_a_key_given_as_the_name_of_its_variable_is_not_echoed() -> None:
    with pytest.raises(errors.ConfigurationError, match="NEXUSFLOW_") as caught:
        NexusFlowEmbeddingFunction(api_key_env_var="sk-air-0123456789")
    assert "sk-air" not in str(caught.value)


@pytest.mark.parametrize("change", [{"model_name": "other"}, {"dimensions": 128}])
def test_a_change_of_model_or_size_is_not_an_update(change: dict[str, Any]) -> None:
    function = NexusFlowEmbeddingFunction(dimensions=64)
    old = function.get_config()
    with pytest.raises(errors.ConfigurationError, match=next(iter(change))):
        function.validate_config_update(old, old | change)
    with pytest.raises(errors.ConfigurationError, match="dimensions"):
        function.validate_config_update({}, {"dimensions": 64})


@pytest.mark.parametrize("named", [False, True], ids=["by the environment", "by an argument"])
def test_a_change_of_service_is_not_an_update(named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    function = NexusFlowEmbeddingFunction(dimensions=64)
    old = function.get_config()
    if not named:
        monkeypatch.setenv("NEXUSFLOW_BASE_URL", "https://other.example/v1")
    base = "https://other.example/v1" if named else None
    new = NexusFlowEmbeddingFunction(dimensions=64, api_base=base).get_config()
    with pytest.raises(errors.ConfigurationError, match=r"service.*address_changed=True"):
        function.validate_config_update(old, new)
    function.validate_config_update(
        old, {"dimensions": 64, "api_base": "https://nexusflow.vip/another/path"}
    )
    function.validate_config_update({"dimensions": 64}, new)


def test_a_collection_reports_that_its_service_was_changed(
    client: Any, make: Make, server: LocalServer
) -> None:
    collection = client.create_collection("docs", embedding_function=make())
    other = NexusFlowEmbeddingFunction(dimensions=64, api_base="https://other.example/v1")
    with pytest.raises(errors.ConfigurationError, match=r"localhost.*change it back"):
        collection.modify(configuration={"embedding_function": other})
    collection.modify(configuration={"embedding_function": make(query_instruction="Find: ")})


def test_all_other_settings_may_be_updated() -> None:
    function = NexusFlowEmbeddingFunction(dimensions=64)
    old = function.get_config()
    function.validate_config_update(old, old)
    function.validate_config_update(
        old,
        old
        | {
            "api_base": "https://example.com/v1",
            "api_key_env_var": "NEXUSFLOW_OTHER_KEY",
            "query_instruction": "Q: ",
        },
    )


def test_its_space_is_cosine_and_it_knows_all_three() -> None:
    function = NexusFlowEmbeddingFunction()
    assert function.default_space() == "cosine"
    assert set(function.supported_spaces()) == {"cosine", "l2", "ip"}


# -- settings, copies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [("dimensions", 1000), ("batch_size", 0), ("timeout", -1), ("api_base", "nexusflow.vip")],
)
def test_an_impossible_setting_is_refused_at_once(setting: str, value: object) -> None:
    with pytest.raises(errors.ConfigurationError, match=f"^{setting} must "):
        NexusFlowEmbeddingFunction(**{setting: value})


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="modelname"):
        NexusFlowEmbeddingFunction(modelname="x")  # type: ignore[call-arg]


def test_plain_http_is_refused_but_for_loopback_and_on_request() -> None:
    with pytest.raises(errors.ConfigurationError, match="plain http"):
        NexusFlowEmbeddingFunction(api_base="http://example.com/v1")
    function = NexusFlowEmbeddingFunction(api_base="http://example.com/v1", allow_http=True)
    NexusFlowEmbeddingFunction.validate_config(function.get_config())


def test_it_says_what_it_cost(make: Make) -> None:
    function = make()
    assert function.usage.requests == 0
    function(["one two three"])
    assert (function.usage.requests, function.usage.texts) == (1, 1)
    assert function.usage.tokens > 0


def test_a_budget_also_holds_in_a_function_that_chroma_rebuilt(make: Make) -> None:
    function = make(budget=Budget(tokens=0))
    rebuilt = NexusFlowEmbeddingFunction.build_from_config(function.get_config())
    with pytest.raises(errors.BudgetExceededError):
        rebuilt(["one two three"])


def test_texts_in_the_cache_are_not_paid_for_again(
    make: Make, server: LocalServer, tmp_path: Path
) -> None:
    make(cache=tmp_path / "vectors.sqlite")(["one", "two"])
    server.reset_stats()
    again = make(cache=tmp_path / "vectors.sqlite")
    assert len(again(["two", "one", "three"])) == 3
    assert server.stats.received == ("three",)
    assert again.usage.cached == 2


def test_the_key_is_in_no_repr_and_no_pickle() -> None:
    function = NexusFlowEmbeddingFunction(KEY, dimensions=64)
    assert KEY not in repr(function)
    assert KEY not in repr(vars(function))
    assert KEY.encode() not in pickle.dumps(function)


def test_a_pickle_keeps_the_settings_and_finds_the_key_in_its_process(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = pickle.loads(pickle.dumps(make(timeout=7.5, on_usage=print)))
    with pytest.raises(errors.ConfigurationError, match="NEXUSFLOW_API_KEY"):
        function(["a"])
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    assert function(["a"])[0].shape == (64,)
    assert function.client.settings.timeout == 7.5


def test_a_copy_in_the_same_process_keeps_the_key(make: Make) -> None:
    function = make()
    assert copy(function)(["a"])[0].shape == (64,)
    assert deepcopy({"ef": function})["ef"](["a"])[0].shape == (64,)
