"""A ``progress`` that raises costs one log line; an error of a signal handler stops the run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import chromadb
import pytest

from nexusflow_integrations.chroma_collections import (
    aadd_documents,
    acopy_collection,
    add_documents,
    aopen_collection,
    async_documents,
    copy_collection,
    open_collection,
    sync_documents,
)
from nexusflow_integrations.local import LocalServer

from .test_add_documents import numbered
from .test_embedding_function import Make

COUNT = 300


class TimeLimitError(Exception):
    """As Celery's soft time limit: a signal handler raises it."""


def fails(count: int) -> None:
    raise ZeroDivisionError


async def afails(count: int) -> None:
    raise AssertionError("nobody awaits this")


def reported(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("work", [add_documents, sync_documents])
def test_all_documents_are_written_though_progress_raises_which_is_logged_once(
    client: Any, make: Make, work: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    collection = open_collection(client, "docs", make())
    done = work(collection, **numbered(COUNT), slice_size=50, progress=fails)
    assert done.added == collection.count() == COUNT
    (said,) = reported(caplog)
    assert said.startswith("progress raised ZeroDivisionError; the call continues")
    work(collection, **numbered(COUNT), progress=fails)  # nothing is new
    assert len(reported(caplog)) == 2


@pytest.mark.parametrize("dimensions", [64, 128], ids=["copied", "embedded again"])
def test_a_collection_is_copied_though_progress_raises(
    client: Any, make: Make, dimensions: int, caplog: pytest.LogCaptureFixture
) -> None:
    add_documents(open_collection(client, "docs", make()), **numbered(COUNT))
    done = copy_collection(
        client, "docs", "docs-2", make(dimensions=dimensions), slice_size=50, progress=fails
    )
    assert done.exchanged
    assert done.copied + done.embedded == COUNT
    assert len(reported(caplog)) == 1


async def test_the_async_functions_also_write_everything_though_progress_raises(
    chroma_port: int, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=chroma_port)
    name = f"docs-{uuid4().hex}"
    collection = await aopen_collection(client, name, make())
    options: dict[str, Any] = {"slice_size": 50, "progress": fails}
    assert (await aadd_documents(collection, **numbered(COUNT), **options)).added == COUNT
    assert (await async_documents(collection, **numbered(COUNT), **options)).unchanged == COUNT
    for target, dimensions in (("copied", 64), ("embedded", 128)):
        done = await acopy_collection(
            client, name, f"{name}-{target}", make(dimensions=dimensions), exchange=False, **options
        )
        assert done.copied + done.embedded == COUNT
    assert len(reported(caplog)) == 4


def test_an_async_progress_is_refused_and_a_returned_coroutine_is_logged_once(
    client: Any, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    from nexusflow_integrations.errors import ConfigurationError

    collection = open_collection(client, "docs", make())
    with pytest.raises(ConfigurationError, match="progress must be a plain function"):
        add_documents(collection, **numbered(3), progress=afails)
    add_documents(collection, **numbered(COUNT), slice_size=50, progress=lambda n: afails(n))
    assert collection.count() == COUNT
    (said,) = reported(caplog)
    assert "returned a coroutine" in said


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, TimeLimitError])
@pytest.mark.parametrize("work", [add_documents, sync_documents, copy_collection])
def test_what_stops_a_run_also_stops_it_when_the_progress_function_raises_it(
    client: Any,
    make: Make,
    server: LocalServer,
    work: Callable[..., Any],
    stop: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def handler(*_: object) -> None:
        raise TimeLimitError

    def progress(count: int) -> None:
        if stop is TimeLimitError:
            signal.raise_signal(signal.SIGTERM)
        raise stop

    place: tuple[Any, ...] = (open_collection(client, "docs", make()),)
    source: dict[str, Any] = numbered(1000)
    if work is copy_collection:
        add_documents(*place, **source)
        place, source = (client, "docs", "docs-2", make(dimensions=128)), {}
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(stop):
            work(*place, **source, slice_size=100, progress=progress)
    finally:
        signal.signal(signal.SIGTERM, before)
    kept = client.get_collection("docs-2" if work is copy_collection else "docs").count()
    assert 100 <= kept < 1000
    assert reported(caplog) == []
