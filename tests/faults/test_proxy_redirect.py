"""HTTPS goes through a proxy from the environment by CONNECT, so the proxy sees no key or text.

The table tests other redirects; this file tests those that need TLS or a proxy.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import behaviours as b
from .fresh import KEY, TEXTS, Outcome, embed_in_a_new_process
from .server import Behaviour, Ended, FaultServer, Script, Wire, at, first, once, readable, right

trustme = pytest.importorskip("trustme")
pytest.importorskip("nexusflow_integrations.client")

HOST = "api.example.com"  # never looked up: only the proxy gets the name
MODES = ("sync", "async")


@at("headers")
def proxies(wire: Wire) -> None:
    """Tunnel a CONNECT, forward anything else; every host is this machine."""
    request = wire.request
    assert request is not None
    if request.method == "CONNECT":
        port = int(request.target.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as far:
            wire.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            _pump(wire, far)
        raise Ended
    wire.read_body()
    port, _, path = request.target.partition("://")[2].partition(":")[2].partition("/")
    far_end = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    far_end.request(request.method, f"/{path}", request.body, dict(request.headers))
    response = far_end.getresponse()
    wire.respond(response.status, response.read())
    far_end.close()


def _pump(wire: Wire, far: socket.socket) -> None:
    near = wire.sock
    while True:
        ready = readable(30, near, far, wire.server._stopped)
        if not ready or wire.server._stopped in ready:
            return
        for source, sink in ((near, far), (far, near)):
            if source in ready:
                data = source.recv(65536)
                if not data:
                    return
                sink.sendall(data)


@at("headers")
def closes_after_connecting(wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
    wire.fin()


@dataclass(frozen=True)
class Run:
    outcomes: list[Outcome]
    proxy: FaultServer
    server: FaultServer


class Network:
    """A server for HOST, trusted, and a proxy before it."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.roots = folder / "roots.pem"
        self.authority.cert_pem.write_to_path(str(self.roots))

    def context(self, authority: Any, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(context)
        return context

    def run(
        self,
        proxying: Script | Behaviour = proxies,
        *,
        variable: str = "HTTPS_PROXY",
        url: str = "https://{host}:{port}/v1",
        scheme: str = "http",
        credentials: str = "",
        authority: Any = None,
        answering: Script | Behaviour = right,
        no_proxy: str | None = None,
        modes: Sequence[str] = MODES,
        **options: Any,
    ) -> Run:
        tls = None
        if url.startswith("https"):
            tls = self.context(authority or self.authority, HOST, "127.0.0.1", "localhost")
        with FaultServer(answering, tls=tls) as server, FaultServer(proxying) as proxy:
            environment = {
                "SSL_CERT_FILE": str(self.roots),
                variable: f"{scheme}://{credentials}127.0.0.1:{proxy.port}",
            }
            if no_proxy is not None:
                environment["NO_PROXY"] = no_proxy
            address = url.format(host=HOST, port=server.port)
            jobs = [(address, mode) for mode in modes]
            return Run(embed_in_a_new_process(jobs, environment, **options), proxy, server)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return Network(Path(tmp_path_factory.mktemp("proxy")))


def assert_saw_no_secrets(proxy: FaultServer) -> None:
    for request in proxy.requests:
        seen = repr((request.target, request.headers, request.body))
        assert KEY not in seen
        assert TEXTS[0] not in seen


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_https_goes_through_the_proxy_which_sees_neither_key_nor_text(
    network: Network, variable: str
) -> None:
    run = network.run(variable=variable)
    assert [outcome.right for outcome in run.outcomes] == [True, True], run.outcomes
    assert {request.method for request in run.proxy.requests} == {"CONNECT"}
    assert run.proxy.requests[0].target == f"{HOST}:{run.server.port}"
    assert_saw_no_secrets(run.proxy)
    assert run.server.texts[TEXTS[0]] == 2


def test_proxy_credentials_reach_the_proxy_and_not_the_server(network: Network) -> None:
    run = network.run(credentials="user:proxy-password@", modes=["sync"])
    assert run.outcomes[0].right, run.outcomes
    assert run.proxy.requests[0].header("proxy-authorization") is not None
    assert run.server.requests[0].header("proxy-authorization") is None


def test_the_scheme_of_a_proxy_may_be_written_in_capitals(network: Network) -> None:
    run = network.run(scheme="HTTP")
    assert [outcome.right for outcome in run.outcomes] == [True, True], run.outcomes
    assert {request.method for request in run.proxy.requests} == {"CONNECT"}


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "*"])
def test_no_proxy_is_honoured(network: Network, no_proxy: str) -> None:
    run = network.run(url="https://127.0.0.1:{port}/v1", no_proxy=no_proxy)
    assert [outcome.right for outcome in run.outcomes] == [True, True], run.outcomes
    assert run.proxy.attempts == 0


def test_the_key_for_a_plain_http_loopback_server_is_not_shown_to_a_proxy(
    network: Network,
) -> None:
    run = network.run(variable="HTTP_PROXY", url="http://127.0.0.1:{port}/v1")
    assert_saw_no_secrets(run.proxy)
    assert [outcome.right for outcome in run.outcomes] == [True, True], run.outcomes


def test_407_is_one_attempt_and_keeps_the_password(network: Network) -> None:
    asks = at("headers")(b.says(407, "who?", [("Proxy-Authenticate", 'Basic realm="x"')]))
    run = network.run(asks, credentials="user:proxy-password@")
    for outcome in run.outcomes:
        assert "NexusFlowError" in outcome.errors
        assert "407" in outcome.text
        assert "proxy-password" not in outcome.report
    assert run.proxy.attempts == 2
    assert run.server.attempts == 0


def test_a_request_is_retried_after_a_proxy_fails_once(network: Network) -> None:
    fails = at("headers")(b.says(502, "<h1>no</h1>", content_type=b.HTML))

    @at("headers")
    def fails_then_proxies(wire: Wire) -> None:
        (fails if wire.number == 0 else proxies)(wire)

    run = network.run(fails_then_proxies, modes=["sync"])
    assert run.outcomes[0].right, run.outcomes
    assert run.proxy.attempts == 2


def test_a_proxy_that_always_fails_is_a_typed_error_after_few_attempts(network: Network) -> None:
    run = network.run(at("headers")(b.says(502, "<h1>no</h1>", content_type=b.HTML)))
    for outcome in run.outcomes:
        assert "NexusFlowError" in outcome.errors
    assert 2 <= run.proxy.attempts <= 6
    assert run.server.attempts == 0


def test_a_proxy_that_refuses_connections_is_a_connection_error(
    network: Network, hold_port: Callable[[], int]
) -> None:
    environment = {
        "HTTPS_PROXY": f"http://127.0.0.1:{hold_port()}",
        "SSL_CERT_FILE": str(network.roots),
    }
    jobs = [(f"https://{HOST}/v1", mode) for mode in MODES]
    for outcome in embed_in_a_new_process(jobs, environment):
        assert "APIConnectionError" in outcome.errors, outcome.report


@pytest.mark.parametrize("behaviour", [b.silent_on_accept, at("headers")(b.no_answer)])
def test_a_proxy_that_hangs_is_a_timeout(network: Network, behaviour: Behaviour) -> None:
    run = network.run(behaviour, timeout=0.4, max_retries=1, deadline=5.0)
    for outcome in run.outcomes:
        assert "APITimeoutError" in outcome.errors, outcome.report
    assert run.proxy.attempts <= 4


def test_a_tunnel_that_closes_is_a_connection_error(network: Network) -> None:
    run = network.run(closes_after_connecting)
    for outcome in run.outcomes:
        assert "APIConnectionError" in outcome.errors, outcome.report
    assert run.proxy.attempts <= 6


def test_a_tunnel_to_an_untrusted_server_is_refused_before_anything_is_sent(
    network: Network,
) -> None:
    run = network.run(authority=trustme.CA())
    for outcome in run.outcomes:
        assert "APIConnectionError" in outcome.errors
        assert "certificate" in outcome.text
    assert run.server.attempts == 2
    assert not run.server.texts


def test_a_reset_inside_the_tunnel_is_retried(network: Network) -> None:
    run = network.run(answering=once(b.resets_on_request), modes=["sync"])
    assert run.outcomes[0].right, run.outcomes
    assert run.server.attempts == 2


@pytest.mark.parametrize("status", [303, 307])
def test_a_redirect_behind_the_proxy_is_not_followed(network: Network, status: int) -> None:
    redirects = b.redirects(status, lambda wire: "https://elsewhere.example.com/secret-path")
    run = network.run(answering=first(1, redirects), modes=["sync"])
    assert "NexusFlowError" in run.outcomes[0].errors
    assert "secret-path" not in run.outcomes[0].text
    assert len(run.server.requests) == 1
    assert {request.target for request in run.proxy.requests} == {f"{HOST}:{run.server.port}"}
