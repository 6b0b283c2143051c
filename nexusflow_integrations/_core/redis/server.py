"""A connection to Redis, and what its failures mean for a cache or a pace that is kept there."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.redis.address import PASSWORD_ENV, RedisAddress
from nexusflow_integrations._core.secret import without_frames
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.errors import CacheError

PATIENCE = 2.0
"""Seconds for which a server that has answered before may be away, as while it restarts."""
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 2.0
"""How long an answer may take to begin, or to go on; it takes milliseconds."""
OLDEST = (5, 0)
"""Since this version a script may ask for the time and write."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5

CLOCK = """
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
"""
"""Lua: the server's time in seconds since 1970, the same for all hosts; a test gives its own."""

T = TypeVar("T")


def is_too_old(version: object) -> bool:
    """Tell whether a ``redis_version`` is below ``OLDEST``; a fork's that is no number is not."""
    numbers = re.match(r"(\d+)\.(\d+)", str(version))
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST


class RedisServer:
    """One Redis server, connected to when it is first asked, once in each process.

    May be pickled (without the password, see ``RedisAddress``) and survives a fork.

    ``owner`` tells apart whoever asks: random, another one in each process and after each close.
    """

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self._lock = forks.Lock()
        self._closed_state()
        # In the child of a fork the client drops the parent's connection, and leaves it to it.
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
        """Return ``work(client)``; for ``patience`` seconds done over again while the server, if
        it has answered before, is away.

        Raises:
            CacheError: It is no Redis server, or takes no such password, or the package takes no
                such option of the URL; only before it has answered once.
            StoreUnavailable: It cannot be reached, or refuses what was asked.
        """
        try:
            return self._ask(work, patience)
        except (CacheError, StoreUnavailable) as error:
            raise without_frames(error) from None  # the redis package's hold the password

    def _ask(self, work: Callable[[Any], T], patience: float) -> T:
        exceptions = redis_package(self.address).exceptions
        if not self._lock.acquire(ANSWER_SECONDS):
            raise self.unavailable("an earlier command has not been answered yet")
        try:
            began, pause = time.monotonic(), _FIRST_PAUSE
            while True:
                try:
                    result = work(self._connected())
                except (exceptions.AuthenticationError, exceptions.AuthorizationError):
                    raise self._locked_out() from None
                except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
                    self.is_away = True
                    if not self._has_answered or time.monotonic() - began > patience:
                        raise self.unavailable(error) from None
                except (exceptions.InvalidResponse, UnicodeError):
                    if self._has_answered:
                        raise self.unavailable("its answer makes no sense") from None
                    raise self.foreign("is no Redis server") from None
                except exceptions.RedisError as error:
                    raise self.unavailable(error) from None
                else:
                    self._has_answered, self.is_away = True, False
                    return result
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._lock.release()

    def run(self, script: str, keys: list[bytes], args: list[Any], *, client: Any) -> Any:
        """Run a Lua script, which the server keeps, as one step that nothing interrupts."""
        if script not in self._scripts:
            self._scripts[script] = client.register_script(script)
        return self._scripts[script](keys=keys, args=args, client=client)

    def close(self) -> None:
        """Drop the connection. Never raises; it may be asked again."""
        with self._lock:
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
                    f"{self.address} has an option that the redis package does not take"
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
            told = client.info("server")
        except exceptions.NoPermissionError:
            return  # a user who may not ask
        if is_too_old(told.get("redis_version")):
            raise self.foreign(f"is older than version {OLDEST[0]}.{OLDEST[1]}")
        if told.get("redis_mode") == "cluster":
            raise self.foreign("is part of a Redis Cluster, where one step cannot reach all keys")

    def unavailable(self, why: object) -> StoreUnavailable:
        """Return the error for a server that cannot be used here and now."""
        # Of a failed command only what the server said: the rest is keys and vectors.
        text = str(why).rpartition(" of pipeline caused error: ")[2]
        said = self.address.redact(" ".join(text.split()))[:300].rstrip(".")
        return StoreUnavailable(f"{self.address} cannot be used: {said}")

    def foreign(self, what: str) -> CacheError:
        """Return the error for what must not be touched."""
        return CacheError(f"{self.address} {what}; it was left alone: name another server")

    def _locked_out(self) -> Exception:
        # In our own words: some servers repeat what they were sent.
        if self._has_answered:
            return self.unavailable("it no longer takes the user or the password")
        return CacheError(
            f"{self.address} does not take the user or the password; it was left alone: put the"
            f" password into the URL or into the environment variable {PASSWORD_ENV}"
        )


def redis_package(address: RedisAddress) -> Any:
    """Import all of the ``redis`` package that is used, which takes tenths of a second."""
    with needed(str(address), "redis", install="nexusflow-integrations[redis]"):
        import secrets  # noqa: F401 - it imports this one only when it makes a client

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
        "retry": Retry(NoBackoff(), 0),  # `ask` knows what may be done over again, and how long
        "protocol": 2,
    }
    client = Redis.from_url(
        address.reveal(),
        password=os.environ.get(PASSWORD_ENV) or None,  # what the URL says comes first
        **options,
    )
    client.connection_pool.make_connection()  # not connected: it is where some options are refused
    return client
