"""A peer that does not complete the TCP handshake causes a timeout."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from .surfaces import CORE, SURFACES

pytest.importorskip("nexusflow_integrations.client")


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose backlog is full: further connections get no answer at all."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(16):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(0.2)
            try:
                sock.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        else:
            pytest.skip("this system accepts connections beyond the backlog")
        yield port


@pytest.mark.parametrize("surface", CORE)
@pytest.mark.usefixtures("short_delays")
def test_a_full_backlog_is_a_timeout(surface: str, full_port: int) -> None:
    from nexusflow_integrations.errors import APITimeoutError

    options = {"timeout": 0.4, "max_retries": 1, "deadline": 5.0}
    address = f"http://127.0.0.1:{full_port}/v1"
    with (
        SURFACES[surface](address, "sk-air-backlog", options) as embed,
        pytest.raises(APITimeoutError),
    ):
        embed(["a"])
