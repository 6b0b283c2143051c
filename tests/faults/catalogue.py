"""All faults as data: what the server does, what the caller must get, and after how many requests.

`test_table.py` runs `ROWS` with every interface. `ELSEWHERE` lists the files that test faults which
one plain server cannot cause (TLS, proxies, processes, inputs). `test_catalogue.py` checks that
`ROWS` has every fault of `FAULTS`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta, timezone
from typing import Any

from . import behaviours as b
from .server import (
    Behaviour,
    FaultServer,
    Script,
    Wire,
    first,
    larger_than,
    marked,
    once,
    right,
)

# ---------------------------------------------------------------- expectations


@dataclass(frozen=True)
class Right:
    """Every text gets its own vector, with a number of requests within `attempts`.

    `gap` is the minimum wait in seconds between a response and the next request.
    """

    attempts: tuple[int, int] = (1, 1)
    gap: float | None = None


@dataclass(frozen=True)
class Raises:
    """A typed error: an instance of one of `error` (class names; subclasses count).

    `match` and `lacks` are regular expressions that the message must and must not match. `finished`
    and `refused` are the exact indices, if they are determined.
    """

    error: str | tuple[str, ...]
    attempts: tuple[int, int] = (1, 1)
    match: str = ""
    lacks: str = ""
    status: int | None = None
    code: str | None = None
    finished: frozenset[int] | None = None
    refused: frozenset[int] | None = None
    retry_after: tuple[float, float] | None = None


@dataclass(frozen=True)
class AnyOf:
    """Each of `choices` is acceptable; a wrong vector, a hang or a retry storm is not."""

    choices: tuple[Right | Raises, ...]


Expectation = Right | Raises | AnyOf

# Either is acceptable: the body ends early, or the response is not valid.
CUT = ("APIConnectionError", "InvalidResponseError")

# ---------------------------------------------------------------- rows

TEXTS = ("first text", "zweiter Text, mit Umlauten: äöü", "第三段文字 🧪")
TEN = tuple(f"text number {i}" for i in range(10))
DEFAULTS: Mapping[str, Any] = {
    "dimensions": 64,
    "max_retries": 2,
    "timeout": 30.0,
    "deadline": 60.0,
    "on_too_long": "send",  # some faults need a large body
}
# For faults that only a timeout ends.
IMPATIENT: Mapping[str, Any] = {"timeout": 0.3, "deadline": 20.0, "max_retries": 1}


@dataclass(frozen=True)
class Row:
    """One variant of a fault. Each expectation is one call of the same client, in order."""

    fault: str
    name: str
    script: Callable[[], Script]
    expect: tuple[Expectation, ...]
    texts: tuple[str, ...] = TEXTS
    options: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    memory_mb: float | None = None
    idle: float = 0.0  # seconds between the calls
    representative: bool = False
    address: Callable[[FaultServer], str] | None = None

    @property
    def id(self) -> str:
        return f"{self.fault}-{self.name}"

    @property
    def waits(self) -> bool:
        """Whether it takes a while, because it tests time."""
        timed = any(self.options.get(name) is not None for name in ("timeout", "deadline"))
        return timed or any(getattr(choice, "gap", None) is not None for choice in self.expect)

    def texts_of(self, call: int) -> tuple[str, ...]:
        return self.texts if call == 0 else tuple(f"{text} again {call}" for text in self.texts)


ROWS: list[Row] = []
_represented: set[str] = set()


def row(
    fault: str,
    name: str,
    script: Script | Behaviour | Callable[[], Script],
    *expect: Expectation,
    fresh: bool = False,
    **extra: Any,
) -> None:
    """Add a row; with `fresh`, `script` is a function that makes one (for stateful behaviours)."""
    if fresh:
        make: Callable[[], Script] = script  # type: ignore[assignment]
    else:
        ready = script if isinstance(script, Script) else Script(script)  # type: ignore[arg-type]

        def make() -> Script:
            return ready

    patient = extra.get("options") is not IMPATIENT
    extra.setdefault("representative", fault not in _represented and patient)
    if extra["representative"]:
        _represented.add(fault)
    ROWS.append(Row(fault, name, make, expect, **extra))


def transient(
    fault: str,
    name: str,
    behaviour: Behaviour,
    error: str | tuple[str, ...],
    *,
    most: int = 3,
    once_most: int = 2,
    raises: Mapping[str, Any] | None = None,
    **extra: Any,
) -> None:
    """A fault that happens once is retried; one that persists becomes a typed error."""
    if extra.get("options") is IMPATIENT:  # a busy machine may also be late with a valid response
        patient = {"options": {**IMPATIENT, "max_retries": 4}, "representative": False}
        row(fault, f"{name}, once", once(behaviour), Right((2, 5)), **{**extra, **patient})
    else:
        row(fault, f"{name}, once", once(behaviour), Right((2, once_most)), **extra)
    row(fault, f"{name}, always", behaviour, Raises(error, (2, most), **(raises or {})), **extra)


def terminal(
    fault: str, name: str, behaviour: Behaviour, error: str | tuple[str, ...], **raises: Any
) -> None:
    """A retry would fail as well: one request, a typed error."""
    row(fault, name, behaviour, Raises(error, (1, 1), **raises))


def harmless(fault: str, name: str, behaviour: Behaviour, **extra: Any) -> None:
    """Unusual but valid: accepted at once."""
    row(fault, name, behaviour, Right((1, 1)), **extra)


def broken(fault: str, name: str, behaviour: Behaviour, **extra: Any) -> None:
    """Status 200 but an invalid body: retried like a transport error, then an error."""
    transient(fault, name, behaviour, "InvalidResponseError", **extra)


def either(
    fault: str,
    name: str,
    behaviour: Behaviour,
    error: str | tuple[str, ...] = "InvalidResponseError",
    **extra: Any,
) -> None:
    """Accepting and refusing are both fine."""
    choice = AnyOf((Right((1, 1)), Raises(error, (1, 3))))
    row(fault, f"{name}, always", behaviour, choice, **extra)
    row(fault, f"{name}, once", once(behaviour), Right((1, 2)), **extra)


def poisoned(n: int, *indices: int) -> tuple[str, ...]:
    return tuple(f"text number {i}{' POISON' if i in indices else ''}" for i in range(n))


def all_but(n: int, *indices: int) -> frozenset[int]:
    return frozenset(range(n)) - set(indices)


def _moderated_and_shaky(wire: Wire) -> None:
    if wire.number in (0, 2):
        wire.respond(503, b.error("server_error"))
    elif any("POISON" in text for text in wire.texts):
        wire.respond(400, b.MODERATION_ERROR)
    else:
        wire.right()


# ---- HTTP status

terminal(
    "F1",
    "400 is sent once; the error quotes the server's message",
    b.says(400, b.error("invalid_request_error", "Missing the thing")),
    "BadRequestError",
    status=400,
    code="invalid_request_error",
    match="Missing the thing",
)
row(
    "F2",
    "400 for a batch of more than 4 texts: the batch is split and the limit remembered",
    larger_than(4, b.says(400, b.batch_size_error(4))),
    Right((4, 5)),
    texts=TEN,
)
row(
    "F2",
    "400 for batches of more than 4 texts, with three batches",
    larger_than(4, b.says(400, b.batch_size_error(4))),
    Right((9, 13)),
    texts=poisoned(30),
)
row(
    "F2",
    "400 for a batch of more than 1 text",
    larger_than(1, b.says(400, b.batch_size_error(1))),
    Right((4, 4)),
)
row(
    "F2",
    "400 with a batch limit that the batch does not exceed",
    b.says(400, b.batch_size_error(10)),
    Raises(("BadRequestError", "RefusedTextsError"), (1, 6)),
)
for fault, words, body in (
    ("F3", "length", b.LENGTH_ERROR),
    ("F4", "moderation", b.MODERATION_ERROR),
):
    refusal = marked("POISON", b.says(400, body))
    row(
        fault,
        f"400 for the {words} of text 3 of 10, which is found by splitting",
        refusal,
        Raises(
            "RefusedTextsError", (2, 9), match="3", finished=all_but(10, 3), refused=frozenset({3})
        ),
        texts=poisoned(10, 3),
    )
    row(
        fault,
        f"400 for the {words} of texts 0 and 9 of 10",
        refusal,
        Raises("RefusedTextsError", (3, 15), finished=all_but(10, 0, 9), refused=frozenset({0, 9})),
        texts=poisoned(10, 0, 9),
    )
    row(
        fault,
        f"400 for the {words} of text 17 of 25, in three batches",
        refusal,
        Raises(
            "RefusedTextsError",
            (4, 11),
            match="17",
            finished=all_but(25, 17),
            refused=frozenset({17}),
        ),
        texts=poisoned(25, 17),
    )
    row(
        fault,
        f"400 for the {words} of all three texts",
        refusal,
        Raises("RefusedTextsError", (3, 6), finished=frozenset(), refused=frozenset({0, 1, 2})),
        texts=poisoned(3, 0, 1, 2),
    )
    row(
        fault,
        f"400 for the {words} of the only text",
        refusal,
        Raises(("RefusedTextsError", "BadRequestError"), (1, 1)),
        texts=poisoned(1, 0),
    )
row(
    "F4",
    "400 for the moderation of one text, and two responses with 503",
    _moderated_and_shaky,
    Raises("RefusedTextsError", (4, 11), finished=all_but(10, 6), refused=frozenset({6})),
    texts=poisoned(10, 6),
)
terminal(
    "F5",
    "400 Arrearage is not retried",
    b.says(
        400,
        b.error("Arrearage", "Access denied, please make sure your account is in good standing."),
    ),
    "APIStatusError",
    status=400,
    code="Arrearage",
)
row(
    "F5",
    "400 Arrearage stops a job of twenty batches",
    b.says(400, b.error("Arrearage", "Access denied.")),
    Raises("APIStatusError", (1, 4), code="Arrearage", finished=frozenset()),
    texts=poisoned(200),
    options={"max_concurrency": 2},
)
terminal(
    "F6",
    "401 is not retried",
    b.says(401, b.error("invalid_api_key", "Invalid key")),
    "AuthenticationError",
    status=401,
    code="invalid_api_key",
)
row(
    "F6",
    "401 stops a job of twenty batches",
    b.says(401, b.error("invalid_api_key", "Invalid key")),
    Raises("AuthenticationError", (1, 4), finished=frozenset()),
    texts=poisoned(200),
    options={"max_concurrency": 2},
)
terminal(
    "F7",
    "402 insufficient balance",
    b.says(402, b.error("insufficient_balance", "Top up")),
    "APIStatusError",
    status=402,
    code="insufficient_balance",
)
for code, message in (
    ("insufficient_quota", "You exceeded your current quota"),
    ("permission_denied", "The key lacks permission"),
    ("account_suspended", "Suspended"),
    ("forbidden", "账户余额不足，请充值"),
):
    terminal(
        "F8",
        f"403 {code}",
        b.says(403, b.error(code, message)),
        "PermissionDeniedError",
        status=403,
        code=code,
    )
terminal(
    "F9",
    "404 model",
    b.says(404, b.error("model_not_found", "No such model")),
    "NotFoundError",
    status=404,
    code="model_not_found",
)
terminal(
    "F9",
    "404 HTML page",
    b.html(404, "Not Found"),
    "NotFoundError",
    status=404,
    match="404",
    lacks="<|padding",
)
transient("F10", "408", b.says(408, b.error("timeout")), "APIStatusError", raises={"status": 408})
row(
    "F11",
    "409, once",
    once(b.says(409, b.error("conflict"))),
    AnyOf((Right((2, 2)), Raises("APIStatusError"))),
)
row(
    "F11",
    "409, always",
    b.says(409, b.error("conflict")),
    Raises("APIStatusError", (1, 3), status=409),
)
transient("F11", "425", b.says(425, b.error("too_early")), "APIStatusError", raises={"status": 425})
TOO_LARGE = b.error("request_too_large", "Request body too large")
row(
    "F12",
    "413 for more than two texts: the batch is split",
    larger_than(2, b.says(413, TOO_LARGE)),
    Right((6, 11)),
    texts=TEN,
)
row(
    "F12",
    "413 of one text: only that text fails",
    marked("POISON", b.says(413, TOO_LARGE)),
    Raises("RefusedTextsError", (2, 9), finished=all_but(10, 4), refused=frozenset({4})),
    texts=poisoned(10, 4),
)
row(
    "F13",
    "413 HTML page and close, above four texts",
    larger_than(
        4, b.then_closes(b.html(413, "Request Entity Too Large", headers=[("Connection", "close")]))
    ),
    Right((3, 7)),
    texts=TEN,
)
terminal(
    "F14", "415", b.says(415, b.error("unsupported", "No gzip here")), "APIStatusError", status=415
)
terminal(
    "F15",
    "422",
    b.says(422, b.error("semantic", "Wrong type of field")),
    "APIStatusError",
    status=422,
)
terminal(
    "F15", "418", b.says(418, b.error("teapot", "Short and stout")), "APIStatusError", status=418
)
LIMITED = b.error("rate_limit_exceeded", "Rate limit reached")
row(
    "F16",
    "429 Retry-After 1: the wait is respected",
    once(b.says(429, LIMITED, [("Retry-After", "1")])),
    Right((2, 2), gap=0.95),
    representative=False,
)
row(
    "F16",
    "429 Retry-After 0.1, always",
    b.says(429, LIMITED, [("Retry-After", "0.1")]),
    Raises(
        "RateLimitError", (2, 3), status=429, code="rate_limit_exceeded", retry_after=(0.09, 0.2)
    ),
)
transient(
    "F17", "429 without headers", b.says(429, LIMITED), "RateLimitError", raises={"status": 429}
)
transient(
    "F18",
    "429 with an empty body",
    b.says(429, content_type=None),
    "RateLimitError",
    raises={"status": 429},
)
transient(
    "F19",
    "429 HTML page",
    b.html(429, "Too Many Requests"),
    "RateLimitError",
    raises={"match": "429", "lacks": "<|padding"},
)
for name, body in (
    ("insufficient_quota", b.error("insufficient_quota", "You exceeded your current quota")),
    (
        "Throttling.AllocationQuota",
        b.error("Throttling.AllocationQuota", "Allocated quota exceeded"),
    ),
    ("growth", b.error("limit_burst_rate", "Request rate increased too quickly")),
):
    transient(
        "F20",
        f"429 {name} counts as a rate limit",
        b.says(429, body),
        "RateLimitError",
        raises={"status": 429},
    )
for code in ("PrepaidBillOverdue", "PostpaidBillOverdue", "CommodityNotPurchased"):
    terminal(
        "F21",
        f"429 {code} is not retried",
        b.says(429, b.error(code, "Pay")),
        "APIStatusError",
        status=429,
        code=code,
    )
row(
    "F22",
    "429 with a token limit below that of the batch, which is split",
    b.token_limit(400),
    Right((3, 16)),
    texts=tuple(f"text {i} " + "lorem ipsum " * 12 for i in range(10)),
)
row(
    "F22",
    "429 with a token limit below that of one text",
    b.token_limit(40),
    Raises(("RateLimitError", "RefusedTextsError", "BadRequestError"), (1, 6)),
    texts=("lorem ipsum " * 20,),
)


def _hint(name: str, value: str | Callable[[], str], gap: float | None = None) -> None:
    header = "Retry-After" if "(" not in name else name.split(" (")[0]
    script = once(b.says(429, LIMITED, lambda: [(header, value() if callable(value) else value)]))
    row("F23", name if "(" in name else f"Retry-After {name}", script, Right((2, 2), gap=gap))


_hint("0.3", "0.3", 0.28)
_hint("surrounded by blanks", "  0.3  ", 0.28)
_hint("0", "0")
_hint("-1", "-1")
_hint("-1100", "-1100")
_hint("garbage", "soon")
_hint("empty", "")
_hint("superscript two", "\xb2")
_hint("underscored 1_0", "abc_0")
_hint("nan", "nan")
_hint("inf", "inf")
_hint("1e400", "1e400")
_hint("date soon", lambda: b.http_date(2.0), 0.3)
_hint("date soon in another zone", lambda: b.http_date(2.0, timezone(timedelta(hours=5))), 0.3)
_hint("date in asctime form", lambda: b.asctime_date(2.0), 0.3)
_hint("date of 1994", "Sun, 06 Nov 1994 08:49:37 GMT")
_hint("date in RFC 850 form", lambda: b.rfc850_date(2.0), 0.3)
_hint("date in year 100000", "Sun, 06 Nov 100000 08:49:37 GMT")
_hint("retry-after-ms (300)", "300", 0.28)
_hint("retry-after-ms (nan)", "nan")
_hint("X-RateLimit-Reset (0.3 s)", "0.3", 0.28)
_hint("X-RateLimit-Reset (epoch soon)", lambda: f"{b.time.time() + 1.5:.1f}", 0.3)
_hint("X-RateLimit-Reset (epoch of the past)", "1600000000")
_hint("X-RateLimit-Reset (garbage)", "tomorrow")
row(
    "F23",
    "Retry-After twice",
    once(b.says(429, LIMITED, [("Retry-After", "0.1"), ("Retry-After", "0.1")])),
    Right((2, 2)),
)
row(
    "F23",
    "retry-after-ms before Retry-After",
    once(b.says(429, LIMITED, [("Retry-After", "121"), ("retry-after-ms", "100")])),
    Right((2, 2), gap=0.09),
)
row(
    "F23",
    "Retry-After 121, beyond the deadline, fails at once",
    b.says(429, LIMITED, [("Retry-After", "121")]),
    AnyOf(
        (
            Raises("RateLimitError", (1, 1), retry_after=(120.5, 121.5)),
            Raises("APITimeoutError", (1, 1), match=r"1[23]\d\.\d s.*429"),
        )
    ),
)
row(
    "F23",
    "Retry-After 99999999999",
    once(b.says(429, LIMITED, [("Retry-After", "99999999999")])),
    AnyOf((Right((2, 2)), Raises("RateLimitError", (1, 1)))),
)
row(
    "F23",
    "503 Retry-After 0.3: the wait is respected",
    once(b.says(503, b.error("overloaded"), [("Retry-After", "0.3")])),
    Right((2, 2), gap=0.28),
)
transient(
    "F24",
    "500 upstream_error",
    b.says(500, b.error("upstream_error", "upstream abnormal")),
    "InternalServerError",
    raises={"status": 500, "code": "upstream_error"},
)
transient(
    "F25",
    "502 HTML page",
    b.html(502, "Bad Gateway"),
    "InternalServerError",
    raises={"status": 502, "match": "502", "lacks": "<|padding"},
)
for code in ("server_error", "overloaded", "ServiceUnavailable", "ModelServingError"):
    transient(
        "F26",
        f"503 {code}",
        b.says(503, b.error(code, "Later")),
        "InternalServerError",
        raises={"status": 503},
    )
transient(
    "F27",
    "504 HTML page",
    b.html(504, "Gateway Time-out"),
    "InternalServerError",
    raises={"status": 504, "lacks": "<|padding"},
)
for status in (520, 522, 524, 529):
    transient(
        "F28",
        f"{status} HTML page",
        b.html(status, "Origin trouble", headers=[("Server", "cdn")]),
        "InternalServerError",
        raises={"status": status},
    )
for n in range(4):
    row(
        "F29",
        f"503 {n} times, with two retries",
        first(n, b.says(503, b.error("server_error"))),
        Right((n + 1, n + 1)) if n <= 2 else Raises("InternalServerError", (3, 3)),
    )
row(
    "F29",
    "503 without retries",
    b.says(503, b.error("server_error")),
    Raises("InternalServerError", (1, 1)),
    options={"max_retries": 0},
)
row(
    "F29",
    "a dead server gets few retries",
    b.says(503, b.error("server_error")),
    Raises("InternalServerError", (1, 24)),
    texts=poisoned(200),
)
row(
    "F30",
    "a quota of twenty requests per second, three at once",
    lambda: Script(b.Quota(20, 3)),
    Right((8, 60)),
    fresh=True,
    texts=poisoned(80),
    options={"max_retries": 8},
    representative=False,
)
row(
    "F30",
    "a token quota",
    lambda: Script(b.Quota(100, 100, tokens_per_second=2000)),
    Right((8, 60)),
    fresh=True,
    texts=poisoned(80),
    options={"max_retries": 8},
    representative=False,
)
row(
    "F31",
    "503 x-should-retry false",
    b.says(503, b.error("server_error"), [("x-should-retry", "false")]),
    Raises("InternalServerError", (1, 3)),
)
row(
    "F31",
    "400 x-should-retry true",
    b.says(400, b.error("bad"), [("x-should-retry", "true")]),
    Raises("BadRequestError", (1, 3)),
)
transient(
    "F32",
    "500 with the body of a 429",
    b.says(500, b.error("rate_limit_exceeded", "Requests rate limit exceeded")),
    "APIStatusError",
    raises={"status": 500},
)
row(
    "F32",
    "400 with the body of a 500, once",
    once(b.says(400, b.error("server_error", "upstream abnormal"))),
    AnyOf((Right((2, 2)), Raises("APIStatusError", (1, 1), status=400))),
)
row(
    "F32",
    "400 with the body of a 500, always",
    b.says(400, b.error("server_error", "upstream abnormal")),
    Raises("APIStatusError", (1, 3), status=400),
)
row(
    "F32",
    "500 with the body of an Arrearage",
    b.says(500, b.error("Arrearage", "Pay")),
    Raises("APIStatusError", (1, 3), status=500),
)

# ---- error shapes

WORDS = "the server's message"
for fault, name, body, extra in (
    ("F33", "error is text", {"error": WORDS}, {}),
    ("F34", "error in a list", [{"error": {"code": "c1", "message": WORDS}}], {}),
    ("F34", "list of text", [WORDS], {"match": ""}),
    (
        "F35",
        "flat code and message",
        {"code": 20015, "message": WORDS, "data": None},
        {"code": "20015"},
    ),
    ("F36", "detail text", {"detail": WORDS}, {}),
    (
        "F36",
        "detail list",
        {"detail": [{"loc": ["body", "input"], "msg": WORDS, "type": "missing"}]},
        {},
    ),
    ("F37", "integer code", b.error(1234, WORDS), {"code": "1234"}),
    ("F37", "null code", b.error(None, WORDS, None), {}),
    ("F37", "null everything", b.error(None, None, None), {"match": "400"}),
    ("F37", "code is an object", b.error({"a": [1]}, WORDS), {}),
    ("F37", "message is a number", b.error("c", 12), {"match": "400"}),
    ("F37", "message is a list", b.error("c", [WORDS]), {"match": "400"}),
    ("F38", "nested in response", {"response": {"error": {"code": "c2", "message": WORDS}}}, {}),
    (
        "F38",
        "nested in error",
        {"error": {"error": {"error": {"message": WORDS}}}},
        {"match": "400"},
    ),
):
    terminal(
        fault,
        name,
        b.says(400, body),
        "BadRequestError",
        **{"status": 400, "match": WORDS, **extra},
    )
terminal("F38", "empty object", b.says(400, {}), "BadRequestError", match="400")
terminal(
    "F38",
    "plain text",
    b.says(400, WORDS, content_type="text/plain"),
    "BadRequestError",
    match=WORDS,
)
terminal("F38", "deep nesting", b.says(400, b"[" * 200_000), "BadRequestError", match="400")
terminal(
    "F39",
    "message of 5 MB",
    b.says(400, b.error("big", "long words " * 500_000)),
    "BadRequestError",
)
terminal(
    "F39", "code of 5 MB", b.says(400, b.error("long_code_" * 500_000, "m")), "BadRequestError"
)
terminal(
    "F39",
    "15 MB of a phrase that the classifier searches for",
    b.says(400, b"batch size " * 1_400_000),
    "BadRequestError",
)
terminal("F39", "text of 5 MB, not JSON", b.says(400, b"long words " * 500_000), "BadRequestError")
transient(
    "F39",
    "503 message of 5 MB",
    b.says(503, b.error("big", "long words " * 500_000)),
    "InternalServerError",
)
terminal(
    "F40",
    "401 echoes the key",
    b.echoes_the_key(401),
    "AuthenticationError",
    match="Incorrect API key",
)
transient("F40", "500 echoes the key", b.echoes_the_key(500), "APIStatusError")
row("F40", "200 echoes the key", b.echoes_the_key(200), Raises("NexusFlowError", (1, 3)))
terminal(
    "F41",
    "control characters and ANSI in the message",
    b.says(400, b.error("bad\x1b[31m", "a\x1b[31mred\x07\x00\r\nSet-Cookie: x\u202eevil\u2028")),
    "BadRequestError",
    match="red",
)
terminal(
    "F42",
    "UTF-8 declared as GBK",
    b.says(400, b.error("c", "参数错误"), content_type="application/json; charset=gbk"),
    "BadRequestError",
    match="参数错误",
)
terminal(
    "F42",
    "a charset that does not exist",
    b.says(400, b.error("c", WORDS), content_type="application/json; charset=klingon"),
    "BadRequestError",
    match=WORDS,
)
terminal(
    "F42",
    "GBK bytes",
    b.says(400, json.dumps(b.error("c", "参数错误"), ensure_ascii=False).encode("gbk")),
    "BadRequestError",
    match="400",
)
row(
    "F43",
    "400 with a truncated body",
    b.error_cut(400),
    AnyOf((Raises("BadRequestError", (1, 3)), Raises(CUT, (1, 3)))),
)
transient("F43", "503 with a truncated body", b.error_cut(503), ("InternalServerError", *CUT))

# ---- invalid responses with status 200

broken(
    "F44",
    "200 with an error object",
    b.says(200, b.error("some_error", WORDS)),
    raises={"match": WORDS},
)
row(
    "F44",
    "200 with a rate limit error, once",
    once(b.says(200, b.error("rate_limit_exceeded", "Rate limit reached"))),
    Right((2, 2)),
)
row(
    "F44",
    "200 with Arrearage is not retried",
    b.says(200, b.error("Arrearage", "Pay")),
    Raises("NexusFlowError", (1, 1), match="Arrearage"),
)
row(
    "F44",
    "200 with the moderation of one text, which is found by splitting",
    marked("POISON", b.says(200, b.MODERATION_ERROR)),
    Raises("RefusedTextsError", (2, 9), finished=all_but(10, 3), refused=frozenset({3})),
    texts=poisoned(10, 3),
)
either("F45", "native DashScope body", b.replaced(b.native_dashscope, "float"))
broken("F46", "HTML login page", b.html(200, "Log in"), raises={"lacks": "<|padding"})
broken("F47", "empty body", b.says(200))
broken("F47", "blank body", b.says(200, b"  \r\n "))
transient("F48", "204", b.says(204, content_type=None), ("InvalidResponseError", "APIStatusError"))
for name, body in (
    ("array", b"[]"),
    ("array of vectors", b"[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]"),
    ("number", b"3"),
    ("string", b'"fine"'),
    ("null", b"null"),
    ("true", b"true"),
):
    broken("F49", f"JSON {name}", b.says(200, body))
for name, data in (("null", None), ("empty", []), ("object", {"0": [1.0]}), ("text", "abc")):
    broken("F50", f"data {name}", b.edited(lambda body, data=data: body.update(data=data)))
broken(
    "F50", "data missing", b.replaced(lambda body: {k: v for k, v in body.items() if k != "data"})
)
broken("F50", "items are not objects", b.edited(lambda body: body.update(data=[1, 2, 3])))
broken(
    "F50", "items without a vector", b.edited(b.each_item(lambda i, item: item.pop("embedding")))
)
harmless("F51", "reversed", b.edited(lambda body: body["data"].reverse()))
harmless("F52", "shuffled", b.edited(b.shuffle), texts=TEN)
harmless("F52", "shuffled floats", b.edited(b.shuffle, "float"), texts=TEN)
broken(
    "F53", "last item missing", b.edited(lambda body: body["data"].pop()), raises={"match": "2.*3"}
)
broken("F53", "first item missing", b.edited(lambda body: body["data"].pop(0)))
broken(
    "F54",
    "an extra item",
    b.edited(lambda body: body["data"].append({**body["data"][0], "index": 3})),
)
broken("F55", "duplicate index", b.edited(b.index_becomes(lambda i: 0 if i == 1 else i)))
broken("F55", "duplicate index, three of three", b.edited(b.index_becomes(lambda i: 0)))
harmless("F56", "no index", b.edited(b.each_item(lambda i, item: item.pop("index"))))
either("F56", "index null", b.edited(b.index_becomes(lambda i: None)))
broken("F57", "one item without index", b.edited(lambda body: body["data"][1].pop("index")))
broken(
    "F57",
    "one index null, reversed",
    b.edited(lambda body: (body["data"][1].update(index=None), body["data"].reverse())[1]),
)
either("F58", "index as text", b.edited(b.index_becomes(str)))
either("F58", "index as float", b.edited(b.index_becomes(float)))
broken("F58", "index from 1", b.edited(b.index_becomes(lambda i: i + 1)))
broken("F58", "index negative", b.edited(b.index_becomes(lambda i: i - 3)))
broken("F58", "index huge", b.edited(b.index_becomes(lambda i: i if i else 10**30)))
broken("F58", "index a list", b.edited(b.index_becomes(lambda i: [i])))
broken("F58", "index fractional", b.edited(b.index_becomes(lambda i: i + 0.5)))
broken("F58", "index bool", b.edited(b.index_becomes(lambda i: [False, True, 2][i])))
for encoding in ("base64", "float"):
    row(
        "F59",
        f"32 dimensions instead of 64, {encoding}",
        lambda wire, encoding=encoding: wire.respond(200, wire.right_body(encoding, 32)),
        Raises("InvalidResponseError", (1, 3), match="32.*64|64.*32"),
    )
broken(
    "F60", "different dimensions, 64 requested", b.edited(b.last_vector(lambda v: v[:32]), "float")
)
broken(
    "F60",
    "different dimensions, none requested",
    b.edited(b.last_vector(lambda v: v[:32]), "float"),
    options={"dimensions": None},
    server={"dimensions": 64},
)
row(
    "F61",
    "dimensions changing between calls",
    lambda wire: wire.respond(200, wire.right_body(dimensions=64 if wire.number == 0 else 128)),
    Right(),
    Raises("InvalidResponseError", (1, 3), match="64"),
    options={"dimensions": None},
    server={"dimensions": 64},
)
row(
    "F61",
    "dimensions changing between the batches of one call",
    lambda wire: wire.respond(
        200, wire.right_body(dimensions=128 if "text number 9" in wire.texts else 64)
    ),
    Raises("InvalidResponseError", (2, 9)),
    options={"dimensions": None},
    server={"dimensions": 64},
    texts=poisoned(30),
)
for literal in (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1e39",
    "0x10",
    "01",
    "1.",
    "+1",
):
    broken("F62", f"element {literal}", b.literal_element(literal))
broken("F63", "element null", b.last_element(None))
broken("F64", "vector null", b.edited(lambda body: body["data"][-1].update(embedding=None)))
broken("F65", "vector empty list", b.edited(lambda body: body["data"][-1].update(embedding=[])))
broken("F65", "vector empty text", b.edited(lambda body: body["data"][-1].update(embedding="")))
broken(
    "F65",
    "all vectors empty lists",
    b.edited(b.each_item(lambda i, item: item.update(embedding=[]))),
    options={"dimensions": None},
)
broken(
    "F65",
    "all vectors empty text",
    b.edited(b.each_item(lambda i, item: item.update(embedding=""))),
    options={"dimensions": None},
)
broken(
    "F66", "vector all zeros", b.edited(lambda body: body["data"][-1].update(embedding=[0.0] * 64))
)
broken(
    "F66",
    "vector all zeros, base64",
    b.edited(lambda body: body["data"][-1].update(embedding=b.base64_of([0.0] * 64))),
)
broken(
    "F66",
    "vector all minus zero",
    b.edited(lambda body: body["data"][-1].update(embedding=[-0.0] * 64)),
)
broken("F67", "element text", b.last_element("0.5"))
broken("F67", "element true", b.last_element(True))
broken("F67", "element an object", b.last_element({}))
broken("F68", "vector in a list", b.edited(b.last_vector(lambda v: [list(v)]), "float"))
broken(
    "F68",
    "every vector in a list",
    b.edited(b.each_item(lambda i, item: item.update(embedding=[item["embedding"]])), "float"),
)
broken(
    "F68",
    "every element in a list",
    b.edited(
        b.each_item(lambda i, item: item.update(embedding=[[x] for x in item["embedding"]])),
        "float",
    ),
)
broken("F68", "vector an object", b.edited(b.last_vector(lambda v: {"0": v}), "float"))
harmless("F69", "floats instead of base64", b.edited(b.unchanged, "float"))
row("F69", "base64 refused with 400: floats are requested", b.refuses_base64, Right((2, 2)))
row(
    "F69",
    "base64 refused: this is remembered",
    b.refuses_base64,
    Right((2, 2)),
    Right((1, 1)),
    Right((1, 1)),
)
harmless(
    "F70",
    "base64 instead of floats",
    b.edited(b.unchanged, "base64"),
    options={"encoding_format": "float"},
)
harmless(
    "F71",
    "base64 and floats mixed",
    b.edited(
        lambda body: body["data"][1].update(
            embedding=[
                float(x)
                for x in b.np.frombuffer(b.base64.b64decode(body["data"][1]["embedding"]), "<f4")
            ]
        ),
        "base64",
    ),
)
for name, change in (
    ("a letter outside the alphabet", lambda s: s[:10] + "!" + s[11:]),
    ("four letters outside the alphabet", lambda s: s[:10] + "!!!!" + s[10:]),
    ("padding missing", lambda s: s.rstrip("=")),
    ("padding in the middle", lambda s: s[:8] + "====" + s[12:]),
    ("truncated to an odd length", lambda s: s[:-5]),
    (
        "truncated inside a number",
        lambda s: b.base64.b64encode(b.base64.b64decode(s)[:-2]).decode(),
    ),
    (
        "truncated to fewer numbers",
        lambda s: b.base64.b64encode(b.base64.b64decode(s)[:-4]).decode(),
    ),
    ("NaN inside", b.with_number(5, float("nan"))),
    ("infinity inside", b.with_number(5, float("inf"))),
    ("not ASCII", lambda s: s[:10] + "é" + s[11:]),
):
    broken("F72", f"base64 {name}", b.last_base64(change))
either(
    "F72",
    "base64 in the URL alphabet",
    b.last_base64(lambda s: s.replace("+", "-").replace("/", "_")),
)
either(
    "F72",
    "base64 with line breaks",
    b.last_base64(lambda s: "\n".join(s[i : i + 76] for i in range(0, len(s), 76))),
)
either("F72", "base64 as a data URL", b.last_base64(lambda s: "data:;base64," + s))
for name, usage in (
    ("null", None),
    ("text", "many"),
    ("list", [1]),
    ("empty", {}),
    ("with texts", {"prompt_tokens": "12", "total_tokens": "12"}),
    ("with nulls", {"prompt_tokens": None, "total_tokens": None}),
    ("with fractions", {"prompt_tokens": 1.5, "total_tokens": 1.5}),
    ("negative", {"prompt_tokens": -12, "total_tokens": -12}),
    ("huge", {"prompt_tokens": 2**62, "total_tokens": 2**62}),
    ("with only prompt_tokens", {"prompt_tokens": 12}),
):
    harmless("F73", f"usage {name}", b.edited(lambda body, usage=usage: body.update(usage=usage)))
harmless("F73", "usage missing", b.edited(lambda body: body.pop("usage")))
harmless("F74", "another model's name", b.edited(lambda body: body.update(model="gpt-9")))
harmless("F74", "no model", b.replaced(lambda body: {"data": body["data"]}))
either("F75", "data given twice, the right one last", b.raw(lambda s: '{"data":[],' + s[1:]))
either(
    "F75",
    "index given twice, the right one last",
    b.raw(lambda s: s.replace('"index":', '"index": 7, "index":')),
)
either("F76", "byte order mark", b.raw(lambda s: b"\xef\xbb\xbf" + s.encode()))
either(
    "F77",
    "invalid UTF-8 in the model's name",
    b.raw(lambda s: s.encode().replace(b"text-embedding-v4", b"text-\xff\xfe-v4")),
)
broken(
    "F77",
    "invalid UTF-8 inside a vector",
    b.raw(lambda s: s.encode().replace(b'"embedding": "', b'"embedding": "\xff')),
)
either("F78", "UTF-16", b.raw(lambda s: s.encode("utf-16")))
either(
    "F78",
    "UTF-16, declared",
    b.raw(lambda s: s.encode("utf-16"), content_type="application/json; charset=utf-16"),
)
harmless("F79", "text/plain", b.edited(b.unchanged, content_type="text/plain"))
harmless("F79", "no content type", b.edited(b.unchanged, content_type=None))
harmless("F79", "text/html", b.edited(b.unchanged, content_type="text/html"))
broken("F80", "200,000 nested brackets", b.says(200, b"[" * 200_000))
broken(
    "F80",
    "200,000 nested brackets inside the response",
    b.raw(lambda s: s[:-1] + ',"x":' + "[" * 200_000 + "]" * 200_000 + "}"),
)
broken(
    "F80",
    "a million brackets, not nested",
    b.raw(lambda s: s[:-1] + ',"x":[' + "[]," * 500_000 + "0]}"),
)
broken("F81", "an element of 20,000 digits", b.literal_element("9" * 20_000))
either(
    "F81",
    "usage of 20,000 digits",
    b.raw(lambda s: s.replace('"total_tokens": ', '"total_tokens": ' + "9" * 20_000)),
)
broken("F82", "garbage after the response", b.raw(lambda s: s + "\n<!-- served by proxy -->"))
broken("F82", "the response twice", b.raw(lambda s: s + s))
either(
    "F83",
    "server-sent event",
    b.raw(lambda s: f"data: {s}\n\ndata: [DONE]\n\n", content_type="text/event-stream"),
)

# ---- transport


def _closed_port(server: FaultServer) -> str:
    """Return a port on which nothing listens: that of a server just stopped."""
    other = FaultServer()
    other.stop()
    return other.base_url


row("F84", "connection refused", right, Raises("APIConnectionError", (0, 0)), address=_closed_port)
row(
    "F85",
    "host name that does not exist",
    right,
    Raises("APIConnectionError", (0, 0)),
    address=lambda server: "https://no-such-host.invalid/v1",
)
transient(
    "F86",
    "accepted, then silence",
    b.silent_on_accept,
    "APITimeoutError",
    options=IMPATIENT,
    most=2,
)
# A calling thread may find its new connection gone before it has sent anything: then one more.
gone_at_once: dict[str, Any] = {"most": 4, "once_most": 3}
transient(
    "F87",
    "connection accepted, then reset",
    b.resets_on_accept,
    "APIConnectionError",
    **gone_at_once,
)
transient(
    "F88",
    "connection accepted, then closed",
    b.closes_on_accept,
    "APIConnectionError",
    **gone_at_once,
)
transient("F87", "reset on the request", b.resets_on_request, "APIConnectionError")
transient("F88", "close on the request", b.closes_on_request, "APIConnectionError")
transient("F89", "reset in the headers", b.resets_mid_head, "APIConnectionError")
transient("F89", "close in the headers", b.closes_mid_head, "APIConnectionError")
transient("F90", "reset in the body", b.resets_mid_body, CUT)
transient("F91", "close in the body", b.closes_mid_body, CUT)
harmless("F92", "complete, delimited by close", b.close_delimited())
transient("F92", "truncated, delimited by close", b.close_delimited(0.6), CUT)
harmless("F93", "small chunks", b.chunked())
harmless("F93", "one-byte chunks", b.chunked(1))
transient("F93", "truncated chunk", b.chunk_truncated, CUT)
transient("F93", "chunks without an end", b.chunks_without_end, CUT)
transient("F93", "chunk size not a number", b.chunk_size_is_no_number, CUT)
transient("F93", "wrong chunk size", b.chunk_size_lies, CUT)
transient("F93", "endless tiny chunks", b.endless_tiny_chunks, CUT, options=IMPATIENT, most=2)
transient(
    "F94",
    "Content-Length too long, then silence",
    b.length_too_long_then_silence,
    CUT,
    options=IMPATIENT,
    most=2,
)
transient("F94", "Content-Length too long, then close", b.length_too_long_then_close, CUT)
transient("F94", "Content-Length too short", b.length_too_short, CUT, once_most=3, most=6)
# These bytes arrive before the next request; later ones would look like its response.
for name, behaviour in (
    ("with the first", b.smuggles_a_second_answer),
    ("while the connection is idle", b.smuggles_late),
):
    row(
        "F94",
        f"a second response arrives {name}, once",
        once(behaviour),
        Right(),
        Right((1, 2)),
        Right(),
        idle=0.15,
    )
    row(
        "F94",
        f"a second response arrives {name}, always",
        behaviour,
        *[Right((1, 2))] * 3,
        idle=0.15,
    )
row(
    "F94",
    "a second response arrives with the first, and the next call follows at once",
    b.smuggles_a_second_answer,
    *[Right((1, 2))] * 4,
)
for name, head in (
    ("negative", b"Content-Length: -1"),
    ("not a number", b"Content-Length: many"),
    ("of 30 digits", b"Content-Length: 999999999999999999999999999999"),
):
    transient(
        "F94", f"Content-Length {name}", b.sends(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n{}"), CUT
    )
transient("F94", "two Content-Lengths that differ", b.two_lengths, CUT)
either("F94", "Content-Length and chunked", b.length_and_chunked, CUT)
for name, line in (
    ("word", b"HELLO\r\n\r\n"),
    ("status not a number", b"HTTP/1.1 abc OK\r\n\r\n"),
    ("status 99", b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n"),
    ("version 3.7", b"HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("SSH banner", b"SSH-2.0-OpenSSH_9.2\r\n"),
    ("TLS alert", b"\x15\x03\x03\x00\x02\x02\x28"),
    ("NUL in a header", b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\n{}"),
    ("bare CR", b"HTTP/1.1 200 OK\r\nX a\r\n\r\n{}"),
):
    transient(
        "F95",
        f"status line: {name}",
        b.sends(line),
        ("APIConnectionError", "InvalidResponseError", "APIStatusError"),
    )
transient("F95", "HTTP/0.9", b.http_0_9, CUT)
harmless("F95", "HTTP/1.0 and close", b.http_1_0)
transient("F96", "no response", b.no_answer, "APITimeoutError", options=IMPATIENT, most=2)
row(
    "F96",
    "no response, with more retries than the deadline allows",
    b.no_answer,
    Raises("APITimeoutError", (1, 6)),
    options={"timeout": 0.4, "deadline": 1.5, "max_retries": 50},
)
transient(
    "F97",
    "headers, then silence",
    b.head_then_silence,
    "APITimeoutError",
    options=IMPATIENT,
    most=2,
)
transient(
    "F97",
    "half the body, then silence",
    b.half_body_then_silence,
    "APITimeoutError",
    options=IMPATIENT,
    most=2,
)
transient("F98", "body sent slowly", b.drips_body(), "APITimeoutError", options=IMPATIENT, most=2)
row(
    "F98",
    "body sent slowly, stopped by the deadline",
    b.drips_body(),
    Raises("APITimeoutError", (1, 1)),
    options={"timeout": 50.0, "deadline": 1.5},
)
row(
    "F98",
    "body sent slowly, stopped by the timeout",
    b.drips_body(),
    Raises("APITimeoutError", (1, 1)),
    options={"timeout": 1.5, "deadline": None, "max_retries": 0},
)
row(
    "F98",
    "bodies of three batches sent slowly, stopped by the deadline",
    b.drips_body(),
    Raises("APITimeoutError", (1, 3), finished=frozenset()),
    texts=poisoned(30),
    options={"timeout": 50.0, "deadline": 1.5},
)
row(
    "F98",
    "one batch refused with 401 while the others are sent slowly",
    lambda wire: (
        wire.respond(401, b.error("invalid_api_key"))
        if "text number 9" in wire.texts
        else b.drips_body()(wire)
    ),
    Raises(("AuthenticationError", "APITimeoutError"), (1, 6)),
    texts=poisoned(60),
    options={"timeout": 50.0, "deadline": 2.0},
)
row(
    "F98",
    "error body sent slowly",
    b.drips_error_body(503),
    Raises(("APITimeoutError", "InternalServerError"), (1, 2)),
    options=IMPATIENT,
)
transient("F99", "headers sent slowly", b.drips_head, "APITimeoutError", options=IMPATIENT, most=2)
row(
    "F99",
    "headers sent slowly, stopped by the deadline",
    b.drips_head,
    Raises("APITimeoutError", (1, 1)),
    representative=False,
    options={"timeout": 50.0, "deadline": 1.5},
)
harmless("F100", "100 Continue, then the response", b.interim(100, 1))
harmless("F100", "three 103 Early Hints, then the response", b.interim(103, 3))
transient(
    "F100",
    "endless 103, slowly",
    b.interim(103, None),
    "APIConnectionError",
    options=IMPATIENT,
    most=2,
)
transient(
    "F100",
    "endless 100, slowly",
    b.interim(100, None),
    "APIConnectionError",
    options=IMPATIENT,
    most=2,
)
row(
    "F100",
    "endless 103 as a flood",
    b.endless_interim_flood,
    Raises("APIConnectionError", (1, 2)),
    options={"timeout": 1.0, "max_retries": 0},
    memory_mb=100,
)
row(
    "F100",
    "101 Switching Protocols",
    b.sends(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    Raises("NexusFlowError", (1, 2)),
    options=IMPATIENT,
)
transient("F101", "two million headers", b.header_flood, CUT)
row("F101", "one header of 16 MB", b.huge_header, Raises(CUT, (1, 3)), memory_mb=64)
row(
    "F102",
    "endless body",
    b.endless_body,
    Raises(("InvalidResponseError", "APIConnectionError"), (1, 3)),
    memory_mb=100,
)
row(
    "F102",
    "a body of 64 GB",
    b.huge_length,
    Raises(("InvalidResponseError", "APIConnectionError"), (1, 3)),
    memory_mb=100,
)
row(
    "F102",
    "endless body, once",
    once(b.endless_body),
    AnyOf((Right((2, 2)), Raises(CUT))),
    memory_mb=100,
)
row("F103", "gzip bomb of 512 MB", b.gzip_bomb, Raises(CUT, (1, 3)), memory_mb=100)
row(
    "F103",
    "gzip bomb under 400",
    b.gzip_bomb_in_error,
    Raises(("BadRequestError", *CUT), (1, 3)),
    memory_mb=100,
)
row(
    "F103",
    "nested gzip bomb",
    b.compressed("gzip, gzip", b.gzip_bomb_twice),
    Raises(CUT, (1, 3)),
    memory_mb=100,
)
either("F104", "gzip", b.compressed("gzip", gzip.compress), CUT)
either("F104", "deflate", b.compressed("deflate", zlib.compress), CUT)
either("F104", "gzip twice", b.compressed("gzip, gzip", b.gzip_twice), CUT)
transient(
    "F104",
    "gzip three times",
    b.compressed("gzip, gzip, gzip", lambda data: gzip.compress(b.gzip_twice(data))),
    CUT,
)
either("F104", "identity", b.compressed("identity", lambda data: data), CUT)
transient(
    "F104", "encoding that was not requested", b.compressed("br", lambda data: data[::-1]), CUT
)
transient("F104", "nonexistent encoding", b.compressed("x-rot13", lambda data: data[::-1]), CUT)
transient("F104", "not gzip, declared as gzip", b.compressed("gzip", lambda data: data), CUT)
transient("F104", "truncated gzip", b.compressed("gzip", b.gzip_cut), CUT)
transient("F104", "gzip with a bad checksum", b.compressed("gzip", b.gzip_bad_checksum), CUT)
transient("F104", "empty gzip", b.compressed("gzip", lambda data: b""), CUT)
row(
    "F105",
    "idle connection closed as it is reused",
    lambda: Script(b.right_once_per_connection(b.closes_on_request)),
    Right(),
    *[Right((1, 3))] * 6,
    fresh=True,
)
row(
    "F105",
    "idle connection reset as it is reused",
    lambda: Script(b.right_once_per_connection(b.resets_on_request)),
    Right(),
    *[Right((1, 3))] * 6,
    fresh=True,
)
row(
    "F105",
    "idle connection closed between the calls",
    b.right_then_close(0.0),
    *[Right((1, 2))] * 8,
)
row(
    "F105", "idle connection closed a moment later", b.right_then_close(0.002), *[Right((1, 2))] * 8
)
row("F106", "idle connection reset between the calls", b.right_then_reset, *[Right((1, 2))] * 6)
row(
    "F106",
    "Connection: close on each response",
    b.then_closes(lambda wire: wire.right(headers=[("Connection", "close")])),
    *[Right()] * 4,
)
LONG = ("x" * 700_000,)
row(
    "F107",
    "401 before the body is read, then reset",
    b.answers_early(401, b.error("invalid_api_key", "No")),
    Raises(("AuthenticationError", "APIConnectionError"), (1, 3)),
    texts=LONG,
)
row(
    "F107",
    "413 before the body is read, then reset",
    b.answers_early(413, TOO_LARGE),
    Raises(("RefusedTextsError", "BadRequestError", "APIConnectionError"), (1, 3)),
    texts=LONG,
)
transient(
    "F108",
    "the request is never read",
    b.never_reads_the_body,
    "APITimeoutError",
    options=IMPATIENT,
    most=2,
    texts=LONG,
    server={"receive_buffer": 4096},
)
transient(
    "F108",
    "the request is read slowly",
    b.reads_slowly,
    "APITimeoutError",
    options=IMPATIENT,
    most=2,
    texts=LONG,
    server={"receive_buffer": 4096},
)
row(
    "F109",
    "the response comes after the timeout, then another call",
    once(b.right_after(4.0)),
    Raises("APITimeoutError", (1, 1)),
    Right(),
    Right(),
    options={"timeout": 2.0, "max_retries": 0},
)
row(
    "F109",
    "the response comes after the timeout, and the request is retried",
    once(b.right_after(2.0)),
    Right((2, 6)),
    Right((1, 6)),
    options={"timeout": 0.8, "max_retries": 5},
)
row(
    "F110",
    "the peer of an idle connection is gone without closing it",
    lambda: Script(b.right_once_per_connection(b.no_answer)),
    Right((1, 6)),
    Right((1, 6)),
    Right((1, 6)),
    representative=False,
    fresh=True,
    options={"timeout": 0.8, "max_retries": 5},
)

# ---- redirects

REDIRECTS: Mapping[str, Callable[[Wire], str | None]] = {
    "same place": lambda wire: f"{wire.server.base_url}/embeddings",
    "same host, path only": lambda wire: "/v1/embeddings",
    "other path": lambda wire: "/v2/embeddings?token=secret-token",
    "other port": lambda wire: f"{wire.server.elsewhere}/embeddings?token=secret-token",
    "other host": lambda wire: (
        f"{wire.server.elsewhere.replace('127.0.0.1', 'localhost')}/embeddings"
    ),
    "other host without scheme": lambda wire: (
        f"{wire.server.elsewhere.removeprefix('http:')}/embeddings"
    ),
    "other host behind user@": lambda wire: (
        f"http://127.0.0.1@{wire.server.elsewhere.removeprefix('http://')}/secret-token"
    ),
    "https": lambda wire: "https://no-such-host.invalid/v1/embeddings",
    "file": lambda wire: "file:///etc/passwd",
    "no Location": lambda wire: None,
    "empty Location": lambda wire: "",
    "invalid Location": lambda wire: "http://[nowhere/\x01",
    "Location of 100 kB": lambda wire: "http://nowhere.invalid/" + "x" * 60_000,
}
for status in (301, 302, 303, 307, 308):
    for name, location in REDIRECTS.items():
        row(
            "F118",
            f"{status} to {name}",
            b.redirects(status, location),
            Raises(
                ("APIStatusError", "InvalidResponseError", "APIConnectionError")
                if "100 kB" in name
                else ("APIStatusError", "InvalidResponseError"),
                (1, 3) if "100 kB" in name else (1, 1),
                lacks="secret-token|passwd",
            ),
            representative=name == "other port" and status == 307,
        )
for status in (300, 304, 305):
    terminal(
        "F118",
        f"{status}",
        b.says(status, content_type=None),
        ("APIStatusError", "InvalidResponseError"),
    )

# ---------------------------------------------------------------- tested elsewhere

ELSEWHERE = (
    "tests/faults/test_backlog.py",
    "tests/faults/test_proxy_redirect.py",
    "tests/faults/test_tls.py",
    "tests/key/test_calls.py",
    "tests/lifecycle/test_cancel.py",
    "tests/lifecycle/test_closing.py",
    "tests/lifecycle/test_deadlines.py",
    "tests/lifecycle/test_exit.py",
    "tests/lifecycle/test_fork.py",
    "tests/lifecycle/test_fork_first_call.py",
    "tests/lifecycle/test_inputs.py",
    "tests/lifecycle/test_limits.py",
    "tests/lifecycle/test_logging.py",
    "tests/lifecycle/test_pickling.py",
    "tests/lifecycle/test_process_limits.py",
    "tests/lifecycle/test_signals.py",
    "tests/lifecycle/test_threads_and_loops.py",
    "tests/lifecycle/test_users_code.py",
    "tests/store/test_bit_rot.py",
    "tests/store/test_moved.py",
    "tests/store/test_stopped.py",
    "tests/store/test_waits.py",
)
"""Files that test faults which one plain server cannot cause."""

FAULTS = (*(f"F{n}" for n in range(1, 111)), "F118")
"""The faults of `ROWS`."""
