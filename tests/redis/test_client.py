"""``cache="redis://..."`` works end to end: failures lose no vector and pay for none twice."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.redis import server as redis_server_module
from nexusflow_integrations._core.redis.address import PASSWORD_ENV
from nexusflow_integrations.errors import CacheError, ConfigurationError
from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.redis import RedisLimits

if TYPE_CHECKING:
    from conftest import Proxy

TEXTS = [f"text number {number}" for number in range(400)]
PASSWORD = "hunter2"


def client_of(server: LocalServer, cache: str, **settings: Any) -> NexusFlow:
    return NexusFlow(server.api_key, base_url=server.base_url, cache=cache, **settings)


def warnings_of(caplog: pytest.LogCaptureFixture, about: str = "") -> list[str]:
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    return [line for line in said if line.startswith(about)]


def embed_all(client: NexusFlow) -> np.ndarray:
    vectors = client.embed(TEXTS)
    assert vectors.shape == (400, 1024)
    assert np.isfinite(vectors).all()
    return vectors


@contextmanager
def meanwhile(client: NexusFlow) -> Iterator[threading.Thread]:
    """Embed all texts in another thread; wait for it, and raise what it raised."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            embed_all(client)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield thread
    thread.join(120)
    assert not thread.is_alive()
    assert not failed, failed


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_server_that_restarts_on_the_way_is_waited_for(
    redis_process: Any,
    server: LocalServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_server_module.RedisServer.ask, "__kwdefaults__", {"patience": 60.0})
    redis = redis_process()
    client = client_of(server, redis.url, max_concurrency=2, requests_per_minute=1_800)
    with caplog.at_level(logging.INFO, "nexusflow_integrations"), meanwhile(client):
        until(lambda: server.stats.texts >= 50)
        redis.kill()
        redis.start()  # empty, as it keeps nothing on disk
    assert warnings_of(caplog) == []
    assert server.stats.texts == 400
    with redis.client() as behind:
        kept = len(behind.keys("nexusflow:vector:*"))
    assert 0 < kept < 400
    again = client_of(server, redis.url)
    embed_all(again)
    assert again.usage.cached == kept
    redis.kill()


def test_a_server_that_is_gone_turns_the_cache_off_with_one_warning(
    redis_process: Any,
    server: LocalServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_server_module.RedisServer.ask, "__kwdefaults__", {"patience": 0.1})
    redis = redis_process()
    client = client_of(server, redis.url, max_concurrency=2, requests_per_minute=1_800)
    with caplog.at_level(logging.INFO, "nexusflow_integrations"):
        with meanwhile(client):
            until(lambda: server.stats.texts >= 50)
            redis.kill()
        embed_all(client)
    (warning,) = warnings_of(caplog, "the cache")
    assert f"the cache is off until it works again: {redis.url} cannot be used" in warning
    assert len(warnings_of(caplog, "this process sets its own pace")) <= 1
    assert server.stats.duplicates.keys() <= set(TEXTS)


def test_a_server_that_was_never_reachable_causes_one_warning(
    server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(server, "redis://127.0.0.1:1/7", requests_per_minute=60_000)
    with caplog.at_level(logging.INFO, "nexusflow_integrations"):
        embed_all(client)
        embed_all(client)
    for about in ("the cache is off", "this process sets its own pace"):
        (warning,) = warnings_of(caplog, about)
        assert "redis://127.0.0.1:1/7 cannot be used" in warning


def test_a_full_server_loses_no_vector(
    redis_process: Any, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis = redis_process("--maxmemory-policy", "noeviction")
    with redis.client() as behind:
        behind.config_set("maxmemory", behind.info("memory")["used_memory"] + 600_000)
    client = client_of(server, redis.url, max_concurrency=2)
    with caplog.at_level(logging.INFO, "nexusflow_integrations"):
        embed_all(client)
    (warning,) = warnings_of(caplog)
    assert warning.startswith(
        f"the cache is off until it works again: {redis.url} cannot be used: "
    )
    assert "maxmemory" in warning
    assert warning.isprintable()  # no keys or vectors
    assert "nexusflow:" not in warning
    assert server.stats.duplicates == {}
    with redis.client() as behind:
        kept = len(behind.keys("nexusflow:vector:*"))
        assert 0 < kept < 400
        behind.config_set("maxmemory", 0)
    redis.kill()


def test_a_server_that_evicts_pays_again_for_what_it_evicted_and_no_more(
    redis_process: Any, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis = redis_process("--maxmemory-policy", "allkeys-lru")
    with redis.client() as behind:
        behind.config_set("maxmemory", behind.info("memory")["used_memory"] + 1_500_000)
    client = client_of(server, redis.url, max_concurrency=2)  # small groups: they need room too
    with caplog.at_level(logging.INFO, "nexusflow_integrations"):
        first = embed_all(client)
        with redis.client() as behind:
            kept = len(behind.keys("nexusflow:vector:*"))
        assert kept < 400
        assert np.array_equal(embed_all(client), first)
    assert warnings_of(caplog) == []
    assert 400 < server.stats.texts <= 800
    redis.kill()


@pytest.mark.parametrize("answers", [13, 17])
def test_connections_that_are_cut_before_the_answer_cost_no_second_payment(
    proxy: Proxy, server: LocalServer, caplog: pytest.LogCaptureFixture, answers: int
) -> None:
    proxy.drop_after = answers
    with caplog.at_level(logging.INFO, "nexusflow_integrations"):
        client = client_of(server, proxy.url, max_concurrency=2, batch_size=10)
        embed_all(client)
        embed_all(client)
    assert warnings_of(caplog) == []
    assert proxy.cut > 0
    assert server.stats.duplicates == {}
    assert server.stats.texts == 400


def test_neither_a_text_nor_the_key_is_ever_sent_to_the_server(
    proxy: Proxy, server: LocalServer
) -> None:
    client = client_of(server, proxy.url, requests_per_minute=60_000, query_instruction="Secretly:")
    client.embed(["the patient's diagnosis", "another patient"])
    client.embed("where is it", role="query")
    said = bytes(proxy.said)
    assert said.count(b"nexusflow:vector:") >= 3
    assert b"nexusflow:pacer:" in said
    key = server.api_key
    for hidden in (key, key[-8:], "patient", "diagnosis", "Secretly", "where"):
        assert hidden.encode() not in said


# -- the password ----------------------------------------------------------------------------------


@pytest.fixture
def locked(redis_process: Any) -> Iterator[Any]:
    redis = redis_process("--requirepass", PASSWORD)
    yield redis
    redis.kill()


def with_password(url: str) -> str:
    return url.replace("//", f"//:{PASSWORD}@")


def test_the_password_comes_from_the_url_or_from_the_environment(
    locked: Any, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_of(server, with_password(locked.url)).embed(TEXTS[:10])
    monkeypatch.setenv(PASSWORD_ENV, PASSWORD)
    client = client_of(server, f"{locked.url}?socket_timeout=30")
    client.embed(TEXTS[:10])
    assert client.usage.cached == 10


@pytest.mark.parametrize("how", ["none", "wrong"])
def test_a_missing_or_wrong_password_is_an_error_that_does_not_repeat_it(
    locked: Any, server: LocalServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = locked.url if how == "none" else locked.url.replace("//", "//:letmein@")
    with caplog.at_level(logging.DEBUG), pytest.raises(CacheError, match=PASSWORD_ENV) as caught:
        client_of(server, url).embed(TEXTS[:10])
    error: BaseException | None = caught.value
    while error is not None:
        assert "letmein" not in f"{error!r}"
        error = error.__cause__
    assert "letmein" not in caplog.text
    assert server.stats.requests == 0


@pytest.mark.parametrize("option", ["socket_timeout=soon", "ssl_unheard_of=1", "db=three"])
def test_an_option_that_the_package_does_not_take_is_an_error_without_the_password(
    redis_server: Any, server: LocalServer, option: str
) -> None:
    client = client_of(server, f"{with_password(redis_server.url)}?{option}")
    for _ in range(2):
        with pytest.raises(CacheError, match="option") as caught:
            client.embed(TEXTS[:10])
        assert PASSWORD not in str(caught.value)
    assert server.stats.requests == 0


def test_the_password_is_in_no_repr_log_warning_or_pickle(
    locked: Any,
    server: LocalServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_server_module.RedisServer.ask, "__kwdefaults__", {"patience": 0.1})
    client = client_of(server, with_password(locked.url))
    with caplog.at_level(logging.DEBUG):
        client.embed(TEXTS[:10])
        locked.kill()
        client.embed(TEXTS)
    assert "the cache is off" in caplog.text
    assert PASSWORD not in caplog.text
    assert PASSWORD not in repr(client) + repr(vars(client))
    assert PASSWORD.encode() not in pickle.dumps(client)


def test_a_pickled_client_finds_the_password_in_the_environment(
    locked: Any, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(server, with_password(locked.url))
    client.embed(TEXTS[:10])
    travelled = pickle.dumps(client)
    monkeypatch.setenv("NEXUSFLOW_API_KEY", server.api_key)
    monkeypatch.setenv(PASSWORD_ENV, PASSWORD)
    worker = pickle.loads(travelled)
    worker.embed(TEXTS[:10])
    assert worker.usage.requests == client.usage.requests  # no further one


def test_no_adapter_shows_writes_or_pickles_the_password(server: LocalServer) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    pytest.importorskip("chromadb")
    from langchain_core.load import dumps

    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
    from nexusflow_integrations.langchain import NexusFlowEmbeddings
    from nexusflow_integrations.llama_index import NexusFlowEmbedding

    url = "redis://user:hunter2@127.0.0.1:1/0"
    chain = NexusFlowEmbeddings(api_key=server.api_key, base_url=server.base_url, cache=url)
    index = NexusFlowEmbedding(api_key=server.api_key, api_base=server.base_url, cache=url)
    function = NexusFlowEmbeddingFunction(
        api_key=server.api_key, api_base=server.base_url, cache=url
    )
    shown = [repr(chain), str(chain), dumps(chain), repr(index), str(index), index.to_json()]
    shown += [repr(chain.model_dump()), repr(index.to_dict()), repr(function.get_config())]
    shown += [repr(function), repr(vars(function))]
    for text in shown:
        assert "hunter2" not in text
    for adapter in (chain, index, function):
        assert b"hunter2" not in pickle.dumps(adapter)
    for copied in (chain.model_copy(deep=True), chain):
        assert copied.cache.reveal() == url  # type: ignore[union-attr]
    assert "redis://user@127.0.0.1:1/0" in dumps(chain)
    for make in (NexusFlowEmbeddings, NexusFlowEmbedding, NexusFlowEmbeddingFunction):
        with pytest.raises((ConfigurationError, ValueError)) as caught:
            make(cache="http://:hunter2@127.0.0.1/0")  # type: ignore[call-arg]
        assert "hunter2" not in str(caught.value)


# -- the pace without a cache ----------------------------------------------------------------------


def test_clients_take_their_pace_from_limits_on_a_server(redis_server: Any) -> None:
    with LocalServer("hash", requests_per_minute=2_400) as server:
        told = {"account": "a team", "requests_per_minute": 2_400}
        clients = [
            NexusFlow(key, base_url=server.base_url, pacer=RedisLimits(redis_server.url, **told))
            for key in ("sk-air-one", "sk-air-one")
        ]
        threads = [
            threading.Thread(target=client.embed, args=([f"{who} {n}" for n in range(600)],))
            for who, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert server.stats.texts == 1_200
        assert server.stats.statuses.get(429, 0) <= 0.05 * server.stats.requests
    with redis_server.client() as behind:
        assert len(behind.keys("nexusflow:pacer:*")) == 1
        assert behind.keys("nexusflow:vector:*") == []


def test_limits_count_who_shares_them(redis_server: Any) -> None:
    one, other = (
        RedisLimits(redis_server.url, account="shared", requests_per_minute=600) for _ in range(2)
    )
    stranger = RedisLimits(redis_server.url, account="other", requests_per_minute=600)
    assert one.processes == 1
    first, second = one.lease(2, 10)
    assert second - first == pytest.approx(1 / 9.9)
    assert one.processes == 1
    other.lease(1, 10)
    one.lease(1, 10)
    stranger.lease(1, 10)
    assert (one.processes, other.processes, stranger.processes) == (2, 2, 1)


def test_limits_travel_by_pickle_without_the_password() -> None:
    told = {"account": "a", "requests_per_minute": 60.0, "tokens_per_minute": None}
    limits = RedisLimits(f"redis://:{PASSWORD}@127.0.0.1:1/0", **told)  # type: ignore[arg-type]
    same = RedisLimits(f"redis://:{PASSWORD}@127.0.0.1:1/0", **told)  # type: ignore[arg-type]
    assert limits == same
    assert hash(limits) == hash(same)
    assert limits != RedisLimits("redis://127.0.0.1:1/0", account="b", requests_per_minute=60)
    assert PASSWORD not in repr(limits)
    data = pickle.dumps(limits)
    assert PASSWORD.encode() not in data
    travelled = pickle.loads(data)
    assert travelled == pickle.loads(data)
    assert travelled.requests_per_minute == 60
    assert repr(travelled) == repr(limits)


def test_without_the_server_a_client_sets_its_own_pace_and_says_so(
    server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    limits = RedisLimits(f"redis://:{PASSWORD}@127.0.0.1:1/0", requests_per_minute=60_000)
    client = NexusFlow(server.api_key, base_url=server.base_url, pacer=limits)
    with caplog.at_level(logging.INFO, "nexusflow_integrations"):
        embed_all(client)
    (warning,) = warnings_of(caplog)
    assert "this process sets its own pace" in warning
    assert PASSWORD not in warning


def test_limits_on_a_server_that_takes_no_such_password_are_warned_of(
    locked: Any, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    limits = RedisLimits(locked.url.replace("//", "//:letmein@"), requests_per_minute=60_000)
    embed_all(NexusFlow(server.api_key, base_url=server.base_url, pacer=limits))
    (warning,) = warnings_of(caplog)
    assert "this process sets its own pace" in warning
    assert "letmein" not in caplog.text
