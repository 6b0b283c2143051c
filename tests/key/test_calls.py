"""When a call fails, no frame of its error shows a secret, whatever the interface."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults.server import FaultServer, Script, Wire, once

from nexusflow_integrations import NexusFlow, errors
from nexusflow_integrations._core.call.engine import engine
from nexusflow_integrations._core.request.pool import Pool

from .entries import ENTRIES, HEADER, HEADERS, KEY, PASSWORD, Entry
from .traces import leaks

SETTINGS: dict[str, Any] = {
    "api_key": KEY,
    "default_headers": HEADERS,
    "dimensions": 64,
    "max_retries": 0,
    "timeout": 30.0,
}
CORE = [entry for entry in ENTRIES if entry.name in ("embed", "aembed")]
PROXIES = [f"{name}_proxy" for name in ("http", "https", "all", "no")]
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
each_core_entry = pytest.mark.parametrize("entry", CORE, ids=lambda entry: entry.name)


def repeats(status: int) -> Callable[[Wire], None]:
    """Answer with all headers of the request, in the body, in a header and as the reason."""

    def behaviour(wire: Wire) -> None:
        request = wire.request
        assert request is not None
        said = " ".join(f"{name}: {value}" for name, value in request.headers)
        body = {"error": {"code": f"bad {said}", "message": f"I was sent {said}"}}
        wire.respond(status, body, [("X-Echo", said)], reason=f"Because {said[:200]}")

    return behaviour


def no_json(wire: Wire) -> None:
    assert wire.request is not None
    wire.respond(200, f"I was sent {wire.request.headers}")


def no_vectors(wire: Wire) -> None:
    assert wire.request is not None
    wire.respond(200, {"object": "list", "data": [], "said": str(wire.request.headers)})


def silent(wire: Wire) -> None:
    wire.hold(30)


def reset(wire: Wire) -> None:
    wire.reset()


def refuses(wire: Wire) -> None:
    assert wire.request is not None
    said = f"inappropriate content {wire.request.headers}"
    wire.respond(400, {"error": {"code": "data_inspection_failed", "message": said}})


FAULTS: dict[str, tuple[Callable[[Wire], None], dict[str, Any]]] = {
    **{f"status {status}": (repeats(status), {}) for status in (302, 400, 401, 403, 404, 429, 500)},
    "no JSON": (no_json, {}),
    "no vectors": (no_vectors, {}),
    "reset": (reset, {}),
    "a timeout": (silent, {"timeout": 0.2}),
    "a deadline": (silent, {"deadline": 0.2}),
    "refused texts": (refuses, {}),
    "retries": (repeats(500), {"max_retries": 1}),
}


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def _errors(entry: Entry, made: Any, texts: list[str]) -> BaseException:
    """What the call raises, or what it reports of its texts."""
    try:
        result: Any = entry.embed(made, texts)
    except errors.NexusFlowError as error:
        return error
    reported: list[Any]
    if isinstance(result, dict):  # Ray's: a column of texts, null where all is well
        reported = [Exception(said) for said in result["embedding_error"] if said is not None]
    else:
        reported = [item.error for item in result if item.error is not None]
    assert reported, "the call did not fail"
    found: BaseException = reported[0]
    return found


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultServer]:
    with FaultServer(dimensions=64, lifetime=600) as server:
        yield server


@each_entry
@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_fails_shows_no_secret(entry: Entry, fault: str, faulty: FaultServer) -> None:
    behaviour, options = FAULTS[fault]
    faulty.script, before = Script(behaviour), len(faulty.requests)
    model = f"{fault} {entry.name}"  # or the refusals of one would slow down the others
    made = entry.made(base_url=faulty.base_url, model=model, **{**SETTINGS, **options})
    error = _errors(entry, made, ["one", "two"])
    assert options.keys() & {"timeout", "deadline"} or len(faulty.requests) > before
    assert leaks(error, KEY, HEADER) == []


@each_entry
@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize(
    ("proxy", "what"),
    [
        (f"socks5://user:{PASSWORD}@127.0.0.1:1", errors.ConfigurationError),
        (f"http://user:{PASSWORD}@127.0.0.1:1", errors.APIConnectionError),
        (f"http://user:{PASSWORD}@:port", errors.ConfigurationError),
        (f"//user:{PASSWORD}@[", errors.ConfigurationError),
    ],
)
def test_a_proxy_that_cannot_be_used_shows_no_secret(
    entry: Entry, proxy: str, what: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    made = entry.made(base_url="https://api.example.com/v1", **SETTINGS)
    error = _errors(entry, made, ["one"])
    assert isinstance(error, what)
    assert leaks(error, KEY, HEADER, PASSWORD) == []


def _asks_for_a_password(wire: Wire) -> None:
    wire.respond(407, "who are you?", [("Proxy-Authenticate", "Basic")])


_asks_for_a_password.stage = "headers"  # type: ignore[attr-defined]


@each_core_entry
@pytest.mark.usefixtures("no_proxy")
def test_a_proxy_that_refuses_shows_no_secret(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer(_asks_for_a_password) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:{PASSWORD}@127.0.0.1:{proxy.port}")
        made = entry.made(base_url="https://api.example.com/v1", **SETTINGS)
        error = _errors(entry, made, ["one"])
        asked = [request.header("proxy-authorization") for request in proxy.requests]
    assert "407" in str(error)
    assert asked
    assert all(asked)
    assert leaks(error, KEY, HEADER, PASSWORD) == []


@pytest.fixture
def new_pool() -> Iterator[None]:
    """Make the process open a new session, now and again after the test."""
    running = engine()[1]
    pool, running._pool = running._pool, Pool()
    running._own_sender.cache_clear()
    yield
    running._pool = pool
    running._own_sender.cache_clear()


@each_entry
@pytest.mark.usefixtures("new_pool")
def test_certificates_that_cannot_be_read_show_no_secret(
    entry: Entry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path))
    made = entry.made(base_url="https://127.0.0.1:1/v1", **SETTINGS)
    error = _errors(entry, made, ["one"])
    assert "SSL_CERT_FILE" in str(error)
    assert leaks(error, KEY, HEADER) == []


# ---- clients of the user's own


class Telling(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Fails, and quotes the request in what it says."""

    def __init__(self, kind: type[Exception]) -> None:
        self._kind = kind

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise self._kind(f"no: {request.headers.raw} {request.content!r}")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


@pytest.mark.parametrize(
    "kind", [httpx.ConnectError, httpx.ReadError, httpx.InvalidURL, OSError, KeyError]
)
def test_a_client_of_the_users_that_quotes_the_request_shows_no_secret(
    kind: type[Exception],
) -> None:
    settings = {**SETTINGS, "base_url": "https://api.example.com/v1"}
    client = NexusFlow(**settings, http_client=httpx.Client(transport=Telling(kind)))
    with pytest.raises(errors.APIConnectionError) as caught:
        client.embed("one")
    assert leaks(caught.value, KEY, HEADER) == []

    async def work() -> None:
        async with httpx.AsyncClient(transport=Telling(kind)) as http:
            await NexusFlow(**settings, async_http_client=http).aembed("one")

    with pytest.raises(errors.APIConnectionError) as caught:
        asyncio.run(work())
    assert leaks(caught.value, KEY, HEADER) == []


# ---- calls that are stopped


@pytest.fixture
def hanging() -> Iterator[FaultServer]:
    with FaultServer(Script(silent)) as server:
        yield server


@pytest.mark.parametrize("own", [False, True], ids=["ours", "httpx"])
def test_a_cancelled_call_shows_no_secret(hanging: FaultServer, own: bool) -> None:
    async def work() -> None:
        async with httpx.AsyncClient() as http:
            options = {"async_http_client": http} if own else {}
            client = NexusFlow(base_url=hanging.base_url, **SETTINGS, **options)
            call = asyncio.ensure_future(client.aembed(["one"]))
            while not hanging.requests:
                await asyncio.sleep(0.01)
            call.cancel()
            await call

    with pytest.raises(asyncio.CancelledError) as caught:
        asyncio.run(work())
    assert leaks(caught.value, KEY, HEADER) == []


def test_a_call_in_a_timeout_of_the_callers_shows_no_secret(hanging: FaultServer) -> None:
    async def work() -> None:
        client = NexusFlow(base_url=hanging.base_url, **SETTINGS)
        await asyncio.wait_for(client.aembed(["one"]), 0.3)

    with pytest.raises(asyncio.TimeoutError) as caught:
        asyncio.run(work())
    assert leaks(caught.value, KEY, HEADER) == []


def test_ctrl_c_shows_no_secret() -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with FaultServer(dimensions=64) as server:
        client = NexusFlow(base_url=server.base_url, **SETTINGS)
        with pytest.raises(KeyboardInterrupt) as caught:
            client.embed(["one", "two"], progress=interrupt)
    assert leaks(caught.value, KEY, HEADER) == []


def test_a_source_that_fails_shows_no_secret() -> None:
    def texts() -> Iterator[str]:
        yield "one"
        raise RuntimeError("the source")

    with FaultServer(dimensions=64) as server:
        client = NexusFlow(base_url=server.base_url, **SETTINGS)
        with pytest.raises(RuntimeError, match="the source") as caught:
            list(client.embed_stream(texts()))
    assert leaks(caught.value, KEY, HEADER) == []


# ---- copies


def test_objects_that_cannot_be_pickled_show_no_secret() -> None:
    client = NexusFlow(**SETTINGS)
    client._budget = threading.Lock()  # type: ignore[assignment] - as a shared budget may hold
    with pytest.raises(TypeError) as caught:
        pickle.dumps(client)
    assert leaks(caught.value, KEY, HEADER) == []
    with pytest.raises(TypeError) as caught:
        pickle.dumps(client._key)
    assert leaks(caught.value, KEY) == []


def test_headers_reach_the_server_as_they_were_given_and_a_copy_in_another_process() -> None:
    with FaultServer(dimensions=64) as server:
        client = NexusFlow(base_url=server.base_url, **SETTINGS)
        client.embed("one")
        assert pickle.loads(pickle.dumps(client)).settings.default_headers == HEADERS
        (request,) = server.requests
        sent = dict(request.headers)
    assert sent["Authorization"] == f"Bearer {KEY}"
    assert {name: sent[name] for name in HEADERS} == HEADERS
    assert client.settings.default_headers == HEADERS


def test_a_server_that_fails_once_gets_the_same_headers_again() -> None:
    with FaultServer(once(repeats(500)), dimensions=64) as server:
        NexusFlow(base_url=server.base_url, **{**SETTINGS, "max_retries": 3}).embed("one")
        keys = [request.header("authorization") for request in server.requests]
    assert keys == [f"Bearer {KEY}"] * 2
