"""Steps of a call that are written once, and run in a thread or on an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple, TypeVar, cast

T = TypeVar("T")


class Step(NamedTuple):
    """An operation to wait for, in a thread or on an event loop."""

    do: Callable[[], Any]
    ado: Callable[[], Awaitable[Any]]


Steps = Generator[Step, Any, T]


def drive(steps: Steps[T]) -> T:
    """Run the steps in this thread."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = step.do()
            except BaseException as error:  # noqa: BLE001, PERF203 - the steps decide
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        steps.close()


async def adrive(steps: Steps[T]) -> T:
    """Run the steps on this event loop."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = await step.ado()
            except BaseException as error:  # noqa: BLE001, PERF203 - the steps decide
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        steps.close()
