"""``RedisLimits``: one pace for workers on any number of hosts, kept on a Redis server.

A client with ``cache="redis://..."`` and limits keeps them so by itself; this is for a pace without
a cache. No text, vector or key goes through it, only send times do.
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

    All who name the same server, database and account share the limits. Making one connects to
    nothing. A worker that cannot reach the server paces alone, to its share of the limits, until
    it can again. A pickle holds no password: a worker process finds it in the environment variable
    ``NEXUSFLOW_REDIS_PASSWORD``.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as for ``cache=``.
        account: Any name; limits of the API hold for one account and model.
        requests_per_minute: Limit of the account; ``None`` is none.
        tokens_per_minute: The same for tokens.

    Raises:
        ConfigurationError: ``url`` is no URL of a Redis server, or another argument is impossible.
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
        self._told = {
            "account": account,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
        }

    def __repr__(self) -> str:
        if "_told" not in vars(self):
            return "RedisLimits()"  # in the traceback of an error that kept it from being made
        told = "".join(f", {name}={value!r}" for name, value in self._told.items())
        return f"RedisLimits({str(self.server.address)!r}{told})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RedisLimits) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return (self.server.address, *self._told.values())

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.server.address, **self._told}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
