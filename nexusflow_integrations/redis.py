"""``RedisLimits``: limits shared by workers on any number of hosts, through a Redis server.

A client with ``cache="redis://..."`` shares its limits automatically; ``RedisLimits`` is for use
without a cache. Only send times are stored on the server: no texts, vectors or API keys.
"""

from __future__ import annotations

import hashlib
from typing import Any

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.pace.in_redis import AccountLimits
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations._core.redis.server import RedisServer
from nexusflow_integrations._core.secret import secret_arguments

__all__ = ["RedisLimits"]


class RedisLimits(AccountLimits):
    """Limits of one account, for a client's ``pacer=``.

    All clients with the same server, database and account share the limits. The constructor does
    not connect. While a worker cannot reach the server, it limits itself to its share of the
    limits. Pickles do not contain the password: a worker process reads it from the environment
    variable ``NEXUSFLOW_REDIS_PASSWORD``.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as for ``cache=``.
        account: Any name. Use one name for each account and model: the API limits them separately.
        requests_per_minute: The account's limit on requests; ``None`` for no limit.
        tokens_per_minute: The account's limit on tokens; ``None`` for no limit.

    Raises:
        ConfigurationError: ``url`` is not the URL of a Redis server, or another argument is
            invalid.
    """

    @secret_arguments
    def __init__(
        self,
        url: str | RedisAddress,
        *,
        account: str = "default",
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        with checks.named({"cache": "url"}):
            address = url if isinstance(url, RedisAddress) else RedisAddress(url)
        account = checks.text("account", account)
        requests_per_minute = checks.optional_number("requests_per_minute", requests_per_minute)
        tokens_per_minute = checks.optional_number("tokens_per_minute", tokens_per_minute)
        super().__init__(
            RedisServer(address),
            hashlib.sha256(account.encode()).digest()[:16],
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
        self._settings = {
            "account": account,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
        }

    def __repr__(self) -> str:
        if "_settings" not in vars(self):
            return "RedisLimits()"  # for a traceback, if the constructor failed
        settings = "".join(f", {name}={value!r}" for name, value in self._settings.items())
        return f"RedisLimits({str(self.server.address)!r}{settings})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RedisLimits) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return (self.server.address, *self._settings.values())

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.server.address, **self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
