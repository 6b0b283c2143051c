"""Imports for a first call, done by the calling thread.

They are not done when a client is created, which should be cheap. Nor on the event loop: after a
fork the child would have an import that never finishes, and a deadline would be running. So modules
that are otherwise imported later, at a first look-up or a first error, are listed here too.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations._core.redis.server import redis_package
from nexusflow_integrations.errors import APIConnectionError

_ALWAYS = (
    "nexusflow_integrations._core.call.engine",
    "nexusflow_integrations._core.call.estimate",
    "nexusflow_integrations._core.call.streaming",
    "nexusflow_integrations._core.pace.shared",
    "encodings.idna",
)
_FILE = ("nexusflow_integrations._core.cache.cache", "nexusflow_integrations._core.pace.in_file")
_REDIS = (
    "nexusflow_integrations._core.cache.cache",
    "nexusflow_integrations._core.cache.in_redis",
    "nexusflow_integrations._core.pace.in_redis",
)
_HTTPX = ("anyio.lowlevel", "anyio.streams.tls", "anyio._backends._asyncio")


def import_all(cache: str | RedisAddress | None, pacer: object, *, async_http_client: bool) -> None:
    """Import what calls of a client with these settings need.

    Raises:
        ImportError: A package is not installed.
        APIConnectionError: A file could not be read; there may be no file descriptor left.
        ConfigurationError: This process was forked while another thread was importing.
    """
    with forks.importing:
        try:
            _import_all(cache, pacer, async_http_client)
        except OSError as error:
            raise APIConnectionError(
                f"modules that a call needs could not be imported: {error.strerror or error}"
            ) from None


def _import_all(cache: str | RedisAddress | None, pacer: object, async_http_client: bool) -> None:
    names = [*_ALWAYS]
    servers = [cache] if isinstance(cache, RedisAddress) else []
    if cache is not None:
        names += _REDIS if servers else _FILE
    for name in names:
        import_module(name)
    if pacer is not None:
        from nexusflow_integrations._core.pace.in_redis import AccountLimits

        if isinstance(pacer, AccountLimits):
            servers.append(pacer.server.address)
    for address in servers:
        redis_package(address)
    if async_http_client:
        with suppress(ImportError):  # internal modules of httpx's dependencies, which may change
            for name in _HTTPX:
                import_module(name)
