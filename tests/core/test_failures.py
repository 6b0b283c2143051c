"""Errors are classified by status, code and message together, and never show secrets."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations import errors
from nexusflow_integrations._core.request import failures
from nexusflow_integrations._core.request.failures import (
    MAX_ERROR_BYTES,
    MAX_SEARCHED,
    MAX_TEXT,
    Failure,
    Kind,
    clean,
    judge,
    judge_ok_error,
    retry_after,
)
from nexusflow_integrations._core.request.wire import Answer, BrokenResponse
from nexusflow_integrations._core.secret import ApiKey

KEY = "sk-air-echoed-0123456789abcdef"
NOW = 1_800_000_000.0
SECRETS = [ApiKey(KEY)]


def answer(status: int, body: Any = b"", **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {k.replace("_", "-"): v for k, v in headers.items()}, raw)


def coded(status: int, code: Any, message: str = "") -> Answer:
    return answer(status, {"error": {"code": code, "message": message}})


def judged(given: Answer) -> Failure:
    return judge(given, secrets=SECRETS, now=NOW)


T, R, L, B, E, H, F = (
    Kind.TERMINAL,
    Kind.REFUSED,
    Kind.TOO_LARGE,
    Kind.BATCH_LIMIT,
    Kind.ENCODING,
    Kind.THROTTLE,
    Kind.FAULT,
)
BATCH = "<400> batch size is invalid, it should not be larger than 10.: input.contents"
LENGTH = "Range of input length should be [1, 8192]"
QUOTA = "You exceeded your current quota, please check your plan"

TABLE: list[tuple[int, Any, str, Kind, str]] = [
    # documented statuses
    (400, "invalid_request_error", "format", T, "BadRequestError"),
    (401, "invalid_api_key", "", T, "AuthenticationError"),
    (403, "insufficient_quota", QUOTA, T, "PermissionDeniedError"),
    (403, "permission_denied", "", T, "PermissionDeniedError"),
    (404, "model_not_found", "", T, "NotFoundError"),
    (413, None, "body too large", L, "BadRequestError"),
    (422, "semantic", "", T, "BadRequestError"),
    (429, "rate_limit_exceeded", "", H, "RateLimitError"),
    (500, "server_error", "", F, "InternalServerError"),
    (502, None, "", F, "InternalServerError"),
    (503, "overloaded", "", F, "InternalServerError"),
    (504, None, "", F, "InternalServerError"),
    # codes that mean a rate limit under 429 and a lack of money under other statuses
    (429, "insufficient_quota", QUOTA, H, "RateLimitError"),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded", H, "RateLimitError"),
    (429, "Throttling.RateQuota", "", H, "RateLimitError"),
    (429, "limit_burst_rate", "Request rate increased too quickly", H, "RateLimitError"),
    (402, "insufficient_quota", QUOTA, T, "PermissionDeniedError"),
    (402, "insufficient_balance", "", T, "PermissionDeniedError"),
    (429, "PrepaidBillOverdue", "", T, "PermissionDeniedError"),
    (429, "PostpaidBillOverdue", "", T, "PermissionDeniedError"),
    (429, "CommodityNotPurchased", "", T, "PermissionDeniedError"),
    (400, "Arrearage", "Access denied", T, "PermissionDeniedError"),
    (403, "forbidden", "账户余额不足，请充值", T, "PermissionDeniedError"),
    (500, "Arrearage", "", T, "PermissionDeniedError"),
    # texts at fault
    (400, "data_inspection_failed", "", R, "BadRequestError"),
    (400, "DataInspectionFailed", "inappropriate content", R, "BadRequestError"),
    (400, "content_filter", "", R, "BadRequestError"),
    (400, "InvalidParameter", LENGTH, R, "BadRequestError"),
    (400, "context_length_exceeded", "", R, "BadRequestError"),
    (422, None, LENGTH, R, "BadRequestError"),
    # batches that are too large
    (400, "InvalidParameter", BATCH, B, "BadRequestError"),
    (422, None, BATCH, B, "BadRequestError"),
    (429, "tpm", "Limit 400, Requested 900", L, "RateLimitError"),
    (429, "tpm", "Limit 9000, Requested 900", H, "RateLimitError"),
    # base64 refused
    (400, "InvalidParameter", "encoding_format only supports float", E, "BadRequestError"),
    (422, None, "base64 is not supported", E, "BadRequestError"),
    # one error under another's status
    (400, "server_error", "", F, "InternalServerError"),
    (400, "Throttling.RateQuota", "", H, "RateLimitError"),
    (500, "rate_limit_exceeded", "", H, "RateLimitError"),
    (503, None, "Too many requests", H, "RateLimitError"),
    # other statuses
    (402, None, "", T, "PermissionDeniedError"),
    (405, None, "", T, "BadRequestError"),
    (408, None, "", F, "InternalServerError"),
    (409, None, "", F, "InternalServerError"),
    (415, None, "", T, "BadRequestError"),
    (418, None, "", T, "BadRequestError"),
    (425, None, "", F, "InternalServerError"),
    (501, None, "", T, "InternalServerError"),
    (505, None, "", T, "InternalServerError"),
    (520, None, "", F, "InternalServerError"),
    (522, None, "", F, "InternalServerError"),
    (524, None, "", F, "InternalServerError"),
    (529, "overloaded_error", "", F, "InternalServerError"),
    # odd codes do not crash
    (500, 20015, "integer code", F, "InternalServerError"),
    (500, None, "null code", F, "InternalServerError"),
    (500, True, "bool code", F, "InternalServerError"),
    (500, ["x"], "list code", F, "InternalServerError"),
    (100, None, "", T, "BadRequestError"),
]


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "error"),
    TABLE,
    ids=[f"{row[0]}-{row[1]}-{row[2][:20]}" for row in TABLE],
)
def test_status_code_and_message_decide_together(
    status: int, code: Any, message: str, kind: Kind, error: str
) -> None:
    failure = judged(coded(status, code, message))
    assert failure.kind is kind
    assert type(failure.error) is getattr(errors, error)
    assert failure.error.status_code == status


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("https://other.example/v1?token=secret", "other.example"),
        ("//other.example/path", "other.example"),
        ("https://user:secret@other.example/", "other.example"),
        ("/elsewhere/secret", None),
        ("http://[::1/secret", None),
        ("", None),
    ],
)
def test_a_redirect_is_terminal_and_shows_only_the_host(
    status: int, location: str, host: str | None
) -> None:
    failure = judged(answer(status, b"<html>moved</html>", location=location))
    assert failure.kind is Kind.TERMINAL
    assert type(failure.error) is errors.APIStatusError
    assert "redirected" in str(failure.error)
    assert "secret" not in str(failure.error)
    if host:
        assert host in str(failure.error)


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (BATCH, 10),
        ("batch size is invalid, it should not be larger than 25.", 25),
        ("the number of texts must not exceed 4", 4),
        ("number of inputs: at most 1 is allowed", 1),
        ("input.contents should be less than or equal to 7", 7),
        ("too many inputs, maximum is 16", 16),
        ("batch size should not be larger than 0", 1),
    ],
)
def test_the_batch_limit_is_read_from_the_message(message: str, limit: int) -> None:
    failure = judged(coded(400, "InvalidParameter", message))
    assert failure.kind is Kind.BATCH_LIMIT
    assert failure.batch_limit == limit


SHAPES = {
    "openai": {"error": {"code": "c", "message": "the words", "type": "t"}},
    "error is text": {"error": "the words", "code": "c"},
    "flat": {"code": "c", "message": "the words"},
    "flat with integer code": {"code": 20015, "message": "the words"},
    "msg": {"code": "c", "msg": "the words"},
    "fastapi text": {"detail": "the words"},
    "fastapi list": {"detail": [{"loc": ["body"], "msg": "the words", "type": "c"}]},
    "list": [{"error": {"code": "c", "message": "the words"}}],
    "nested": {"response": {"error": {"code": "c", "message": "the words"}}},
    "only text": "the words",
    "nested message": {"error": {"code": "c", "message": {"inner": "the words"}}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_servers_message_is_found_in_every_layout(shape: str) -> None:
    assert "the words" in str(judged(answer(400, SHAPES[shape])).error)


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[]", b'{"error":{}}', b'{"error":null}'])
def test_an_error_without_a_message_shows_its_status(body: bytes) -> None:
    failure = judged(answer(429, body))
    assert failure.kind is Kind.THROTTLE
    assert str(failure.error).startswith("429")


def test_an_html_page_becomes_its_title() -> None:
    page = b"<html><head><title>502 Bad Gateway</title></head><body><h1>x</h1>" + b"p" * 5000
    message = str(judged(answer(502, page)).error)
    assert "502 Bad Gateway" in message
    assert "<" not in message
    assert len(message) < 100


def test_the_request_id_is_kept_for_support() -> None:
    error = judged(answer(500, b"", **{"x-request-id": "req-7"})).error
    assert error.request_id == "req-7"
    assert "req-7" in str(error)


def test_a_server_that_says_not_to_retry_is_obeyed() -> None:
    assert judged(answer(500, b"", x_should_retry="false")).kind is Kind.TERMINAL
    assert judged(answer(500, b"", x_should_retry="true")).kind is Kind.FAULT
    assert judged(answer(400, b"", x_should_retry="true")).kind is Kind.TERMINAL


# ---- what an error shows

PAGE = "<html><title>" + "x" * 185
PLACES: dict[str, Any] = {
    "message": {"error": {"code": "c", "message": f"Incorrect key: {KEY}."}},
    "code": {"error": {"code": f"bad_{KEY}", "message": "m"}},
    "type": {"error": {"type": f"bad_{KEY}", "message": "m"}},
    "text": f"Bearer {KEY}",
    "object as message": {"error": {"message": {"headers": {"authorization": f"Bearer {KEY}"}}}},
    "across the cut of a text": {"error": {"message": "x" * (MAX_TEXT - 10) + KEY}},
    "across the cut of an object": {"error": {"message": ["x" * (MAX_TEXT - 15) + KEY]}},
    "across the first cut": {"error": {"message": "x" * (4 * MAX_TEXT - 10) + KEY}},
    "across the cut of a code": {"error": {"code": "x" * 90 + KEY}},
    "html title": f"<html><title>No such key {KEY}</title>".encode(),
    "across the cut of a title": f"{PAGE}{KEY}</title>".encode(),
    "across the end of what is searched": f"<title>{' ' * (MAX_SEARCHED - 20)}{KEY}".encode(),
    "across the end of a text": b" " * (MAX_SEARCHED - 10) + KEY.encode() + b" " * 999,
    "twice across the first cut": {"error": {"message": KEY + " " * (4 * MAX_TEXT - 50) + KEY}},
    "plain text": f"unauthorized: {KEY}".encode(),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_the_server_echoes_is_nowhere_in_the_error(place: str, status: int) -> None:
    error = judged(answer(status, PLACES[place], x_request_id=f"r-{KEY}")).error
    shown = " ".join(map(str, [error, repr(error), error.args, vars(error)]))
    assert KEY not in shown
    # Nor the beginning of it: half a key is a hint.
    assert KEY[:9] not in shown.replace("[API key]", "")


def test_a_message_of_five_megabytes_is_truncated() -> None:
    error = judged(coded(500, "c" * 10_000, "m" * 5_000_000)).error
    assert len(str(error)) < MAX_TEXT + 300
    assert len(error.code or "") <= 100


@pytest.mark.parametrize("size", [5_000_000, (1 << 22) + 1])
def test_a_huge_body_of_text_or_json_is_truncated(size: int) -> None:
    for body in (b"w" * size, json.dumps({"message": "w" * size}).encode()):
        assert len(str(judged(answer(500, body)).error)) < MAX_TEXT + 300


def test_control_characters_and_ansi_become_blanks() -> None:
    error = judged(coded(500, "c\x1b[2J", "one\x1b[31mred\r\n\ttwo\x00\x9b\u202e\u2028three")).error
    assert str(error).isprintable()
    assert str(error.code).isprintable()
    assert "one [31mred two three" in str(error)


class Searched:
    """A pattern that records the lengths of the texts that it searches."""

    def __init__(self, pattern: re.Pattern[str], lengths: list[int]) -> None:
        self._pattern = pattern
        self._lengths = lengths

    def search(self, text: str) -> Any:
        self._lengths.append(len(text))
        return self._pattern.search(text)

    def match(self, text: str) -> Any:
        self._lengths.append(len(text))
        return self._pattern.match(text)


MEGABYTES = 15
SLOW: dict[str, bytes] = {
    "a pattern begun again and again": b"batch size " * (MEGABYTES << 16),
    "numbers": b"limit 1 " * (MEGABYTES << 17),
    "titles": b"<title" * (MEGABYTES << 17),
    "one long title": b"<title>" + b"a" * (MEGABYTES << 20),
    "invalid utf-8": b"\xff" * (MEGABYTES << 20),
    "a message of 3.9 MB": json.dumps({"error": {"message": "batch size " * 350_000}}).encode(),
    "a code of 3.9 MB": json.dumps({"code": "batch size " * 350_000}).encode(),
    "a list as message": b'{"message":[' + b"1," * 1_000_000 + b"1]}",
    "lists in lists": b"[" + b",".join([b"[" * 500 + b"]" * 500] * 3_000) + b"]",
    "a message too deep to be written": b'{"message":' + b"[" * 900 + b"]" * 900 + b"}",
    "many keys": b"{" + b",".join(b'"%d":1' % n for n in range(300_000)) + b"}",
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("status", [200, 400, 429, 500])
def test_classifying_an_error_takes_bounded_time(
    name: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    for each, pattern in list(vars(failures).items()):
        if isinstance(pattern, re.Pattern):
            monkeypatch.setattr(failures, each, Searched(pattern, searched))
    parsed: list[bytes] = []
    loads = failures.orjson.loads
    monkeypatch.setattr(failures.orjson, "loads", lambda body: parsed.append(body) or loads(body))
    given = answer(status, SLOW[name])
    if status == 200:
        judge_ok_error(given, BrokenResponse("no vectors"), secrets=SECRETS)
    else:
        assert searched == []
        assert len(str(judged(given).error)) < MAX_TEXT + 300
        assert searched
    assert max(searched, default=0) <= 2 * MAX_SEARCHED + 1
    for body in parsed:
        assert len(body) <= MAX_ERROR_BYTES
        assert body.count(b"[") + body.count(b"{") <= 65_000
        assert body.count(b",") <= 120_000


@pytest.mark.parametrize(
    "part", ["batch size ", "limit 1 requested", "limit1", "<title ", "bill \t"]
)
def test_no_pattern_backtracks_for_long(part: str) -> None:
    body = (part * MAX_SEARCHED)[:MAX_SEARCHED].encode()
    began = time.process_time()
    for status in (400, 429, 500):
        judged(answer(status, body))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "name", ["retry-after", "retry-after-ms", "x-ratelimit-reset", "x-request-id", "location"]
)
@pytest.mark.parametrize("part", ["9", " ", "Mon, ", "1e", "http://[", "\0"])
def test_a_header_of_any_length_is_short_in_the_error(name: str, part: str) -> None:
    failure = judged(answer(307 if name == "location" else 429, **{name: part * 100_000}))
    assert len(str(failure.error)) < MAX_TEXT + 300
    assert len(failure.error.request_id or "") <= 200
    assert failure.retry_after is None


@given(st.text(max_size=300), st.integers(1, 100))
def test_cleaned_text_is_short_printable_and_on_one_line(text: str, limit: int) -> None:
    shown = clean(text, SECRETS, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert KEY not in shown


def test_invalid_utf8_and_deep_nesting_are_an_error_of_the_status() -> None:
    for body in (b"\xff\xfe\xfd", b"[" * 100_000, b"9" * 20_000, b'{"error":' * 50_000):
        assert judged(answer(503, body)).kind is Kind.FAULT


@given(
    st.integers(100, 599),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["error", "code", "message", "detail", "type", "response"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ),
)
def test_no_error_body_crashes_the_classification(status: int, body: Any) -> None:
    failure = judged(answer(status, body))
    assert isinstance(failure.error, errors.APIStatusError)
    assert isinstance(failure.error.code, str | None)


# ---- an error object under a 2xx status


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("invalid_api_key", "", Kind.TERMINAL),
        ("Arrearage", "", Kind.TERMINAL),
        ("model_not_found", "", Kind.TERMINAL),
        ("data_inspection_failed", "", Kind.REFUSED),
        ("InvalidParameter", BATCH, Kind.BATCH_LIMIT),
        ("rate_limit_exceeded", "", Kind.THROTTLE),
        ("insufficient_quota", QUOTA, Kind.THROTTLE),
    ],
)
def test_a_known_error_under_200_counts_as_under_its_own_status(
    code: str, message: str, kind: Kind
) -> None:
    verdict = judge_ok_error(coded(200, code, message), BrokenResponse("b"), secrets=SECRETS)
    assert isinstance(verdict, Failure)
    assert verdict.kind is kind


def test_an_unknown_error_under_200_is_invalid_and_quotes_the_server_without_the_key() -> None:
    body = coded(200, "odd", f"something with {KEY}")
    verdict = judge_ok_error(body, BrokenResponse("no vectors"), secrets=SECRETS)
    assert isinstance(verdict, BrokenResponse)
    assert "no vectors; the server says: odd something with [API key]" in str(verdict)


@pytest.mark.parametrize("body", [b"", b"<html>login</html>", b"{}", b"[]", b'{"data":[]}'])
def test_a_body_under_200_without_an_error_object_is_an_invalid_response(body: bytes) -> None:
    broken = BrokenResponse("b")
    assert judge_ok_error(answer(200, body), broken, secrets=SECRETS) is broken


# ---- Retry-After


def in_seconds(seconds: float, zone: timezone = timezone.utc) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + seconds, zone), usegmt=False)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 2 "}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "121"}, 121.0),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "-1100"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "99999999999"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": in_seconds(30)}, 30.0),
        ({"retry-after": in_seconds(30, timezone(timedelta(hours=5, minutes=30)))}, 30.0),
        ({"retry-after": in_seconds(-30)}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, None),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, None),
        ({"retry-after": "Sun, 06 Nov 100000 08:49:37 GMT"}, None),
        ({"retry-after": "Sun, 99 Nov 2030 99:99:99 GMT"}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "nan", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "-5", "retry-after": "9"}, 9.0),
        ({"x-ratelimit-reset": "12"}, 12.0),
        ({"x-ratelimit-reset": str(NOW + 12)}, 12.0),
        ({"x-ratelimit-reset": str(NOW - 12)}, None),
        ({"x-ratelimit-reset": "garbage"}, None),
        ({"retry-after": "soon", "x-ratelimit-reset": "12"}, 12.0),
        ({}, None),
    ],
)
def test_a_wait_is_read_in_every_format_and_nonsense_is_ignored(
    headers: dict[str, str], wait: float | None
) -> None:
    found = retry_after(headers, now=NOW)
    assert found == (None if wait is None else pytest.approx(wait))


@given(st.text(max_size=40))
def test_no_header_value_crashes_or_gives_an_absurd_wait(value: str) -> None:
    for name in ("retry-after", "retry-after-ms", "x-ratelimit-reset"):
        wait = retry_after({name: value}, now=NOW)
        assert wait is None or 0 < wait <= 86_400


def test_the_wait_is_on_the_error_too() -> None:
    failure = judged(answer(429, b"", retry_after="7"))
    assert failure.retry_after == failure.error.retry_after == 7.0


@pytest.mark.parametrize(
    ("code", "message", "status"),
    [
        ("Invalid_API_Key", "", 401),
        (None, "Unauthorised", 401),
        ("Arrearage", "", 402),
        ("Model_Not_Found", "", 404),
        ("data_inspection_failed", "", 400),
        ("insufficient_quota", "", 429),
        ("rate_limit_exceeded", "", 429),
    ],
)
def test_an_error_under_200_has_the_status_it_should_have_come_under_and_never_the_key(
    code: str | None, message: str, status: int
) -> None:
    body = coded(200, code, f"{message} {KEY}")
    verdict = judge_ok_error(body, BrokenResponse("b"), secrets=SECRETS)
    assert isinstance(verdict, Failure)
    assert verdict.error.status_code == status
    assert KEY not in str(verdict.error)


def test_a_message_without_a_code_is_quoted_unchanged() -> None:
    verdict = judge_ok_error(coded(200, None, "odd"), BrokenResponse("b"), secrets=SECRETS)
    assert str(verdict) == "b; the server says: odd"


@pytest.mark.parametrize("location", ["", "/elsewhere", "http://[bad"])
def test_a_redirect_to_no_host_names_none(location: str) -> None:
    verdict = judge(answer(302, {}, location=location), secrets=SECRETS)
    assert "redirected; redirects are not followed: check base_url" in str(verdict.error)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "86400"}, 86_400.0),
        ({"retry-after": "86401"}, None),
        ({"retry-after-ms": "0", "retry-after": "3"}, 3.0),
        ({"retry-after": "0", "x-ratelimit-reset": "4"}, 4.0),
        ({"x-ratelimit-reset": "0"}, None),
    ],
)
def test_a_wait_of_zero_is_ignored_for_the_next_header_and_the_maximum_is_a_day(
    headers: dict[str, str], wait: float | None
) -> None:
    assert retry_after(headers, now=NOW) == wait


def test_a_date_without_a_zone_is_utc_in_every_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        at = datetime.fromtimestamp(NOW + 60, timezone.utc)
        assert retry_after({"retry-after": at.strftime("%a %b %d %H:%M:%S %Y")}, now=NOW) == 60
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("requested", "kind"), [(1001, Kind.TOO_LARGE), (1000, Kind.THROTTLE), (999, Kind.THROTTLE)]
)
def test_a_rate_limit_that_no_wait_would_lift_asks_for_a_smaller_request(
    requested: int, kind: Kind
) -> None:
    body = coded(429, "rate_limit_exceeded", f"Limit 1000, Requested {requested}.")
    assert judge(body, secrets=SECRETS).kind is kind
