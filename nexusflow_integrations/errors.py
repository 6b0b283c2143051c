"""The errors that this package raises.

    NexusFlowError
    ├── ConfigurationError          a setting is invalid, or stored vectors are not comparable
    │                               with new ones (also ValueError)
    ├── InvalidInputError           a text cannot be sent; says which (also ValueError)
    ├── APIConnectionError          no response: refused, reset, cut off, TLS
    │   └── APITimeoutError         no response in time (also TimeoutError)
    ├── APIStatusError              the server returned an error status
    │   ├── BadRequestError         400, 413, 415, 422
    │   ├── AuthenticationError     401
    │   ├── PermissionDeniedError   402, 403: balance, permission, suspended account
    │   ├── NotFoundError           404: model or path
    │   ├── RateLimitError          429
    │   └── InternalServerError     5xx, and 408, 409, 425
    ├── InvalidResponseError        the response is not valid: wrong count, order, size, numbers
    ├── RefusedTextsError           some texts were refused; the others are finished
    ├── BudgetExceededError         the next request could exceed the budget
    ├── LimiterError                a framework's rate limiter failed (also RuntimeError)
    ├── CacheError                  the cache is damaged, not a cache, or of a newer version
    └── CollectionError             a vector store cannot be read or written (also RuntimeError)

Every error has ``finished``: the vectors that were ready when the error was raised, by index in the
caller's list, so that nothing that was paid for is lost. Every error can be pickled. No error
contains the API key, or more than 2,000 characters from the server.
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
    """Base class of all errors that this package raises.

    Attributes:
        finished: Vectors that were ready when the error was raised: a mapping from the index in the
            caller's list to a float32 array of shape (d,).
        attempts: Number of requests that were sent for the batch that failed.
    """

    def __init__(self, message: str = "", *, attempts: int = 0) -> None:
        super().__init__(message)
        self.finished: Mapping[int, npt.NDArray[np.float32]] = {}
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigurationError(NexusFlowError, ValueError):
    """A setting is missing or invalid, or stored vectors are not comparable with new ones."""


class InvalidInputError(NexusFlowError, ValueError):
    """A text is blank, too long or not valid Unicode, or an argument or a document is invalid.

    For a list, the error is raised before anything is sent. If documents come from an iterator, it
    is raised when the document is read.

    Attributes:
        index: The text's index in the caller's list or iterator; ``None`` if the argument itself is
            wrong.
    """

    def __init__(self, message: str = "", *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class APIConnectionError(NexusFlowError):
    """The server could not be reached, or the connection broke before a complete response."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """No complete response came within ``timeout`` (one attempt) or ``deadline`` (the call)."""


class APIStatusError(NexusFlowError):
    """The server returned an error status.

    Attributes:
        status_code: HTTP status.
        code: The server's error code, or ``None``.
        request_id: The ``X-Request-ID`` response header, which the service's support asks for, or
            ``None``.
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
    """The request is not valid (400, 413, 415, 422 or another 4xx); a retry would fail as well."""


class AuthenticationError(APIStatusError):
    """The server refused the API key (401): it is invalid or has expired."""


class PermissionDeniedError(APIStatusError):
    """The account may not do this: it has no balance or no permission, or is suspended."""


class NotFoundError(APIStatusError):
    """The model or the path does not exist."""


class RateLimitError(APIStatusError):
    """A limit on requests, tokens or concurrency was exceeded, and all retries failed too."""


class InternalServerError(APIStatusError):
    """The server or a service behind it failed, and so did all retries (501 and 505: none)."""


class InvalidResponseError(NexusFlowError):
    """The response is not valid: wrong count, order, size or numbers, or it is not from the API.

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
        refused: A mapping from the index in the caller's list to the server's error for that text.
    """

    def __init__(
        self, message: str = "", *, refused: Mapping[int, APIStatusError] | None = None
    ) -> None:
        super().__init__(message)
        self.refused: Mapping[int, APIStatusError] = dict(refused or {})


class BudgetExceededError(NexusFlowError):
    """The next request could exceed the budget, so it was not sent."""


class LimiterError(NexusFlowError, RuntimeError):
    """The ``rate_limiter`` passed to an adapter raised an error, which is the ``__cause__``."""


class CacheError(NexusFlowError):
    """The cache is damaged, is not a cache, or is of a newer version; it was not changed.

    The error is also raised if the server is not a Redis server or rejects the password, and by
    ``verify_cache`` if the cache cannot be used.
    """


class CollectionError(NexusFlowError, RuntimeError):
    """A vector store could not be read or written, or another process is writing to it.

    ``finished`` holds the vectors that were embedded but not written, by the position of their
    document in the source; the ``__cause__`` is the store's error.
    """


E = TypeVar("E", bound=BaseException)


def _rebuild(cls: type[E], args: tuple[Any, ...], state: dict[str, Any]) -> E:
    """Return an error of class ``cls`` without calling the constructor; for ``pickle``."""
    # By default, exceptions unpickle with cls(*args), which fails if arguments are keyword-only.
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error
