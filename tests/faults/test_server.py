"""The fault server really sends what its behaviours describe."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest

from . import behaviours as b
from .catalogue import ROWS, TEXTS, Row
from .server import (
    FaultServer,
    Script,
    Wire,
    always,
    expected_vector,
    first,
    larger_than,
    marked,
    once,
)

PATIENCE = 60.0  # no wait of these tests lasts longer
SOON = 15.0  # much less than any of the behaviours that are stopped would last
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading trusted roots takes a while


def ask(*texts: str, **fields: object) -> bytes:
    body = json.dumps({"model": "m", "input": list(texts), "dimensions": 64, **fields}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextlib.contextmanager
def connected(server: FaultServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
        yield sock


def heard(sock: socket.socket, limit: int = 1 << 24) -> bytes:
    """Everything until the server closes."""
    parts = []
    while limit > 0 and (data := sock.recv(65536)):
        parts.append(data)
        limit -= len(data)
    return b"".join(parts)


def answer(server: FaultServer, *texts: str) -> bytes:
    """What is on the wire until the server closes."""
    with connected(server) as sock:
        sock.sendall(ask(*texts))
        return heard(sock)


def post(
    server: FaultServer, *texts: str, timeout: float | httpx.Timeout = PATIENCE, **fields: object
) -> httpx.Response:
    body = {"model": "m", "input": list(texts), "dimensions": 64, **fields}
    return httpx.post(
        f"{server.base_url}/embeddings", json=body, timeout=timeout, verify=NO_TLS, trust_env=False
    )


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


# ---- right answers


def test_the_vector_of_a_text_is_its_own_and_of_unit_length() -> None:
    texts = ["a", "b", "", "a ", "\ud800", "文"]
    vectors = [expected_vector(text, 64) for text in texts]
    assert len({vector.tobytes() for vector in vectors}) == len(texts)
    assert np.array_equal(vectors[0], expected_vector("a", 64))
    for vector in vectors:
        assert vector.dtype == np.float32
        assert vector.all()
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_without_a_script_every_text_gets_its_vector(encoding: str) -> None:
    with FaultServer() as server:
        body = post(server, *TEXTS, encoding_format=encoding).json()
    for i, text in enumerate(TEXTS):
        item = body["data"][i]
        assert item["index"] == i
        vector = item["embedding"]
        if encoding == "base64":
            vector = np.frombuffer(b.base64.b64decode(vector), "<f4")
        assert np.array_equal(np.asarray(vector, np.float32), expected_vector(text, 64))


def test_dimensions_are_the_servers_where_none_are_asked_for() -> None:
    with FaultServer(dimensions=7) as server:
        body = post(server, "a", dimensions=None).json()
    assert len(body["data"][0]["embedding"]) == 7


def test_a_request_in_chunks_is_understood() -> None:
    with FaultServer() as server:

        def parts() -> Iterator[bytes]:
            yield b'{"input":'
            yield b'["a"]}'

        httpx.post(f"{server.base_url}/embeddings", content=parts(), trust_env=False)
    assert server.requests[0].texts == ("a",)


# ---- the log


def test_the_log_holds_texts_headers_and_connections() -> None:
    with FaultServer() as server, httpx.Client(trust_env=False) as client:
        for text in ("a", "b", "a"):
            client.post(
                f"{server.base_url}/embeddings", json={"input": [text]}, headers={"X-Test": text}
            )
        assert [r.texts for r in server.requests] == [("a",), ("b",), ("a",)]
        assert [r.header("x-test") for r in server.requests] == ["a", "b", "a"]
        assert [r.connection for r in server.requests] == [0, 0, 0]
        assert server.texts == {"a": 2, "b": 1}
        assert server.connections == 1
        assert server.max_in_flight == 1
        assert server.attempts == 3
        assert until(lambda: server.requests[2].answered_at is not None)
        assert len(server.gaps()) == 2


def test_requests_at_once_are_counted_as_in_flight() -> None:
    gate = threading.Barrier(4, timeout=PATIENCE)

    def together(wire: Wire) -> None:
        gate.wait()
        wire.right()

    with FaultServer(together) as server:
        threads = [threading.Thread(target=post, args=(server, "a")) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert server.max_in_flight == 4
        assert server.connections == 4
        assert until(lambda: server.in_flight == 0)


def test_a_connection_without_a_request_counts_as_an_attempt() -> None:
    with FaultServer(b.resets_on_accept) as server:
        for _ in range(3):
            with contextlib.suppress(OSError), connected(server) as sock:
                sock.recv(1)
        assert until(lambda: server.attempts == 3)
        assert server.requests == []


# ---- scripts


def test_scripts_choose_by_number_marker_and_size() -> None:
    no = b.says(500)
    for script, statuses in (
        (once(no), [500, 200, 200, 200]),
        (first(2, no), [500, 500, 200, 200]),
        (always(no), [500, 500, 500, 500]),
        (marked("b", no), [200, 500, 500, 200]),
        (larger_than(1, no), [200, 200, 500, 200]),
    ):
        with FaultServer(script) as server:
            asked = [("a",), ("b",), ("a", "b"), ("c",)]
            assert [post(server, *texts).status_code for texts in asked] == statuses


def test_a_script_can_be_replaced_while_the_server_runs() -> None:
    with FaultServer(b.says(500)) as server:
        assert post(server, "a").status_code == 500
        server.script = Script()
        assert post(server, "a").status_code == 200


def test_an_error_in_a_behaviour_is_raised_at_the_end_of_the_block() -> None:
    def broken(wire: Wire) -> None:
        raise KeyError("mistake")

    with pytest.raises(AssertionError, match="behaviour is broken"), FaultServer(broken) as server:
        assert answer(server, "a") == b""


# ---- bounds


@pytest.mark.parametrize(
    "behaviour",
    [b.drips_body(), b.no_answer, b.endless_tiny_chunks, b.silent_on_accept, b.closes_on_accept],
    ids=["drip", "silence", "chunks", "silent accept", "close"],
)
def test_stopping_does_not_wait_for_a_behaviour(behaviour: b.Behaviour) -> None:
    with FaultServer(behaviour) as server, connected(server) as sock:
        sock.sendall(ask("a"))
        assert until(lambda: server.connections == 1)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < SOON
        assert server.open_connections == 0


def test_stopping_frees_a_thread_whose_writes_are_not_read() -> None:
    with FaultServer(b.endless_body) as server, connected(server) as sock:
        sock.sendall(ask("a"))
        assert until(lambda: server.bytes_sent > 100_000)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < SOON


def test_bytes_are_capped() -> None:
    with FaultServer(b.endless_body, max_bytes=1_000_000) as server:
        assert len(answer(server, "a")) <= 1_000_000
        assert server.cut_short


def test_connections_are_capped() -> None:
    with FaultServer(max_connections=1) as server, connected(server) as one:
        one.sendall(ask("a"))
        assert one.recv(4) == b"HTTP"
        with connected(server) as two:
            assert two.recv(1) == b""
        assert server.cut_short


def test_the_lifetime_of_a_fault_server_is_limited() -> None:
    with FaultServer(b.no_answer, lifetime=0.3) as server:
        assert answer(server, "a") == b""
        assert server.cut_short
        with pytest.raises(OSError):  # noqa: SIM117
            with connected(server):
                pass


# ---- faults on the wire


@pytest.mark.parametrize(
    "behaviour", [b.resets_on_accept, b.resets_on_request, b.resets_mid_head, b.resets_mid_body]
)
def test_a_reset_closes_the_connection_with_rst(behaviour: b.Behaviour) -> None:
    with FaultServer(behaviour) as server, pytest.raises(ConnectionError):
        answer(server, "a")


@pytest.mark.parametrize(
    ("behaviour", "start"),
    [
        (b.closes_on_accept, b""),
        (b.closes_on_request, b""),
        (b.closes_mid_head, b"HTTP/1.1 200 OK\r\nContent-Type: appl"),
    ],
)
def test_a_close_ends_the_connection_without_rst(behaviour: b.Behaviour, start: bytes) -> None:
    with FaultServer(behaviour) as server:
        assert answer(server, "a") == start


def test_a_body_that_is_cut_is_shorter_than_its_length() -> None:
    for behaviour in (b.closes_mid_body, b.length_too_long_then_close):
        with FaultServer(behaviour) as server:
            head, body = answer(server, "a").split(b"\r\n\r\n", 1)
            length = int(head.split(b"Content-Length: ")[1])
            assert 0 < len(body) < length


def test_a_drip_comes_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[bytes, float]] = []
    send = Wire.send

    def note(wire: Wire, data: bytes) -> None:
        sent.append((data, time.monotonic()))
        send(wire, data)

    monkeypatch.setattr(Wire, "send", note)
    with FaultServer(b.drips_body(0.02)) as server, connected(server) as sock:
        sock.sendall(ask("a"))
        data = b""
        while len(data.partition(b"\r\n\r\n")[2]) < 10:
            data += sock.recv(65536)
        head, *drops = sent[:11]
    assert data.startswith(head[0])
    assert [len(drop) for drop, _ in drops] == [1] * 10
    assert drops[-1][1] - drops[0][1] >= 9 * 0.02


def test_headers_in_a_drip_never_end() -> None:
    with FaultServer(b.drips_head) as server, connected(server) as sock:
        sock.sendall(ask("a"))
        data = b""
        while b"X-Header-0: " not in data:
            data += sock.recv(1)
    assert data.startswith(b"HTTP/1.1 200")
    assert b"\r\n\r\n" not in data


def test_interim_responses_come_before_the_right_one() -> None:
    with FaultServer(b.interim(103, 2, 0.0)) as server, connected(server) as sock:
        sock.sendall(ask("a"))
        data = b""
        while b"HTTP/1.1 200" not in data:
            data += sock.recv(65536)
        assert data.count(b"HTTP/1.1 103") == 2


def test_a_silent_server_sends_nothing() -> None:
    for behaviour in (b.no_answer, b.silent_on_accept):
        with FaultServer(behaviour) as server, connected(server) as sock:
            sock.sendall(ask("a"))
            sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                sock.recv(1)


@pytest.mark.parametrize(
    "behaviour",
    [b.chunk_truncated, b.chunks_without_end, b.chunk_size_is_no_number, b.chunk_size_lies],
)
def test_broken_chunks_are_refused_by_another_parser(behaviour: b.Behaviour) -> None:
    with FaultServer(behaviour) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("POST", "/v1/embeddings", json.dumps({"input": ["a"]}))
        response = connection.getresponse()
        try:
            body = response.read()
        except (http.client.HTTPException, ValueError):
            body = b""
        connection.close()
    # This parser forgives a missing last chunk, which is why our client must not.
    if behaviour is not b.chunks_without_end:
        with pytest.raises(ValueError):
            json.loads(body)


def test_small_chunks_make_the_right_answer() -> None:
    with FaultServer(b.chunked(3)) as server:
        response = post(server, "a")
    assert response.headers["transfer-encoding"] == "chunked"
    assert len(response.json()["data"][0]["embedding"]) == 64


def test_the_smuggled_answer_is_in_the_same_bytes() -> None:
    with FaultServer(b.smuggles_a_second_answer) as server, connected(server) as sock:
        sock.sendall(ask("a"))
        data = b""
        while data.count(b"HTTP/1.1 200 OK") < 2:
            data += sock.recv(65536)
        sock.sendall(ask("b"))
        while data.count(b"HTTP/1.1 200 OK") < 4:
            data += sock.recv(65536)
    assert len(server.requests) == 2


def test_a_length_too_short_leaves_bytes_on_the_connection() -> None:
    with FaultServer(b.length_too_short) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("POST", "/v1/embeddings", json.dumps({"input": ["a"]}))
        assert len(connection.getresponse().read()) == 20
        connection.request("POST", "/v1/embeddings", json.dumps({"input": ["a"]}))
        with pytest.raises(http.client.BadStatusLine):
            connection.getresponse()
        connection.close()


def test_the_bomb_unpacks_to_its_size_and_is_small() -> None:
    packed = b.bomb()
    assert len(packed) < 2_000_000
    unpacker, size, data = zlib.decompressobj(31), 0, packed
    while data and size < 80_000_000:
        out = unpacker.decompress(data, 1 << 20)
        data = unpacker.unconsumed_tail
        size += len(out)
    assert size >= 80_000_000


def test_compressed_answers_are_what_they_claim() -> None:
    with FaultServer(b.compressed("gzip", gzip.compress)) as server:
        assert len(post(server, "a").json()["data"]) == 1
    for pack in (b.gzip_cut, lambda data: data, b.gzip_bad_checksum):
        with pytest.raises((EOFError, OSError)):
            gzip.decompress(pack(b"a" * 100))
    assert gzip.decompress(gzip.decompress(b.gzip_twice(b"a"))) == b"a"


def test_an_early_answer_comes_before_the_body_is_sent() -> None:
    behaviour = b.answers_early(401, b.error("c"))
    with FaultServer(behaviour) as server, connected(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 401")
        with contextlib.suppress(ConnectionError):
            assert heard(sock) == b""


def test_a_body_that_is_not_read_blocks_its_sender() -> None:
    with (
        FaultServer(b.never_reads_the_body, receive_buffer=4096) as server,
        socket.socket() as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.connect(("127.0.0.1", server.port))
        sock.settimeout(0.5)
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n")
        with pytest.raises(TimeoutError):
            sock.sendall(b"x" * 9_000_000)


def test_an_idle_connection_is_closed_without_notice() -> None:
    with FaultServer(b.right_then_close(0.0)) as server:
        data = answer(server, "a")
        assert b"connection: close" not in data.lower()
        assert data.endswith(b"}")


def test_the_second_request_of_a_connection_meets_the_fault() -> None:
    behaviour = b.right_once_per_connection(b.closes_on_request)
    with FaultServer(behaviour) as server, connected(server) as sock:
        sock.sendall(ask("a"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        sock.sendall(ask("a"))
        assert b"HTTP/1.1" not in heard(sock)
        assert post(server, "b").status_code == 200


def test_a_late_answer_stays_on_its_connection() -> None:
    with FaultServer(once(b.right_after(3.0))) as server:
        with pytest.raises(httpx.ReadTimeout):
            post(server, "a", timeout=httpx.Timeout(PATIENCE, read=0.1))
        assert post(server, "b").status_code == 200


def test_the_quota_refuses_beyond_its_burst_and_fills_again() -> None:
    with FaultServer(b.Quota(0.5, 2)) as server:  # a second request within 2 s is not much to ask
        assert [post(server, "a").status_code for _ in range(2)] == [200, 200]
        assert until(lambda: post(server, "a").status_code == 429)
        assert until(lambda: post(server, "a").status_code == 200)


def test_tls_serves_the_same_script() -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with FaultServer(once(b.closes_mid_body), tls=serving) as server:
        with httpx.Client(verify=trusting, trust_env=False) as client:
            url = f"{server.base_url}/embeddings"
            with pytest.raises(httpx.HTTPError):
                client.post(url, json={"input": ["a"]})
            assert client.post(url, json={"input": ["a"]}).status_code == 200
        assert server.attempts == 2
    with (
        FaultServer(b.drips_body(), tls=serving) as server,
        connected(server) as raw,
        trusting.wrap_socket(raw, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(ask("a"))
        assert sock.recv(10).startswith(b"HTTP")
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < SOON


# ---- the catalogue, with a generic client


BAD_BODIES = [
    row for row in ROWS if row.fault in {f"F{n}" for n in range(44, 84)} and len(row.expect) == 1
]


@pytest.mark.parametrize("row", BAD_BODIES, ids=lambda row: row.id)
def test_each_bad_body_really_differs_from_the_right_one(row: Row) -> None:
    fields = {"encoding_format": "base64", "dimensions": 64, **row.options}
    with FaultServer(row.script(), **row.server) as bad, FaultServer(dimensions=64) as good:
        assert _seen(post(bad, *row.texts, **fields)) != _seen(post(good, *row.texts, **fields))


def _seen(response: httpx.Response) -> tuple[object, ...]:
    return response.status_code, response.headers.get("content-type"), response.content
