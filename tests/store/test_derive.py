"""With ``derive=True``, one embedding of a corpus serves all smaller sizes that can be cut."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import Budget, NexusFlow
from nexusflow_integrations._core.cache.cache import Cache, store_at
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.comparing import FIXED_TEXTS
from nexusflow_integrations._core.redis.address import address_or_path
from nexusflow_integrations._core.settings import DIMENSIONS
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import (
    BadRequestError,
    BudgetExceededError,
    ConfigurationError,
)
from nexusflow_integrations.local import LocalServer

both_stores = pytest.mark.parametrize("kept_in", ["file", "redis"])
both_servers = pytest.mark.parametrize("server", ["cut", "independent"], indirect=True)

TEXTS = [f"text number {number}" for number in range(25)]
Make = Callable[..., NexusFlow]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[LocalServer]:
    """Cuts its smaller sizes from its largest, unless the test asks for another."""
    sizes = getattr(request, "param", "cut")
    with LocalServer("hash", sizes=sizes, record_texts=True) as running:
        yield running


@pytest.fixture
def client_of(place: str, server: LocalServer) -> Make:
    def make(size: int | None = 64, **settings: Any) -> NexusFlow:
        usual: dict[str, Any] = {"base_url": server.base_url, "cache": place, "derive": True}
        return NexusFlow(server.api_key, dimensions=size, **{**usual, **settings})

    return make


def own(server: LocalServer, texts: list[str], size: int) -> np.ndarray:
    """The vectors that the server itself has of this size."""
    plain = NexusFlow(server.api_key, base_url=server.base_url, dimensions=size)
    return np.asarray(plain.embed(texts))


def paid(server: LocalServer) -> int:
    """How many of ``TEXTS`` were sent since the counts began."""
    return sum(text in TEXTS for text in server.stats.received)


@both_stores
@both_servers
def test_every_size_gets_the_services_own_vectors(server: LocalServer, client_of: Make) -> None:
    for size in reversed(DIMENSIONS):
        expected = own(server, TEXTS, size)
        for _ in range(2):
            vectors = client_of(size).embed(TEXTS)
            np.testing.assert_allclose(vectors, expected, atol=1e-6)
            assert vectors.dtype == np.float32
        np.testing.assert_allclose(client_of(size, derive=False).embed(TEXTS), expected, atol=1e-6)


@both_stores
def test_one_embedding_of_a_corpus_serves_all_sizes(server: LocalServer, client_of: Make) -> None:
    client_of(512).embed(TEXTS)
    assert paid(server) == len(TEXTS)
    for size in DIMENSIONS:
        client = client_of(size)
        client.embed(TEXTS)
        assert client.usage.cached == len(TEXTS)
        assert client.usage.derived == (0 if size == 2048 else len(TEXTS))
    assert paid(server) == len(TEXTS)


@both_stores
@pytest.mark.parametrize("server", ["independent"], indirect=True)
def test_a_size_that_the_service_does_not_cut_is_paid_for_and_logged(
    server: LocalServer, client_of: Make, caplog: pytest.LogCaptureFixture
) -> None:
    client_of(2048).embed(TEXTS)
    client = client_of(256)
    with caplog.at_level(logging.WARNING, "nexusflow_integrations"):
        client.embed(TEXTS)
        client_of(256).embed(["another text"])
    assert [record.getMessage() for record in caplog.records] == [
        "vectors of size 256 of 'text-embedding-v4' are not the beginning of the service's largest"
        " ones:"
        " derive=True has no effect on this size, which is paid for separately"
    ]
    assert paid(server) == 2 * len(TEXTS)
    assert (client.usage.cached, client.usage.derived) == (0, 0)
    client_of(256).embed(TEXTS)
    assert paid(server) == 2 * len(TEXTS)


@both_servers
def test_without_derive_no_size_gets_anothers_vector(server: LocalServer, client_of: Make) -> None:
    client_of(2048, derive=False).embed(TEXTS)
    client_of(64).embed(TEXTS[:5])
    server.reset_stats()
    client = client_of(64, derive=False)
    client.embed(TEXTS[5:])
    assert client.usage.cached == 0
    assert paid(server) == len(TEXTS) - 5


@both_stores
@both_servers
def test_the_cache_holds_only_what_the_service_sent(
    place: str, server: LocalServer, client_of: Make
) -> None:
    for size in (64, 512):
        client_of(size).embed(TEXTS)
    store = store_at(address_or_path(place))
    held = 0
    for size in DIMENSIONS:
        keyer = store.keyer(
            base_url=server.base_url, model="text-embedding-v4", dimensions=size, added=""
        )
        keys = [keyer(text) for text in TEXTS]
        hits = store.claim(keys, size, most=0).hits
        held += bool(hits)
        expected = own(server, TEXTS, size)
        for key, row in zip(keys, expected, strict=True):
            if key in hits:
                assert np.array_equal(hits[key], row)
    store.close()
    assert held


@both_stores
def test_vectors_of_any_larger_size_are_used_the_own_ones_first(
    server: LocalServer, client_of: Make
) -> None:
    client_of(1024, derive=False).embed(TEXTS[:10])
    client_of(256, derive=False).embed(TEXTS[10:20])
    client_of(128, derive=False).embed(TEXTS[20:])
    client = client_of(256)
    vectors = client.embed(TEXTS)
    np.testing.assert_allclose(vectors, own(server, TEXTS, 256), atol=1e-6)
    assert (client.usage.cached, client.usage.derived) == (20, 15)


def test_the_comparison_is_paid_for_once_and_counts_as_usage_but_not_as_texts(
    server: LocalServer, client_of: Make
) -> None:
    first = client_of(512)
    assert first.estimate(TEXTS).requests == 3 + 5
    first.embed(TEXTS)
    sizes_compared = 5  # 2048, 1536, 1024, 768 and 512
    assert server.stats.texts == len(TEXTS) + sizes_compared * len(FIXED_TEXTS)
    assert first.usage.texts == len(TEXTS)
    assert first.usage.cached == 0
    assert first.usage.tokens == server.stats.tokens
    assert first.usage.requests == server.stats.requests == 3 + sizes_compared
    server.reset_stats()
    second = client_of(512)
    second.embed(TEXTS)
    assert server.stats.requests == 0


@both_stores
def test_another_process_compares_what_the_cache_holds(
    place: str, work: Any, outcome: Any, server: LocalServer, client_of: Make
) -> None:
    client_of(512).embed(TEXTS)
    server.reset_stats()
    process = work(
        "call",
        path=place,
        base_url=server.base_url,
        api_key=server.api_key,
        texts=TEXTS,
        settings={"dimensions": 512, "derive": True},
        ready="",
    )
    outcome(process)
    assert server.stats.requests == 0


@both_servers
def test_an_estimate_says_what_the_call_then_sends(server: LocalServer, client_of: Make) -> None:
    client_of(2048).embed(TEXTS[:10])
    for _ in range(2):
        server.reset_stats()
        client = client_of(512)
        estimate = client.estimate(TEXTS)
        assert server.stats.requests == 0
        client.embed(TEXTS)
        assert server.stats.requests <= estimate.requests
        assert client.usage.texts - client.usage.cached <= estimate.texts - estimate.cached
    assert (estimate.cached, estimate.requests, estimate.tokens) == (len(TEXTS), 0, 0)


def test_a_budget_holds_for_the_comparison(server: LocalServer, client_of: Make) -> None:
    client = client_of(64, budget=Budget(tokens=60))
    with pytest.raises(BudgetExceededError):
        client.embed(TEXTS)
    assert server.stats.tokens <= 60
    assert client.usage.tokens == server.stats.tokens


def test_the_comparison_belongs_to_the_extra_body_and_to_the_address(
    server: LocalServer, client_of: Make
) -> None:
    client_of(64).embed(TEXTS)
    compared = len(DIMENSIONS) * len(FIXED_TEXTS)
    local = server.base_url.replace("127.0.0.1", "localhost")
    for settings in ({"extra_body": {"kind": 1}}, {"base_url": local}):
        server.reset_stats()
        client_of(64, **settings).embed(TEXTS)
        assert server.stats.texts == len(TEXTS) + compared


def test_two_servers_at_one_address_with_a_cache_each_are_compared_each(
    path: Any, server: LocalServer, client_of: Make
) -> None:
    port = server.port
    client_of(64).embed(TEXTS)
    server.stop()
    with LocalServer("hash", sizes="independent", port=port) as other:
        client = NexusFlow(
            other.api_key,
            base_url=other.base_url,
            dimensions=64,
            cache=f"{path}.other",
            derive=True,
        )
        vectors = client.embed(TEXTS)
        np.testing.assert_allclose(vectors, own(other, TEXTS, 64), atol=1e-6)


@both_servers
def test_streams_threads_loops_and_queries_get_the_same_vectors(
    server: LocalServer, client_of: Make
) -> None:
    expected = own(server, TEXTS, 128)

    async def streamed() -> list[Any]:
        return [item.vector async for item in client_of(128).aembed_stream(TEXTS)]

    jobs: list[Callable[[], Any]] = [
        lambda: client_of(128).embed(TEXTS),
        lambda: client_of(128).embed(TEXTS, role="query"),
        lambda: [item.vector for item in client_of(128).embed_stream(TEXTS)],
        lambda: asyncio.run(streamed()),
        lambda: client_of(128).embed(TEXTS, on_refused="collect"),
        lambda: [client_of(128).embed(text) for text in TEXTS],
    ]
    with ThreadPoolExecutor(len(jobs)) as threads:
        for result in threads.map(lambda job: np.stack(job()), jobs):
            np.testing.assert_allclose(result, expected, atol=1e-6)
    assert server.stats.duplicates.keys() <= {*FIXED_TEXTS, *TEXTS}
    assert paid(server) == 2 * len(TEXTS)  # once as asked for here, once by the test itself


def test_vectors_finished_before_a_failure_have_the_requested_size(
    server: LocalServer, client_of: Make
) -> None:
    client_of(64).embed(TEXTS[:10])
    with pytest.raises(BudgetExceededError) as caught:
        client_of(64, budget=Budget(tokens=5)).embed(TEXTS)
    expected = own(server, TEXTS, 64)
    assert caught.value.finished.keys() == set(range(10))
    for place, row in caught.value.finished.items():
        np.testing.assert_allclose(row, expected[place], atol=1e-6)


def test_a_server_that_ignores_the_size_is_one_that_does_not_cut(place: str) -> None:
    import httpx

    numbers = count()

    def answer(request: httpx.Request) -> httpx.Response:
        import json

        texts = json.loads(request.content)["input"]
        rows = np.random.default_rng(next(numbers)).standard_normal((len(texts), 1024))
        data = [{"index": place, "embedding": [*row]} for place, row in enumerate(rows)]
        return httpx.Response(200, json={"data": data, "model": "m"})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    client = NexusFlow("sk", dimensions=1024, cache=place, derive=True, http_client=http)
    assert client.embed(TEXTS).shape == (len(TEXTS), 1024)


def test_a_service_that_no_longer_cuts_is_found_by_verifying_the_cache(place: str) -> None:
    import httpx

    cuts = True

    def answer(request: httpx.Request) -> httpx.Response:
        import json

        asked = json.loads(request.content)
        size = asked["dimensions"]
        rows = [
            np.random.default_rng([len(text), 0 if cuts else size]).standard_normal(2048)[:size]
            for text in asked["input"]
        ]
        data = [
            {"index": place, "embedding": [*(row / np.linalg.norm(row))]}
            for place, row in enumerate(rows)
        ]
        return httpx.Response(200, json={"data": data, "model": "m"})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    client = NexusFlow("sk", dimensions=64, cache=place, http_client=http, derive=True)
    assert client.embed(TEXTS).usage.derived == len(TEXTS)
    assert client.verify_cache()
    cuts = False
    with pytest.raises(ConfigurationError, match="differently than when"):
        client.verify_cache()


@pytest.mark.parametrize("lacking", [2048, 512])
def test_a_service_without_one_of_the_sizes_serves_the_others(place: str, lacking: int) -> None:
    import json

    import httpx

    def answer(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        if asked["dimensions"] == lacking:
            return httpx.Response(400, json={"error": {"message": f"no size {lacking}"}})
        rows = [np.random.default_rng(len(text)).standard_normal(2048) for text in asked["input"]]
        rows = [row[: asked["dimensions"]] for row in rows]
        data = [
            {"index": place, "embedding": [*(row / np.linalg.norm(row))]}
            for place, row in enumerate(rows)
        ]
        return httpx.Response(200, json={"data": data, "model": "m"})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    settings: dict[str, Any] = {"cache": place, "http_client": http}
    derived = NexusFlow("sk", dimensions=256, derive=True, **settings).embed(TEXTS)
    plain = NexusFlow("sk", dimensions=256, http_client=http).embed(TEXTS)
    np.testing.assert_allclose(derived, plain, atol=1e-6)
    with pytest.raises(BadRequestError, match=f"no size {lacking}"):
        NexusFlow("sk", dimensions=lacking, derive=True, **settings).embed(TEXTS)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The seconds that the cache got for each look-up; its file does not answer."""
    freed = threading.Event()
    asked: list[float] = []

    def blocked(*_: Any, **__: Any) -> Any:
        freed.wait(60)
        raise StoreUnavailable("the file did not answer")

    def noting(look_up: Any) -> Any:
        def noted(self: Cache, *arguments: Any, **named: Any) -> Any:
            asked.append(arguments[-1])
            return look_up(self, *arguments, **named)

        return noted

    for name in ("claim", "present"):
        monkeypatch.setattr(VectorStore, name, blocked)
        monkeypatch.setattr(Cache, name, noting(getattr(Cache, name)))
    yield asked
    freed.set()


def test_a_cache_that_does_not_answer_leaves_time_for_the_request(
    waits: list[float], server: LocalServer, client_of: Make
) -> None:
    expected = own(server, TEXTS, 64)
    np.testing.assert_allclose(client_of(64, deadline=3.0).embed(TEXTS), expected, atol=1e-6)
    assert 0 < waits[0] <= 3.0 / 4


def test_an_estimate_waits_for_the_cache_for_half_of_the_deadline_at_most(
    waits: list[float], client_of: Make
) -> None:
    estimate = client_of(64, deadline=1.0).estimate(TEXTS)
    assert (estimate.cached, estimate.requests) == (0, 3 + len(DIMENSIONS))
    assert 0 < sum(waits) < 0.6


@pytest.mark.parametrize(
    ("settings", "lacking"),
    [
        ({"cache": None}, "needs a cache"),
        ({"size": None}, "needs a size"),
        ({"model": "another"}, "needs a model whose sizes are known"),
        ({"on_too_long": "split"}, "on_too_long other than 'split'"),
        ({"derive": "yes"}, "derive must be"),
    ],
)
def test_missing_settings_for_derive_are_an_error_at_construction(
    client_of: Make, settings: dict[str, Any], lacking: str
) -> None:
    with pytest.raises(ConfigurationError, match=lacking):
        client_of(**settings)


def test_a_client_resized_to_the_servers_default_or_unpickled_goes_on(
    server: LocalServer, client_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    monkeypatch.setenv("NEXUSFLOW_API_KEY", server.api_key)
    client = client_of(64)
    assert client.resized(None).embed(TEXTS).shape == (len(TEXTS), 1024)
    server.reset_stats()
    client.embed(TEXTS)
    pickle.loads(pickle.dumps(client)).resized(256).embed(TEXTS)
    assert paid(server) == len(TEXTS)
