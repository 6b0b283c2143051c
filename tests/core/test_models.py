"""One table has all known models, and other models work too."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx
import pytest

from nexusflow_integrations import Budget, NexusFlow, Price
from nexusflow_integrations._core.models import DEFAULT_MODEL, MODELS, Model
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.local import protocol, sizes

_accounts = count()
SUCCESSOR = Model(
    sizes=(2560, 256), batch_size=20, max_tokens=128_000, per_million_tokens=2.0, currency="USD"
)
Make = Callable[..., NexusFlow]


@pytest.fixture
def asked() -> list[dict[str, Any]]:
    """What was asked of the server that ``make`` talks to."""
    return []


@pytest.fixture
def make(asked: list[dict[str, Any]]) -> Make:
    """Make a client of a server that takes ``takes`` texts a request, of any model and size."""

    def make(takes: int = 100, **settings: Any) -> NexusFlow:
        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content)
            asked.append(body)
            if len(body["input"]) > takes:
                message = f"batch size is invalid, it should not be larger than {takes}."
                return httpx.Response(400, json={"error": {"message": message}})
            row = [1.0] * body.get("dimensions", 1024)
            rows = [{"index": place, "embedding": row} for place in range(len(body["input"]))]
            return httpx.Response(200, json={"data": rows, "usage": {"total_tokens": 1000}})

        http = httpx.Client(transport=httpx.MockTransport(answer))
        return NexusFlow(f"sk-air-models-{next(_accounts)}", http_client=http, **settings)

    return make


def sizes_of(asked: list[dict[str, Any]]) -> list[int]:
    return sorted(len(body["input"]) for body in asked)


def test_a_model_that_is_not_in_the_table_may_have_vectors_of_any_size(
    make: Make, asked: list[Any]
) -> None:
    vectors = make(model="another", dimensions=3001).embed(["a", "b"])
    assert vectors.shape == (2, 3001)
    assert (asked[0]["model"], asked[0]["dimensions"]) == ("another", 3001)


@pytest.mark.parametrize("size", [0, -1, 8193, True, "64"])
def test_an_invalid_size_is_refused_for_an_unknown_model_too(make: Make, size: Any) -> None:
    with pytest.raises(ConfigurationError, match="dimensions must be a whole number from 1"):
        make(model="another", dimensions=size)


def test_an_unknown_model_gets_ten_texts_per_request(make: Make, asked: list[Any]) -> None:
    make(model="another").embed([f"text {n}" for n in range(25)])
    assert sizes_of(asked) == [5, 10, 10]


def test_an_unknown_model_gets_fewer_texts_per_request_if_the_server_says_so(
    make: Make, asked: list[Any]
) -> None:
    client = make(model="another", takes=4, max_concurrency=1)
    client.embed([f"text {n}" for n in range(8)])
    assert sizes_of(asked) == [4, 4, 8]
    client.embed([f"other {n}" for n in range(8)])
    assert sizes_of(asked[3:]) == [4, 4]


def test_an_unknown_model_gets_more_texts_per_request_if_the_user_says_so(
    make: Make, asked: list[Any]
) -> None:
    make(model="another", batch_size=20).embed([f"text {n}" for n in range(40)])
    assert sizes_of(asked) == [20, 20]


def test_the_price_of_an_unknown_model_is_unknown_until_it_is_set(make: Make) -> None:
    client = make(model="another")
    usage = client.embed(["a"]).usage
    assert usage is not None
    assert math.isnan(usage.cost)
    assert math.isnan(client.usage.cost)
    assert math.isnan(client.estimate(["a text"]).cost)
    assert client.price.per_million_tokens is None
    assert usage.tokens == 1000
    priced = make(model="another", price=Price(3.0, "USD"))
    priced.embed(["a"])
    assert priced.usage.cost == pytest.approx(0.003)


def test_a_budget_in_money_needs_a_price(make: Make) -> None:
    with pytest.raises(ConfigurationError, match=r"^budget: money=\.\.\. needs the price"):
        make(model="another", budget=Budget(money=1.0))
    make(model="another", budget=Budget(money=1.0), price=Price(1.0)).embed(["a"])
    make(model="another", budget=Budget(tokens=5000)).embed(["a"])


def test_a_new_model_needs_one_line_in_the_table(
    make: Make, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "successor", SUCCESSOR)
    client = make(model="successor", dimensions=2560)
    client.embed([f"text {n}" for n in range(40)])
    assert sizes_of(asked) == [20, 20]
    assert client.usage.currency == "USD"
    assert client.usage.cost == pytest.approx(0.004)
    with pytest.raises(ConfigurationError, match="dimensions must be one of 2560, 256, not 1024"):
        make(model="successor", dimensions=1024)
    with pytest.raises(ConfigurationError, match="dimensions must be one of 2560, 256, not 1024"):
        client.resized(1024)


def test_the_local_server_has_the_limits_of_the_model_that_it_stands_in_for() -> None:
    known = MODELS[protocol.MODEL]
    assert protocol.MODEL == DEFAULT_MODEL
    assert known.sizes == sizes.SIZES
    assert (known.batch_size, known.max_tokens) == (protocol.MAX_TEXTS, protocol.MAX_TOKENS)
