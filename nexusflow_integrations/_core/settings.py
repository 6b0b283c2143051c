"""What a client was told: checked once, immutable, comparable, and without the key in its repr."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from typing import Literal

from nexusflow_integrations._core.hosts import host_of, is_loopback
from nexusflow_integrations._core.secret import ApiKey, Headers, secret_arguments
from nexusflow_integrations.errors import ConfigurationError

DEFAULT_BASE_URL = "https://nexusflow.vip/v1"
DEFAULT_MODEL = "text-embedding-v4"
DIMENSIONS = (2048, 1536, 1024, 768, 512, 256, 128, 64)
"""The sizes of text-embedding-v4, from the API page."""
MAX_BATCH_SIZE = 10
"""Texts a request, from the documentation of the model behind the API."""
DEFAULT_MAX_CONCURRENCY = 32

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<place>[^/\\]+)(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:/%-]*)?)",
    re.IGNORECASE | re.ASCII,
)

EncodingFormat = Literal["base64", "float"]
Role = Literal["document", "query"]
OnRefused = Literal["raise", "collect"]


@secret_arguments
def resolve_api_key(value: object = None, env: str = "NEXUSFLOW_API_KEY") -> ApiKey:
    """Return the key from ``value`` (text, or an object with ``get_secret_value``) or from ``env``.

    Raises:
        ConfigurationError: There is none, or it cannot stand in an HTTP header. The message never
            contains it.
    """
    if value is None:
        value = os.environ.get(env)
        if not value:
            raise ConfigurationError(
                f"no API key: pass api_key=... or set the environment variable {env}"
            )
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if isinstance(value, ApiKey):
        return value
    if not isinstance(value, str):
        raise ConfigurationError(f"api_key must be text, not {type(value).__name__}")
    key = value.strip(" ")
    if not key:
        raise ConfigurationError("api_key is empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "api_key contains a line break, a blank or another character that no key has;"
            " was more than the key copied?"
        )
    return ApiKey(key)


@secret_arguments
def resolve_base_url(value: str | None = None, *, allow_http: bool = False) -> str:
    """Return the endpoint's root without a trailing slash, from ``value`` or NEXUSFLOW_BASE_URL.

    Scheme and host come back in small letters. No parser of URLs is asked: they differ over what
    is not plain, and what is not is refused.

    Raises:
        ConfigurationError: Not an http(s) URL, or it holds credentials or a query, or a host that
            can be read in two ways, or it is plain http to another host than loopback, where
            anyone on the way could read the key.
    """
    url = value if value is not None else os.environ.get("NEXUSFLOW_BASE_URL") or DEFAULT_BASE_URL
    if not isinstance(url, str):
        raise ConfigurationError(f"base_url must be text, not {type(url).__name__}")
    url = url.strip().rstrip("/")
    if "@" in url:
        raise ConfigurationError("base_url must not contain a user name or password")
    if any(char in url for char in "?# "):
        raise ConfigurationError("base_url must not contain a query, a fragment or blanks")
    parts = _URL.fullmatch(url)
    if parts is None:
        said = f", not {url[:80]!a}" if "://" in url else ""  # or it may be a key
        raise ConfigurationError(f"base_url must look like {DEFAULT_BASE_URL}{said}")
    scheme, place = parts["scheme"].lower(), parts["place"].lower()
    host = host_of(place)
    if host is None:
        raise ConfigurationError(
            "base_url must name its host like nexusflow.vip, 127.0.0.1 or [::1]:8080, not"
            f" {parts['place'][:80]!a}"
        )
    if scheme == "http" and not allow_http and not is_loopback(host):
        raise ConfigurationError(
            f"base_url is plain http to {host}, which would show the API key to everyone on the"
            " way: use https (or allow_http=True on a network you trust)"
        )
    return f"{scheme}://{place}{parts['path']}"


def check_dimensions(value: int | None) -> int | None:
    """Return ``value`` if the model has that size (or ``None``: the server's default)."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value not in DIMENSIONS:
        raise ConfigurationError(
            f"dimensions must be one of {', '.join(map(str, DIMENSIONS))}, not {value!r}"
        )
    return value


def _whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigurationError(
            f"{name} must be a whole number from {low} to {high}, not {value!r}"
        )
    return value


def _positive(name: str, value: object) -> float | None:
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ConfigurationError(f"{name} must be a number above 0 or None, not {value!r}")
    return float(value)


@dataclass(frozen=True)
class Settings:
    """Everything a request depends on, except the key.

    Units: ``timeout`` and ``deadline`` in seconds, rates per minute, ``batch_size`` in texts.
    """

    base_url: str
    model: str = DEFAULT_MODEL
    dimensions: int | None = None
    encoding_format: EncodingFormat = "base64"
    batch_size: int = MAX_BATCH_SIZE
    max_concurrency: int = DEFAULT_MAX_CONCURRENCY
    timeout: float = 60.0
    deadline: float | None = None
    max_retries: int = 6
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    on_refused: OnRefused = "raise"
    query_instruction: str | None = None
    default_headers: Headers = field(default_factory=Headers)

    def __post_init__(self) -> None:
        check_dimensions(self.dimensions)
        if not isinstance(self.model, str) or not self.model.strip():
            raise ConfigurationError("model must be the name of a model")
        if self.encoding_format not in ("base64", "float"):
            raise ConfigurationError(
                f"encoding_format must be 'base64' or 'float', not {self.encoding_format!r}"
            )
        if self.on_refused not in ("raise", "collect"):
            raise ConfigurationError(
                f"on_refused must be 'raise' or 'collect', not {self.on_refused!r}"
            )
        _whole("batch_size", self.batch_size, 1, 2048)
        _whole("max_concurrency", self.max_concurrency, 1, 1024)
        _whole("max_retries", self.max_retries, 0, 100)
        if _positive("timeout", self.timeout) is None:
            raise ConfigurationError(
                "timeout must be a number of seconds: nothing may wait for ever"
            )
        _positive("deadline", self.deadline)
        _positive("requests_per_minute", self.requests_per_minute)
        _positive("tokens_per_minute", self.tokens_per_minute)
        if self.query_instruction is not None and not isinstance(self.query_instruction, str):
            raise ConfigurationError("query_instruction must be text or None")
        if not isinstance(self.default_headers, Headers):
            object.__setattr__(self, "default_headers", Headers(self.default_headers))
