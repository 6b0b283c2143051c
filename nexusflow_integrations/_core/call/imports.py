"""The imports that a first call needs, done by the calling thread.

The imports do not happen when a client is created, because that should be cheap. They do not happen
on the event loop, either: a fork during an import would leave the child with an import that never
finishes, and the time of the import would count towards the deadline. So this module also lists
modules that would otherwise be imported later, at a first lookup or a first error.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations._core.redis.server import redis_package
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations.errors import APIConnectionError, ConfigurationError

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
    """Import the modules that calls of a client with these settings need.

    Raises:
        ImportError: A package is not installed.
        APIConnectionError: A file could not be read; perhaps no file descriptor is left.
        ConfigurationError: This process was forked while another thread was importing, or Python
            was built without SQLite.
    """
    with forks.importing():
        try:
            _import_all(cache, pacer, async_http_client)
        except OSError as error:
            if raised_by_signal_handler(error):
                raise
            raise APIConnectionError(
                f"modules that a call needs could not be imported: {error.strerror or error}"
            ) from None


def without_sqlite(error: ModuleNotFoundError) -> ModuleNotFoundError | ConfigurationError:
    """Return what to raise instead of ``error``, which may mean that Python has no SQLite."""
    if error.name not in ("sqlite3", "_sqlite3"):
        return error
    return ConfigurationError(
        "cache needs the module sqlite3, which this Python was built without: use another Python,"
        " or leave out cache"
    )


def _import_all(cache: str | RedisAddress | None, pacer: object, async_http_client: bool) -> None:
    names = [*_ALWAYS]
    servers = [cache] if isinstance(cache, RedisAddress) else []
    if cache is not None:
        names += _REDIS if servers else _FILE
    try:
        for name in names:
            import_module(name)
    except ModuleNotFoundError as error:
        raise without_sqlite(error) from None
    if pacer is not None:
        from nexusflow_integrations._core.pace.in_redis import AccountLimits

        if isinstance(pacer, AccountLimits):
            servers.append(pacer.server.address)
    for address in servers:
        redis_package(address)
    if async_http_client:
        with suppress(ImportError):  # these internal modules of httpx's dependencies may change
            for name in _HTTPX:
                import_module(name)
