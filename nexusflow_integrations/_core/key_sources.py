"""Sources of a client's API key: a given key, an environment variable, or a function."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from inspect import isawaitable, iscoroutinefunction, signature
from typing import Any, Protocol

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.checks import attribute, code_of, has_methods, inner_of
from nexusflow_integrations._core.offload import in_thread
from nexusflow_integrations._core.outcome import Outcome
from nexusflow_integrations._core.secret import ApiKey, secret_arguments, without_frames
from nexusflow_integrations._core.settings import KEY_VARIABLE, NO_KEY, resolve_api_key
from nexusflow_integrations.errors import ConfigurationError, NexusFlowError

Loop = asyncio.AbstractEventLoop


class KeySource(Protocol):
    """Provides the key of an account, and possibly another key after a 401 response."""

    @property
    def key(self) -> ApiKey | None:
        """The key; ``None`` if the key has not been requested yet."""

    @property
    def account(self) -> ApiKey | FunctionKey:
        """A value that identifies the account, even if the key changes."""

    async def renewed(self, refused: ApiKey | None, loop: Loop | None) -> ApiKey | None:
        """Return a key other than ``refused``, or ``None`` if there is no other.

        Args:
            refused: The key that got a 401 response; ``None`` if there was no key yet.
            loop: The event loop of the caller, if the caller has one.

        Raises:
            ConfigurationError: There is no key.
        """


class GivenKey:
    """A key that does not change."""

    def __init__(self, key: ApiKey) -> None:
        self.key = self.account = key

    async def renewed(self, refused: ApiKey | None, loop: Loop | None) -> ApiKey | None:
        return None


def key_in_environment(variable: str) -> ApiKey:
    """Return the key in an environment variable.

    Raises:
        ConfigurationError: There is no key; the message says how to work without one. Or the key
            is not valid.
    """
    if variable == KEY_VARIABLE and not os.environ.get(variable):
        raise ConfigurationError(
            f"{NO_KEY.format(variable)}; to work without a key, run `nexusflow serve` and set the"
            " two variables that it prints"
        )
    return resolve_api_key(env=variable)


class EnvironmentKey:
    """The key in an environment variable, which is read at first use and after a 401 response.

    Args:
        variable: The name of the variable.
        first: The value of the variable, if it was read already.
        unpickled: The class of the object that was unpickled without its key, if any.
    """

    def __init__(
        self,
        variable: str = KEY_VARIABLE,
        first: ApiKey | None = None,
        *,
        unpickled: str | None = None,
    ) -> None:
        self._variable = variable
        self._key = first
        self._unpickled = unpickled

    @property
    def key(self) -> ApiKey:
        """The key.

        Raises:
            ConfigurationError: There is no key.
        """
        if self._key is None:
            if self._unpickled is not None and not os.environ.get(self._variable):
                raise ConfigurationError(
                    f"no API key in this process: a {self._unpickled} is pickled without its key,"
                    f" so set the environment variable {self._variable} here"
                )
            self._key = key_in_environment(self._variable)
        return self._key

    @property
    def account(self) -> ApiKey:
        return self.key

    async def renewed(self, refused: ApiKey | None, loop: Loop | None) -> ApiKey | None:
        if self._key != refused:  # another call has replaced the key
            return self._key
        try:
            found = resolve_api_key(env=self._variable)
        except ConfigurationError:
            return None
        if found == refused:
            return None
        self._key = found
        return found


class FunctionKey:
    """A key from a sync or async function, which is called at first use and after a 401 response.

    An async function is awaited on the caller's event loop, if there is one; a sync function is
    called in its own thread. Calls that need a key at the same time share one function call.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._name = _name_of(function)
        try:
            signature(function).bind()
        except TypeError:
            raise ConfigurationError(
                f"api_key must be a function without arguments, but {self._name} needs some"
            ) from None
        except Exception:  # noqa: BLE001, S110 - try functions without a signature
            pass
        self._function = function
        self.key: ApiKey | None = None
        self._lock: asyncio.Lock | None = None
        forks.in_child(self._forget)

    def _forget(self) -> None:
        self._lock = None  # the lock belongs to the parent's event loop

    @property
    def account(self) -> FunctionKey:
        return self

    def fingerprint(self) -> str:
        """Return a value that identifies the account when processes share limits.

        The value is the same for all functions, because the keys that they return change.
        """
        return hashlib.sha256(b"an API key that is asked for").hexdigest()

    async def renewed(self, refused: ApiKey | None, loop: Loop | None) -> ApiKey | None:
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            if self.key is None or self.key == refused:
                found = await self._ask(loop)
                if found == refused:
                    return None
                self.key = found
            return self.key

    async def _ask(self, loop: Loop | None) -> ApiKey:
        if iscoroutinefunction(self._function) or iscoroutinefunction(
            attribute(self._function, "__call__")
        ):
            outcome = await _on(loop, self._function)
        else:
            outcome = await _in_thread(self._function)
            found: Any = outcome.value
            if outcome.error is None and not isinstance(found, ApiKey):
                outcome = await _on(loop, lambda: found)
        value, error = outcome.value, outcome.error
        del outcome
        try:
            if isinstance(value, ApiKey):
                return value
            if isinstance(error, ConfigurationError):
                raise ConfigurationError(f"{error}; it was returned by {self._name}")
            if isinstance(error, (NexusFlowError, KeyboardInterrupt, SystemExit)):
                raise without_frames(error)
            assert error is not None
            # Leave out the error's message and traceback, which may hold the key.
            raise ConfigurationError(
                f"api_key: {self._name} raised {type(error).__name__}{_line_of(error)}"
            )
        finally:
            del error  # break a cycle with its frames

    def __repr__(self) -> str:
        return "FunctionKey()"


def _name_of(function: Any) -> str:
    """Return the name of ``function``, with the file and the line where it is defined."""
    inner, code = inner_of(function), code_of(function)
    name = attribute(inner, "__qualname__") or type(inner).__qualname__
    place = "" if code is None else f" ({code.co_filename}, line {code.co_firstlineno})"
    return f"the function {name}{place}"


def _line_of(error: BaseException) -> str:
    """Return the file and line where ``error`` was raised."""
    at = error.__traceback__
    if at is None:
        return ""
    while at.tb_next is not None:
        at = at.tb_next
    return f" in {at.tb_frame.f_code.co_filename}, line {at.tb_lineno}"


async def _on(loop: Loop | None, work: Callable[[], Awaitable[Any]]) -> Outcome[Any]:
    """Call ``work`` and await its outcome on ``loop``, or on this event loop."""
    # The error is passed on as the value of a future, not as its exception: asyncio refuses a
    # StopIteration, so it would never arrive, and a CancelledError would cancel the call.
    here = asyncio.get_running_loop()
    awaited = _awaited(work)
    asked: asyncio.Future[Outcome[Any]]
    if loop is None or loop is here:
        asked = here.create_task(awaited)
    else:
        try:
            asked = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(awaited, loop))
        except RuntimeError as error:  # the caller's loop has ended
            awaited.close()
            return Outcome(error=error)
    try:
        await asyncio.wait([asked])
    finally:
        asked.cancel()
    return asked.result()


async def _awaited(work: Callable[[], Awaitable[Any]]) -> Outcome[Any]:
    try:
        return Outcome(_key(await work()))
    except BaseException as error:  # noqa: BLE001 - the function may raise anything
        return Outcome(error=error)


async def _in_thread(function: Callable[[], Any]) -> Outcome[Any]:
    """Call ``function`` in a daemon thread; return the key, an awaitable for it, or the error."""
    context = copy_context()  # the caller's: the function may read its context variables
    try:
        return await in_thread("nexusflow-key", partial(context.run, _called, function))
    except RuntimeError as error:  # no further thread can be started
        return Outcome(error=error)


def _called(function: Callable[[], Any]) -> Outcome[Any]:
    try:
        return Outcome(_key_or_awaitable(function()))
    except BaseException as error:  # noqa: BLE001 - the function may raise anything
        return Outcome(error=error)


@secret_arguments
def _key_or_awaitable(value: Any) -> Any:
    return value if isawaitable(value) else _key(value)


@secret_arguments
def _key(value: Any) -> ApiKey:
    if (
        value is None
    ):  # resolve_api_key would take the environment's key, perhaps of another account
        raise ConfigurationError("api_key must be text, not None")
    return resolve_api_key(value)


@secret_arguments
def key_source(value: object) -> KeySource:
    """Return the source for the argument ``api_key``.

    Raises:
        ConfigurationError: The argument is not a valid key or source of keys.
    """
    if value is None:
        return EnvironmentKey()
    if isinstance(value, (GivenKey, EnvironmentKey, FunctionKey)):
        return value
    asked = callable(value) and not isinstance(value, (type, ApiKey))
    if asked and not has_methods(value, "get_secret_value"):
        return FunctionKey(value)  # type: ignore[arg-type]
    return GivenKey(resolve_api_key(value))
