"""A result or an error, as a value that queues and futures pass on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

T = TypeVar("T")


@dataclass(slots=True)
class Outcome(Generic[T]):
    """The outcome of some work: the result, or the error that ended the work."""

    value: T | None = None
    error: BaseException | None = None

    def result(self) -> T:
        """Return the result or raise the error. Call this only once: it drops the reference."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error
        return cast("T", self.value)
