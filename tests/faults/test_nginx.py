"""Faults are right behind nginx as a real gateway, with its usual limits and errors."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from . import behaviours as b
from .server import FaultServer, Script, expected_vector
from .surfaces import CORE, SURFACES

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
pytest.importorskip("nexusflow_integrations.client")

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 256; }}
http {{
    log_format brief '$status $uri';
    access_log {folder}/access.log brief;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    limit_req_zone $binary_remote_addr zone=refusing:1m rate=20r/s;
    limit_req_zone $binary_remote_addr zone=overloaded:1m rate=20r/s;
    limit_conn_zone $binary_remote_addr zone=few:1m;
    server {{
        listen 127.0.0.1:{port};
        location /plain/ {{ proxy_pass {upstream}; }}
        location /gzip/ {{
            gzip on; gzip_min_length 1; gzip_types application/json; gzip_proxied any;
            proxy_pass {upstream};
        }}
        location /small/ {{ client_max_body_size 2k; proxy_pass {upstream}; }}
        location /refusing/ {{
            limit_req zone=refusing burst=2 nodelay; limit_req_status 429;
            proxy_pass {upstream};
        }}
        location /overloaded/ {{
            limit_req zone=overloaded burst=2 nodelay;
            proxy_pass {upstream};
        }}
        location /few/ {{ limit_conn few 2; limit_conn_status 429; proxy_pass {upstream}; }}
        location /down/ {{ proxy_pass http://127.0.0.1:{closed}/; }}
        location /slow/ {{ proxy_read_timeout 1s; proxy_pass {upstream}; }}
        location /once/ {{ keepalive_timeout 0; proxy_pass {upstream}; }}
        location /twice/ {{ keepalive_requests 2; proxy_pass {upstream}; }}
        location /moved/ {{ return 301 /plain/; }}
        location /teapot/ {{ return 404; }}
        location /login/ {{ auth_basic "members"; auth_basic_user_file {folder}/users; }}
        location /banned/ {{ deny all; }}
        location /unbuffered/ {{ proxy_buffering off; proxy_pass {upstream}; }}
    }}
}}
"""


@dataclass
class Gateway:
    port: int
    server: FaultServer
    log: Path

    def base_url(self, place: str) -> str:
        return f"http://127.0.0.1:{self.port}/{place}/v1"


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, hold_port: Callable[[], int]
) -> Iterator[Gateway]:
    folder = Path(tmp_path_factory.mktemp("nginx"))
    folder.chmod(0o755)
    (folder / "users").write_text("")
    with FaultServer(dimensions=64, lifetime=3600) as server:
        port = hold_port()
        text = CONFIGURATION.format(
            folder=folder,
            port=port,
            closed=hold_port(),
            upstream=f"http://127.0.0.1:{server.port}/",
        )
        (folder / "nginx.conf").write_text(text)
        assert NGINX is not None
        process = subprocess.Popen(
            [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            end = time.monotonic() + 60
            while not _answers(port):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < end
                time.sleep(0.02)
            yield Gateway(port, server, folder / "access.log")
        finally:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture
def gateway(running: Gateway, short_delays: None) -> Gateway:
    running.server.script = Script()
    running.server.texts.clear()
    return running


def embed(
    gateway: Gateway, place: str, surface: str, texts: list[str], **options: object
) -> list[np.ndarray]:
    chosen = {"dimensions": 64, "timeout": 60.0, "deadline": 120.0, "max_retries": 2, **options}
    key = f"sk-air-{place}-{surface}-0123456789"
    with SURFACES[surface](gateway.base_url(place), key, chosen) as call:
        return list(call(texts))


def assert_right(rows: list[np.ndarray], texts: list[str]) -> None:
    assert len(rows) == len(texts)
    for row, text in zip(rows, texts, strict=True):
        assert np.array_equal(row, expected_vector(text, 64))


def texts_of(n: int, size: int = 10) -> list[str]:
    return [f"text {i} " + "x" * size for i in range(n)]


surfaces = pytest.mark.parametrize("surface", CORE)


@surfaces
@pytest.mark.parametrize("place", ["plain", "gzip", "once", "twice", "unbuffered"])
def test_many_batches_are_right_behind_a_gateway(
    gateway: Gateway, place: str, surface: str
) -> None:
    texts = texts_of(85)
    assert_right(embed(gateway, place, surface, texts), texts)
    assert set(gateway.server.texts.values()) == {1}, "a text was sent twice"


@surfaces
def test_413_of_the_gateway_halves_until_it_fits(gateway: Gateway, surface: str) -> None:
    texts = texts_of(10, 500)
    assert_right(embed(gateway, "small", surface, texts), texts)
    assert set(gateway.server.texts.values()) == {1}


@surfaces
def test_413_of_one_text_names_it_and_finishes_the_others(gateway: Gateway, surface: str) -> None:
    from nexusflow_integrations.errors import RefusedTextsError

    texts = [*texts_of(6), "x" * 5000, *texts_of(3, 20)]
    with pytest.raises(RefusedTextsError) as caught:
        embed(gateway, "small", surface, texts)
    assert set(caught.value.refused) == {6}
    assert caught.value.refused[6].status_code == 413
    assert set(caught.value.finished) == set(range(10)) - {6}


@pytest.mark.parametrize(
    ("place", "status", "surface"),
    [
        ("refusing", 429, "core"),
        ("overloaded", 503, "core"),
        ("overloaded", 503, "core_async"),
        ("few", None, "core_async"),
    ],
)
def test_limits_of_the_gateway_are_retried_until_there_are_vectors(
    gateway: Gateway, place: str, status: int | None, surface: str
) -> None:
    texts = texts_of(60)
    rows = embed(gateway, place, surface, texts, max_retries=12)
    assert_right(rows, texts)
    assert set(gateway.server.texts.values()) == {1}
    if status is not None:
        assert f"{status} /{place}/" in gateway.log.read_text(), "the limit was never met"


@surfaces
@pytest.mark.parametrize(
    ("place", "error", "status"),
    [
        ("down", "InternalServerError", 502),
        ("slow", "InternalServerError", 504),
        ("moved", "APIStatusError", 301),
        ("teapot", "NotFoundError", 404),
        ("login", "AuthenticationError", 401),
        ("banned", "PermissionDeniedError", 403),
    ],
)
def test_error_pages_become_one_readable_line(
    gateway: Gateway, place: str, error: str, status: int, surface: str
) -> None:
    from nexusflow_integrations import errors

    if place == "slow":
        gateway.server.script = Script(b.no_answer)
    with pytest.raises(getattr(errors, error)) as caught:
        embed(gateway, place, surface, ["a"], max_retries=1 if place == "down" else 0)
    assert caught.value.status_code == status
    assert str(status) in str(caught.value)
    assert not re.search(r"[<>\n]", str(caught.value))
    assert len(str(caught.value)) < 300


@surfaces
@pytest.mark.parametrize(
    "behaviour",
    [b.resets_on_request, b.closes_mid_body, b.chunk_truncated, b.length_too_long_then_close],
)
@pytest.mark.parametrize("place", ["plain", "unbuffered"])
def test_a_request_that_a_server_behind_the_gateway_breaks_off_is_retried(
    gateway: Gateway, place: str, behaviour: b.Behaviour, surface: str
) -> None:
    asked = len(gateway.server.requests)
    gateway.server.script = Script(behaviour, lambda wire: wire.number == asked)
    texts = texts_of(3)
    assert_right(embed(gateway, place, surface, texts), texts)
    assert len(gateway.server.requests) == asked + 2
