"""A store on a Redis server handles eviction, foreign data, forks and pruning by use."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations._core.cache.in_redis import RedisStore
from nexusflow_integrations._core.cache.upkeep import Pruned
from nexusflow_integrations._core.redis import server as redis_server_module
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import CacheError

Make = Callable[..., RedisStore]
Vector = Callable[..., np.ndarray]
DAY = 86_400


# -- vectors and claims ----------------------------------------------------------------------------


def test_an_evicted_vector_counts_as_absent(
    store: RedisStore, redis_server: Any, keys: list[bytes], vector: Vector
) -> None:
    store.put([(key, vector()) for key in keys])
    with redis_server.client() as client:
        client.delete(*(b"nexusflow:vector:" + key for key in keys[:5]))
    claimed = store.claim(keys, 8)
    assert claimed.mine == keys[:5]
    assert set(claimed.hits) == set(keys[5:])


def test_a_replaced_row_counts_as_absent(
    store: RedisStore, redis_server: Any, keys: list[bytes], vector: Vector
) -> None:
    store.put([(key, vector()) for key in keys[:4]])
    with redis_server.client() as client:
        names = [b"nexusflow:vector:" + key for key in keys]
        client.set(names[0], b"123")
        client.delete(names[1], names[2])
        client.lpush(names[1], "no string")
        client.set(names[2], b"")
    for dimensions in (8, None):
        claimed = store.claim(keys[:4], dimensions)
        assert claimed.mine == keys[:3]
        store.release(claimed.mine)
    store.claim(keys[:3], 8)
    store.put([(key, vector()) for key in keys[:3]])
    assert set(store.claim(keys[:4], 8).hits) == set(keys[:4])


def test_a_damaged_claim_is_ignored(
    store: RedisStore, redis_server: Any, keys: list[bytes]
) -> None:
    store.claim(keys[:1], 8)
    with redis_server.client() as client:
        client.hset("nexusflow:claims", keys[0], "what is this")
    assert store.info().in_flight == 0
    assert store.claim(keys[:1], 8).mine == keys[:1]


def test_abandoned_claims_are_dropped_after_a_week(
    redis_server: Any, store_on: Make, keys: list[bytes]
) -> None:
    now = 1_800_000_000.0
    store_on(redis_server.url, clock=lambda: now).claim(keys, 8)
    with redis_server.client() as client:
        now += 6 * DAY
        store_on(redis_server.url, clock=lambda: now).open()
        assert client.hlen("nexusflow:claims") == len(keys)
        now += 2 * DAY
        store_on(redis_server.url, clock=lambda: now).open()
        assert client.hlen("nexusflow:claims") == 0


def test_all_hosts_share_the_clock_of_the_server(
    redis_server: Any, store_on: Make, keys: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this host's is decades behind
    store = store_on(redis_server.url, claim_seconds=600)
    store.claim(keys, 8)
    with redis_server.client() as client:
        _, _, since, until, _ = client.hget("nexusflow:claims", keys[0]).split()
        assert abs(float(since) - client.time()[0]) < 120
        assert float(until) - float(since) == pytest.approx(600)


def test_other_data_in_the_database_is_not_changed(
    store: RedisStore, redis_server: Any, keys: list[bytes], vector: Vector
) -> None:
    with redis_server.client() as client:
        client.mset({"mine": "1", "nexusflow:vectors": "2"})
        store.put([(keys[0], vector())])
        store.prune(max_bytes=0)
        store.clear()
        assert client.mget("mine", "nexusflow:vectors") == [b"1", b"2"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_child_of_a_fork_connects_anew_and_owns_no_claim_of_its_parent(
    redis_server: Any, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    store = store_on(redis_server.url, claim_seconds=600)
    store.put([(keys[0], vector())])
    store.claim(keys[1:3], 8)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.renew(keys[1:2])
            store.release(keys[1:2])
            claimed = store.claim(keys[:4], 8)
            ours = (list(claimed.hits), claimed.busy, claimed.mine)
            code = int(ours != (keys[:1], keys[1:3], keys[3:4]))
            store.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store_on(redis_server.url).claim(keys[:3], 8).busy == keys[1:3]
    assert store.claim(keys[:4], 8).mine == keys[3:4]


def test_a_pickled_store_is_another_owner_in_the_other_process(
    redis_server: Any, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    store = store_on(redis_server.url, claim_seconds=33)
    store.put([(keys[0], vector())])
    store.claim(keys[1:2], 8)
    for twin in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        assert (twin.path, twin.claim_seconds) == (redis_server.url, 33)
        assert twin.claim(keys[:2], 8).busy == keys[1:2]
        twin.close()


# -- care ------------------------------------------------------------------------------------------


def test_info_tells_vectors_by_model_and_the_hit_rate(
    redis_server: Any, store_on: Make, vector: Vector
) -> None:
    store = store_on(redis_server.url)
    one = store.keyer(base_url="https://a.example/v1", model="m", dimensions=None)
    other = store.keyer(base_url="https://a.example/v1", model="n", dimensions=8)
    store.claim([one("a"), one("b"), other("a")], None)
    store.put([(one("a"), vector()), (one("b"), vector()), (other("a"), vector())])
    stranger = store_on(redis_server.url)
    stranger.put([(b"\x00" * 24, vector())])
    store.claim([one("a"), one("b"), one("c")], None)
    store.close()
    info = stranger.info()
    assert info.models[0].vectors == 2
    assert {(rows.base_url, rows.model, rows.dimensions, rows.vectors) for rows in info.models} == {
        ("https://a.example/v1", "m", None, 2),
        ("https://a.example/v1", "n", 8, 1),
        ("?", "?", None, 1),
    }
    assert (info.vectors, info.hits, info.misses, info.in_flight) == (4, 2, 4, 0)
    assert 4 * 32 < info.bytes < 4 * 400
    assert info.created is not None
    assert info.created == info.used


def test_reading_a_missing_cache_does_not_create_it(store: RedisStore, redis_server: Any) -> None:
    assert (store.info().vectors, store.info().bytes) == (0, 0)
    assert store.prune(max_age=0) == store.clear() == Pruned(0, 0)
    with redis_server.client() as client:
        assert client.dbsize() == 0


@pytest.mark.parametrize("gone", ["all", "all but vectors"])
def test_vectors_stored_after_the_server_was_emptied_are_counted_and_can_be_cleared(
    store: RedisStore, redis_server: Any, vector: Vector, gone: str
) -> None:
    keyer = store.keyer(base_url="https://a.example/v1", model="m", dimensions=8)
    store.put([(keyer("a"), vector())])
    with redis_server.client() as client:
        if gone == "all":
            client.flushdb()
        else:  # as a server does that is short of memory
            client.delete(*(name for name in client.keys("*") if b":vector:" not in name))
            assert store.info().vectors == 1
    store.put([(keyer("a"), vector())])
    (rows,) = store.info().models
    assert (rows.model, rows.vectors) == ("m", 1)
    assert store.prune(max_age=DAY).vectors == 0
    assert store.clear().vectors == 1
    assert store.present([keyer("a")]) == set()


def unused_for(client: Any, keys: list[bytes], days: int) -> None:
    for key in keys:
        name = b"nexusflow:vector:" + key
        kept = client.dump(name)
        client.execute_command("RESTORE", name, 0, kept, "REPLACE", "IDLETIME", days * DAY)


def test_prune_by_age_removes_what_was_not_used(
    store: RedisStore, redis_server: Any, keys: list[bytes], vector: Vector
) -> None:
    store.put([(key, vector()) for key in keys])
    with redis_server.client() as client:
        unused_for(client, keys[:15], days=20)
    store.claim(keys[:5], 8)  # which uses them
    assert store.prune(max_age=25 * DAY).vectors == 0
    pruned = store.prune(max_age=15 * DAY)
    assert (pruned.vectors, pruned.bytes > 0) == (10, True)
    assert store.present(keys) == {*keys[:5], *keys[15:]}


def test_prune_by_size_comes_down_to_it_with_the_least_recently_used_first(
    store: RedisStore, redis_server: Any, keys: list[bytes], vector: Vector
) -> None:
    store.put([(key, vector(size=1024)) for key in keys])
    with redis_server.client() as client:
        for number, key in enumerate(keys):
            unused_for(client, [key], days=40 - number)
    before = store.info().bytes
    pruned = store.prune(max_bytes=before // 2)
    assert pruned.vectors == 10
    assert store.info().bytes <= before // 2
    assert store.present(keys) == set(keys[10:])


def test_a_server_that_does_not_know_when_a_vector_was_used_says_so(
    redis_process: Any, store_on: Make, keys: list[bytes], vector: Vector
) -> None:
    lfu = redis_process("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lfu")
    store = store_on(lfu.url)
    store.put([(keys[0], vector())])
    with pytest.raises(StoreUnavailable, match="LFU"):
        store.prune(max_age=0)
    assert store.clear().vectors == 1
    lfu.kill()


# -- whose server ----------------------------------------------------------------------------------


def everything(client: Any) -> dict[bytes, bytes]:
    return {name: client.dump(name) for name in client.keys("*")}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("newer", "newer version"),
        ("another word", "other data"),
        ("another kind of schema", "other data"),
        ("another kind of claims", "other data"),
    ],
)
def test_foreign_data_is_an_error_and_is_not_changed(
    store: RedisStore, redis_server: Any, keys: list[bytes], vector: Vector, what: str, says: str
) -> None:
    with redis_server.client() as client:
        if what == "newer":
            client.set("nexusflow:schema", 99)
        elif what == "another word":
            client.set("nexusflow:schema", "mine")
        elif what == "another kind of schema":
            client.hset("nexusflow:schema", "a", "b")
        else:
            client.set("nexusflow:claims", "mine")
        before = everything(client)
        asked: list[Callable[[], object]] = [
            store.open,
            lambda: store.claim(keys, 8),
            lambda: store.put([(keys[0], vector())]),
            store.info,
            store.clear,
            lambda: store.prune(max_age=0),
        ]
        for ask in asked:
            with pytest.raises(CacheError, match=says) as caught:
                ask()
            assert "nothing was written" in str(caught.value)
        store.close()
        assert everything(client) == before


def test_a_server_that_is_not_redis_is_an_error(store_on: Make) -> None:
    def answer() -> None:
        connection, _ = http.accept()
        connection.recv(1_000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        connection.recv(1_000)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as http, ThreadPoolExecutor(1) as thread:
        port = http.getsockname()[1]
        answering = thread.submit(answer)
        with pytest.raises(CacheError, match=f"{port}/0 is not a Redis server"):
            store_on(f"redis://127.0.0.1:{port}/0").open()
        answering.result(60)


def test_a_cluster_is_refused(redis_process: Any, store_on: Make) -> None:
    cluster = redis_process("--cluster-enabled", "yes")
    with pytest.raises(CacheError, match="Redis Cluster"):
        store_on(cluster.url).open()
    cluster.kill()


def test_a_server_that_is_not_there_is_unavailable_at_once(store_on: Make) -> None:
    store = store_on("redis://127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1:1/0 cannot be used"):
        store.open()
    store.close()


def test_a_server_that_never_answers_is_unavailable(
    redis_process: Any, store_on: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server_module, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(redis_server_module, "PATIENCE", 0.1)
    server = redis_process()
    store = store_on(server.url)
    store.open()
    with server.client() as client:
        client.execute_command("CLIENT", "PAUSE", 600_000, "ALL")
    with pytest.raises(StoreUnavailable, match=r"[Tt]imeout"):
        store.server.ask(lambda client: client.get("x"), patience=0.1)
    server.kill()


def test_a_unix_socket_and_another_database_work(
    redis_process: Any, store_on: Make, keys: list[bytes], vector: Vector, tmp_path: Path
) -> None:
    server = redis_process("--unixsocket", str(tmp_path / "s"))
    store = store_on(f"unix://{tmp_path / 's'}?db=3")
    store.put([(keys[0], vector())])
    with server.client(db=3) as third, server.client() as first:
        assert third.exists("nexusflow:schema") == 1
        assert first.dbsize() == 0
    server.kill()


def test_tls_is_checked(
    redis_process: Any, store_on: Make, keys: list[bytes], vector: Vector, tmp_path: Path
) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = {name: str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")}
    authority.cert_pem.write_to_path(files["ca.pem"])
    certificate.cert_chain_pems[0].write_to_path(files["cert.pem"])
    certificate.private_key_pem.write_to_path(files["key.pem"])
    told = subprocess.run(
        ["redis-server", "--tls-port", "0", "--port", "0", "--check-system"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "tls-port" in told.stderr + told.stdout:
        pytest.skip("this redis-server knows no TLS")
    plain = redis_process()
    with plain.client() as client:
        for name, value in (
            ("tls-cert-file", files["cert.pem"]),
            ("tls-key-file", files["key.pem"]),
            ("tls-ca-cert-file", files["ca.pem"]),
            ("tls-auth-clients", "no"),
        ):
            client.config_set(name, value)
        client.config_set("tls-port", tls_port := plain.free_port())
    url = f"rediss://127.0.0.1:{tls_port}/0"
    store = store_on(f"{url}?ssl_ca_certs={files['ca.pem']}")
    store.put([(keys[0], vector())])
    assert store.present(keys) == {keys[0]}
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
        store_on(url).open()
    plain.kill()


def test_without_the_package_one_sentence_says_what_to_type() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from nexusflow_integrations import NexusFlow\n"
        "client = NexusFlow('k', base_url='http://127.0.0.1:1', cache='redis://:pw@127.0.0.1:1')\n"
        "for _ in range(2):\n"
        "    try: client.embed('x')\n"
        "    except ImportError as error: print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    sentence = 'redis://@127.0.0.1:1 needs redis: pip install "nexusflow-integrations[redis]"'
    assert told.stdout.splitlines() == [sentence] * 2


def test_naming_a_server_imports_nothing_and_connects_to_nothing() -> None:
    code = (
        "import sys; from nexusflow_integrations import NexusFlow;"
        "NexusFlow('k', cache='redis://127.0.0.1:1');"
        "from nexusflow_integrations.redis import RedisLimits;"
        "RedisLimits('redis://127.0.0.1:1', requests_per_minute=60);"
        "assert 'redis' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


def test_an_address_is_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RedisStore(RedisAddress("redis://127.0.0.1:1")).close()
    assert list(tmp_path.iterdir()) == []
