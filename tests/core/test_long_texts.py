"""A text with more tokens than the model takes is an error, split, truncated or sent as it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations import Budget, NexusFlow, Usage
from nexusflow_integrations._core.left_out import reason_of
from nexusflow_integrations._core.request.batching import item_of
from nexusflow_integrations._core.request.long_texts import CLEARLY, PIECE, pieces_of, truncated
from nexusflow_integrations._core.request.tokens import estimate_tokens
from nexusflow_integrations.errors import (
    BudgetExceededError,
    ConfigurationError,
    InvalidInputError,
    RefusedTextsError,
)
from nexusflow_integrations.local import LocalServer

_accounts = count()
LIMIT = 100
LONG = " ".join(f"word{number}" for number in range(400))
SIZE = 8


def vector_of(text: str) -> list[float]:
    rng = np.random.default_rng(sum(text.encode()) + len(text))
    row = rng.standard_normal(SIZE)
    return list((row / np.linalg.norm(row)).astype(np.float32).astype(float))


class Upstream:
    """Remembers the texts it was sent, and refuses those that ``refuses`` says."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.refuses: Callable[[str], str | None] = lambda _: None

    @property
    def texts(self) -> list[str]:
        return [text for request in self.requests for text in request]

    def answer(self, request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        self.requests.append(texts)
        if words := next(filter(None, map(self.refuses, texts)), None):
            return httpx.Response(400, json={"error": {"message": words}})
        rows = [{"index": n, "embedding": vector_of(text)} for n, text in enumerate(texts)]
        tokens = sum(map(len, texts))
        return httpx.Response(200, json={"data": rows, "usage": {"total_tokens": tokens}})

    def client(self, **settings: Any) -> NexusFlow:
        http = httpx.Client(transport=httpx.MockTransport(self.answer))
        key = f"sk-air-long-{next(_accounts)}"
        return NexusFlow(key, http_client=http, **{"max_text_tokens": LIMIT, **settings})


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


def mean(pieces: list[str]) -> Any:
    weights = [estimate_tokens(piece) for piece in pieces]
    total = np.average([vector_of(piece) for piece in pieces], axis=0, weights=weights)
    return total / np.linalg.norm(total)


# ---- how a text is cut


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=400) | st.lists(
    st.sampled_from(["a", " ", "\n", "panda", "\u5c0f\u718a\u732b", "\U0001f43c"]), min_size=1
).map("".join)


@given(texts, st.integers(1, 40))
def test_pieces_are_short_enough_and_joined_they_are_the_text(text: str, most: int) -> None:
    pieces = pieces_of(item_of(7, text), most)
    for piece in pieces:
        assert piece.tokens == estimate_tokens(piece.text)
        assert piece.tokens <= most or len(piece.text) == 1
        assert piece.index == 7
        assert piece.text.strip()
    assert "".join("".join(piece.text.split()) for piece in pieces) == "".join(text.split())


def test_pieces_end_between_words() -> None:
    pieces = [piece.text for piece in pieces_of(item_of(0, LONG), 80)]
    assert len(pieces) > 4
    assert " ".join(piece.strip() for piece in pieces) == LONG


@given(texts, st.integers(1, 40))
def test_a_truncated_text_is_the_longest_beginning_within_some_characters(
    text: str, most: int
) -> None:
    cut = truncated(item_of(3, text), most)
    assert text.startswith(cut.text)
    assert cut.text
    assert cut.tokens == estimate_tokens(cut.text)
    assert cut.tokens <= most or len(cut.text) == 1
    assert cut.index == 3


# ---- an error


def test_a_text_that_is_clearly_too_long_is_an_error_before_anything_is_sent(
    upstream: Upstream,
) -> None:
    client = upstream.client()
    with pytest.raises(InvalidInputError, match=r"^text 1 is too long: it has about") as caught:
        client.embed(["a", LONG, "b"])
    assert caught.value.index == 1
    assert reason_of(caught.value) == "too long"
    with pytest.raises(InvalidInputError, match=r"^the text is too long"):
        client.embed(LONG)
    with pytest.raises(InvalidInputError, match=r"^text 0 is too long"):
        client.estimate([LONG])
    assert upstream.requests == []


def test_in_a_stream_a_text_that_is_too_long_is_an_error_of_that_text(upstream: Upstream) -> None:
    found = list(upstream.client().embed_stream(["a", LONG, "b"]))
    assert [item.vector is None for item in found] == [False, True, False]
    assert "text 1 is too long" in str(found[1].error)


def test_an_instruction_counts_towards_the_length_of_a_text(upstream: Upstream) -> None:
    text = "a " * 200
    upstream.client().embed(text)
    with pytest.raises(InvalidInputError, match="is too long"):
        upstream.client(document_instruction="b " * 200).embed(text)


def test_a_request_that_may_just_fit_is_sent(upstream: Upstream) -> None:
    text = "a " * 240  # about 115 tokens
    assert LIMIT < estimate_tokens(text) < CLEARLY * LIMIT
    upstream.client().embed(text)
    assert upstream.texts == [text]


def test_the_limit_is_that_of_the_model_and_unknown_for_an_unknown_one(upstream: Upstream) -> None:
    text = "word " * 11_000
    with pytest.raises(InvalidInputError, match="text-embedding-v4 accepts 8,192"):
        upstream.client(max_text_tokens=None).embed(text)
    upstream.client(max_text_tokens=None, model="another").embed(text)
    assert upstream.texts == [text]
    with pytest.raises(ConfigurationError, match=r"^on_too_long='split' needs the model's limit"):
        upstream.client(max_text_tokens=None, model="another", on_too_long="split")


def test_send_sends_a_long_text_unchanged(upstream: Upstream) -> None:
    upstream.client(on_too_long="send").embed([LONG])
    assert upstream.texts == [LONG]


# ---- in pieces


def test_a_split_text_gets_the_mean_of_its_pieces_weighted_by_their_tokens(
    upstream: Upstream,
) -> None:
    client = upstream.client(on_too_long="split", max_concurrency=1)
    found = client.embed(["a", LONG, "b", LONG])
    pieces = [text for text in upstream.texts if text not in ("a", "b")]
    assert len(pieces) > 4
    assert all(estimate_tokens(piece) <= PIECE * LIMIT for piece in pieces)
    assert " ".join(piece.strip() for piece in pieces) == LONG
    np.testing.assert_allclose(found[1], mean(pieces), atol=1e-6)
    np.testing.assert_allclose(found[3], found[1])
    np.testing.assert_allclose(found[[0, 2]], [vector_of("a"), vector_of("b")], atol=1e-6)
    assert np.linalg.norm(found[1]) == pytest.approx(1.0, abs=1e-6)
    assert client.usage == Usage(
        requests=len(upstream.requests),
        texts=4,
        repeated=1,
        split=1,
        tokens=sum(map(len, upstream.texts)),
    )
    assert max(map(len, upstream.requests)) <= 10


def test_two_texts_that_differ_only_behind_the_limit_get_two_vectors(upstream: Upstream) -> None:
    one, two = upstream.client(on_too_long="split").embed([f"{LONG} panda", f"{LONG} otter"])
    assert not np.allclose(one, two)


def test_a_split_text_is_cached_as_the_whole_and_not_taken_for_the_servers(
    upstream: Upstream, tmp_path: Path
) -> None:
    cache = tmp_path / "vectors.sqlite3"
    first = upstream.client(on_too_long="split", cache=cache)
    split = first.embed([LONG, "short"])
    sent = len(upstream.requests)
    again = upstream.client(on_too_long="split", cache=cache)
    np.testing.assert_array_equal(again.embed([LONG, "short"]), split)
    assert again.estimate([LONG, "short"]).cached == 2
    assert len(upstream.requests) == sent
    for policy in ("send", "truncate"):
        other = upstream.client(on_too_long=policy, cache=cache).embed([LONG, "short"])
        assert not np.allclose(other[0], split[0])
    assert upstream.texts.count("short") == 1
    assert upstream.texts.count(LONG) == 1


@pytest.mark.parametrize("policy", ["split", "truncate"])
def test_a_text_that_only_the_server_finds_too_long_is_not_cached_as_the_whole(
    upstream: Upstream, tmp_path: Path, policy: str
) -> None:
    cache = tmp_path / "vectors.sqlite3"
    words = "Range of input length should be [1, 100]"
    upstream.refuses = lambda text: words if len(text) > 100 else None
    text = " ".join(f"w{number}" for number in range(60))
    cut = upstream.client(on_too_long=policy, cache=cache).embed([text, "short"])
    upstream.refuses = lambda _: None
    whole = upstream.client(on_too_long="send", cache=cache).embed([text, "short"])
    assert not np.allclose(whole[0], cut[0])
    np.testing.assert_allclose(whole[0], vector_of(text), atol=1e-6)


def test_a_refused_piece_refuses_its_text_once_and_no_other(upstream: Upstream) -> None:
    upstream.refuses = lambda text: "data_inspection_failed" if "word20 " in text else None
    client = upstream.client(on_too_long="split")
    with pytest.raises(RefusedTextsError) as caught:
        client.embed(["a", LONG, "b"])
    assert set(caught.value.refused) == {1}
    assert set(caught.value.finished) == {0, 2}
    assert client.usage.refused == 1


def test_a_text_that_only_the_server_finds_too_long_is_split(
    upstream: Upstream,
) -> None:
    words = "Range of input length should be [1, 100]"
    upstream.refuses = lambda text: words if len(text) > 100 else None
    text = " ".join(f"w{number}" for number in range(60))
    client = upstream.client(on_too_long="split")
    found = client.embed(["a", text])
    pieces = [*dict.fromkeys(piece for piece in upstream.texts if 2 < len(piece) <= 100)]
    np.testing.assert_allclose(found[1], mean(pieces), atol=1e-6)
    assert client.usage.split == 1
    assert client.usage.refused == 0


def test_a_budget_holds_for_pieces(upstream: Upstream) -> None:
    client = upstream.client(on_too_long="split", budget=Budget(tokens=1000))
    with pytest.raises(BudgetExceededError):
        client.embed([LONG])
    assert client.usage.tokens <= 1000


# ---- without its end


def test_a_truncated_text_is_logged_once_and_counted(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    client = upstream.client(on_too_long="truncate")
    with caplog.at_level(logging.WARNING):
        client.embed(["a", LONG, "b"])
        client.embed([f"{LONG} more"])
    cut = [text for text in upstream.texts if text not in ("a", "b")]
    assert all(LONG.startswith(text) for text in cut)
    assert all(0.8 * LIMIT < estimate_tokens(text) <= LIMIT for text in cut)
    assert client.usage.truncated == 2
    (said,) = [record.message for record in caplog.records if "truncated" in record.message]
    assert said.startswith("text 1 has about ")


def test_a_text_that_the_server_still_finds_too_long_is_truncated_further(
    upstream: Upstream,
) -> None:
    words = "Range of input length should be [1, 100]"
    upstream.refuses = lambda text: words if len(text) > 100 else None
    client = upstream.client(on_too_long="truncate")
    client.embed([LONG])
    assert 50 < len(upstream.texts[-1]) <= 100
    assert (client.usage.truncated, client.usage.refused) == (1, 0)


# ---- at the local server


@pytest.fixture(scope="module", params=["refuse", "truncate"])
def local(request: pytest.FixtureRequest) -> Iterator[LocalServer]:
    pytest.importorskip("starlette", reason="the local server needs it")
    with LocalServer("hash", too_long=request.param) as server:
        yield server


def test_the_local_server_refuses_or_truncates(local: LocalServer) -> None:
    def client(policy: Any) -> NexusFlow:
        told: dict[str, Any] = {"base_url": local.base_url, "dimensions": 64}
        return NexusFlow(local.api_key, **told, on_too_long=policy)

    text = "word " * 10_000
    texts = [f"{text} panda", f"{text} otter"]
    with pytest.raises(InvalidInputError):
        client("error").embed(texts)
    one, two = client("split").embed(texts)
    assert not np.array_equal(one, two)
    if local._api.too_long == "refuse":
        with pytest.raises(RefusedTextsError):
            client("send").embed(texts)
        client("truncate").embed(texts)
    else:
        sent = client("send").embed(texts)
        np.testing.assert_array_equal(sent[0], sent[1])
        assert sent.usage is not None
        assert sent.usage.tokens == 2 * 8192


def test_the_local_server_knows_no_other_way() -> None:
    pytest.importorskip("starlette", reason="the local server needs it")
    with pytest.raises(ValueError, match="too_long must be 'refuse' or 'truncate'"):
        LocalServer("hash", too_long="split")  # type: ignore[arg-type]
