"""Plans: sequences of Chroma calls for sync and async clients.

A plan is a generator that yields calls and receives each result or error. A plan does no I/O
itself, so the same plan works for the sync and the async client. A plan also yields work on local
files, which the async client does in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple, Protocol, TypeVar

import httpx
from chromadb.errors import NotFoundError

from nexusflow_integrations.chroma_collections.calls import RefusedError
from nexusflow_integrations.errors import CollectionError

T = TypeVar("T")


class Step(NamedTuple):
    """One call; ``what`` names the call in an error."""

    what: str
    method: Callable[..., Any]
    fields: dict[str, Any]


class Blocking(NamedTuple):
    """Local work that would block an event loop."""

    do: Callable[[], Any]


Plan = Generator[Step | Blocking, Any, T]


class _Call(Protocol):
    def __call__(self, what: str, method: Callable[..., Any], /, **fields: Any) -> Any: ...


def carry_out(plan: Plan[T], call: _Call) -> T:
    """Return the result of ``plan``; ``call`` (a ``Calls`` or ``directly``) makes its calls."""
    answer: Any = None
    failure: BaseException | None = None
    while True:
        try:
            step = plan.send(answer) if failure is None else plan.throw(failure)
        except StopIteration as end:
            result: T = end.value
            return result
        answer = failure = None
        try:
            if isinstance(step, Blocking):
                answer = step.do()
            else:
                answer = call(step.what, step.method, **step.fields)
        except BaseException as error:  # noqa: BLE001 - the plan handles the error
            failure = error


async def acarry_out(plan: Plan[T], call: Callable[..., Awaitable[Any]]) -> T:
    """Carry out like ``carry_out``, with an ``AsyncCalls`` or ``adirectly``."""
    answer: Any = None
    failure: BaseException | None = None
    while True:
        try:
            step = plan.send(answer) if failure is None else plan.throw(failure)
        except StopIteration as end:
            result: T = end.value
            return result
        answer = failure = None
        try:
            if isinstance(step, Blocking):
                answer = await asyncio.to_thread(step.do)
            else:
                answer = await call(step.what, step.method, **step.fields)
        except BaseException as error:  # noqa: BLE001
            failure = error


def refusal_of(step: Step) -> Plan[RefusedError | None]:
    """Carry out a write; return the error if the store refused what is in it."""
    try:
        yield step
    except RefusedError as error:
        return error
    return None


def directly(what: str, method: Callable[..., T], /, **fields: Any) -> T:
    """Make a call once, without a time limit.

    Raises:
        CollectionError: There was no connection to the server, or it was lost.
    """
    try:
        return method(**fields)
    except httpx.TransportError as error:
        raise _unreachable(what, error) from error


async def adirectly(what: str, method: Callable[..., Awaitable[T]], /, **fields: Any) -> T:
    """Make a call of an ``AsyncHttpClient`` once, without a time limit."""
    try:
        return await method(**fields)
    except httpx.TransportError as error:
        raise _unreachable(what, error) from error


def _unreachable(what: str, error: Exception) -> CollectionError:
    return CollectionError(f"{what} failed: {type(error).__name__}: {error}")


def is_missing(error: Exception) -> bool:
    """Return whether the collection does not exist, also if ``Calls`` raised the error."""
    return isinstance(error, NotFoundError) or isinstance(error.__cause__, NotFoundError)


def look_up(client: Any, name: str) -> Plan[Any]:
    """Return the collection called ``name`` without its embedding function, or ``None``."""
    try:
        return (
            yield Step("reading", client.get_collection, {"name": name, "embedding_function": None})
        )
    except Exception as error:
        if is_missing(error):
            return None
        raise
