"""A connection to Redis; classifies its failures for a cache or shared limits on the server."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.redis.address import PASSWORD_ENV, RedisAddress
from nexusflow_integrations._core.secret import without_frames
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import CacheError

PATIENCE = 2.0
"""Seconds to wait for a server that has answered before, for example while it restarts."""
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 2.0
"""The socket timeout; an answer normally takes milliseconds."""
OLDEST = (5, 0)
"""The first version of Redis in which a script that reads the time may also write."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5

CLOCK = """
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
"""
"""Lua code for the server's time, in seconds since 1970; tests pass their own time."""

T = TypeVar("T")


def is_too_old(version: object) -> bool:
    """Return whether a ``redis_version`` is below ``OLDEST``; false if it is not a number."""
    numbers = re.match(r"(\d+)\.(\d+)", str(version))
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST


class RedisServer:
    """One Redis server; each process connects at first use.

    The object can be pickled (without the password, see ``RedisAddress``) and used after a fork.

    ``owner`` is a random name of the connection, different in each process and after each
    ``close``.
    """

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self._lock = forks.Lock()
        self._closed_state()
        # The child of a fork drops the parent's connection without closing it.
        forks.in_child(self._closed_state)

    def _closed_state(self) -> None:
        self._client: Any = None
        self._scripts: dict[str, Any] = {}
        self._has_answered = False
        self.is_away = False
        self.owner = os.urandom(8).hex()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["address"])  # type: ignore[misc]

    def ask(self, work: Callable[[Any], T], *, patience: float = PATIENCE) -> T:
        """Return ``work(client)``.

        If the server has answered before and is now unreachable, retry for ``patience`` seconds.

        Raises:
            CacheError: The server is not a Redis server or rejects the password, or the redis
                package rejects an option of the URL; raised only before the first answer.
            StoreUnavailable: The server cannot be reached, or refuses the command.
        """
        try:
            return self._ask(work, patience)
        except (CacheError, StoreUnavailable) as error:
            # The frames of the redis package hold the password.
            raise without_frames(error) from None

    def _ask(self, work: Callable[[Any], T], patience: float) -> T:
        exceptions = redis_package(self.address).exceptions
        mutex = self._lock.mutex
        if not mutex.acquire(timeout=ANSWER_SECONDS):
            raise self.unavailable("an earlier command has not been answered yet")
        try:
            began, pause = monotonic(), _FIRST_PAUSE
            while True:
                try:
                    result = work(self._connected())
                except (exceptions.AuthenticationError, exceptions.AuthorizationError):
                    raise self._locked_out() from None
                except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
                    self.is_away = True
                    if not self._has_answered or monotonic() - began > patience:
                        raise self.unavailable(error) from None
                except (exceptions.InvalidResponse, UnicodeError):
                    if self._has_answered:
                        raise self.unavailable("its answer is not valid") from None
                    raise self.foreign("is not a Redis server") from None
                except exceptions.RedisError as error:
                    raise self.unavailable(error) from None
                else:
                    self._has_answered, self.is_away = True, False
                    return result
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            mutex.release()

    def run(self, script: str, keys: list[bytes], args: list[Any], *, client: Any) -> Any:
        """Run a Lua script on the server, as one atomic step."""
        if script not in self._scripts:
            self._scripts[script] = client.register_script(script)
        return self._scripts[script](keys=keys, args=args, client=client)

    def close(self) -> None:
        """Close the connection; the next ``ask`` opens another one. Never raises."""
        with self._lock.mutex:
            client = self._client
            self._closed_state()
        if client is not None:
            client.close()

    def _connected(self) -> Any:
        if self._client is None:
            try:
                client = _connect(self.address)
            except (TypeError, ValueError):
                raise CacheError(
                    f"{self.address} has an option that the redis package rejects"
                ) from None
            try:
                self._check(client)
            except BaseException:
                client.close()
                raise
            self._client = client
        return self._client

    def _check(self, client: Any) -> None:
        from redis import exceptions

        try:
            info = client.info("server")
        except exceptions.NoPermissionError:
            return  # the Redis user may not call INFO
        if is_too_old(info.get("redis_version")):
            raise self.foreign(f"is older than version {OLDEST[0]}.{OLDEST[1]}")
        if info.get("redis_mode") == "cluster":
            raise self.foreign("is part of a Redis Cluster, where a script cannot reach all keys")

    def unavailable(self, why: object) -> StoreUnavailable:
        """Return the error for a server that cannot be used at the moment."""
        # Keep only the server's message; the rest of the text consists of keys and vectors.
        text = str(why).rpartition(" of pipeline caused error: ")[2]
        said = self.address.redact(" ".join(text.split()))[:300].rstrip(".")
        return StoreUnavailable(f"{self.address} cannot be used: {said}")

    def foreign(self, what: str) -> CacheError:
        """Return the error for a server that must not be used."""
        return CacheError(f"{self.address} {what}; nothing was written: use another server")

    def _locked_out(self) -> Exception:
        # Do not show the server's message: some servers repeat the password.
        if self._has_answered:
            return self.unavailable("it no longer accepts the user or the password")
        return CacheError(
            f"{self.address} rejects the user or the password: put the password into the URL or"
            f" into the environment variable {PASSWORD_ENV}"
        )


def redis_package(address: RedisAddress) -> Any:
    """Import the needed parts of the ``redis`` package, which takes some tenths of a second."""
    with needed(str(address), "redis", install="nexusflow-integrations[redis]"):
        import secrets  # noqa: F401 - redis imports this only when it makes a client

        import redis
        import redis.backoff
        import redis.retry
    return redis


def _connect(address: RedisAddress) -> Any:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "retry": Retry(NoBackoff(), 0),  # `ask` retries
        "protocol": 2,
    }
    client = Redis.from_url(
        address.reveal(),
        password=os.environ.get(PASSWORD_ENV) or None,  # a password in the URL takes precedence
        **options,
    )
    client.connection_pool.make_connection()  # this rejects wrong options without connecting
    return client
