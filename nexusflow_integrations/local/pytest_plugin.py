"""Pytest fixtures to test any project's RAG offline, against the local server.

The plugin is registered under pytest's entry point ``pytest11``. It imports only pytest until a
test uses a fixture, so a missing package fails only the tests that use one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .server import LocalServer


@pytest.fixture(scope="session")
def nexusflow_server() -> Iterator[LocalServer]:
    """A `LocalServer` with the real model, one for the whole session.

    Its counts accumulate over the tests; call ``reset_stats()`` if they matter.
    """
    from .server import LocalServer

    with LocalServer() as server:
        yield server


@pytest.fixture(scope="session")
def _nexusflow_hash_session() -> Iterator[LocalServer]:
    from .server import LocalServer

    with LocalServer("hash", record_texts=True) as server:
        yield server


@pytest.fixture
def nexusflow_hash_server(_nexusflow_hash_session: LocalServer) -> LocalServer:
    """A `LocalServer` with the fast, non-semantic encoder, with its counts set to zero.

    There is one server for the session; it keeps the received texts in ``stats.received``.
    """
    _nexusflow_hash_session.reset_stats()
    return _nexusflow_hash_session
