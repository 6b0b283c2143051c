"""A task that is cancelled before the thread that works for it runs leaves no error behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nexusflow_integrations._core.key_sources import _in_thread
from nexusflow_integrations._core.request.pool import _NameService

WORK: dict[str, Callable[[], Awaitable[Any]]] = {
    "name": lambda: _NameService().getaddrinfo("127.0.0.1", 80),
    "key": lambda: _in_thread(lambda: "sk-air-of-a-function-0123456789"),
}


@pytest.mark.parametrize("name", WORK)
async def test_a_thread_that_starts_after_its_task_was_cancelled_raises_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[threading.Thread] = []
    errors: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
        task = asyncio.ensure_future(WORK[name]())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (thread,) = started
    thread.start()
    thread.join(60)
    assert not errors
