"""The embeddings work with models that the service does not list."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from langchain_core.exceptions import ContextOverflowError

from nexusflow_integrations import errors
from nexusflow_integrations._core.models import MODELS, Model
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

Answering = Callable[..., NexusFlowEmbeddings]


def noting(asked: list[int]) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(len(body["input"]))
        row = [1.0] * body["dimensions"]
        rows = [{"index": place, "embedding": row} for place in range(len(body["input"]))]
        return httpx.Response(200, json={"data": rows, "usage": {"total_tokens": 9}})

    return answer


TEXTS = [f"text {number}" for number in range(40)]


@pytest.mark.parametrize(
    ("model", "given", "sent"),
    [
        ("another", {}, [10, 10, 10, 10]),
        ("another", {"chunk_size": 40}, [40]),
        ("successor", {}, [20, 20]),
        ("successor", {"chunk_size": 1000}, [20, 20]),
        ("successor", {"batch_size": 10}, [10, 10, 10, 10]),
        ("text-embedding-v4", {"chunk_size": 1000}, [10, 10, 10, 10]),
    ],
)
def test_as_many_texts_are_sent_as_the_model_is_known_to_take(
    answering: Answering,
    model: str,
    given: dict[str, Any],
    sent: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODELS, "successor", Model(sizes=(256,), batch_size=20))
    asked: list[int] = []
    embeddings = answering(noting(asked), model=model, dimensions=256, **given)
    assert len(embeddings.embed_documents(TEXTS)) == 40
    assert sorted(asked) == sorted(sent)


def test_a_model_that_is_not_in_the_table_may_have_vectors_of_any_size(
    answering: Answering,
) -> None:
    embeddings = answering(noting([]), model="another", dimensions=2560)
    assert len(embeddings.embed_query("a text")) == 2560
    assert embeddings.usage.cost != embeddings.usage.cost  # NaN: the price is unknown


def test_documents_and_queries_get_instructions_of_their_own(
    make: Callable[..., NexusFlowEmbeddings], server: LocalServer
) -> None:
    embeddings = make(query_instruction="Q ", document_instruction="D ")
    embeddings.embed_documents(["a"])
    embeddings.embed_query("b")
    assert [*server.stats.received] == ["D a", "Q b"]


LONG = "panda " * 12_000


def test_a_text_that_is_too_long_is_an_error_that_langchain_knows(
    make: Callable[..., NexusFlowEmbeddings], server: LocalServer
) -> None:
    with pytest.raises(ContextOverflowError, match="text 1 is too long") as caught:
        make().embed_documents(["a", LONG])
    assert isinstance(caught.value, errors.InvalidInputError)
    assert server.stats.requests == 0


def test_a_long_text_can_be_split_as_openai_embeddings_does(
    make: Callable[..., NexusFlowEmbeddings],
) -> None:
    embeddings = make(on_too_long="split")
    one, two = embeddings.embed_documents([f"{LONG} red", f"{LONG} blue"])
    assert one != two
    assert embeddings.usage.split == 2
