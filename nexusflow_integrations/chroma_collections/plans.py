"""Plans: calls of Chroma, one after another, for either kind of client.

A plan is a generator that yields what to call and is sent the answer, or thrown the error. It does
no I/O itself, so the sync and the async client carry out the same one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple, Protocol, TypeVar

from chromadb.errors import NotFoundError

T = TypeVar("T")


class Step(NamedTuple):
    """One call; ``what`` names it in an error."""

    what: str
    method: Callable[..., Any]
    fields: dict[str, Any]


Plan = Generator[Step, Any, T]


class _Call(Protocol):
    def __call__(self, what: str, method: Callable[..., Any], /, **fields: Any) -> Any: ...


def carry_out(plan: Plan[T], call: _Call) -> T:
    """Return what ``plan`` returns; ``call`` makes its calls, a ``Calls`` or ``directly``."""
    answer: Any = None
    failure: Exception | None = None
    while True:
        try:
            step = plan.send(answer) if failure is None else plan.throw(failure)
        except StopIteration as end:
            result: T = end.value
            return result
        answer = failure = None
        try:
            answer = call(step.what, step.method, **step.fields)
        except Exception as error:  # noqa: BLE001 - the plan decides
            failure = error


async def acarry_out(plan: Plan[T], call: Callable[..., Awaitable[Any]]) -> T:
    """Carry out like ``carry_out``, with an ``AsyncCalls`` or ``adirectly``."""
    answer: Any = None
    failure: Exception | None = None
    while True:
        try:
            step = plan.send(answer) if failure is None else plan.throw(failure)
        except StopIteration as end:
            result: T = end.value
            return result
        answer = failure = None
        try:
            answer = await call(step.what, step.method, **step.fields)
        except Exception as error:  # noqa: BLE001
            failure = error


def directly(what: str, method: Callable[..., Any], /, **fields: Any) -> Any:
    """Make a call once, however long it takes."""
    del what
    return method(**fields)


async def adirectly(what: str, method: Callable[..., Any], /, **fields: Any) -> Any:
    """The same for an ``AsyncHttpClient``."""
    del what
    return await method(**fields)


def is_missing(error: Exception) -> bool:
    """Tell whether there is no such collection, also where ``Calls`` raised the error."""
    return isinstance(error, NotFoundError) or isinstance(error.__cause__, NotFoundError)


def look_up(client: Any, name: str) -> Plan[Any]:
    """Return the collection of this name, without embedding function, or ``None``."""
    try:
        return (
            yield Step("reading", client.get_collection, {"name": name, "embedding_function": None})
        )
    except Exception as error:
        if is_missing(error):
            return None
        raise
