"""Certificates are verified, a rejected one is not retried, and a broken handshake does not hang.

All calls run in one new process that trusts one authority through SSL_CERT_FILE.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from . import behaviours as b
from .fresh import Outcome, embed_in_a_new_process
from .server import FaultServer, Script, Wire, at, once, right

trustme = pytest.importorskip("trustme")
pytest.importorskip("nexusflow_integrations.client")


@at("connect")
def speaks_plain_http(wire: Wire) -> None:
    wire.sock.recv(65536)
    wire.respond(400, "<html>The plain HTTP port was spoken to in TLS</html>")
    wire.fin()


@at("connect")
def resets_after_the_hello(wire: Wire) -> None:
    wire.sock.recv(65536)
    wire.reset()


@dataclass(frozen=True)
class Case:
    """`certificate` makes the server's context, from the trusted authority and a foreign one."""

    certificate: Callable[[Any, Any], ssl.SSLContext] | None
    error: str = ""
    attempts: tuple[int, int] = (1, 1)
    script: Script = field(default_factory=Script)
    scheme: str = "https"
    says: str = ""
    hurried: bool = False  # only a timeout ends it, so a busy machine may time out again


def issued(*names: str, **options: Any) -> Callable[[Any, Any], ssl.SSLContext]:
    def make(trusted: Any, foreign: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trusted.issue_cert(*names, **options).configure_cert(context)
        return context

    return make


def issued_by_a_stranger(trusted: Any, foreign: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    foreign.issue_cert("127.0.0.1").configure_cert(context)
    return context


def self_signed(trusted: Any, foreign: Any) -> ssl.SSLContext:
    """An authority's own certificate, served as if it were a host's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with foreign.cert_pem.tempfile() as cert, foreign.private_key_pem.tempfile() as key:
        context.load_cert_chain(cert, key)
    return context


def expired() -> Callable[[Any, Any], ssl.SSLContext]:
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    return issued("127.0.0.1", not_before=now - 9 * day, not_after=now - day)


GOOD = issued("127.0.0.1")
CONNECTION = "APIConnectionError"
CASES: Mapping[str, Case] = {
    "trusted by SSL_CERT_FILE": Case(GOOD),
    "self-signed": Case(self_signed, CONNECTION, says="certificate"),
    "unknown authority": Case(issued_by_a_stranger, CONNECTION, says="certificate"),
    "wrong host": Case(issued("example.com"), CONNECTION, says="certificate"),
    "expired": Case(expired(), CONNECTION, says="certificate"),
    "plain http on the TLS port": Case(None, CONNECTION, (1, 3), Script(speaks_plain_http)),
    "TLS on the plain http port": Case(GOOD, CONNECTION, (1, 3), scheme="http"),
    "handshake stalls": Case(
        GOOD, "APITimeoutError", (1, 4), Script(b.silent_on_accept), hurried=True
    ),
    "handshake stalls once": Case(GOOD, "", (2, 4), once(b.silent_on_accept), hurried=True),
    "handshake reset once": Case(GOOD, "", (2, 2), once(b.resets_on_accept)),
    "handshake reset after the hello, once": Case(GOOD, "", (2, 2), once(resets_after_the_hello)),
    "handshake reset always": Case(GOOD, CONNECTION, (1, 3), Script(b.resets_on_accept)),
    "body cut without close_notify, once": Case(GOOD, "", (2, 2), once(b.closes_mid_body)),
    "close-delimited cut, once": Case(GOOD, "", (2, 2), once(b.close_delimited(0.5))),
    "body reset, once": Case(GOOD, "", (2, 2), once(b.resets_mid_body)),
    "body in a drip": Case(GOOD, "APITimeoutError", (1, 4), Script(b.drips_body()), hurried=True),
    "redirected down to http": Case(
        GOOD,
        "APIStatusError",
        script=Script(b.redirects(307, lambda wire: f"{wire.server.elsewhere}/embeddings")),
    ),
}
MODES = ("sync", "async")


@dataclass(frozen=True)
class Seen:
    outcome: Outcome
    attempts: int
    texts: int


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Seen]:
    """Every case in both modes, against servers of their own."""
    trusted, foreign = trustme.CA(), trustme.CA(organization_name="Strangers")
    roots = Path(tmp_path_factory.mktemp("tls")) / "roots.pem"
    trusted.cert_pem.write_to_path(str(roots))
    with ExitStack() as stack:
        elsewhere = stack.enter_context(FaultServer(lifetime=3600))
        servers = {}
        for name, case in CASES.items():
            for mode in MODES:
                tls = case.certificate(trusted, foreign) if case.certificate else None
                servers[name, mode] = stack.enter_context(
                    FaultServer(case.script, tls=tls, lifetime=3600, elsewhere=elsewhere.base_url)
                )
        outcomes: dict[tuple[str, str], Outcome] = {}
        for hurried in (False, True):
            some = [job for job in servers if CASES[job[0]].hurried is hurried]
            addresses = [
                (f"{CASES[name].scheme}://127.0.0.1:{servers[name, mode].port}/v1", mode)
                for name, mode in some
            ]
            options = {"timeout": 1.0, "max_retries": 3} if hurried else {"max_retries": 1}
            found = embed_in_a_new_process(addresses, {"SSL_CERT_FILE": str(roots)}, **options)
            outcomes.update(zip(some, found, strict=True))
        assert elsewhere.attempts == 0
        return {
            job: Seen(outcomes[job], server.attempts, sum(server.texts.values()))
            for job, server in servers.items()
        }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_tls_is_verified_and_never_hangs(
    name: str, mode: str, seen: Mapping[tuple[str, str], Seen]
) -> None:
    case, what = CASES[name], seen[name, mode]
    low, high = case.attempts
    assert low <= what.attempts <= high, what.outcome.report
    if case.error:
        assert case.error in what.outcome.errors, what.outcome.report
        assert case.says in what.outcome.text
    else:
        assert what.outcome.right, what.outcome.report


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.says])
def test_a_server_with_a_refused_certificate_is_sent_nothing(
    name: str, mode: str, seen: Mapping[tuple[str, str], Seen]
) -> None:
    assert seen[name, mode].texts == 0


def test_without_ssl_cert_file_a_private_authority_is_refused() -> None:
    authority = trustme.CA()
    with FaultServer(right, tls=GOOD(authority, authority)) as server:
        (outcome,) = embed_in_a_new_process([(server.base_url, "sync")], {})
        assert "APIConnectionError" in outcome.errors
        assert server.attempts == 1


def test_exit_after_a_timeout_over_tls_warns_of_nothing(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "roots.pem"))
    environment = {
        "SSL_CERT_FILE": str(tmp_path / "roots.pem"),
        "PYTHONWARNINGS": "always::ResourceWarning",
    }
    with FaultServer(b.drips_body(), tls=GOOD(authority, authority)) as server:
        jobs = [(server.base_url, "sync")]
        (outcome,) = embed_in_a_new_process(jobs, environment, timeout=1.0, max_retries=0)
        assert "APITimeoutError" in outcome.errors
