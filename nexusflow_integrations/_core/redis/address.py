"""The URL of a Redis server, shown without its password."""

from __future__ import annotations

import os
import re
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from nexusflow_integrations._core.checks import refuse
from nexusflow_integrations._core.hosts import is_plain_host
from nexusflow_integrations._core.secret import Secret, secret_arguments
from nexusflow_integrations.errors import ConfigurationError

SCHEMES = ("redis", "rediss", "unix")
PASSWORD_ENV = "NEXUSFLOW_REDIS_PASSWORD"  # noqa: S105 - the name, not the password
"""The environment variable with the password, used if the URL has none."""
_OPTIONS = {"db", "username", "password", "socket_timeout", "socket_connect_timeout"}
_SHAPE = "redis://host:6379/0, rediss://host:6379/0 or unix:///path/to/socket?db=0"

WANTED = "a path, the URL of a Redis server, True, False or None"
_WORDS = {"true", "false", "none", "yes", "no", "on", "off", "1", "0"}
_ALMOST_REDIS = re.compile(r"(rediss?|unix):", re.IGNORECASE)

T = TypeVar("T")


class RedisAddress:
    """A ``redis://``, ``rediss://`` (TLS) or ``unix://`` URL, as the ``redis`` package accepts it.

    ``str``, ``repr`` and pickles leave the password out. A process that loads a pickle reads the
    password from ``NEXUSFLOW_REDIS_PASSWORD``.

    Args:
        url: The URL. It may contain a user and a password, the number of a database, and the
            options ``db``, ``socket_timeout``, ``socket_connect_timeout`` and those that begin with
            ``ssl_``.

    Raises:
        ConfigurationError: ``url`` is not such a URL. The message does not show it.
    """

    __slots__ = ("_hidden", "_shown", "_url")

    @secret_arguments
    def __init__(self, url: str) -> None:
        if not isinstance(url, str):
            raise refuse("cache", f"the URL of a Redis server: {_SHAPE}", url)
        url = str.__str__(url)
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
            options = parse_qsl(parts.query, keep_blank_values=True)
        except ValueError:
            raise ConfigurationError(f"cache is not the URL of a Redis server: {_SHAPE}") from None
        is_socket = parts.scheme == "unix"
        database = parts.path.strip("/")
        if (
            parts.scheme not in SCHEMES
            or not url.startswith(f"{parts.scheme}://")  # the redis package requires it
            or parts.fragment
            or not (is_socket or (host and is_plain_host(host)))
            or not (is_socket or not database or (database.isdecimal() and database.isascii()))
            or not url.isprintable()
        ):
            raise ConfigurationError(f"cache is not the URL of a Redis server: {_SHAPE}")
        for name, _ in options:
            if name not in _OPTIONS and not name.startswith("ssl_"):
                raise ConfigurationError(
                    "cache is the URL of a Redis server with an unknown option"
                )
        user, at, where = parts.netloc.rpartition("@")
        shown = [(name, value) for name, value in options if "password" not in name]
        self._url = Secret(url)
        # `urlunsplit` would write a socket's URL in a form that the redis package does not accept.
        self._shown = f"{parts.scheme}://{user.partition(':')[0]}{at}{where}{parts.path}" + (
            f"?{urlencode(shown)}" if shown else ""
        )
        secrets = [value for name, value in options if "password" in name]
        secrets += [parts.password or "", unquote(parts.password or "")]
        self._hidden = tuple(Secret(value) for value in secrets if value)

    def reveal(self) -> str:
        """Return the whole URL, for the connection only."""
        return self._url.reveal()

    def redact(self, text: str) -> str:
        """Return ``text``, a server's message, without the password."""
        for secret in self._hidden:
            text = secret.redact(text)
        return text

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"RedisAddress({getattr(self, '_shown', '')!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RedisAddress) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __copy__(self) -> RedisAddress:
        return self

    def __deepcopy__(self, memo: object) -> RedisAddress:
        return self

    def __reduce__(self) -> tuple[type[RedisAddress], tuple[str]]:
        return RedisAddress, (self._shown,)


def address_or_path(cache: T) -> T | RedisAddress:
    """Return a ``RedisAddress`` if ``cache`` is a URL, else ``cache`` itself.

    Raises:
        ConfigurationError: ``cache`` is neither a path nor the URL of a Redis server, or it is a
            word such as "true" that would become the name of a file.
    """
    if isinstance(cache, str):
        if "://" in cache:
            return RedisAddress(cache)
        if cache.strip().lower() in _WORDS:
            raise ConfigurationError(
                f"cache is the text {cache[:20]!r}: pass True or False, or the path of a file"
            )
        if _ALMOST_REDIS.match(cache):
            raise ConfigurationError(
                "cache starts like the URL of a Redis server, but is not one: write"
                " redis://HOST:PORT"
            )
    elif not (cache is None or isinstance(cache, (bool, os.PathLike, RedisAddress))):
        raise refuse("cache", WANTED, cache)
    return cache
