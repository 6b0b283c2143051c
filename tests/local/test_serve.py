"""The server runs in the foreground, as with the command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.local import CannotListenError, LocalServer, serve
from nexusflow_integrations.local.server import _start_lines

SERVE = "from nexusflow_integrations.local import serve; serve(port=0, model='hash'{})"


@pytest.fixture(params=["", ", api_key='sk-air-one'"], ids=["any key", "one key"])
def serving(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and what it has said so far."""
    code = SERVE.format(request.param)
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = 2 if request.param else 3
        said = "".join(process.stderr.readline() for _ in range(lines))
        yield process, said
        process.kill()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_it_says_where_it_serves_and_what_it_runs_and_ends_cleanly_on_ctrl_c(
    serving: tuple[subprocess.Popen[str], str],
) -> None:
    process, said = serving
    found = re.search(r"http://127\.0\.0\.1:\d+/v1", said)
    assert found
    assert "Model: hash" in said
    assert "NOT semantic" in said
    assert "a local stand-in for text-embedding-v4" in said
    assert "sk-air-one" not in said
    answer = httpx.post(
        f"{found[0]}/embeddings",
        json={"model": "text-embedding-v4", "input": "x"},
        headers={"Authorization": "Bearer sk-air-one"},
        trust_env=False,
        timeout=300,
    )
    assert answer.status_code == 200
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0
    assert stderr.strip() == "Stopped."
    assert stdout == ""


def test_a_taken_port_is_an_oserror() -> None:
    with LocalServer("hash") as server, pytest.raises(CannotListenError, match="in use"):
        serve(port=server.port, model="hash")


def test_an_unknown_model_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(ValueError, match="No model"):
        serve(model="text-embedding-v4")


@pytest.mark.parametrize(
    ("host", "url", "there"),
    [
        ("127.0.0.1", "http://127.0.0.1:8765/v1", None),
        ("localhost", "http://localhost:8765/v1", None),
        ("::1", "http://[::1]:8765/v1", None),
        ("0.0.0.0", "http://127.0.0.1:8765/v1", "http://ADDRESS:8765/v1"),
        ("::", "http://[::1]:8765/v1", "http://ADDRESS:8765/v1"),
        ("192.168.1.5", None, "http://192.168.1.5:8765/v1"),
    ],
)
def test_the_settings_that_serve_prints_are_those_that_the_client_accepts(
    host: str, url: str | None, there: str | None
) -> None:
    said = _start_lines(host, 8765, "hash", any_key=True)
    # The whole line can be pasted into a shell.
    found = re.search(r"^export NEXUSFLOW_BASE_URL=(\S+) NEXUSFLOW_API_KEY=\S+$", said, re.M)
    assert (found and found[1]) == url
    assert "Any key is accepted." in said
    if url is not None:
        assert NexusFlow("k", base_url=url)
    other = re.search('need base_url="(.*)" and allow_http=True', said)
    assert (other and other[1]) == there
    if there is not None:
        assert NexusFlow("k", base_url=there, allow_http=True)
        with pytest.raises(ConfigurationError):
            NexusFlow("k", base_url=there)
