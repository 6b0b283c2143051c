"""Notes imports that a fork could cut in two: by threads of the package, or by a call unguarded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from itertools import islice
from types import FrameType

PACKAGE = "/nexusflow_integrations/"


def watch() -> list[str]:
    """Return a list that gets a line for each such import from now on."""
    found: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "import":
            try:
                if place := _place(sys._getframe(1)):
                    found.append(f"{arguments[0]} at {place}")
            except Exception as error:  # it would end in the import instead
                found.append(f"{arguments[0]}: {error!r}")

    sys.addaudithook(hook)
    return found


def _place(frame: FrameType) -> str | None:
    name = threading.current_thread().name
    if name.startswith("nexusflow"):
        return f"thread {name}, {_innermost(frame)}"
    forks = sys.modules.get("nexusflow_integrations._core.forks")
    importing = getattr(forks, "importing", None)
    if importing is not None and importing.is_held:
        return None
    # One of our functions imports. Imports at the top of a module do not count.
    for each in _stack(frame):
        if PACKAGE in each.f_code.co_filename and each.f_code.co_name != "__getattr__":
            return None if each.f_code.co_name == "<module>" else _innermost(frame)
    return None


def _innermost(frame: FrameType) -> str:
    real = (each for each in _stack(frame) if "importlib" not in each.f_code.co_filename)
    return "; ".join(f"{each.f_code.co_filename}:{each.f_lineno}" for each in islice(real, 4))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
