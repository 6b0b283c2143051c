"""Pickle, deepcopy and spawn keep everything except the key."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import Budget, NexusFlow, Price, errors
from nexusflow_integrations.errors import ConfigurationError, NexusFlowError

from .scene import KEY, assert_right, client_of, texts

FULL: dict[str, Any] = {
    "dimensions": 64,
    "batch_size": 5,
    "requests_per_minute": 600,
    "query_instruction": "q: ",
    "on_refused": "collect",
    "budget": Budget(tokens=10_000),
    "price": Price(2.0, "EUR"),
    "default_headers": {"X-Team": "search"},
}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_client_keeps_its_settings_and_loses_the_key(
    server: Any, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    client = client_of(server, **FULL)
    client.embed(["used before"])
    data = pickle.dumps(client, protocol)
    assert KEY.encode() not in data
    twin = pickle.loads(data)
    assert twin.settings == client.settings
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="NEXUSFLOW_API_KEY"):
        twin.embed("a")
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    assert_right(twin.embed(texts(12)), texts(12))
    assert twin.usage.currency == "EUR"


def test_a_deepcopy_and_a_copy_keep_the_key_and_share_the_budget(server: Any) -> None:
    client = client_of(server, budget=Budget(tokens=60))
    for twin in (copy.deepcopy(client), copy.copy(client), copy.deepcopy({"c": [client]})["c"][0]):
        assert twin is not client
        assert_right(twin.embed(["a"]), ["a"])
    with pytest.raises(errors.BudgetExceededError):
        client.embed(["x" * 70])


def test_closing_a_copy_leaves_the_original_open(server: Any) -> None:
    client = client_of(server)
    copy.deepcopy(client).close()
    assert_right(client.embed(["a"]), ["a"])


def _embed(client: NexusFlow, name: str) -> Any:
    return np.asarray(client.embed(texts(12, name)))


@pytest.mark.slow
def test_a_spawned_pool_of_processes_gets_the_right_vectors(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    from . import scene

    # The children import this module by its name.
    monkeypatch.setenv("PYTHONPATH", f"{scene.ROOT / 'tests'}:{scene.ROOT}")
    client = client_of(server)
    client.embed("warm")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_embed, client, f"job {n}") for n in range(4)]
        for n, future in enumerate(futures):
            assert_right(future.result(240), texts(12, f"job {n}"))


def test_an_error_of_a_child_process_arrives_as_itself(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    from . import scene

    monkeypatch.setenv("PYTHONPATH", f"{scene.ROOT / 'tests'}:{scene.ROOT}")
    body = {"error": {"code": "invalid_api_key", "message": "no"}}
    server.script = type(server.script)(lambda wire: wire.respond(401, body))
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        pytest.raises(errors.AuthenticationError) as caught,
    ):
        pool.submit(_embed, client_of(server), "x").result(240)
    assert caught.value.status_code == 401


CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, NexusFlowError)
]


def example(cls: type[NexusFlowError]) -> NexusFlowError:
    values: dict[str, Any] = {
        "status_code": 429,
        "code": "c",
        "request_id": "r",
        "retry_after": 1.5,
        "attempts": 3,
        "index": 7,
        "refused": {2: errors.BadRequestError("why", status_code=400)},
    }
    accepted = inspect.signature(cls.__init__).parameters
    error = cls("words", **{name: v for name, v in values.items() if name in accepted})
    error.finished = {0: np.arange(4, dtype=np.float32), 9: np.ones(4, np.float32)}
    return error


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy]
)
def test_every_error_comes_back_with_all_it_carries(cls: type[NexusFlowError], again: Any) -> None:
    error = example(cls)
    twin = again(error)
    assert type(twin) is cls
    assert str(twin) == "words"
    assert twin.args == error.args
    assert vars(twin).keys() == vars(error).keys()
    assert {i: row.tolist() for i, row in twin.finished.items()} == {
        0: [0.0, 1.0, 2.0, 3.0],
        9: [1.0] * 4,
    }
    for name in ("status_code", "code", "request_id", "retry_after", "attempts", "index"):
        assert getattr(twin, name, None) == getattr(error, name, None)
    if isinstance(error, errors.RefusedTextsError):
        assert isinstance(twin, errors.RefusedTextsError)
        assert twin.refused[2].status_code == 400


def test_every_public_error_is_covered_here() -> None:
    assert {cls.__name__ for cls in CLASSES} == set(errors.__all__)


def test_a_real_error_pickles_without_the_key_and_with_what_was_finished(server: Any) -> None:
    def refuse(wire: Any) -> None:
        auth = wire.request.header("authorization")
        wire.respond(401, {"error": {"code": "invalid_api_key", "message": f"bad {auth}"}})

    server.script = type(server.script)(refuse, lambda wire: wire.number >= 2)
    client = client_of(server, max_concurrency=1)
    with pytest.raises(errors.AuthenticationError) as caught:
        client.embed(texts(50))
    data = pickle.dumps(caught.value)
    assert KEY.encode() not in data
    twin = pickle.loads(data)
    assert set(twin.finished) == set(range(20))
    assert_right([twin.finished[n] for n in range(20)], texts(20))
