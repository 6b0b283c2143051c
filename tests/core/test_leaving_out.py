"""``on_refused``, ``on_blank`` and ``on_too_long`` leave texts out of a call, or raise."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.errors import (
    AuthenticationError,
    BadRequestError,
    InvalidInputError,
    RefusedTextsError,
)

ACCOUNTS = count()
REFUSED = "refused"
UNAUTHORIZED = "unauthorized"
LONG = "word " * 400
TEXTS = ["a", " ", "bb", REFUSED, "", LONG, "a", "ccc"]
COLLECT: Any = {"on_refused": "collect", "on_blank": "collect", "on_too_long": "collect"}


class Upstream:
    """Answers with the length of each text, refuses one text, and remembers what it was sent."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        self.texts += texts
        if UNAUTHORIZED in texts or REFUSED in texts:
            status = 401 if UNAUTHORIZED in texts else 400
            return httpx.Response(status, json={"error": {"code": "data_inspection_failed"}})
        rows = [{"index": n, "embedding": [float(len(text))] * 4} for n, text in enumerate(texts)]
        return httpx.Response(200, json={"data": rows, "usage": {"total_tokens": len(texts)}})

    def client(self, **settings: Any) -> NexusFlow:
        return NexusFlow(
            f"sk-air-left-out-{next(ACCOUNTS)}",
            http_client=httpx.Client(transport=httpx.MockTransport(self.answer)),
            async_http_client=httpx.AsyncClient(transport=httpx.MockTransport(self.answer)),
            max_text_tokens=100,
            **settings,
        )


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


def embed(way: str, client: NexusFlow, texts: Any, **options: Any) -> Any:
    if way == "sync":
        return client.embed(texts, **options)
    return asyncio.run(client.aembed(texts, **options))


WAYS = pytest.mark.parametrize("way", ["sync", "async"])


@WAYS
@pytest.mark.parametrize("given_to", ["client", "call"])
def test_collected_texts_are_gaps_with_their_reasons_and_the_others_have_their_vectors(
    way: str, given_to: str, upstream: Upstream
) -> None:
    heard: list[int] = []
    client = upstream.client(**(COLLECT if given_to == "client" else {}))
    options = COLLECT if given_to == "call" else {}
    found = embed(way, client, TEXTS, progress=heard.append, **options)
    lengths = [None if row is None else row[0] for row in found]
    assert lengths == [1.0, None, 2.0, None, None, None, 1.0, 3.0]
    assert {place: type(error) for place, error in found.left_out.items()} == {
        1: InvalidInputError,
        3: BadRequestError,
        4: InvalidInputError,
        5: InvalidInputError,
    }
    assert list(found.left_out) == [1, 3, 4, 5]
    assert str(found.left_out[1]) == "text 1 is blank"
    assert str(found.left_out[5]).startswith("text 5 is too long")
    assert list(found.refused) == [3]
    assert sum(heard) == len(TEXTS)
    assert set(upstream.texts) == {"a", "bb", "ccc", REFUSED}
    assert (found.usage.texts, found.usage.repeated, found.usage.refused) == (5, 1, 1)


@WAYS
def test_each_of_the_three_is_its_own_decision(way: str, upstream: Upstream) -> None:
    client = upstream.client()
    with pytest.raises(InvalidInputError, match=r"^text 1 is blank"):
        embed(way, client, TEXTS, **{**COLLECT, "on_blank": "raise"})
    with pytest.raises(InvalidInputError, match=r"^text 5 is too long"):
        embed(way, client, TEXTS, **{**COLLECT, "on_too_long": "error"})
    assert upstream.texts == [], "before anything was sent"
    with pytest.raises(RefusedTextsError) as caught:
        embed(way, client, TEXTS, **{**COLLECT, "on_refused": "raise"})
    assert list(caught.value.refused) == [3]
    assert {place: row[0] for place, row in caught.value.finished.items()} == {
        0: 1.0,
        2: 2.0,
        6: 1.0,
        7: 3.0,
    }
    split = embed(way, client, TEXTS, **{**COLLECT, "on_too_long": "split"})
    assert list(split.left_out) == [1, 3, 4]
    assert split.usage.split == 1


@WAYS
def test_a_call_overrides_the_client(way: str, upstream: Upstream) -> None:
    client = upstream.client(**COLLECT)
    raising: Any = {"on_refused": "raise", "on_blank": "raise", "on_too_long": "error"}
    with pytest.raises(InvalidInputError, match="blank"):
        embed(way, client, ["a", ""], **raising)
    plain = embed(way, client, ["a", "bb"], **raising)
    assert isinstance(plain, np.ndarray)


@WAYS
def test_a_list_of_nothing_but_blanks_sends_nothing(way: str, upstream: Upstream) -> None:
    found = embed(way, upstream.client(), ["", " ", "\n"], on_blank="collect")
    assert list(found) == [None] * 3
    assert list(found.left_out) == [0, 1, 2]
    assert upstream.texts == []
    assert embed(way, upstream.client(on_blank="collect"), []) == []


@WAYS
def test_without_anything_to_leave_out_collecting_still_gives_a_list(
    way: str, upstream: Upstream
) -> None:
    found = embed(way, upstream.client(), ["a", "bb"], on_blank="collect")
    assert isinstance(found, list)
    assert found.left_out == {}


@WAYS
def test_one_text_alone_is_never_collected(way: str, upstream: Upstream) -> None:
    client = upstream.client(**COLLECT)
    for text in (" ", LONG):
        with pytest.raises(InvalidInputError, match=r"^the text is"):
            embed(way, client, text)
    with pytest.raises(BadRequestError):
        embed(way, client, REFUSED)
    assert embed(way, client, "a").shape == (4,)


@pytest.mark.parametrize("bad", [None, 5, float("nan"), "half \ud800"])
def test_an_item_that_is_not_a_text_is_still_an_error(bad: Any, upstream: Upstream) -> None:
    with pytest.raises(InvalidInputError, match=r"^text 1 "):
        upstream.client(**COLLECT).embed(["", bad])


def test_a_failure_has_the_finished_vectors_at_their_places(upstream: Upstream) -> None:
    client = upstream.client(batch_size=2, max_concurrency=1)
    with pytest.raises(AuthenticationError) as caught:
        client.embed(["", "a", "", "bb", UNAUTHORIZED], on_blank="collect")
    assert {place: row[0] for place, row in caught.value.finished.items()} == {1: 1.0, 3: 2.0}


def test_an_instruction_does_not_make_a_blank_text_one_that_can_be_sent(
    upstream: Upstream,
) -> None:
    client = upstream.client(document_instruction="Passage: ", on_blank="collect")
    found = client.embed(["a", " "])
    assert upstream.texts == ["Passage: a"]
    assert list(found.left_out) == [1]


def test_an_estimate_does_not_count_what_is_left_out(upstream: Upstream) -> None:
    assert upstream.client(**COLLECT).estimate(TEXTS).texts == 5
    with pytest.raises(InvalidInputError):
        upstream.client().estimate(TEXTS)


def test_left_out_texts_do_not_come_from_a_cache(upstream: Upstream, tmp_path: Path) -> None:
    client = upstream.client(**COLLECT, cache=tmp_path / "vectors.sqlite3")
    client.embed(TEXTS)
    upstream.texts.clear()
    found = client.embed(TEXTS)
    assert list(found.left_out) == [1, 3, 4, 5]
    assert found.usage.cached == 3
    assert set(upstream.texts) == {REFUSED}


@WAYS
def test_a_stream_leaves_out_the_same_texts(way: str, upstream: Upstream) -> None:
    client = upstream.client(on_too_long="collect")

    async def streamed() -> list[Any]:
        return [item async for item in client.aembed_stream(TEXTS)]

    found = list(client.embed_stream(TEXTS)) if way == "sync" else asyncio.run(streamed())
    assert [item.index for item in found if item.vector is None] == [1, 3, 4, 5]
