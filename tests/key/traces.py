"""What a tool that shows local variables would find of a secret in an error.

``leaks`` looks where such tools look: at the texts of an error and of all that it came of, at
``traceback.TracebackException(capture_locals=True)``, and at every variable of every frame. Inside
frames of this package it looks deeper than any of them: into containers, dataclasses, objects of
the package, closures, bound methods and coroutines that have not ended.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import traceback
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from nexusflow_integrations._core.secret import Secret
from nexusflow_integrations.local.app import Key

PACKAGE = "nexusflow_integrations"
DEPTH = 10
HOLDERS = (Secret, Key)
"""Types that hold a secret on purpose and never show it."""
THEIR_HOLDERS = ("TokenSecret", "SecretStr")
"""The same of Haystack's and pydantic's."""


def forms(secret: str) -> set[str]:
    """The ways in which a secret could be written."""
    raw = secret.encode()
    written = {secret, quote(secret, safe=""), repr(secret)[1:-1], raw.hex()}
    for data in (raw, b"Bearer " + raw, b"user:" + raw):
        written.add(base64.b64encode(data).decode().rstrip("="))
    return written


def chain(error: BaseException) -> Iterator[BaseException]:
    """``error``, and all that it names as a cause, a context, a part or a reason."""
    seen: dict[int, BaseException] = {}
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen[id(one)] = one
        yield one
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
        refused = getattr(one, "refused", {})
        waiting += refused.values() if isinstance(refused, Mapping) else ()


def frames(error: BaseException) -> Iterator[types.FrameType]:
    """The frames of the traceback, without those of the tests themselves."""
    at = error.__traceback__
    while at is not None:
        if "/tests/" not in at.tb_frame.f_code.co_filename:
            yield at.tb_frame
        at = at.tb_next


def leaks(error: BaseException, *secrets: str) -> list[str]:
    """Where one of ``secrets`` can be seen; empty if it is nowhere. Raises what a ``repr`` raises.

    ``error`` is one that was caught; what stands in the frames of the tests does not count.
    """
    needles = set().union(*map(forms, secrets))

    def shows(text: str) -> bool:
        return any(needle in text for needle in needles)

    found = []
    ours: list[tuple[str, object]] = []
    for one in chain(error):
        name = type(one).__name__
        texts = {"text": f"{one} {one!r} {one.args!r}", "attributes": repr(vars(one))}
        found += [f"{name}: {where}" for where, text in texts.items() if shows(text)]
        for frame in frames(one):
            # As a tool shows it, one frame at a time, so that those of the tests are left out.
            shown = traceback.StackSummary.extract([(frame, frame.f_lineno)], capture_locals=True)
            where = f"{name}: {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
            for local, text in (shown[0].locals or {}).items():
                if shows(text) and not _is_given_to(frame):
                    found.append(f"{where}: repr of {local}")
            if str(frame.f_globals.get("__name__", "")).startswith(PACKAGE):
                ours.append((f"{where}: ", dict(frame.f_locals)))
    return found + [path for path, text in deep(ours) if shows(text)]


def _is_given_to(frame: types.FrameType) -> bool:
    # Haystack's metaclass takes the arguments of a constructor before ours does.
    return frame.f_globals.get("__name__") == "haystack.core.component.component"


def deep(starts: list[tuple[str, object]]) -> Iterator[tuple[str, str]]:
    """Every text that can be reached from ``starts``, and how; holders of secrets are closed.

    All frames together and the nearest objects first: most of what one frame reaches, the others
    reach, too.
    """
    seen: set[int] = set()
    keep: list[object] = []  # or another object could get the id of one that is gone
    waiting = deque((path, value, 0) for path, value in starts)
    while waiting:
        path, value, depth = waiting.popleft()
        if id(value) in seen or depth > DEPTH or isinstance(value, HOLDERS):
            continue
        if type(value).__name__ in THEIR_HOLDERS:
            continue
        seen.add(id(value))
        keep.append(value)
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, (bytes, bytearray)):
            yield path, bytes(value).decode("latin-1")
        else:
            yield path, repr(value)
            waiting += [(f"{path}.{name}", part, depth + 1) for name, part in inside(value)]


def inside(value: object) -> Iterable[tuple[str, object]]:
    """The parts of a value, with a name for each."""
    parts: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        for number, (key, part) in enumerate(list(value.items())):
            parts += [(f"key{number}", key), (str(key)[:20], part)]
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts += [(str(number), part) for number, part in enumerate(value)]
    elif isinstance(value, functools.partial):
        parts += [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    elif isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        parts += [(f"cell{number}", _of(cell)) for number, cell in enumerate(cells)]
        parts += [("defaults", value.__defaults__), ("kwdefaults", value.__kwdefaults__)]
    elif isinstance(value, types.MethodType):
        parts += [("self", value.__self__), ("func", value.__func__)]
    elif isinstance(value, types.CoroutineType) and value.cr_frame is not None:
        parts += list(value.cr_frame.f_locals.items())
    elif isinstance(value, types.GeneratorType) and value.gi_frame is not None:
        parts += list(value.gi_frame.f_locals.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        parts += [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    elif type(value).__module__.startswith(PACKAGE):
        slots = [name for cls in type(value).__mro__ for name in _slots(cls)]
        parts += [(name, getattr(value, name)) for name in slots if hasattr(value, name)]
        parts += list(getattr(value, "__dict__", {}).items())
        parts += list((getattr(value, "__pydantic_private__", None) or {}).items())
    return parts


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if not name.startswith("__"))


def _of(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put into it
        return None
