"""Every error that this package raises, in one tree.

    NexusFlowError
    ├── ConfigurationError          a setting is missing or impossible (also ValueError)
    ├── InvalidInputError           a text that cannot be sent; says which (also ValueError)
    ├── APIConnectionError          no answer: refused, reset, cut off, TLS
    │   └── APITimeoutError         no answer in time (also TimeoutError)
    ├── APIStatusError              the server said no, with a status
    │   ├── BadRequestError         400, 413, 415, 422
    │   ├── AuthenticationError     401
    │   ├── PermissionDeniedError   402, 403: balance, permission, suspended account
    │   ├── NotFoundError           404: model or path
    │   ├── RateLimitError          429
    │   └── InternalServerError     5xx, and 408, 409, 425
    ├── InvalidResponseError        an answer not to be trusted: count, order, numbers
    ├── RefusedTextsError           some texts were refused; the others are finished
    ├── BudgetExceededError         the next request could pass the budget
    ├── LimiterError                a framework's rate limiter failed (also RuntimeError)
    ├── CacheError                  the cache is corrupt, foreign or newer
    └── CollectionError             a vector store cannot be read or written (also RuntimeError)

Each carries ``finished``: the vectors that were ready when it was raised, by index of the
caller's list, so that nothing that was paid for is lost. All of them can be pickled. None of
them holds the API key, nor text of the server longer than 2,000 characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "BudgetExceededError",
    "CacheError",
    "CollectionError",
    "ConfigurationError",
    "InternalServerError",
    "InvalidInputError",
    "InvalidResponseError",
    "LimiterError",
    "NexusFlowError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RefusedTextsError",
]


class NexusFlowError(Exception):
    """Root of all errors of this package.

    Attributes:
        finished: Vectors that were ready when the error was raised: index in the caller's list to
            a float32 array of shape (d,).
        attempts: Requests that were sent for the batch that failed.
    """

    def __init__(self, message: str = "", *, attempts: int = 0) -> None:
        super().__init__(message)
        self.finished: Mapping[int, npt.NDArray[np.float32]] = {}
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigurationError(NexusFlowError, ValueError):
    """A setting is missing or impossible."""


class InvalidInputError(NexusFlowError, ValueError):
    """A text cannot be sent; raised before any request.

    Attributes:
        index: Where it stands in the caller's list; ``None`` if the list itself is wrong.
    """

    def __init__(self, message: str = "", *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class APIConnectionError(NexusFlowError):
    """The server could not be reached, or broke off before it had answered."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """No answer within ``timeout`` (one attempt) or ``deadline`` (the whole call)."""


class APIStatusError(NexusFlowError):
    """The server answered with an error.

    Attributes:
        status_code: HTTP status.
        code: The server's error code, or ``None``.
        request_id: The ``X-Request-ID`` response header, which support asks for, or ``None``.
        retry_after: Seconds that the server asked to wait, or ``None``.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int = 0,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message, attempts=attempts)
        self.status_code = status_code
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequestError(APIStatusError):
    """The request is wrong and would be wrong again."""


class AuthenticationError(APIStatusError):
    """The API key is missing, invalid or expired."""


class PermissionDeniedError(APIStatusError):
    """The account may not: balance, permission, suspension."""


class NotFoundError(APIStatusError):
    """No such model or path."""


class RateLimitError(APIStatusError):
    """Requests, tokens or concurrency exceeded, for longer than the retries lasted."""


class InternalServerError(APIStatusError):
    """The server or something behind it failed, for longer than the retries lasted."""


class InvalidResponseError(NexusFlowError):
    """The answer cannot be trusted: wrong count, order, size or numbers, or not an answer at all.

    Attributes:
        request_id: The ``X-Request-ID`` response header, or ``None``.
    """

    def __init__(
        self, message: str = "", *, request_id: str | None = None, attempts: int = 0
    ) -> None:
        super().__init__(message, attempts=attempts)
        self.request_id = request_id


class RefusedTextsError(NexusFlowError):
    """The server refused some texts (moderation, length); all others are in ``finished``.

    Attributes:
        refused: Index in the caller's list to the server's reason for that text.
    """

    def __init__(
        self, message: str = "", *, refused: Mapping[int, APIStatusError] | None = None
    ) -> None:
        super().__init__(message)
        self.refused: Mapping[int, APIStatusError] = dict(refused or {})


class BudgetExceededError(NexusFlowError):
    """The next request could pass the budget, so it was not sent."""


class LimiterError(NexusFlowError, RuntimeError):
    """The ``rate_limiter`` that an adapter was given raised an error: this one's ``__cause__``."""


class CacheError(NexusFlowError):
    """The cache is corrupt, not ours, or written by a newer version; it was left alone.

    Or it is on a server that is none of Redis, or that does not take the password.
    """


class CollectionError(NexusFlowError, RuntimeError):
    """A vector store could not be read or written, or another process is writing to it.

    ``finished`` holds the vectors that were embedded and not written, by the place of their
    document in the source; the cause is the store's own error.
    """


E = TypeVar("E", bound=BaseException)


def _rebuild(cls: type[E], args: tuple[Any, ...], state: dict[str, Any]) -> E:
    """Return a ``cls`` with these ``args`` and attributes, without calling its constructor."""
    # Exceptions unpickle by cls(*args), which keyword-only arguments break.
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error
