"""Classifies error responses by status, code and message together.

No single field decides: the same code can mean different things under different statuses
(``insufficient_quota`` is a rate limit under 429 and a lack of credit under 403), and gateways
change statuses. Server texts that leave this module are short, printable and without the API key.
Texts are truncated before they are searched, so that no response blocks the event loop for long.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from math import isfinite
from urllib.parse import urlsplit

import orjson

from nexusflow_integrations._core.request.wire import Answer, BrokenResponse, parses_fast
from nexusflow_integrations._core.secret import Secret
from nexusflow_integrations.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
)

MAX_TEXT = 2000
"""Maximum characters of the server's message in an error."""
MAX_SEARCHED = 8000
"""Maximum characters of the server's message that are searched."""
MAX_ERROR_BYTES = 4 * 1024 * 1024
"""The largest error body that is parsed; in a larger body, only the beginning is searched."""
MAX_ERROR_VALUES = 100_000
MAX_HEADER = 100
"""Maximum characters of a header that holds a number or a date."""

Secrets = Sequence[Secret]
"""The secrets that must be removed from the server's texts."""


class Kind(Enum):
    """What to do after a failure."""

    TERMINAL = "every other request would fail as well: stop"
    REFUSED = "a text is at fault: find it, embed the others"
    TOO_LARGE = "the body is too large: split it"
    BATCH_LIMIT = "too many texts: send fewer per request"
    ENCODING = "base64 is refused: request floats"
    THROTTLE = "rate limit: slow down and retry"
    FAULT = "server fault: retry"


@dataclass(frozen=True, slots=True)
class Failure:
    """A classified error response.

    ``retry_after`` is in seconds; ``batch_limit`` is the maximum number of texts that the server
    accepts. ``too_many_at_once`` says whether the limit is on requests in flight, not on the rate.
    """

    kind: Kind
    error: APIStatusError
    retry_after: float | None = None
    batch_limit: int | None = None
    too_many_at_once: bool = False


_BILLING = re.compile(
    r"arrearage|bill\s?overdue|commodity\s?not\s?purchased|insufficient[_ ]?balance"
    r"|balance[_ ]insufficient|余额不足|欠费",
    re.IGNORECASE,
)
_THROTTLE = re.compile(
    r"throttling|rate[_ ]?limit|too many requests|request rate increased|allocated quota exceeded"
    r"|exceeded your current quota",
    re.IGNORECASE,
)
_AT_ONCE = re.compile(r"concurren(t|cy)|in parallel|simultaneous", re.IGNORECASE)
_MODERATION = re.compile(
    r"data_?inspection_?failed|content_filter|inappropriate content", re.IGNORECASE
)
TOO_LONG = re.compile(
    r"range of input length|context_length_exceeded|maximum context length|input is too long"
    r"|too many tokens",
    re.IGNORECASE,
)
_BATCH = re.compile(
    r"(?:batch size|number of (?:texts|inputs)|input\.contents|too many inputs).{0,80}?"
    r"(?:not be larger than|not exceed|at most|less than or equal to|maximum(?: of| is)?)"
    r"\s*(\d{1,4})",
    re.IGNORECASE | re.DOTALL,
)
_UNSATISFIABLE = re.compile(
    r"limit\D{0,3}(\d{1,12})\D{1,20}requested\D{0,3}(\d{1,12})", re.IGNORECASE
)
_BASE64 = re.compile(r"encoding[_ ]format|base64", re.IGNORECASE)
_SERVER_CODE = re.compile(
    r"^(server_error|internal_?error|internal_?server_?error|upstream_error"
    r"|service_?unavailable|overloaded(_error)?)$",
    re.IGNORECASE,
)
_UNAUTHORIZED = re.compile(r"invalid_api_key|unauthori[sz]ed|authentication", re.IGNORECASE)
_NO_MODEL = re.compile(r"model_not_found", re.IGNORECASE)
_TITLE = re.compile(r"<(title|h1)[^>]{0,100}>([^<]+)", re.IGNORECASE)
_RETRYABLE_4XX = frozenset({408, 409, 425})
_NOT_IMPLEMENTED = frozenset({501, 505})


def judge(answer: Answer, *, secrets: Secrets, now: float | None = None) -> Failure:
    """Classify the error in ``answer``. ``now`` is in seconds since the epoch."""
    code, message = _code_and_message(answer.body, secrets)
    words = f"{code or ''} {message}"
    status = answer.status
    wait = retry_after(answer.headers, now=time.time() if now is None else now)
    limit = _BATCH.search(message) if status in (400, 413, 422) else None
    kind = _kind(status, code or "", words, limit is not None)
    if kind in (Kind.THROTTLE, Kind.FAULT) and answer.headers.get("x-should-retry") == "false":
        kind = Kind.TERMINAL
    error = _error(answer, kind, code, message, wait, secrets)
    return Failure(
        kind,
        error,
        retry_after=wait,
        batch_limit=max(1, int(limit.group(1))) if limit else None,
        too_many_at_once=kind is Kind.THROTTLE and bool(_AT_ONCE.search(words)),
    )


def _kind(status: int, code: str, words: str, names_batch_limit: bool) -> Kind:
    if _BILLING.search(words):
        return Kind.TERMINAL
    if status == 429:
        return Kind.TOO_LARGE if _asks_too_much(words) else Kind.THROTTLE
    if status in (400, 422):
        if names_batch_limit:
            return Kind.BATCH_LIMIT
        if _MODERATION.search(words) or TOO_LONG.search(words):
            return Kind.REFUSED
        if _BASE64.search(words):
            return Kind.ENCODING
        if _SERVER_CODE.match(code):
            return Kind.FAULT
        return Kind.THROTTLE if _THROTTLE.search(code) else Kind.TERMINAL
    if status == 413:
        return Kind.TOO_LARGE
    if status in _RETRYABLE_4XX:
        return Kind.FAULT
    if status >= 500 and status not in _NOT_IMPLEMENTED:
        return Kind.THROTTLE if _THROTTLE.search(words) else Kind.FAULT
    return Kind.TERMINAL


def _asks_too_much(words: str) -> bool:
    """Return whether a single request exceeds the limit, so that waiting would not help."""
    numbers = _UNSATISFIABLE.search(words)
    return numbers is not None and int(numbers.group(2)) > int(numbers.group(1))


def judge_ok_error(
    answer: Answer, broken: BrokenResponse, *, secrets: Secrets
) -> Failure | BrokenResponse:
    """Classify a 2xx response without valid vectors: its body may be an error object.

    A known code is treated like the status that it usually comes with. Otherwise the result is
    ``broken``, to which the server's message is added.
    """
    code, message = _code_and_message(answer.body, secrets, under_ok=True)
    if code is None and not message:
        return broken
    words = f"{code or ''} {message}"
    if _BILLING.search(words):
        status = 402
    elif _UNAUTHORIZED.search(words):
        status = 401
    elif _NO_MODEL.search(words):
        status = 404
    elif _BATCH.search(message) or _MODERATION.search(words) or TOO_LONG.search(words):
        status = 400
    elif _THROTTLE.search(words) or "insufficient_quota" in words:
        status = 429
    else:
        return BrokenResponse(f"{broken}; the server says: {clean(words, secrets)}")
    return judge(Answer(status, answer.headers, answer.body), secrets=secrets)


_BY_STATUS: Mapping[int, type[APIStatusError]] = {
    401: AuthenticationError,
    402: PermissionDeniedError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: InternalServerError,
    409: InternalServerError,
    425: InternalServerError,
}


def _error(
    answer: Answer,
    kind: Kind,
    code: str | None,
    message: str,
    wait: float | None,
    secrets: Secrets,
) -> APIStatusError:
    status = answer.status
    if kind is Kind.TERMINAL and _BILLING.search(f"{code or ''} {message}"):
        cls: type[APIStatusError] = PermissionDeniedError
    elif kind is Kind.THROTTLE or status == 429:
        cls = RateLimitError
    elif kind is Kind.FAULT:
        cls = InternalServerError
    else:
        cls = _BY_STATUS.get(status, InternalServerError if status >= 500 else BadRequestError)
    if 300 <= status < 400:
        cls, message = APIStatusError, _redirect(answer.headers.get("location", ""))
    request_id = answer.headers.get("x-request-id")
    text = f"{status}"
    if code and code != text:
        text += f" {clean(code, secrets, 100)}"
    text += f": {clean(message, secrets)}" if message else ""
    if request_id:
        request_id = clean(request_id, secrets, 200)
        text += f" (request {request_id})"
    return cls(
        text,
        status_code=status,
        code=clean(code, secrets, 100) if code else None,
        request_id=request_id,
        retry_after=wait,
    )


def _redirect(location: str) -> str:
    try:
        host = urlsplit(location).hostname
    except ValueError:
        host = None
    # Show only the host: the path or query of a Location may contain a token.
    return (
        f"redirected{f' to {host[:100]}' if host else ''}; redirects are not followed: check"
        " base_url"
    )


def _code_and_message(
    body: bytes, secrets: Secrets, *, under_ok: bool = False
) -> tuple[str | None, str]:
    """Find code and message in the known layouts of error bodies; truncate both."""
    code, message = _found(body, secrets, under_ok=under_ok)
    return code and _cut(code, MAX_SEARCHED, secrets), _cut(message, MAX_SEARCHED, secrets)


def _found(body: bytes, secrets: Secrets, *, under_ok: bool) -> tuple[str | None, str]:
    parseable = len(body) <= MAX_ERROR_BYTES and parses_fast(body, MAX_ERROR_VALUES)
    try:
        payload = orjson.loads(body if parseable else b"")
    except orjson.JSONDecodeError:
        return (None, "") if under_ok else (None, _plain(body, secrets))
    for _ in range(4):
        if isinstance(payload, list) and payload:
            payload = payload[0]
        if not isinstance(payload, dict):
            break
        inner = payload.get("error") or payload.get("response") or payload.get("detail")
        if isinstance(inner, (dict, list)) and inner:
            payload = inner
            continue
        if isinstance(inner, str):
            return _word(payload.get("code")), inner
        break
    if isinstance(payload, dict):
        message = payload.get("message") or payload.get("msg") or ""
        code = _word(payload.get("code")) or (None if under_ok else _word(payload.get("type")))
        return code, message if isinstance(message, str) else _written(message)
    return None, payload if isinstance(payload, str) and not under_ok else ""


def _word(value: object) -> str | None:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _written(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # nested too deeply
        return ""


def _plain(body: bytes, secrets: Secrets) -> str:
    text = body[:MAX_SEARCHED].decode("utf-8", "replace").strip()
    if len(body) > MAX_SEARCHED:
        text = _without_part(text, secrets)
    title = _TITLE.search(text)
    if title:
        return title.group(2).strip()
    return "" if text[:1] == "<" else text


def _cut(text: str, limit: int, secrets: Secrets) -> str:
    return text if len(text) <= limit else _without_part(text[:limit], secrets)


def _without_part(text: str, secrets: Secrets) -> str:
    """Remove the beginning of a secret if the truncated ``text`` ends with it."""
    for secret in secrets:
        text = secret.without_part(text)
    return text


def clean(text: str, secrets: Secrets, limit: int = MAX_TEXT) -> str:
    """Return ``text`` truncated, printable, on one line and without ``secrets``."""
    text = _cut(text, limit * 4, secrets)
    for secret in secrets:
        text = secret.redact(text)
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


# -- how long the server asks to wait ----------------------------------------------------------

_GARBAGE = 86_400.0
"""Maximum seconds; a longer wait (more than a day) is ignored as invalid."""


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Return the seconds that the server asks to wait, or ``None`` if there is no valid value.

    Read ``retry-after-ms``, ``Retry-After`` in seconds or as an HTTP date, and
    ``X-RateLimit-Reset`` in seconds or epoch seconds. Values that are zero, negative, infinite,
    longer than a day or unreadable are ignored. ``now`` is in seconds since the epoch.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None and (wait := _sane(milliseconds / 1000)):
        return wait
    value = headers.get("retry-after")
    if value is not None:
        seconds = _number(value)
        if seconds is None:
            seconds = _until(value, now)
        if seconds is not None and (wait := _sane(seconds)):
            return wait
    reset = _number(headers.get("x-ratelimit-reset"))
    if reset is not None:
        return _sane(reset - now if reset > 1e9 else reset)
    return None


def _number(value: str | None) -> float | None:
    if value is None or len(value) > MAX_HEADER:
        return None
    try:
        number = float(value.strip())
    except ValueError:
        return None
    return number if isfinite(number) else None


def _until(value: str, now: float) -> float | None:
    if len(value) > MAX_HEADER:
        return None
    try:
        date = parsedate_to_datetime(value.strip())
        # HTTP dates are in UTC, even in the old format without a time zone.
        return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _sane(seconds: float) -> float | None:
    return seconds if 0 < seconds <= _GARBAGE else None
