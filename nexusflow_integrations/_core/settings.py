"""The settings of a client: checked once, immutable, comparable, and without the key."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

from nexusflow_integrations._core.checks import (
    MAX_SECONDS,
    attribute,
    flag,
    has_methods,
    number,
    one_of,
    optional_number,
    optional_text,
    refuse,
    whole,
    word,
)
from nexusflow_integrations._core.fields import NO_FIELDS, OURS, Fields
from nexusflow_integrations._core.hosts import host_of, is_loopback
from nexusflow_integrations._core.models import DEFAULT_MODEL, MODELS, model_named
from nexusflow_integrations._core.secret import ApiKey, Headers, secret_arguments
from nexusflow_integrations.errors import ConfigurationError

DEFAULT_BASE_URL = "https://nexusflow.vip/v1"
KEY_VARIABLE = "NEXUSFLOW_API_KEY"
URL_VARIABLE = "NEXUSFLOW_BASE_URL"
TIMEOUT = 60.0
"""The default number of seconds for one attempt."""
DIMENSIONS = MODELS[DEFAULT_MODEL].sizes
BATCH_SIZE = MODELS[DEFAULT_MODEL].batch_size
LONGEST_INSTRUCTION = 10_000
"""Maximum characters of an instruction; a longer one leaves no room for the text after it."""
LARGEST = 8192
"""Maximum size of a vector, for any model."""
DEFAULT_MAX_CONCURRENCY = 32

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<place>[^/\\]+)(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:/%-]*)?)",
    re.IGNORECASE | re.ASCII,
)

EncodingFormat = Literal["base64", "float"]
Role = Literal["document", "query"]
OnRefused = Literal["raise", "collect"]
_FORMATS = ("base64", "float")
ROLES = ("document", "query")
ON_REFUSED = ("raise", "collect")
OnTooLong = Literal["error", "split", "truncate", "send"]
ON_TOO_LONG = ("error", "split", "truncate", "send")
OnTooLongOrCollect = Literal["error", "collect", "split", "truncate", "send"]
"""Values of ``on_too_long`` for calls whose result can leave texts out."""

NO_KEY = "no API key: pass api_key=... or set the environment variable {}"


@secret_arguments
def resolve_api_key(value: object = None, env: str = KEY_VARIABLE) -> ApiKey:
    """Return the key from ``value`` (text, or an object with ``get_secret_value``) or from ``env``.

    Raises:
        ConfigurationError: There is no key, or it is not valid in an HTTP header. The error's
            message never contains the key.
    """
    whose = ""
    if value is None:
        whose, value = f" (it is the value of {env})", os.environ.get(env)
        if not value:
            raise ConfigurationError(NO_KEY.format(env))
    if not isinstance(value, (str, ApiKey)) and has_methods(value, "get_secret_value"):
        try:
            value = value.get_secret_value()  # type: ignore[attr-defined]
        except Exception:  # noqa: BLE001 - the error's message may contain the key
            raise ConfigurationError("api_key could not be read from the given object") from None
    if isinstance(value, ApiKey):
        return value
    if not isinstance(value, str):
        raise ConfigurationError(f"api_key must be text, not {type(value).__name__}")
    key = str.__str__(value).strip(" ")
    if not key:
        raise ConfigurationError(f"api_key is empty{whose}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "api_key contains a line break, a space or another character that no key has"
            f"{whose}; was anything copied with the key?"
        )
    return ApiKey(key)


@secret_arguments
def resolve_base_url(value: str | None = None, *, allow_http: bool = False) -> str:
    """Return the endpoint's root without a trailing slash, from ``value`` or NEXUSFLOW_BASE_URL.

    Scheme and host are returned in lower case. No URL parser is used, because parsers disagree
    about unusual URLs; unusual URLs are refused.

    Raises:
        ConfigurationError: ``value`` is not an http(s) URL, or has credentials, a query or an
            ambiguous host, or is plain http to a host other than loopback, which would let anyone
            on the network path read the key.
    """
    whose = "" if value is not None else f"; it is the value of {URL_VARIABLE}"
    url = value if value is not None else os.environ.get(URL_VARIABLE) or DEFAULT_BASE_URL
    if not isinstance(url, str):
        raise refuse("base_url", "text", url)
    allow_http = flag("allow_http", allow_http)
    url = str.__str__(url).strip().rstrip("/")
    url = url.removesuffix("/embeddings").rstrip("/")  # users may give the endpoint's full address
    if "@" in url:
        raise ConfigurationError(f"base_url must not contain a user name or password{whose}")
    if any(char in url for char in "?# "):
        raise ConfigurationError(f"base_url must not contain a query, a fragment or blanks{whose}")
    parts = _URL.fullmatch(url)
    if parts is None:
        said = f", not {url[:80]!a}" if "://" in url else ""  # a value without "://" may be a key
        raise ConfigurationError(f"base_url must look like {DEFAULT_BASE_URL}{said}{whose}")
    scheme, place = parts["scheme"].lower(), parts["place"].lower()
    host = host_of(place)
    if host is None:
        raise ConfigurationError(
            "base_url must name its host like nexusflow.vip, 127.0.0.1 or [::1]:8080, not"
            f" {parts['place'][:80]!a}{whose}"
        )
    if scheme == "http" and not allow_http and not is_loopback(host):
        raise ConfigurationError(
            f"base_url is plain http to {host}, which would expose the API key on the network: use"
            f" https (or allow_http=True on a network you trust){whose}"
        )
    return f"{scheme}://{place}{parts['path']}"


def check_dimensions(value: object, model: object = DEFAULT_MODEL) -> int | None:
    """Return ``value`` if ``model`` offers this size; ``None`` means the server's default size."""
    if value is None:
        return None
    sizes = model_named(model).sizes
    if not sizes:
        return whole("dimensions", value, 1, LARGEST)
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) in sizes:
        return int(value)
    raise refuse("dimensions", f"one of {', '.join(map(str, sizes))}", value)


def plain_timeout(value: object) -> Any:
    """Return a timeout, in any form that httpx accepts, as seconds for a whole attempt.

    For an ``httpx.Timeout`` or a tuple of seconds (connect, read, ...), return the longest part;
    for ``None``, return the default. Any other value is returned unchanged.
    """
    parts = value if isinstance(value, tuple) else None
    if all(attribute(value, name, value) is not value for name in ("connect", "read", "pool")):
        parts = tuple(attribute(value, name) for name in ("connect", "read", "write", "pool"))
    if parts is None:
        return TIMEOUT if value is None else value
    given = [part for part in parts if part is not None]
    try:
        return max(number("timeout", part) for part in given) if given else TIMEOUT
    except ConfigurationError:
        return value


def check_pacer(value: object) -> tuple[float | None, float | None]:
    """Return the limits on requests and tokens per minute of the pacer ``value``."""
    if isinstance(value, type) or not has_methods(value, "lease", "adjust", "throttled"):
        raise refuse(
            "pacer",
            "a RedisLimits, a ClusterLimits or a similar object",
            value,
        )
    requests, tokens = (
        optional_number(f"pacer.{name}", attribute(value, name, "nothing"))
        for name in ("requests_per_minute", "tokens_per_minute")
    )
    return requests, tokens


def _instruction(name: str, value: object) -> str | None:
    instruction = optional_text(name, value)
    if instruction is not None and len(instruction) > LONGEST_INSTRUCTION:
        raise refuse(name, f"text of at most {LONGEST_INSTRUCTION:,} characters or None", value)
    return instruction


@dataclass(frozen=True)
class Settings:
    """Everything that a request depends on, except the key.

    Units: ``timeout`` and ``deadline`` in seconds, rates per minute, ``batch_size`` in texts.
    """

    base_url: str
    model: str = DEFAULT_MODEL
    dimensions: int | None = None
    encoding_format: EncodingFormat = "base64"
    batch_size: int = BATCH_SIZE
    max_concurrency: int = DEFAULT_MAX_CONCURRENCY
    timeout: float = TIMEOUT
    deadline: float | None = None
    query_timeout: float | None = None
    query_deadline: float | None = None
    max_retries: int = 6
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    on_refused: OnRefused = "raise"
    on_blank: OnRefused = "raise"
    on_too_long: OnTooLongOrCollect = "error"
    max_text_tokens: int | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    extra_body: Fields = NO_FIELDS
    default_query: Fields = NO_FIELDS
    default_headers: Headers = field(default_factory=Headers)

    def __post_init__(self) -> None:
        requests, tokens = self.requests_per_minute, self.tokens_per_minute
        plain: dict[str, Any] = {
            "model": word("model", self.model, "the name of a model"),
            "dimensions": check_dimensions(self.dimensions, self.model),
            "encoding_format": one_of("encoding_format", self.encoding_format, _FORMATS),
            "batch_size": whole("batch_size", self.batch_size, 1, 2048),
            "max_concurrency": whole("max_concurrency", self.max_concurrency, 1, 1024),
            "timeout": number("timeout", self.timeout, most=MAX_SECONDS),
            "deadline": optional_number("deadline", self.deadline, most=MAX_SECONDS),
            "query_timeout": optional_number("query_timeout", self.query_timeout, most=MAX_SECONDS),
            "query_deadline": optional_number(
                "query_deadline", self.query_deadline, most=MAX_SECONDS
            ),
            "max_retries": whole("max_retries", self.max_retries, 0, 100),
            "requests_per_minute": optional_number("requests_per_minute", requests),
            "tokens_per_minute": optional_number("tokens_per_minute", tokens),
            "on_refused": one_of("on_refused", self.on_refused, ON_REFUSED),
            "on_blank": one_of("on_blank", self.on_blank, ON_REFUSED),
            "on_too_long": one_of("on_too_long", self.on_too_long, (*ON_TOO_LONG, "collect")),
            "max_text_tokens": None
            if self.max_text_tokens is None
            else whole("max_text_tokens", self.max_text_tokens, 16, 10_000_000),
            "query_instruction": _instruction("query_instruction", self.query_instruction),
            "document_instruction": _instruction("document_instruction", self.document_instruction),
            "extra_body": Fields("extra_body", self.extra_body, taken=OURS),
            "default_query": Fields("default_query", self.default_query, flat=True),
            "default_headers": Headers(self.default_headers),
        }
        vars(self).update(plain)
        if self.on_too_long in ("split", "truncate") and self.token_limit is None:
            raise ConfigurationError(
                f"on_too_long={self.on_too_long!r} needs the model's limit on the tokens of a"
                " text, which is unknown for this model: pass max_text_tokens=..."
            )

    def of(self, role: Role) -> Settings:
        """Return the settings for texts with this ``role`` (query or document)."""
        patient = self.query_timeout is None and self.query_deadline is None
        return self if patient or role != "query" else self._of_queries

    @cached_property
    def _of_queries(self) -> Settings:
        return replace(
            self,
            timeout=self.timeout if self.query_timeout is None else self.query_timeout,
            deadline=self.deadline if self.query_deadline is None else self.query_deadline,
            query_timeout=None,
            query_deadline=None,
        )

    @property
    def token_limit(self) -> int | None:
        """Maximum tokens of a text; ``None`` if unknown."""
        return self.max_text_tokens or model_named(self.model).max_tokens

    def instruction(self, role: Role) -> str:
        """Return the instruction that is prepended to texts with this ``role``."""
        return (self.query_instruction if role == "query" else self.document_instruction) or ""

    @property
    def added(self) -> str:
        """The user's additions to each request, which may change vectors."""
        if not (self.extra_body or self.default_query):
            return ""
        return f"{self.extra_body.text}\n{self.default_query.text}"
