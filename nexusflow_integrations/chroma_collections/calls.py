"""Calls Chroma with a time limit and retries."""

from __future__ import annotations

import asyncio
import queue
import re
import threading
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
from chromadb.api import AsyncClientAPI, ClientAPI

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.outcome import Outcome
from nexusflow_integrations._core.store_status import REFUSED, status_of
from nexusflow_integrations.errors import CollectionError

if TYPE_CHECKING:
    from chromadb.api.models.AsyncCollection import AsyncCollection
    from chromadb.api.models.Collection import Collection

T = TypeVar("T")

HANGS = 3
"""Number of attempts without a response that fit into a call's time limit."""
READS = 3
"""Maximum number of attempts at a read that fails inside the store."""
PAUSE = 0.25
"""Seconds before the second attempt; each further wait is twice as long."""
_BUSY = ("locked", "busy", "timed out", "timeout", "temporarily", "unavailable")
_TOO_LARGE = re.compile(r"\b413\b|too large|length limit exceeded")
_INVALID = (ValueError, TypeError, OverflowError)
"""Errors with which Chroma's own checks refuse a document."""


class RefusedError(CollectionError):
    """The store refuses what is in the request, such as one of its documents, or its size.

    Attributes:
        reason: The store's reason, in a few words.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} failed: {reason}")
        self.reason = reason


class Calls:
    """Calls a collection or client, each time within ``timeout`` seconds including all attempts.

    Chroma itself sets no timeout and would wait for a locked database or a silent server for ever.
    So each call runs in its own thread, for which the caller stops waiting when the time is over.
    """

    def __init__(self, collection: Collection | None, timeout: float) -> None:
        self.collection: Any = collection
        self._timeout = timeout

    def __call__(self, what: str, method: Callable[..., T], /, **fields: Any) -> T:
        """Return ``method(**fields)``.

        Raises:
            RefusedError: The store refuses a document, or a request of this size.
            CollectionError: The call failed, even after retries, or took too long.
        """
        until = monotonic() + self._timeout
        for attempt in count(1):
            limit = max(0.0, min(self._timeout / HANGS, until - monotonic()))
            # The call runs in another thread, so an error raised in this one comes from a
            # signal handler.
            found = _in_thread(method, fields, limit)
            if not isinstance(error := found.error, Exception):
                return found.result()
            time.sleep(_pause(what, error, attempt, until - monotonic()))
        raise AssertionError("an attempt returns or raises")


class AsyncCalls:
    """Calls an ``AsyncCollection``, each time within ``timeout`` seconds including all attempts."""

    def __init__(self, collection: AsyncCollection | None, timeout: float) -> None:
        self.collection: Any = collection
        self._timeout = timeout

    async def __call__(self, what: str, method: Callable[..., Awaitable[T]], /, **fields: Any) -> T:
        until = monotonic() + self._timeout
        for attempt in count(1):
            limit = max(0.0, min(self._timeout / HANGS, until - monotonic()))
            try:
                return await asyncio.wait_for(cast(Any, method(**fields)), limit)
            except Exception as error:  # noqa: BLE001
                pause = _pause(what, error, attempt, until - monotonic())
            await asyncio.sleep(pause)
        raise AssertionError("an attempt returns or raises")


def check_timeout(timeout: float, deadline: float | None = None) -> float:
    """Return the seconds that a call to Chroma may take; at most the ``deadline``."""
    timeout = checks.seconds("store_timeout", timeout)
    return min(timeout, threading.TIMEOUT_MAX if deadline is None else deadline)


def check_client(client: object, *, asynchronous: bool) -> None:
    """Refuse what is not a client of Chroma, and a sync client for an async function or vice versa.

    Raises:
        ConfigurationError: ``client`` is of the wrong kind.
    """
    found = checks.has_methods(client, "get_collection", "list_collections")
    # A wrapper with the same methods is accepted.
    other = ClientAPI if asynchronous else AsyncClientAPI
    if isinstance(client, type) or not found or isinstance(client, other):
        wanted = "an AsyncHttpClient" if asynchronous else "a synchronous client"
        raise checks.refuse("client", f"{wanted} of Chroma", client)


def _in_thread(method: Callable[..., T], fields: dict[str, Any], limit: float) -> Outcome[T]:
    outcome: queue.SimpleQueue[Outcome[T]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(Outcome(method(**fields)))
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises it again
            outcome.put(Outcome(error=error))

    threading.Thread(target=run, name="nexusflow-chroma", daemon=True).start()
    try:
        return outcome.get(timeout=limit)
    except queue.Empty:
        return Outcome(error=TimeoutError(f"no answer within {limit:.3g} s"))


def _pause(what: str, error: Exception, attempt: int, left: float) -> float:
    """Return the seconds before the next attempt; raise an error if there is no next attempt."""
    said = str(error).lower()
    status = status_of(error)
    if status == 413 or (status != 404 and _TOO_LARGE.search(said)):
        raise RefusedError(what, "the server does not accept a request this large") from error
    pause = PAUSE * (1 << (attempt - 1))
    failed_read = what == "reading" and status == 500 and attempt < READS
    transient = _is_transient(error, said)
    if not transient and (status in REFUSED or isinstance(error, _INVALID)):
        raise RefusedError(what, _in_words(error)) from error
    if pause >= left or not (failed_read or transient):
        again = "" if attempt == 1 else f" {attempt} times"
        raise CollectionError(f"{what} failed{again}: {_in_words(error)}") from error
    return pause


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:500]}"


def _is_transient(error: Exception, said: str) -> bool:
    """Return whether another attempt may succeed.

    A write that failed inside the store (500) is not repeated: after a full disk, the second write
    of an embedded Chroma waited for ever in 8 of 42 cases and held the interpreter's lock.
    """
    if isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError)):
        return True
    # Before Python 3.11, this is not the class TimeoutError.
    if isinstance(error, asyncio.TimeoutError):
        return True
    status = status_of(error)
    if status in (429, 502, 503, 504):
        return True
    return any(word in said for word in _BUSY)
