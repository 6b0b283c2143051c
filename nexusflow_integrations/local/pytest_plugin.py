"""Pytest fixtures to test any project's RAG offline, against the local server.

Registered under pytest's entry point ``pytest11``. It imports nothing but pytest until a test uses
a fixture, and a missing package fails only those tests.
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
    """A `LocalServer` with the fast, non-semantic encoder, its counts at zero.

    There is one server for the session; it keeps the texts received in ``stats.received``.
    """
    _nexusflow_hash_session.reset_stats()
    return _nexusflow_hash_session
