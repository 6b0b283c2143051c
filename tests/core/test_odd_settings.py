"""Invalid settings always end in a ``ConfigurationError`` that names them.

Every setting is tested with every odd value. Either the value is accepted and a call works, or the
value is refused at once, in one sentence.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nexusflow_integrations import Budget, NexusFlow, Price
from nexusflow_integrations._core import checks
from nexusflow_integrations.errors import APITimeoutError, BudgetExceededError, ConfigurationError
from nexusflow_integrations.redis import RedisLimits

KEY = "sk-air-odd-0123456789abcdef"
ACCOUNTS = count()
QUERY = ("query_timeout", "query_deadline")
RATES = ("requests_per_minute", "tokens_per_minute")
SETTINGS = list(inspect.signature(NexusFlow).parameters)
Refused = Callable[..., list[Any]]


def answer(request: httpx.Request) -> httpx.Response:
    asked = json.loads(request.content)
    size = asked.get("dimensions", 64)
    rows = [{"index": i, "embedding": [1.0] * size} for i in range(len(asked["input"]))]
    return httpx.Response(200, json={"data": rows})


def client(**settings: Any) -> NexusFlow:
    http = httpx.Client(transport=httpx.MockTransport(answer))
    key = f"{KEY}-{next(ACCOUNTS)}"  # limits hold for all clients of an account
    return NexusFlow(**{"api_key": key, "http_client": http, **settings})


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_accepts_valid_values_and_refuses_all_others(
    name: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the folder for cache=True
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    for value in refused(lambda value: client(**{name: value}), name):
        made = client(**{name: value})
        repr(made)
        repr(made.settings)
        if name in ("http_client", "async_http_client", "base_url"):
            continue  # real ones, without a server
        if name == "api_key" and callable(value):
            continue  # what it returns is tested elsewhere
        if name == "on_usage" and callable(value) and value is not print:
            continue  # what one that fails does is tested elsewhere
        if name.endswith("per_minute"):
            made = client(**{name: value}, deadline=0.05)
        limited = dict.fromkeys(("timeout", "deadline", *QUERY, *RATES), APITimeoutError)
        try:
            assert made.embed("a text").shape[0] in (64, made.dimensions)
            assert made.embed(["a text", "another"], role="query").shape[0] == 2
            made.estimate(["a text"])
        except limited.get(name, ()):
            pass
        made.close()


@pytest.mark.parametrize("name", ["per_million_tokens", "currency"])
def test_a_price_is_a_number_and_the_name_of_a_currency(name: str, refused: Refused) -> None:
    for value in refused(lambda value: Price(**{name: value}), name):
        price = Price(**{name: value})
        assert price.of(10**6) >= 0 or price.per_million_tokens is None
        assert type(price.per_million_tokens) is float or value is None
        assert type(price.currency) is str
        client(price=price).embed("a text")


@pytest.mark.parametrize("name", ["tokens", "money"])
def test_a_budget_is_a_finite_number_from_0_up(name: str, refused: Refused) -> None:
    for value in [*refused(lambda value: Budget(**{name: value}), name), 1e15, Decimal("0.10")]:
        budget = Budget(**{name: value})
        for price in (Price(), Price(0), Price(5e-324), Price(1e308)):
            assert 0 <= budget.in_tokens(price) <= 1 << 62
        try:
            client(budget=budget).embed("a text")
        except BudgetExceededError:
            assert budget.in_tokens(Price()) < 100


@pytest.mark.parametrize("name", ["url", "account", *RATES])
def test_redis_limits_name_the_refused_setting_too(name: str, refused: Refused) -> None:
    def made(value: object) -> RedisLimits:
        return RedisLimits(**{"url": "redis://127.0.0.1:1", name: value})  # type: ignore[arg-type]

    for value in refused(made, name):
        repr(made(value))
        client(pacer=made(value))


CALLS: list[tuple[str, Callable[..., object]]] = [
    ("role", lambda made, **given: made.embed("a text", **given)),
    ("role", lambda made, **given: list(made.embed_stream(["a text"], **given))),
    ("role", lambda made, **given: made.estimate(["a text"], **given)),
    ("on_refused", lambda made, **given: made.embed(["a text"], **given)),
    ("on_blank", lambda made, **given: made.embed(["a text"], **given)),
    ("on_too_long", lambda made, **given: made.embed(["a text"], **given)),
    ("progress", lambda made, **given: made.embed(["a text"], **given)),
    ("ordered", lambda made, **given: list(made.embed_stream(["a text"], **given))),
    ("dimensions", lambda made, **given: made.resized(**given).embed("a text")),
]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_arguments_of_a_call_are_refused_before_anything_is_sent(
    name: str, call: Callable[..., object], refused: Refused
) -> None:
    made = client()
    refused(lambda value: _not_called(value) or call(made, **{name: value}), name)
    assert made.usage.requests < 5


def _not_called(value: object) -> bool:
    return callable(value)  # what a progress that fails does is tested elsewhere


async def test_arguments_of_an_async_call_are_refused_before_anything_is_sent() -> None:
    made = NexusFlow(KEY, base_url="http://127.0.0.1:1")
    for name in ("role", "on_refused", "on_blank", "on_too_long", "progress"):
        for value in (5, "x", np.array([1, 2]), b"query"):
            with pytest.raises(ConfigurationError, match=f"^{name} must be "):
                await made.aembed(["a text"], **{name: value})
    for name in ("role", "ordered"):
        with pytest.raises(ConfigurationError, match=f"^{name} must be "):
            _ = [item async for item in made.aembed_stream(["a text"], **{name: "x"})]
    assert made.usage.requests == 0


class Shares:
    """The attributes of a pacer and a budget, each of which may be missing."""

    requests_per_minute: Any = 600.0
    tokens_per_minute: Any = None
    processes = 1
    tokens: Any = 1000

    def lease(self, count: int, tokens: int, **late: float) -> list[float]:
        return [0.0] * count

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        pass

    def throttled(self, ago: float) -> None:
        pass

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Any:
        raise ConnectionError


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        *(("pacer", part) for part in ("lease", "adjust", "throttled", "requests_per_minute")),
        *(("budget", part) for part in ("draw", "tokens")),
    ],
)
@pytest.mark.parametrize("value", [None, "x", -1, float("nan")])
def test_a_custom_pacer_or_budget_is_checked_before_it_is_used(
    setting: str, part: str, value: Any
) -> None:
    client(**{setting: Shares()})
    shares = Shares()
    setattr(shares, part, value)
    if (part, value) != ("requests_per_minute", None):
        with pytest.raises(ConfigurationError, match=f"^{setting}"):
            client(**{setting: shares})


ACCEPTED: list[tuple[str, Any, Any]] = [
    ("dimensions", np.int64(256), 256),
    ("batch_size", np.uint8(5), 5),
    ("max_concurrency", np.int32(7), 7),
    ("max_retries", np.int64(0), 0),
    ("timeout", np.float32(2.5), 2.5),
    ("timeout", Decimal("2.5"), 2.5),
    ("timeout", 3, 3.0),
    ("deadline", np.int64(9), 9.0),
    ("requests_per_minute", Decimal(600), 600.0),
    ("tokens_per_minute", np.float64(1e6), 1e6),
    ("model", np.str_("another"), "another"),
    ("encoding_format", np.str_("float"), "float"),
    ("query_instruction", "two\nlines ", "two\nlines "),
    ("default_headers", httpx.Headers({"X-A": "1"}), {"x-a": "1"}),
    ("default_headers", {"X-A": " 1\t", "X_b": ""}, {"X-A": "1", "X_b": ""}),
    ("default_headers", None, {}),
]


@pytest.mark.parametrize(("name", "given", "kept"), ACCEPTED)
def test_accepted_values_are_kept_as_plain_python_values(name: str, given: Any, kept: Any) -> None:
    found = getattr(client(**{name: given}).settings, name)
    assert found == kept
    assert type(found) is type(kept) or name == "default_headers"


def test_a_flag_of_numpy_is_named_as_one() -> None:
    with pytest.raises(ConfigurationError, match=r"must be True or False, not numpy\.bool"):
        checks.flag("derive", np.True_)


REFUSED: list[tuple[str, Any, str]] = [
    ("timeout", "60", "timeout must be a number above 0 and at most 100,000,000, not '60'"),
    ("batch_size", True, "batch_size must be a whole number from 1 to 2,048, not True"),
    (
        "max_retries",
        10**5000,
        "max_retries must be a whole number from 0 to 100, not a very large number",
    ),
    ("model", "text\nembedding", "model must be the name of a model, not 'text\\nembedding'"),
    ("query_instruction", "\ud800", "query_instruction holds a lone surrogate"),
    ("budget", 5, "budget must be Budget(tokens=...)"),
    ("price", "0.5", "price must be Price(per_million_tokens=...)"),
    ("cache", b"vectors", "cache must be a path, the URL of a Redis server"),
    ("cache", "", "cache must be a path"),
    ("cache", "a\0b", "cache must be a path"),
    ("on_usage", "x", "on_usage must be a function or None, not 'x'"),
    (
        "http_client",
        httpx.AsyncClient(),
        "http_client must be an httpx.Client: pass an async client as",
    ),
    (
        "async_http_client",
        httpx.Client(),
        "async_http_client must be an httpx.AsyncClient: pass a sync",
    ),
    ("http_client", httpx.Client, "http_client must be an httpx.Client or None, not type"),
    (
        "pacer",
        object(),
        "pacer must be a RedisLimits, a ClusterLimits or a similar object, not object",
    ),
    ("allow_http", "no", "allow_http must be True or False, not 'no'"),
    ("default_headers", {"X-A": "ü"}, "default_headers: 'X-A' cannot be sent"),
    ("default_headers", {"X-A": "a\0b"}, "default_headers: 'X-A' cannot be sent"),
    ("default_headers", {"X A": "1"}, "default_headers: 'X A' cannot be sent"),
    ("default_headers", {"": "1"}, "default_headers: '' cannot be sent"),
    ("default_headers", {"Transfer-Encoding": "chunked"}, "default_headers may not set Transfer"),
    ("default_headers", {b"X-A": b"1"}, "default_headers must have names and values that are text"),
    ("default_headers", [("X-A", "1")], "default_headers must be a dict of names and values"),
]


@pytest.mark.parametrize(
    ("name", "value", "said"), REFUSED, ids=[said[:40] for *_, said in REFUSED]
)
def test_a_refusal_is_one_sentence(name: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        client(**{name: value})
    shown = str(caught.value)
    assert shown.startswith(said)
    assert ". " not in shown


SETTINGS = [name for name in inspect.signature(NexusFlow).parameters if name != "allow_http"]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "value", ["Bearer sk-not-shown", " sk-not-shown", "basic not-shown", "Token not-shown"]
)
def test_no_refusal_shows_a_key_that_was_passed_as_another_setting(name: str, value: str) -> None:
    said = ""
    try:
        client(**{name: value})
    except ConfigurationError as error:
        said = str(error)
    assert "not-shown" not in said


@pytest.mark.parametrize("name", ["default_headers", "extra_body", "default_query"])
def test_no_refusal_shows_any_text_of_a_setting_that_may_hold_secrets(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must be a dict") as caught:
        client(**{name: "x-key: 1234"})
    assert "1234" not in str(caught.value)


def test_no_refusal_shows_a_key_as_the_name_of_a_header() -> None:
    with pytest.raises(ConfigurationError, match="cannot be sent") as caught:
        client(default_headers={"Bearer sk-not-shown": ""})
    assert "not-shown" not in str(caught.value)
