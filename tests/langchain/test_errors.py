"""Errors belong both to this package and to LangChain."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import ref

import httpx
import numpy as np
import pytest
from langchain_core import exceptions as theirs

from nexusflow_integrations import errors
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]


def response(status: int, body: Any) -> httpx.Response:
    # As a stream that is not read yet, as it comes from a network.
    return httpx.Response(status, stream=httpx.ByteStream(json.dumps(body).encode()))


def saying(status: int, code: str = "some_code", message: str = "said the server") -> Any:
    def answer(request: httpx.Request) -> httpx.Response:
        return response(status, {"error": {"code": code, "message": message}})

    return answer


TOO_LONG = "Range of input length should be [1, 8192]"
STATUSES = [
    (saying(400), errors.BadRequestError, theirs.ModelInvalidRequestError),
    (saying(401, "invalid_api_key"), errors.AuthenticationError, theirs.ModelAuthenticationError),
    (saying(403), errors.PermissionDeniedError, theirs.ModelPermissionDeniedError),
    (saying(404, "model_not_found"), errors.NotFoundError, theirs.ModelNotFoundError),
    (saying(422), errors.BadRequestError, theirs.ModelInvalidRequestError),
    (saying(429), errors.RateLimitError, theirs.ModelRateLimitError),
    (saying(500), errors.InternalServerError, theirs.ModelAPIError),
    (saying(503), errors.InternalServerError, theirs.ModelAPIError),
    (saying(400, "content_filter"), errors.BadRequestError, theirs.ModelInvalidRequestError),
    (saying(400, "context_length_exceeded"), errors.BadRequestError, theirs.ContextOverflowError),
    (saying(400, message=TOO_LONG), errors.BadRequestError, theirs.ContextOverflowError),
    (saying(413), errors.BadRequestError, theirs.ContextOverflowError),
]


@pytest.mark.parametrize(("answer", "our", "their"), STATUSES)
async def test_a_status_is_both_our_error_and_langchains(
    answering: Make, answer: Any, our: type[Exception], their: type[Exception]
) -> None:
    embeddings = answering(answer)
    calls: list[Callable[[], Any]] = [
        lambda: asyncio.to_thread(embeddings.embed_documents, ["a"]),
        lambda: asyncio.to_thread(embeddings.embed_query, "a"),
        lambda: embeddings.aembed_documents(["a"]),
        lambda: embeddings.aembed_query("a"),
    ]
    for call in calls:
        with pytest.raises(our) as raised:
            await call()
        assert isinstance(raised.value, their)
        assert raised.value.is_retryable == their.is_retryable


def raising(error: type[Exception]) -> Any:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error("said the network")

    return answer


def nonsense(request: httpx.Request) -> httpx.Response:
    return response(200, {"data": []})


@pytest.mark.parametrize(
    ("answer", "our", "their"),
    [
        (raising(httpx.ConnectError), errors.APIConnectionError, theirs.ModelConnectionError),
        (raising(httpx.ReadTimeout), errors.APITimeoutError, theirs.ModelTimeoutError),
        (nonsense, errors.InvalidResponseError, theirs.ModelAPIError),
    ],
)
def test_no_proper_answer_is_both_our_error_and_langchains(
    answering: Make, answer: Any, our: type[Exception], their: type[Exception]
) -> None:
    with pytest.raises(our) as raised:
        answering(answer).embed_documents(["a"])
    assert isinstance(raised.value, their)


def test_a_text_that_cannot_be_sent_is_a_value_error_and_an_invalid_request(make: Make) -> None:
    with pytest.raises(errors.InvalidInputError) as raised:
        make().embed_documents(["fine", None])  # type: ignore[list-item]
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, theirs.ModelInvalidRequestError)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_of_the_package_is_a_model_error_here(name: str) -> None:
    from nexusflow_integrations.langchain.model_errors import native

    ours = getattr(errors, name)
    both = native(ours("in words"))
    assert type(both) is not ours
    assert isinstance(both, (ours, theirs.ModelError))
    assert isinstance(both, theirs.ModelError)
    assert str(both) == "in words"


def refusing(word: str, code: str, message: str = "no") -> Any:
    """Refuse every request that holds ``word``, else answer right."""

    def answer(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        texts = [texts] if isinstance(texts, str) else texts
        if any(word in text for text in texts):
            return response(400, {"error": {"code": code, "message": message}})
        data = [
            {"index": place, "embedding": [float(len(text))] * 64}
            for place, text in enumerate(texts)
        ]
        return response(200, {"data": data, "usage": {"total_tokens": len(texts)}})

    return answer


TEXTS = [f"text {number}" + ("!" * number) for number in range(23)]
FORBIDDEN = [*TEXTS[:5], "forbidden", *TEXTS[5:]]


def test_texts_that_are_refused_are_named_and_the_others_finished(answering: Make) -> None:
    with pytest.raises(errors.RefusedTextsError) as raised:
        answering(refusing("forbidden", "content_filter")).embed_documents(FORBIDDEN)
    error = raised.value
    assert isinstance(error, theirs.ModelInvalidRequestError)
    assert not isinstance(error, theirs.ContextOverflowError)
    assert set(error.refused) == {5}
    assert isinstance(error.refused[5], theirs.ModelInvalidRequestError)
    assert set(error.finished) == set(range(24)) - {5}
    assert error.finished[23].tolist() == [float(len(FORBIDDEN[23]))] * 64


def test_a_text_that_is_too_long_among_others_is_a_context_overflow(answering: Make) -> None:
    with pytest.raises(theirs.ContextOverflowError) as raised:
        answering(refusing("forbidden", "x", TOO_LONG)).embed_documents(FORBIDDEN)
    assert isinstance(raised.value, errors.RefusedTextsError)
    assert isinstance(raised.value.refused[5], theirs.ContextOverflowError)


def test_vectors_finished_before_a_failure_are_in_the_error(
    answering: Make,
) -> None:
    right = refusing("nothing", "")

    def answer(request: httpx.Request) -> httpx.Response:
        if b"text 22" in request.content:
            return response(404, {"error": {"code": "model_not_found"}})
        return right(request)

    with pytest.raises(theirs.ModelNotFoundError) as raised:
        answering(answer, max_concurrency=1).embed_documents(TEXTS)
    finished = raised.value.finished  # type: ignore[attr-defined]
    assert set(finished) == set(range(20))
    assert finished[7].dtype == np.float32


def same(error: Any, other: Any) -> bool:
    return type(error) is type(other) and str(error) == str(other)


def test_an_error_survives_pickling_with_all_it_holds(answering: Make) -> None:
    with pytest.raises(errors.RefusedTextsError) as raised:
        answering(refusing("forbidden", "x", TOO_LONG)).embed_documents(FORBIDDEN)
    again = pickle.loads(pickle.dumps(raised.value))
    assert same(again, raised.value)
    assert isinstance(again, theirs.ContextOverflowError)
    assert same(again.refused[5], raised.value.refused[5])
    assert set(again.finished) == set(raised.value.finished)

    with pytest.raises(errors.APITimeoutError) as late:
        answering(raising(httpx.ReadTimeout)).embed_query("a")
    again = pickle.loads(pickle.dumps(late.value))
    assert same(again, late.value)
    assert isinstance(again, (TimeoutError, theirs.ModelTimeoutError))


def test_a_traceback_shows_one_error_not_two(answering: Make) -> None:
    with pytest.raises(errors.NotFoundError) as raised:
        answering(saying(404)).embed_query("a")
    shown = "".join(traceback.format_exception(raised.value))
    assert shown.count("Traceback") == 1
    assert "client.py" in shown
    assert shown.rstrip().splitlines()[-1] == (
        "nexusflow_integrations.langchain.NotFoundError: 404 some_code: said the server"
    )


def test_the_key_is_in_no_error_even_where_the_server_echoes_it(answering: Make) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return response(401, {"error": {"message": request.headers["Authorization"]}})

    embeddings = answering(answer, api_key="sk-air-echoed-key")
    with pytest.raises(theirs.ModelAuthenticationError) as raised:
        embeddings.embed_query("a")
    shown = "".join(traceback.format_exception(raised.value)) + repr(vars(raised.value))
    assert "sk-air-echoed-key" not in shown
    assert b"sk-air-echoed-key" not in pickle.dumps(raised.value)


def test_a_wrong_key_at_a_real_server_is_an_authentication_error(
    make: Make, server: LocalServer
) -> None:
    with pytest.raises(theirs.ModelAuthenticationError):
        make(api_key="sk-air-wrong").embed_documents(["a"])
    assert server.stats.requests == 1


def test_an_error_of_another_kind_is_raised_unchanged_and_freed(
    answering: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(errors.NexusFlowError):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Own("of a subclass")

    embeddings = answering(saying(500))
    monkeypatch.setattr(embeddings.client, "_embed", fail)
    gc.disable()
    try:
        with suppress(Own):
            embeddings.embed_query("a")
        assert not any(isinstance(thing, Own) for thing in gc.get_objects())
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["embed_query", "embed_documents", "aembed_documents"])
def test_a_model_whose_call_has_failed_is_freed_without_the_garbage_collector(
    answering: Make, method: str
) -> None:
    async def fail_async(embeddings: NexusFlowEmbeddings) -> None:
        with pytest.raises(errors.AuthenticationError):
            await embeddings.aembed_documents(["a", "b"])

    def fail(embeddings: NexusFlowEmbeddings) -> None:
        with pytest.raises(errors.AuthenticationError):
            getattr(embeddings, method)("a" if method == "embed_query" else ["a", "b"])

    embeddings = answering(saying(401, "invalid_api_key"))
    presence = ref(embeddings.client._presence)
    gc.collect()
    gc.disable()
    try:
        if method == "aembed_documents":
            asyncio.run(fail_async(embeddings))
        else:
            fail(embeddings)
        del embeddings
        end = time.monotonic() + 60
        while presence() is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert presence() is None
    finally:
        gc.enable()
