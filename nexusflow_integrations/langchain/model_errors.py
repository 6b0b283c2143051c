"""Error classes that derive from this package's errors and from LangChain's ``Model*Error``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)

from nexusflow_integrations import errors
from nexusflow_integrations._core import forks
from nexusflow_integrations.errors import NexusFlowError, _rebuild

_THEIRS: Mapping[type, type[ModelError]] = {
    NexusFlowError: ModelError,
    errors.InvalidInputError: ModelInvalidRequestError,
    errors.APIConnectionError: ModelConnectionError,
    errors.APITimeoutError: ModelTimeoutError,
    errors.BadRequestError: ModelInvalidRequestError,
    errors.AuthenticationError: ModelAuthenticationError,
    errors.PermissionDeniedError: ModelPermissionDeniedError,
    errors.NotFoundError: ModelNotFoundError,
    errors.RateLimitError: ModelRateLimitError,
    errors.InternalServerError: ModelAPIError,
    errors.InvalidResponseError: ModelAPIError,
    errors.RefusedTextsError: ModelInvalidRequestError,
}


def _reduce(error: NexusFlowError) -> tuple[Any, ...]:
    # Pickle cannot import a class that was created at run time, but it can import our base class.
    return _revive, (type(error).__bases__[0], error.args, dict(error.__dict__))


def _revive(
    ours: type[NexusFlowError], args: tuple[Any, ...], state: dict[str, Any]
) -> NexusFlowError:
    return native(_rebuild(ours, args, state))


def _both(ours: type[NexusFlowError], theirs: type[ModelError], prefix: str = "") -> Any:
    contents = {"__module__": __package__, "__doc__": ours.__doc__, "__reduce__": _reduce}
    return type(prefix + ours.__name__, (ours, theirs), contents)


def _nearest(ours: type[NexusFlowError]) -> type[ModelError]:
    return next(_THEIRS[base] for base in ours.__mro__ if base in _THEIRS)


_BOTH = {ours: _both(ours, _nearest(ours)) for ours in (getattr(errors, n) for n in errors.__all__)}
_TOO_LONG: dict[type[NexusFlowError], Any] = {
    ours: _both(ours, ContextOverflowError, "TooLong")
    for ours in (errors.BadRequestError, errors.RefusedTextsError, errors.InvalidInputError)
}


def _is_too_long(error: NexusFlowError) -> bool:
    with forks.importing():  # this imports numpy, which takes a while
        from nexusflow_integrations._core.request.failures import TOO_LONG

    if isinstance(error, errors.InvalidInputError):
        return " is too long: " in str(error)
    if isinstance(error, errors.RefusedTextsError):
        return any(_is_too_long(reason) for reason in error.refused.values())
    return isinstance(error, errors.BadRequestError) and (
        error.status_code == 413 or TOO_LONG.search(str(error)) is not None
    )


def native(error: NexusFlowError) -> NexusFlowError:
    """Return ``error`` with all its attributes, as an instance of its class and LangChain's."""
    kinds = _TOO_LONG if _is_too_long(error) else _BOTH
    cls: type[NexusFlowError] | None = kinds.get(type(error))
    if cls is None:
        return error
    state = dict(error.__dict__)
    if isinstance(error, errors.RefusedTextsError):
        state["refused"] = {place: native(why) for place, why in error.refused.items()}
    return _rebuild(cls, error.args, state)


class _AlsoLangChains(AbstractContextManager[None]):
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: Any
    ) -> None:
        if not isinstance(error, NexusFlowError):
            return
        both = native(error)
        try:
            if both is not error:
                raise both.with_traceback(at) from error.__cause__
        finally:
            # Break a cycle, which would keep the client in memory: an error holds this frame.
            del both, error


ALSO_LANGCHAINS = _AlsoLangChains()
