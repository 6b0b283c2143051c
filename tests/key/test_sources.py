"""A key that changes is read again after a 401, from a function or the environment."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import pickle
import threading
import traceback
from collections.abc import Callable
from concurrent import futures
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any

import httpx
import pytest

from nexusflow_integrations import NexusFlow, errors

_urls = count()
SECRET = "sk-air-rotating"


class Upstream:
    """Takes the newest key only, of those that it gave."""

    def __init__(self) -> None:
        self.url = f"https://rotating-{next(_urls)}.invalid/v1"
        self.now = 0
        self.asked = 0
        self.statuses: list[int] = []
        self.lock = threading.Lock()
        self.echo = ""

    @property
    def key(self) -> str:
        return f"{SECRET}-{self.now}"

    def give(self) -> str:
        with self.lock:
            self.asked += 1
        return self.key

    async def agive(self) -> str:
        await asyncio.sleep(0)
        return self.give()

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            if request.headers["authorization"] != f"Bearer {self.key}":
                self.statuses.append(401)
                sent = request.headers["authorization"]
                return httpx.Response(401, json={"error": {"message": f"expired: {sent}"}})
            self.statuses.append(200)
        rows = [
            {"index": place, "embedding": [1.0] * 64}
            for place in range(len(json.loads(request.content)["input"]))
        ]
        return httpx.Response(200, json={"data": rows, "usage": {"total_tokens": 1}})

    def client(self, api_key: Any, **settings: Any) -> NexusFlow:
        async def answer(request: httpx.Request) -> httpx.Response:
            return self.answer(request)

        return NexusFlow(
            api_key,
            base_url=self.url,
            http_client=httpx.Client(transport=httpx.MockTransport(self.answer)),
            async_http_client=httpx.AsyncClient(transport=httpx.MockTransport(answer)),
            **settings,
        )


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


class Hidden:
    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        return self._value


class Provider:
    """A callable object, as the Azure SDK has them."""

    def __init__(self, give: Callable[[], str]) -> None:
        self._give = give

    async def __call__(self) -> str:
        return self._give()


@pytest.fixture(params=["plain", "async", "returns a coroutine", "hidden", "object"])
def give(request: pytest.FixtureRequest, upstream: Upstream) -> Any:
    return {
        "plain": upstream.give,
        "async": upstream.agive,
        "returns a coroutine": lambda: upstream.agive(),
        "hidden": lambda: Hidden(upstream.give()),
        "object": Provider(upstream.give),
    }[request.param]


def test_a_function_is_asked_when_a_key_is_needed_and_again_after_a_401(
    upstream: Upstream, give: Any
) -> None:
    client = upstream.client(give)
    assert upstream.asked == 0
    client.embed("a")
    client.embed("b")
    assert upstream.asked == 1
    upstream.now = 1
    client.embed("c")
    assert upstream.asked == 2
    assert upstream.statuses == [200, 200, 401, 200]


async def test_async_calls_and_streams_ask_for_a_new_key_after_a_401(
    upstream: Upstream, give: Any
) -> None:
    client = upstream.client(give)
    await client.aembed("a")
    upstream.now = 1
    found = [item async for item in client.aembed_stream(["b", "c"])]
    assert [item.error for item in found] == [None, None]
    assert upstream.asked == 2


async def test_an_async_function_is_awaited_on_the_callers_loop(upstream: Upstream) -> None:
    loops = []

    async def give() -> str:
        loops.append(asyncio.get_running_loop())
        return upstream.give()

    await upstream.client(give).aembed("a")
    assert loops == [asyncio.get_running_loop()]


async def test_a_function_that_blocks_does_not_block_the_callers_loop(upstream: Upstream) -> None:
    threads = []

    def give() -> str:
        threads.append(threading.current_thread())
        return upstream.give()

    await upstream.client(give).aembed("a")
    assert threads[0] is not threading.current_thread()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_function_sees_the_context_variables_of_the_call(
    upstream: Upstream, asynchronous: bool
) -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    tenant.set(upstream.key)

    async def key() -> str:
        return tenant.get()

    def new() -> NexusFlow:
        return upstream.client(key if asynchronous else tenant.get)

    await new().aembed("one text")
    await asyncio.to_thread(new().embed, "one text")
    await asyncio.to_thread(new().embed, ["several", "texts"])
    assert [each async for each in new().aembed_stream(["a", "stream"])]


def test_requests_in_flight_ask_once_together(upstream: Upstream) -> None:
    client = upstream.client(upstream.give)
    client.embed("a")
    upstream.now = 1
    client.embed([f"text {number}" for number in range(200)])
    assert upstream.asked == 2


def test_a_key_that_is_refused_as_well_is_an_error(upstream: Upstream) -> None:
    given = count()
    client = upstream.client(lambda: f"{SECRET}-wrong-{next(given)}")
    with pytest.raises(errors.AuthenticationError):
        client.embed("a")
    assert upstream.statuses == [401, 401]


def test_the_same_key_again_is_not_sent_again(upstream: Upstream) -> None:
    client = upstream.client(lambda: f"{SECRET}-wrong")
    with pytest.raises(errors.AuthenticationError):
        client.embed("a")
    assert upstream.statuses == [401]


def test_a_given_key_is_not_tried_again(upstream: Upstream) -> None:
    with pytest.raises(errors.AuthenticationError):
        upstream.client(f"{SECRET}-wrong").embed("a")
    assert upstream.statuses == [401]


def test_a_key_of_the_environment_is_read_again_after_a_401(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", upstream.key)
    client = upstream.client(None)
    client.embed("a")
    upstream.now = 1
    monkeypatch.setenv("NEXUSFLOW_API_KEY", upstream.key)
    client.embed("b")
    assert upstream.statuses == [200, 401, 200]
    upstream.now = 2
    with pytest.raises(errors.AuthenticationError):
        client.embed("c")
    monkeypatch.delenv("NEXUSFLOW_API_KEY")
    with pytest.raises(errors.AuthenticationError):
        client.embed("d")


def raising() -> str:
    raise RuntimeError(f"no token for {SECRET}")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (raising, r"the function raising \(.*test_sources.py, line \d+\) raised RuntimeError in"),
        (partial(raising), r"the function raising \(.*test_sources.py, line \d+\) raised"),
        (lambda: None, "api_key must be text, not None; it was returned by the function <lambda>"),
        (lambda: 5, "api_key must be text, not int; it was returned by the function <lambda>"),
        (lambda: f"{SECRET}\n", "api_key contains a line break"),
    ],
)
def test_a_source_that_gives_no_key_is_an_error_that_shows_no_key(
    upstream: Upstream, function: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    with pytest.raises(errors.ConfigurationError, match=said) as caught:
        upstream.client(function).embed("a")
    assert SECRET not in shown(caught.value)
    assert upstream.statuses == []


@pytest.mark.parametrize("answer", [None, Hidden(None)])  # type: ignore[arg-type]
def test_a_function_that_returns_none_does_not_send_the_key_of_the_environment(
    upstream: Upstream, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", upstream.key)

    async def later() -> Any:
        return answer

    for function in (lambda: answer, later):
        with pytest.raises(errors.ConfigurationError, match="api_key must be text, not None"):
            upstream.client(function).embed("a")
    assert upstream.statuses == []


def calls_of(client: NexusFlow) -> list[Callable[[], Any]]:
    async def astream() -> list[Any]:
        return [item async for item in client.aembed_stream(["a"])]

    return [
        lambda: client.embed("a"),
        lambda: asyncio.run(client.aembed("a")),
        lambda: list(client.embed_stream(["a"])),
        lambda: asyncio.run(astream()),
    ]


class Odd(BaseException):
    """An error that is no ``Exception``."""


@pytest.mark.parametrize(
    "error",
    [
        *(StopIteration(), StopAsyncIteration(), GeneratorExit(), Odd()),
        *(asyncio.CancelledError(), futures.CancelledError(), TimeoutError()),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_a_function_raises_ends_the_call_with_a_typed_error(
    error: BaseException, is_async: bool, upstream: Upstream
) -> None:
    def fail() -> str:
        raise error

    async def afail() -> str:
        raise error

    client = upstream.client(afail if is_async else fail, deadline=20.0)
    for call in calls_of(client):
        with pytest.raises(errors.ConfigurationError, match=r"fail \(.*\) raised "):
            call()


def test_a_function_that_exits_raises_its_exit_and_logs_nothing(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    def exits() -> str:
        raise SystemExit("log in first")

    for _ in range(2):
        with pytest.raises(SystemExit, match="log in first"):
            upstream.client(exits).embed("a text")
        gc.collect()  # asyncio logs an error that nobody took when its task is collected
    upstream.client(upstream.give).embed("the loop goes on")
    assert [record.getMessage() for record in caplog.records] == []


def test_a_function_that_has_no_further_key_ends_the_call_and_the_next_one(
    upstream: Upstream,
) -> None:
    given = iter([upstream.key])
    client = upstream.client(lambda: next(given), deadline=20.0)
    client.embed("a")
    upstream.now = 1
    for call in calls_of(client):
        with pytest.raises(errors.ConfigurationError, match="raised StopIteration in"):
            call()


async def test_a_call_that_is_cancelled_cancels_the_function_that_it_awaits(
    upstream: Upstream,
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def give() -> str:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return upstream.key

    call = asyncio.ensure_future(upstream.client(give).aembed("a"))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(ended.wait(), 20)


class Vault:
    def __call__(self, path: str) -> str:
        return path

    async def read(self, path: str) -> str:
        return path


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda request: "key", "<lambda>"),
        (Vault(), "Vault"),
        (Vault().read, "Vault.read"),
        (partial(Vault().read), "Vault.read"),
    ],
)
def test_a_function_that_needs_arguments_is_refused_at_construction(
    function: Any, name: str
) -> None:
    said = (
        r"^api_key must be a function without arguments, but the function"
        rf" .*{name} \(.*test_sources.py, line \d+\) needs some"
    )
    with pytest.raises(errors.ConfigurationError, match=said):
        NexusFlow(function)


@pytest.mark.parametrize(
    "function", [partial(Vault(), "key"), lambda request=None: "key", lambda *a, **b: "key"]
)
def test_a_function_that_can_be_called_without_arguments_is_taken(function: Any) -> None:
    NexusFlow(function)


def shown(error: BaseException) -> str:
    """Return what a tool that prints local variables would print."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(told.format())


def test_the_key_that_a_function_returns_is_shown_nowhere(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    client = upstream.client(upstream.give)
    with caplog.at_level(logging.DEBUG):
        client.embed("a")
        upstream.now = 1
        client.embed("b")
    places = [repr(client), repr(client.settings), str(vars(client)), caplog.text]
    places.append(repr(pickle.dumps(NexusFlow(upstream.give, base_url=upstream.url))))
    given = iter([upstream.key, f"{SECRET}-old"])
    failing = upstream.client(lambda: next(given))
    failing.embed("a")
    upstream.now = 2
    with pytest.raises(errors.AuthenticationError) as caught:
        failing.embed("b")
    places.append(shown(caught.value))
    assert not [place for place in places if SECRET in place]


def test_a_key_function_is_not_pickled(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    client = NexusFlow(upstream.give, base_url=upstream.url)
    again = pickle.loads(pickle.dumps(client))
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    with pytest.raises(errors.ConfigurationError, match="no API key"):
        again.embed("a")


def test_a_deadline_holds_while_the_key_function_runs(upstream: Upstream) -> None:
    waiting = threading.Event()

    def give() -> str:
        waiting.wait(60)
        return upstream.key

    with pytest.raises(errors.APITimeoutError, match="gives the API key has not returned"):
        upstream.client(give, deadline=0.2).embed("a")
    waiting.set()


def test_the_account_keeps_its_pace_when_its_key_changes(upstream: Upstream) -> None:
    client = upstream.client(upstream.give, requests_per_minute=6000, tokens_per_minute=10**9)
    from nexusflow_integrations._core.call.engine import engine

    client.embed("a")
    upstream.now = 1
    client.embed("b")
    endpoints = engine()[1]._endpoints
    assert len([name for name in endpoints if name[0] == upstream.url]) == 1


def test_langchain_takes_a_function_and_reads_the_environment_again(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    langchain = pytest.importorskip("nexusflow_integrations.langchain")
    http = httpx.Client(transport=httpx.MockTransport(upstream.answer))
    told: dict[str, Any] = {"base_url": upstream.url, "http_client": http}
    monkeypatch.setenv("NEXUSFLOW_API_KEY", upstream.key)
    for given in (
        langchain.NexusFlowEmbeddings(api_key=upstream.give, **told),
        None,
    ):
        made = given or langchain.NexusFlowEmbeddings(**told)
        made.embed_query("a")
        upstream.now += 1
        monkeypatch.setenv("NEXUSFLOW_API_KEY", upstream.key)
        made.embed_query("b")
        assert SECRET not in repr(made)
    assert upstream.statuses == [200, 401, 200] * 2


def test_llama_index_takes_a_function_and_reads_the_environment_again(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama_index = pytest.importorskip("nexusflow_integrations.llama_index")
    http = httpx.Client(transport=httpx.MockTransport(upstream.answer))
    told: dict[str, Any] = {"base_url": upstream.url, "http_client": http}
    monkeypatch.setenv("NEXUSFLOW_API_KEY", upstream.key)
    for given in (
        llama_index.NexusFlowEmbedding(api_key=upstream.give, **told),
        None,
    ):
        made = given or llama_index.NexusFlowEmbedding(**told)
        made.get_query_embedding("a")
        upstream.now += 1
        monkeypatch.setenv("NEXUSFLOW_API_KEY", upstream.key)
        made.get_query_embedding("b")
        assert SECRET not in repr(made) + str(made.to_dict())
    assert upstream.statuses == [200, 401, 200] * 2


def test_chroma_takes_a_function_and_reads_the_environment_again(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    chroma = pytest.importorskip("nexusflow_integrations.chroma")
    http = httpx.Client(transport=httpx.MockTransport(upstream.answer))
    told: dict[str, Any] = {"api_base": upstream.url, "http_client": http}
    monkeypatch.setenv("NEXUSFLOW_API_KEY", upstream.key)
    for given in (
        chroma.NexusFlowEmbeddingFunction(upstream.give, **told),
        None,
    ):
        made = given or chroma.NexusFlowEmbeddingFunction(**told)
        made(["a"])
        client = made.client
        upstream.now += 1
        monkeypatch.setenv("NEXUSFLOW_API_KEY", upstream.key)
        client.embed("b")
        made(["c"])
        assert SECRET not in repr(made) + str(made.get_config())
    assert upstream.statuses == [200, 401, 200, 200] * 2
