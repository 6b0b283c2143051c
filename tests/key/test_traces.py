"""The search for leaks finds real secrets, and has no false positives."""

from __future__ import annotations

import asyncio
import base64
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from multidict import CIMultiDict

from nexusflow_integrations._core.secret import ApiKey, Headers

from .entries import HEADER, KEY
from .traces import leaks

SOURCE = """
def fails(hold):
    held = hold()
    raise ValueError("no")
"""


def caught_with(make: Callable[[], object]) -> BaseException:
    """An error that left a frame of the package, with what ``make`` returned in a variable."""
    module = types.ModuleType("nexusflow_integrations.planted")
    code = compile(SOURCE, "nexusflow_integrations/planted.py", "exec")
    exec(code, vars(module))
    with pytest.raises(ValueError, match="no") as caught:
        module.fails(make)
    return caught.value


def closure() -> Callable[[], str]:
    key = KEY
    return lambda: key


class Printed:
    def __repr__(self) -> str:
        return f"Printed({KEY})"


async def waiting(key: str) -> None:
    await asyncio.sleep(0)


PLANTED: dict[str, Callable[[], Any]] = {
    "text": lambda: KEY,
    "bytes": lambda: KEY.encode(),
    "header": lambda: {"Authorization": f"Bearer {KEY}"},
    "multidict": lambda: CIMultiDict(Authorization=f"Bearer {KEY}"),
    "base64": lambda: base64.b64encode(f"user:{KEY}".encode()).decode(),
    "list of lists": lambda: [[(KEY,)]],
    "repr": Printed,
    "partial": lambda: partial(print, key=KEY),
    "closure": closure,
    "bound method": lambda: Printed().__repr__,
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_key_in_a_frame_is_found(how: str) -> None:
    assert leaks(caught_with(PLANTED[how]), KEY)


@pytest.mark.parametrize(
    "make", [lambda: ApiKey(KEY), lambda: [ApiKey(KEY).bearer()], lambda: Headers({"X": HEADER})]
)
def test_objects_that_hold_a_secret_do_not_show_it(make: Callable[[], object]) -> None:
    assert leaks(caught_with(make), KEY, HEADER) == []


def test_a_key_in_an_error_that_came_before_is_found() -> None:
    error = RuntimeError("fine")
    error.__context__ = caught_with(lambda: KEY)
    assert leaks(error, KEY)
    error.__context__ = None
    error.__cause__ = ValueError(KEY)
    assert leaks(error, KEY)


def test_a_repr_that_raises_is_raised() -> None:
    class Unprintable:
        def __repr__(self) -> str:
            raise AttributeError("half of it")

    with pytest.raises(AttributeError, match="half of it"):
        leaks(caught_with(Unprintable), KEY)
