"""Observers get a start and an end for each request, in one span, with the billed tokens."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import singledispatch
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, EventPayload, TokenCountingHandler
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler

from nexusflow_integrations import Usage
from nexusflow_integrations._core.call.coalescing import Coalescer
from nexusflow_integrations._core.request.blocking import BlockingSender
from nexusflow_integrations.errors import AuthenticationError, NexusFlowError
from nexusflow_integrations.llama_index import (
    NexusFlowEmbedding,
    NexusFlowEmbeddingEndEvent,
)
from nexusflow_integrations.llama_index import (
    events as module,
)
from nexusflow_integrations.local import LocalServer

Batch = Callable[..., list[list[float]]]
Texts = Callable[..., list[str]]


def test_every_request_has_one_start_and_one_end_under_one_span(
    batch: Batch,
    way: str,
    embedding: NexusFlowEmbedding,
    server: LocalServer,
    texts: Texts,
    events: Any,
    spans: Any,
) -> None:
    found = batch(embedding, texts(95))
    started, ended = events.named("EmbeddingStartEvent"), events.named("EmbeddingEndEvent")
    assert len(started) == len(ended) == server.stats.requests == 10
    (span,) = spans.of("get_text_embedding_batch" if way == "sync" else "aget_text_embedding_batch")
    assert {event.span_id for event in [*started, *ended]} == {span}
    seen = {t: v for event in ended for t, v in zip(event.chunks, event.embeddings, strict=True)}
    assert seen == dict(zip(texts(95), found, strict=True))


@pytest.mark.parametrize("role", ["query", "text"])
def test_one_text_has_one_start_and_one_end_under_its_span(
    single: Any, way: str, role: str, embedding: NexusFlowEmbedding, events: Any, spans: Any
) -> None:
    vector = single(embedding, role, "some text")
    (started,) = events.named("EmbeddingStartEvent")
    (ended,) = events.named("EmbeddingEndEvent")
    (span,) = spans.of(f"{'a' if way == 'async' else ''}get_{role}_embedding")
    assert started.span_id == ended.span_id == span
    assert (ended.chunks, ended.embeddings) == (["some text"], [vector])


@pytest.mark.parametrize("role", ["query", "text"])
def test_a_later_text_is_sent_by_the_calling_thread_and_has_the_same_events(
    role: str,
    embedding: NexusFlowEmbedding,
    events: Any,
    spans: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedding.get_query_embedding("a first text, through the event loop")
    senders, send = [], BlockingSender.send

    def noting(self: Any, *arguments: Any) -> Any:
        senders.append(threading.current_thread())
        return send(self, *arguments)

    monkeypatch.setattr(BlockingSender, "send", noting)
    vector = getattr(embedding, f"get_{role}_embedding")("some text")
    assert senders == [threading.current_thread()]
    *_, started = events.named("EmbeddingStartEvent")
    *_, ended = events.named("EmbeddingEndEvent")
    assert started.span_id == ended.span_id == spans.of(f"get_{role}_embedding")[-1]
    assert (ended.chunks, ended.embeddings) == (["some text"], [vector])
    assert (ended.usage.texts, ended.usage.requests) == (1, 1)


@pytest.mark.parametrize("seen", ["at once", "after the start"])
def test_a_text_that_another_call_is_sending_has_no_event_or_one_without_usage(
    seen: str,
    slowly: Callable[..., NexusFlowEmbedding],
    slow_server: LocalServer,
    events: Any,
    heard: CallbackManager,
    callbacks: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if seen == "after the start":  # as if the other call began only then
        monkeypatch.setattr(Coalescer, "holds_any", lambda *_: False)
    embedding = slowly(callback_manager=heard)
    embedding.get_text_embedding("a first text, through the event loop")
    sent = slow_server.stats.requests
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embedding.get_text_embedding, "the same text")
        deadline = time.monotonic() + 60
        while slow_server.stats.in_flight == 0 and time.monotonic() < deadline:
            time.sleep(0.005)
        second = pool.submit(embedding.get_text_embedding, "the same text")
        assert first.result(60) == second.result(60)
    assert slow_server.stats.requests == sent + 1
    ended = events.named("EmbeddingEndEvent")
    without_usage = 0 if seen == "at once" else 1
    assert len(events.named("EmbeddingStartEvent")) == len(ended) == 2 + without_usage
    for end in ended[1:]:
        assert (end.chunks, end.embeddings) == (["the same text"], [first.result()])
    assert sum(end.usage is None for end in ended) == without_usage
    assert callbacks.ended.keys() == callbacks.started.keys()
    assert all(EventPayload.EXCEPTION not in end for end in callbacks.ended.values())


class Listening(CallbackManager):
    """A callback manager without handlers that listens itself."""

    def __init__(self) -> None:
        super().__init__([])
        self.started: list[Any] = []

    def on_event_start(self, *arguments: Any, **options: Any) -> str:
        event = super().on_event_start(*arguments, **options)
        self.started.append(event)
        return event


class Ear(BaseEventHandler):
    """An event handler that does nothing, but is not LlamaIndex's own."""

    def handle(self, event: Any, **_: Any) -> None:
        pass


@pytest.mark.parametrize("listener", ["none", "manager", "patched manager", "own dispatcher"])
def test_events_are_made_only_if_something_listens(
    listener: str,
    batch: Batch,
    way: str,
    single: Any,
    embedding: NexusFlowEmbedding,
    texts: Texts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    class Noted(EmbeddingStartEvent):
        def model_post_init(self, context: Any) -> None:
            made.append(self)

    monkeypatch.setattr(module, "EmbeddingStartEvent", Noted)
    own = get_dispatcher("nexusflow_integrations.llama_index.embedding")
    manager = Listening()
    if listener == "manager":
        embedding.callback_manager = manager
    if listener == "patched manager":
        monkeypatch.setattr(embedding.callback_manager, "on_event_end", lambda *_, **__: None)
    if listener == "own dispatcher":
        monkeypatch.setattr(own, "event_handlers", [Ear()])
    found = batch(embedding, [*texts(25), "text number 3"])
    assert found == [single(embedding, "text", text) for text in [*texts(25), "text number 3"]]
    assert found[3] == found[25]
    assert found[3] is not found[25]
    count = 0 if listener == "none" else 3 + 26
    assert len(made) == count
    assert len(manager.started) == (count if listener == "manager" else 0)


def test_a_model_whose_callback_manager_is_removed_embeds_without_a_warning(
    embedding: NexusFlowEmbedding,
    batch: Batch,
    texts: Texts,
    single: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Doubling(NexusFlowEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return super()._get_query_embedding(query) * 2

    own = Doubling(api_key=embedding.api_key, api_base=embedding.api_base, dimensions=64)
    embedding.callback_manager = own.callback_manager = None  # type: ignore[assignment]
    assert len(batch(embedding, texts(25))) == 25
    assert len(own.get_query_embedding("a question")) == 128
    assert not caplog.records


def test_the_usage_of_the_ends_is_what_the_server_billed(
    batch: Batch,
    single: Any,
    embedding: NexusFlowEmbedding,
    server: LocalServer,
    texts: Texts,
    events: Any,
) -> None:
    batch(embedding, texts(95))
    single(embedding, "query", "some text")
    single(embedding, "text", "some text")
    usages = [event.usage for event in events.named("EmbeddingEndEvent")]
    assert [usage.requests for usage in usages] == [1] * 12
    assert sum(usage.texts for usage in usages) == embedding.usage.texts == 97
    assert sum(usage.tokens for usage in usages) == server.stats.tokens > 0
    assert embedding.usage.tokens == server.stats.tokens


def test_the_start_tells_the_model_and_size_and_no_secret(
    embedding: NexusFlowEmbedding, events: Any
) -> None:
    embedding.get_text_embedding("some text")
    (started,) = events.named("EmbeddingStartEvent")
    assert started.model_dict == {
        "class_name": "NexusFlowEmbedding",
        "model_name": "text-embedding-v4",
        "embed_batch_size": 10,
        "dimensions": 64,
    }


def test_neither_events_nor_callbacks_nor_spans_know_the_key(
    batch: Batch,
    server: LocalServer,
    key: str,
    heard: CallbackManager,
    callbacks: Any,
    events: Any,
    spans: Any,
) -> None:
    embedding = NexusFlowEmbedding(
        api_key=key, api_base=server.base_url, dimensions=64, callback_manager=heard
    )
    batch(embedding, ["some text"])
    seen = f"{events._seen} {callbacks.started} {callbacks.ended} {spans._parents}"
    assert "some text" in seen
    assert key not in seen


def test_the_end_event_is_valid_and_can_be_dumped(
    embedding: NexusFlowEmbedding, events: Any
) -> None:
    embedding.get_text_embedding("some text")
    (ended,) = events.named("EmbeddingEndEvent")
    again = NexusFlowEmbeddingEndEvent.model_validate(ended.model_dump())
    assert again.embeddings == ended.embeddings
    assert again.usage == ended.usage


def test_handlers_that_dispatch_on_the_event_class_handle_ours(
    embedding: NexusFlowEmbedding, events: Any
) -> None:
    @singledispatch
    def handle(event: Any) -> str:
        return "unhandled"

    @handle.register
    def _(event: EmbeddingEndEvent) -> str:
        return "end of an embedding"

    embedding.get_text_embedding("some text")
    (ended,) = events.named("EmbeddingEndEvent")
    assert handle(ended) == "end of an embedding"


def test_openinference_records_our_events_without_complaint(
    embedding: NexusFlowEmbedding, caplog: pytest.LogCaptureFixture, texts: Texts
) -> None:
    openinference = pytest.importorskip("openinference.instrumentation.llama_index")
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

    exporter = memory.InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    instrumentor = openinference.LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    try:
        with caplog.at_level(logging.WARNING):
            embedding.get_text_embedding_batch(texts(12))
    finally:
        instrumentor.uninstrument()
    assert caplog.records == []
    (span,) = exporter.get_finished_spans()
    assert span.attributes["embedding.embeddings.11.embedding.text"] == "text number 11"
    assert span.attributes["embedding.model_name"] == "text-embedding-v4"
    tokens = embedding.usage.tokens
    assert tokens > 0
    assert span.attributes["llm.token_count.prompt"] == tokens
    assert span.attributes["llm.token_count.total"] == tokens


def test_callbacks_come_in_pairs_with_texts_and_vectors(
    batch: Batch,
    embedding: NexusFlowEmbedding,
    texts: Texts,
    heard: CallbackManager,
    callbacks: Any,
) -> None:
    embedding.callback_manager = heard
    found = batch(embedding, texts(95))
    assert len(callbacks.started) == 10
    assert callbacks.ended.keys() == callbacks.started.keys()
    rows = [row for end in callbacks.ended.values() for row in end[EventPayload.EMBEDDINGS]]
    assert sorted(rows) == sorted(found)
    chunks = [text for end in callbacks.ended.values() for text in end[EventPayload.CHUNKS]]
    assert sorted(chunks) == sorted(texts(95))


def test_callbacks_come_in_pairs_after_a_failure_too(
    batch: Batch, upstream: Any, texts: Texts, heard: CallbackManager, callbacks: Any
) -> None:
    upstream.answer = lambda asked: upstream.UNAUTHORIZED if "text number 50" in asked else None
    with pytest.raises(AuthenticationError) as caught:
        batch(upstream.embedding(callback_manager=heard, num_workers=2), texts(200))
    assert callbacks.ended.keys() == callbacks.started.keys()
    failed = [end for end in callbacks.ended.values() if EventPayload.EXCEPTION in end]
    assert failed
    assert all(end == {EventPayload.EXCEPTION: caught.value} for end in failed)
    fine = [end for end in callbacks.ended.values() if EventPayload.CHUNKS in end]
    assert len(fine) == len(upstream.requests) - 1


@pytest.mark.parametrize("role", ["query", "text"])
def test_the_callbacks_of_one_text_come_in_pairs_after_a_failure_too(
    single: Any, role: str, upstream: Any, heard: CallbackManager, callbacks: Any
) -> None:
    upstream.answer = lambda asked: upstream.UNAUTHORIZED
    with pytest.raises(AuthenticationError) as caught:
        single(upstream.embedding(callback_manager=heard), role, "some text")
    (end,) = callbacks.ended.values()
    assert end == {EventPayload.EXCEPTION: caught.value}


def test_callbacks_come_in_pairs_after_a_cancellation_too(
    upstream: Any, texts: Texts, heard: CallbackManager, callbacks: Any
) -> None:
    upstream.answer = lambda asked: 30.0

    async def main() -> None:
        embedding = upstream.embedding(callback_manager=heard)
        work = asyncio.create_task(embedding.aget_text_embedding_batch(texts(50)))
        while len(callbacks.started) < 5:
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(main())
    assert len(callbacks.started) == 5
    assert callbacks.ended.keys() == callbacks.started.keys()


def test_the_span_of_a_failed_batch_is_dropped_once(
    batch: Batch, upstream: Any, texts: Texts, events: Any, spans: Any
) -> None:
    upstream.answer = lambda asked: upstream.UNAUTHORIZED
    with pytest.raises(NexusFlowError):
        batch(upstream.embedding(), texts(30))
    (dropped,) = events.named("SpanDropEvent")
    assert "get_text_embedding_batch" in dropped.span_id
    assert spans.open_spans == {}


def test_the_token_counting_handler_counts_every_text_once(
    batch: Batch, embedding: NexusFlowEmbedding, texts: Texts
) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    embedding.callback_manager = CallbackManager([counter])
    batch(embedding, texts(95))
    assert counter.total_embedding_token_count == 95 * 3


def test_the_callback_manager_that_llama_index_sets_is_the_one_called(
    embedding: NexusFlowEmbedding, heard: CallbackManager, callbacks: Any
) -> None:
    Settings.callback_manager = heard
    Settings.embed_model = embedding
    Settings.embed_model.get_text_embedding("some text")
    assert len(callbacks.ended) == 1


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What an OpenTelemetry exporter gets."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    return exporter


def test_a_batch_is_one_opentelemetry_span_over_all_its_requests(
    batch: Batch, embedding: NexusFlowEmbedding, server: LocalServer, texts: Texts, traced: Any
) -> None:
    batch(embedding, texts(95))
    (span,) = traced.get_finished_spans()
    assert span.name == "embeddings text-embedding-v4"
    assert span.attributes["gen_ai.usage.input_tokens"] == server.stats.tokens
    assert "text number" not in span.to_json()


def test_a_failed_batch_is_one_opentelemetry_span_with_the_error(
    batch: Batch, upstream: Any, texts: Texts, traced: Any
) -> None:
    upstream.answer = lambda asked: upstream.UNAUTHORIZED
    with pytest.raises(AuthenticationError):
        batch(upstream.embedding(), texts(30))
    (span,) = traced.get_finished_spans()
    assert span.attributes["error.type"] == "AuthenticationError"


def test_on_usage_is_called_once_per_call(
    batch: Batch, single: Any, upstream: Any, texts: Texts
) -> None:
    told: list[Usage] = []
    embedding = upstream.embedding(on_usage=told.append)
    batch(embedding, [*texts(25), *texts(5)])
    single(embedding, "query", "q")
    assert [(usage.requests, usage.texts, usage.repeated) for usage in told] == [
        (3, 30, 5),
        (1, 1, 0),
    ]
    assert embedding.usage == told[0] + told[1]


@pytest.mark.parametrize("at", ["on_event_start", "on_event_end"])
def test_a_callback_that_raises_loses_no_vector(
    batch: Batch,
    upstream: Any,
    texts: Texts,
    heard: CallbackManager,
    callbacks: Any,
    at: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("of the callback")

    setattr(callbacks, at, fail)
    with caplog.at_level(logging.WARNING):
        found = batch(upstream.embedding(callback_manager=heard), texts(40))
    assert found == [upstream.vector_of(text) for text in texts(40)]
    (record,) = caplog.records
    assert "ZeroDivisionError" in record.getMessage()
