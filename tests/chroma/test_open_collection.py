"""``open_collection`` creates a collection, or refuses one with incomparable vectors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api import types
from chromadb.errors import NotFoundError
from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

from nexusflow_integrations import Budget, chroma, errors
from nexusflow_integrations._core.comparing import TOLERANCE, deviation
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import add_documents, open_collection
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

from .conftest import KEY
from .test_embedding_function import Make


def stored(collection: Any) -> Any:
    return collection.configuration_json["embedding_function"]


def test_a_collection_that_does_not_exist_is_made(client: Any, make: Make, strict: None) -> None:
    collection = open_collection(
        client,
        "docs",
        make(),
        metadata={"about": "animals"},
        configuration={"hnsw": {"ef_search": 50}},
    )
    assert stored(collection) == {
        "type": "known",
        "name": "nexusflow",
        "config": make().get_config(),
    }
    assert collection.metadata == {"about": "animals"}
    assert collection.configuration_json["hnsw"]["space"] == "cosine"
    assert collection.configuration_json["hnsw"]["ef_search"] == 50


def test_a_configuration_is_not_written_into(client: Any, make: Make) -> None:
    configuration: Any = {"hnsw": {"space": "ip"}}
    for name in ("one", "two"):
        collection = open_collection(client, name + "-docs", make(), configuration=configuration)
        assert collection.configuration_json["hnsw"]["space"] == "ip"
    assert configuration == {"hnsw": {"space": "ip"}}


def test_a_collection_is_not_created_if_create_is_false(client: Any, make: Make) -> None:
    with pytest.raises(NotFoundError):
        open_collection(client, "docs", make(), create=False)
    assert client.list_collections() == []


@pytest.mark.usefixtures("in_environment")
def test_without_a_function_it_takes_the_stored_one_or_the_default(client: Any, make: Make) -> None:
    open_collection(client, "docs", make(api_key=None, api_base=None))
    again = open_collection(client, "docs")
    again.add(ids=["1"], documents=["red pandas"])
    assert again.get(include=["embeddings"])["embeddings"].shape == (1, 64)
    assert stored(open_collection(client, "more-docs")) == {
        "type": "known",
        "name": "nexusflow",
        "config": NexusFlowEmbeddingFunction().get_config(),
    }


def test_opening_twice_returns_the_same_collection(client: Any, make: Make, strict: None) -> None:
    first = open_collection(client, "docs", make())
    first.add(ids=["1"], documents=["red pandas"])
    second = open_collection(client, "docs", make())
    assert second.id == first.id
    assert second.query(query_texts=["red pandas"])["ids"] == [["1"]]


@pytest.mark.parametrize(
    ("other", "setting"),
    [
        ({"model_name": "another-model"}, "model_name"),
        ({"dimensions": 128}, "dimensions"),
        ({"dimensions": None}, "dimensions"),
        ({"document_instruction": "Read: "}, "document_instruction"),
        ({"extra_body": {"a": 1}}, "extra_body"),
        ({"default_query": {"a": "1"}}, "default_query"),
    ],
)
@pytest.mark.parametrize("filled", [False, True])
def test_another_model_or_size_is_refused(
    client: Any, make: Make, other: dict[str, Any], setting: str, filled: bool
) -> None:
    collection = open_collection(client, "docs", make())
    if filled:
        collection.add(ids=["1"], documents=["red pandas"])
    before = stored(collection)
    with pytest.raises(errors.ConfigurationError, match=f"{setting}=") as caught:
        open_collection(client, "docs", make(**other))
    assert "docs" in str(caught.value)
    assert stored(client.get_collection("docs")) == before


def test_a_size_that_the_server_chose_is_known_once_there_are_vectors(
    client: Any, make: Make
) -> None:
    collection = open_collection(client, "docs", make(dimensions=None))
    with pytest.raises(errors.ConfigurationError, match="dimensions=None"):
        open_collection(client, "docs", make(dimensions=1024))
    collection.add(ids=["1"], documents=["red pandas"])
    assert open_collection(client, "docs", make(dimensions=1024)).count() == 1
    assert open_collection(client, "docs", make(dimensions=None)).count() == 1
    with pytest.raises(errors.ConfigurationError, match="dimensions=1024"):
        open_collection(client, "docs", make(dimensions=256))


def test_another_query_instruction_is_refused_until_it_is_stored(
    client: Any, make: Make, server: LocalServer
) -> None:
    collection = open_collection(client, "docs", make())
    other = make(query_instruction="Find: ")
    with pytest.raises(errors.ConfigurationError, match=r"query_instruction=None.*'Find: '"):
        open_collection(client, "docs", other)
    collection.modify(configuration={"embedding_function": other})
    open_collection(client, "docs").query(query_texts=["pandas"])
    assert server.stats.received[-1] == "Find: pandas"


def test_settings_that_do_not_change_vectors_may_differ(
    client: Any, make: Make, strict: None
) -> None:
    open_collection(client, "docs", make()).add(ids=["1"], documents=["red pandas"])
    other = make(batch_size=2, encoding_format="float", timeout=5.0, api_key="sk-air-another")
    assert open_collection(client, "docs", other).count() == 1


def offline(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", address)


PRODUCTION = "https://nexusflow.vip/v1"


@pytest.mark.parametrize("named", [False, True], ids=["by the environment", "by an argument"])
@pytest.mark.parametrize("given", [False, True], ids=["opened without", "opened with a function"])
def test_a_collection_filled_offline_is_refused_with_the_production_address(
    client: Any, server: LocalServer, monkeypatch: pytest.MonkeyPatch, named: bool, given: bool
) -> None:
    offline(monkeypatch, server.base_url)
    base = server.base_url if named else None
    first = open_collection(client, "docs", NexusFlowEmbeddingFunction(api_base=base))
    add_documents(first, ids=["1"], documents=["red pandas"])
    before = stored(first)
    offline(monkeypatch, PRODUCTION)
    chroma._made_here.clear()
    if given:
        with pytest.raises(errors.ConfigurationError, match=r"localhost.*https://nexusflow\.vip"):
            open_collection(client, "docs", NexusFlowEmbeddingFunction())
    elif not named:  # a stored address is still used
        with pytest.raises(errors.ConfigurationError, match=r"localhost.*https://nexusflow\.vip"):
            open_collection(client, "docs")
        with pytest.raises(errors.ConfigurationError, match=r"localhost.*https://nexusflow\.vip"):
            client.get_collection("docs").add(ids=["2"], documents=["sea otters"])
    mixed = client.get_collection("docs", embedding_function=NexusFlowEmbeddingFunction())
    with pytest.raises(errors.ConfigurationError, match="address_changed"):
        add_documents(mixed, ids=["2"], documents=["sea otters"])
    assert stored(client.get_collection("docs", embedding_function=None)) == before
    assert first.count() == 1


def test_a_local_server_at_another_port_is_the_same_service(
    client: Any, monkeypatch: pytest.MonkeyPatch, strict: None
) -> None:
    offline(monkeypatch, "http://127.0.0.1:4711/v1")
    open_collection(client, "docs", NexusFlowEmbeddingFunction())
    for address in ("http://127.0.0.1:4712/v1", "http://localhost:4713/v1"):
        offline(monkeypatch, address)
        open_collection(client, "docs", NexusFlowEmbeddingFunction())
        open_collection(client, "docs", NexusFlowEmbeddingFunction(api_base=address))


@pytest.mark.parametrize("given", [False, True], ids=["opened without", "opened with a function"])
def test_a_new_address_of_the_same_service_is_stored_when_the_caller_says_so(
    client: Any, monkeypatch: pytest.MonkeyPatch, given: bool, strict: None
) -> None:
    offline(monkeypatch, "https://old.example/v1")
    made = open_collection(client, "docs", NexusFlowEmbeddingFunction(dimensions=64))
    made.add(ids=["1"], embeddings=[[1.0] * 64])
    offline(monkeypatch, "https://new.example/v1")
    function = NexusFlowEmbeddingFunction(dimensions=64) if given else None
    with pytest.raises(errors.ConfigurationError, match=r"old\.example.*address_changed=True"):
        open_collection(client, "docs", function)
    moved = open_collection(client, "docs", function, address_changed=True)
    assert moved.count() == 1
    assert stored(moved)["config"]["service"] == "https://new.example"
    assert open_collection(client, "docs", function).id == made.id
    offline(monkeypatch, "https://old.example/v1")
    with pytest.raises(errors.ConfigurationError, match=r"new\.example"):
        open_collection(client, "docs", NexusFlowEmbeddingFunction(dimensions=64))


@pytest.mark.parametrize("given", [False, True], ids=["opened without", "opened with a function"])
def test_a_collection_that_was_created_without_a_key_takes_the_address_when_the_caller_says_so(
    client: Any, server: LocalServer, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    monkeypatch.delenv("NEXUSFLOW_BASE_URL", raising=False)
    first = open_collection(client, "docs", NexusFlowEmbeddingFunction(dimensions=64))
    with pytest.raises(errors.ConfigurationError, match="no API key"):
        first.add(ids=["1"], documents=["red pandas"])
    chroma._made_here.clear()
    offline(monkeypatch, server.base_url)
    function = NexusFlowEmbeddingFunction(dimensions=64) if given else None
    # Another program may be filling it from the first address at this moment.
    with pytest.raises(errors.ConfigurationError, match=r"still empty.*address_changed=True"):
        open_collection(client, "docs", function)
    made = open_collection(client, "docs", function, address_changed=True)
    made.add(ids=["1"], documents=["red pandas"])
    assert stored(client.get_collection("docs"))["config"]["service"] == "localhost"


def test_a_new_address_allows_no_other_model(client: Any, make: Make) -> None:
    open_collection(client, "docs", make())
    for other in ({"model_name": "other"}, {"dimensions": 128}, {"query_instruction": "Find: "}):
        with pytest.raises(errors.ConfigurationError, match=next(iter(other))):
            open_collection(client, "docs", make(**other), address_changed=True)


def filled(client: Any, make: Make) -> Any:
    collection = open_collection(client, "docs", make())
    texts = ["red pandas climb", "sea otters swim", "owls fly"]
    add_documents(collection, ids=["1", "2", "3"], documents=texts)
    return collection


def noisy(row: Any) -> Any:
    return row * (1 + np.finfo(np.float32).eps * np.where(np.arange(row.size) % 2, 1, -1))


@pytest.mark.parametrize("cached", [False, True])
def test_verifying_accepts_the_same_vectors_up_to_rounding_and_asks_past_the_cache(
    client: Any, make: Make, server: LocalServer, tmp_path: Path, cached: bool
) -> None:
    def function() -> NexusFlowEmbeddingFunction:
        return make(cache=tmp_path / "cache.sqlite" if cached else None)

    collection = filled(client, lambda **_: function())
    rows = collection.get(include=["embeddings"])["embeddings"]
    collection.update(ids=["1", "2", "3"], embeddings=[noisy(row) for row in rows])
    before = server.stats.requests
    assert open_collection(client, "docs", function(), verify=True).count() == 3
    assert open_collection(client, "docs", verify=True).count() == 3
    assert server.stats.requests == before + 2


def test_verifying_counts_in_budget_and_usage(client: Any, make: Make, server: LocalServer) -> None:
    filled(client, make)
    function = make(budget=Budget(tokens=1), on_usage=(told := []).append)
    before = server.stats.requests
    with pytest.raises(errors.BudgetExceededError):
        open_collection(client, "docs", function, verify=True)
    assert server.stats.requests == before
    function = make(on_usage=told.append)
    open_collection(client, "docs", function, verify=True)
    assert function.usage.texts == told[-1].texts == 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda row: row[::-1], id="reordered numbers"),
        pytest.param(lambda row: np.roll(row, 1), id="shifted numbers"),
        pytest.param(lambda row: row * 0.9, id="another length"),
        pytest.param(lambda row: -row, id="turned round"),
        pytest.param(lambda row: np.where(np.arange(row.size) < 60, row, 0), id="cut"),
        pytest.param(lambda row: np.ones_like(row) / 8, id="another model"),
    ],
)
def test_verifying_refuses_a_service_that_answers_with_other_vectors(
    client: Any, make: Make, change: Any
) -> None:
    collection = filled(client, make)
    rows = collection.get(include=["embeddings"])["embeddings"]
    collection.update(ids=["1", "2", "3"], embeddings=[change(row) for row in rows])
    open_collection(client, "docs", make())
    with pytest.raises(errors.ConfigurationError, match="differently"):
        open_collection(client, "docs", make(), verify=True)


def test_verifying_finds_vectors_of_other_rows(client: Any, make: Make) -> None:
    collection = filled(client, make)
    rows = collection.get(include=["embeddings"])["embeddings"]
    collection.update(ids=["1", "2", "3"], embeddings=list(rows[[1, 0, 2]]))
    with pytest.raises(errors.ConfigurationError, match="document '1'"):
        open_collection(client, "docs", make(), verify=True)


def test_verifying_an_empty_collection_sends_nothing(
    client: Any, make: Make, server: LocalServer
) -> None:
    for _ in range(2):
        open_collection(client, "docs", make(), verify=True)
    assert server.stats.requests == 0


def test_rounding_raises_no_false_alarm_and_another_vector_is_never_missed() -> None:
    random = np.random.default_rng(7)
    for _ in range(1000):
        row = random.standard_normal(256).astype(np.float32)
        same = row.astype(np.float16).astype(np.float32)
        assert deviation(row, same) < TOLERANCE / 10
        assert deviation(row, random.permutation(row)) > TOLERANCE * 10
    assert deviation(row, row[:128]) == float("inf")


def of_another_function(client: Any, server: LocalServer, kind: str) -> Any:
    """Fill a collection from the same service, as others do."""
    texts, ids = ["red pandas climb", "sea otters swim"], ["1", "2"]
    source = NexusFlowEmbeddingFunction(api_key=KEY, api_base=server.base_url, dimensions=64)
    if kind == "openai":
        function: Any = OpenAIEmbeddingFunction(api_base=server.base_url)
        collection = client.create_collection("docs", embedding_function=function)
        collection.add(ids=ids, documents=texts, embeddings=source(texts))
        return collection
    if kind == "langchain":
        store = pytest.importorskip("langchain_chroma").Chroma(
            client=client,
            collection_name="docs",
            embedding_function=NexusFlowEmbeddings(
                api_key=KEY, base_url=server.base_url, dimensions=64
            ),
        )
        store.add_texts(texts, ids=ids)
        return client.get_collection("docs", embedding_function=None)
    collection = client.create_collection("docs")  # stores Chroma's default
    collection.add(ids=ids, documents=texts, embeddings=source(texts))
    return collection


@pytest.fixture
def openai_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("CHROMA_OPENAI_API_KEY", KEY)  # where older versions of Chroma look


@pytest.mark.usefixtures("openai_key")
@pytest.mark.parametrize("given", [False, True], ids=["opened without", "opened with a function"])
@pytest.mark.parametrize("kind", ["openai", "langchain", "default"])
def test_a_collection_of_the_same_vectors_is_adopted_without_paying_for_the_rest(
    client: Any,
    make: Make,
    server: LocalServer,
    in_environment: None,
    kind: str,
    given: bool,
) -> None:
    before = of_another_function(client, server, kind)
    function = make() if given else None
    with pytest.raises(errors.ConfigurationError, match="adopt=True"):
        open_collection(client, "docs", function)
    requests = server.stats.requests
    collection = open_collection(client, "docs", function, adopt=True)
    assert server.stats.requests == requests + 1
    assert (collection.id, collection.count()) == (before.id, 2)
    assert stored(collection)["name"] == "nexusflow"
    again = open_collection(client, "docs", function, adopt=True)  # changes nothing, sends nothing
    assert server.stats.requests == requests + 1
    added = add_documents(again, ids=["2", "3"], documents=["sea otters swim", "owls fly"])
    assert (added.added, added.present) == (1, 1)
    found = client.get_collection("docs").query(query_texts=["owls fly"], n_results=1)
    assert found["ids"] == [["3"]]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        pytest.param([[0.125] * 64] * 2, "differently", id="other vectors"),
        pytest.param([[0.125] * 128] * 2, "vectors of size 128", id="another size"),
        pytest.param(None, "without documents", id="no documents"),
    ],
)
def test_a_collection_that_cannot_be_verified_is_not_adopted(
    client: Any, make: Make, rows: Any, reason: str
) -> None:
    collection = client.create_collection("docs")
    if rows is None:
        collection.add(ids=["1", "2"], embeddings=[[0.125] * 64] * 2)
    else:
        collection.add(ids=["1", "2"], embeddings=rows, documents=["red pandas", "owls"])
    before = stored(collection)
    with pytest.raises(errors.ConfigurationError, match=reason):
        open_collection(client, "docs", make(), adopt=True)
    assert stored(client.get_collection("docs", embedding_function=None)) == before


def test_an_empty_collection_is_adopted_without_a_request(
    client: Any, make: Make, server: LocalServer
) -> None:
    client.create_collection("docs")
    open_collection(client, "docs", make(), adopt=True)
    assert open_collection(client, "docs", make()).count() == 0
    assert server.stats.requests == 0


class OwnName(NexusFlowEmbeddingFunction):
    @staticmethod
    def name() -> str:
        return "own-name"


class NotOurs(types.EmbeddingFunction[types.Documents]):
    def __init__(self) -> None:
        pass

    def __call__(self, input: types.Documents) -> types.Embeddings:  # noqa: A002
        raise AssertionError


@pytest.mark.parametrize("function", [OwnName, NotOurs])
def test_a_refused_function_leaves_no_collection_behind(client: Any, function: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match=function.__name__):
        open_collection(client, "docs", function())
    with pytest.raises(errors.ConfigurationError, match="not in configuration"):
        open_collection(client, "docs", configuration={"embedding_function": function()})
    assert client.list_collections() == []


def test_options_that_an_existing_collection_does_not_follow_are_named(
    client: Any, make: Make
) -> None:
    settings: Any = {
        "metadata": {"about": "animals"},
        "configuration": {"hnsw": {"space": "ip", "ef_search": 50}},
    }
    open_collection(client, "docs", make(), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_collection(client, "docs", make(), **settings)
    other: Any = {"hnsw": {"space": "ip", "ef_search": 60}}
    with pytest.warns(UserWarning, match=r"'about'.*'ef_search'.*modify") as caught:
        open_collection(client, "docs", make(), metadata={"about": "x"}, configuration=other)
    assert caught[0].filename == __file__
    with pytest.raises(errors.ConfigurationError, match="space='ip'"):
        open_collection(client, "docs", make(), configuration={"hnsw": {"space": "l2"}})


@pytest.mark.parametrize("other", ["none", "default"])
def test_a_collection_of_another_function_is_refused(client: Any, make: Make, other: str) -> None:
    if other == "none":
        client.create_collection("docs", embedding_function=None)
    else:
        client.create_collection("docs")
    with pytest.raises(errors.ConfigurationError, match="so it is not known"):
        open_collection(client, "docs", make())
    with pytest.raises(errors.ConfigurationError, match="so it is not known"):
        open_collection(client, "docs")


@pytest.mark.skipif(not hasattr(types, "Schema"), reason="this Chroma is older than schemas")
def test_a_collection_made_by_schema_is_opened_like_any_other(
    client: Any, make: Make, strict: None
) -> None:
    schema = types.Schema().create_index(config=types.VectorIndexConfig(embedding_function=make()))
    client.create_collection("docs", schema=schema)
    collection = open_collection(client, "docs", make())
    collection.add(ids=["1"], documents=["red pandas"])
    assert client.get_collection("docs").query(query_texts=["red pandas"])["ids"] == [["1"]]
    assert collection.configuration_json["hnsw"]["space"] == "cosine"
    with pytest.raises(errors.ConfigurationError, match="dimensions"):
        open_collection(client, "docs", make(dimensions=128))


def test_adding_to_a_collection_of_another_model_is_refused_before_paying(
    client: Any, make: Make, server: LocalServer
) -> None:
    open_collection(client, "docs", make())
    mixed = client.get_collection("docs", embedding_function=make(model_name="another-model"))
    with pytest.raises(errors.ConfigurationError, match="model_name"):
        add_documents(mixed, ids=["1"], documents=["red pandas"])
    client.create_collection("other-docs")
    with pytest.raises(errors.ConfigurationError, match="so it is not known"):
        add_documents(client.get_collection("other-docs"), ids=["1"], documents=["red pandas"])
    assert server.stats.requests == 0
