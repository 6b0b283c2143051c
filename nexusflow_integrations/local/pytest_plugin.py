"""Fixtures that let any project test its own RAG against the local server, offline.

Registered with pytest under the entry point ``pytest11``; it imports nothing but pytest until a
test asks for a server, and a missing package fails only the tests that do.
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

    Its counts run on from test to test: call ``reset_stats()`` where they matter.
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
    """A `LocalServer` with the fast encoder that knows no meaning, its counts at zero.

    One server for the session; it keeps the texts received in ``stats.received``.
    """
    _nexusflow_hash_session.reset_stats()
    return _nexusflow_hash_session
