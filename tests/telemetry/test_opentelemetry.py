"""A tracing application gets spans and metrics of each call, exported to memory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nexusflow_integrations import NexusFlow, NexusFlowError
from nexusflow_integrations._core import telemetry
from nexusflow_integrations.local import LocalServer

SECRET_TEXT = "a text that no trace may hold"


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[InMemorySpanExporter, Any]]:
    spans = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)
    monkeypatch.setattr(metrics, "get_meter", meters.get_meter)
    # Another test of this process may have imported OpenInference.
    monkeypatch.delitem(sys.modules, "openinference.instrumentation", raising=False)
    telemetry._instruments.cache_clear()
    yield spans, reader
    telemetry._instruments.cache_clear()
    tracers.shutdown()
    meters.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(model="hash") as running:
        yield running


def _points(reader: Any, name: str) -> list[Any]:
    data = reader.get_metrics_data()
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def test_one_call_is_one_client_span_with_the_conventions_names(
    recorded: tuple[InMemorySpanExporter, Any], server: LocalServer
) -> None:
    client = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64)
    client.embed([f"{SECRET_TEXT} {i}" for i in range(35)])
    (span,) = recorded[0].get_finished_spans()
    assert span.name == "embeddings text-embedding-v4"
    assert span.kind is trace.SpanKind.CLIENT
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "nexusflow",
        "gen_ai.request.model": "text-embedding-v4",
        "gen_ai.embeddings.dimension.count": 64,
        "gen_ai.request.encoding_formats": ("base64",),
        "gen_ai.usage.input_tokens": client.usage.tokens,
        "server.address": "127.0.0.1",
        "server.port": server.port,
    }


def test_no_text_and_no_key_is_recorded(
    recorded: tuple[InMemorySpanExporter, Any], server: LocalServer
) -> None:
    client = NexusFlow("sk-air-never-traced", base_url=server.base_url, dimensions=64)
    client.embed([SECRET_TEXT, "another"])
    (span,) = recorded[0].get_finished_spans()
    assert SECRET_TEXT not in span.to_json()
    assert "sk-air-never-traced" not in span.to_json()


def test_a_text_that_the_server_quotes_in_an_error_is_not_recorded(
    recorded: tuple[InMemorySpanExporter, Any], server: LocalServer
) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": {"message": f"bad input: {SECRET_TEXT}"}})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    client = NexusFlow("sk", base_url=server.base_url, dimensions=64, http_client=http)
    with pytest.raises(NexusFlowError, match=SECRET_TEXT):
        client.embed([SECRET_TEXT, "another"])
    (span,) = recorded[0].get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert SECRET_TEXT not in span.to_json()


def test_both_client_metrics_are_recorded(
    recorded: tuple[InMemorySpanExporter, Any], server: LocalServer
) -> None:
    client = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64)
    client.embed(["one", "two"])
    (duration,) = _points(recorded[1], "gen_ai.client.operation.duration")
    assert duration.count == 1
    (tokens,) = _points(recorded[1], "gen_ai.client.token.usage")
    assert tokens.sum == client.usage.tokens
    assert tokens.attributes["gen_ai.token.type"] == "input"


def test_a_failure_sets_the_error_type_and_ends_the_span(
    recorded: tuple[InMemorySpanExporter, Any], server: LocalServer
) -> None:
    client = NexusFlow(
        server.api_key, base_url=server.base_url, model="no-such-model", dimensions=64
    )
    with pytest.raises(NexusFlowError):
        client.embed("text")
    (span,) = recorded[0].get_finished_spans()
    assert span.attributes["error.type"] == "NotFoundError"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert not span.events  # no traceback, which would hold the texts


async def test_an_async_call_nests_under_the_callers_span(
    recorded: tuple[InMemorySpanExporter, Any], server: LocalServer
) -> None:
    client = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64)
    with trace.get_tracer("application").start_as_current_span("request") as parent:
        await client.aembed(["one"])
    ours = recorded[0].get_finished_spans()[0]
    assert ours.parent.span_id == parent.get_span_context().span_id


class Processor(SpanProcessor):
    """A user's span processor with a bug."""

    def __init__(self, method: str) -> None:
        setattr(self, method, self._fail)

    def _fail(self, *_: object, **__: object) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("method", ["on_start", "on_end"])
def test_an_error_of_the_telemetry_fails_no_call(
    recorded: tuple[InMemorySpanExporter, Any],
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    monkeypatch.setattr(telemetry, "_NEVER_FAILING", telemetry._NeverFailing())
    tracers = TracerProvider()
    tracers.add_span_processor(Processor(method))
    monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)
    client = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64)
    texts = [f"{SECRET_TEXT} {i}" for i in range(35)]
    assert client.embed(texts).shape == (35, 64)
    assert asyncio.run(client.aembed(texts)).shape == (35, 64)
    assert all(row.error is None for row in client.embed_stream(texts))
    assert client.usage.texts == 3 * 35
    assert [point.count for point in _points(recorded[1], telemetry.DURATION)] == [3]
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_an_error_of_the_telemetry_does_not_replace_the_error_of_a_call(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracers = TracerProvider()
    tracers.add_span_processor(Processor("on_end"))
    monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)
    client = NexusFlow(server.api_key, base_url=server.base_url, model="unknown-model")
    with pytest.raises(NexusFlowError):
        client.embed("a")


def test_an_application_without_opentelemetry_pays_no_import(server: LocalServer) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from nexusflow_integrations import NexusFlow;"
        f"NexusFlow('k', base_url={server.base_url!r}, dimensions=64).embed('x');"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_with_openinference_a_call_also_has_its_names_for_tokens(
    recorded: tuple[InMemorySpanExporter, Any],
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openinference.instrumentation", sys)
    client = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64)
    client.embed(["a b c", "d"])
    (span,) = recorded[0].get_finished_spans()
    assert span.attributes is not None
    tokens = client.usage.tokens
    assert span.attributes["openinference.span.kind"] == "EMBEDDING"
    assert span.attributes["embedding.model_name"] == "text-embedding-v4"
    assert span.attributes["llm.token_count.prompt"] == tokens > 0
    assert span.attributes["llm.token_count.total"] == tokens


def test_the_span_of_a_program_of_its_own_gets_no_tokens(
    recorded: tuple[InMemorySpanExporter, Any],
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openinference.instrumentation", sys)
    client = NexusFlow(server.api_key, base_url=server.base_url, dimensions=64)
    with trace.get_tracer("app").start_as_current_span("GET /search"):
        client.embed("a")
    outer = next(span for span in recorded[0].get_finished_spans() if span.name == "GET /search")
    assert dict(outer.attributes or {}) == {}
