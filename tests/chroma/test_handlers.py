"""An error that a signal handler raises while Chroma is called ends the run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chromadb.api.models.Collection import Collection

from nexusflow_integrations.chroma_collections import (
    add_documents,
    open_collection,
    sync_documents,
)

from .test_add_documents import numbered
from .test_embedding_function import Make


class TimeLimitError(Exception):
    """As Celery's soft time limit."""


@pytest.fixture
def stop(request: pytest.FixtureRequest) -> Iterator[type[Exception]]:
    def handler(*_: object) -> None:
        raise request.param("Task exceeded maximum timeout value (180 seconds)")

    before = signal.signal(signal.SIGTERM, handler)
    yield request.param
    signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
@pytest.mark.parametrize("stop", [TimeLimitError, TimeoutError, ConnectionError], indirect=True)
@pytest.mark.parametrize(
    ("work", "name"),
    [
        (add_documents, "get"),
        (add_documents, "add"),
        (sync_documents, "get"),
        (sync_documents, "upsert"),
        (sync_documents, "delete"),
    ],
)
def test_an_error_of_a_signal_handler_ends_a_run_that_waits_for_chroma(
    client: Any,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[..., Any],
    name: str,
    stop: type[Exception],
) -> None:
    collection = open_collection(client, "docs", make())
    add_documents(collection, ids=["gone"], documents=["An old text."])
    calls = []
    original = getattr(Collection, name)

    def slow(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGTERM)
            time.sleep(0.2)
        return original(*args, **options)

    monkeypatch.setattr(Collection, name, slow)
    with pytest.raises(stop, match="Task exceeded"):
        work(collection, **numbered(20))
