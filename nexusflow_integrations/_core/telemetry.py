"""OpenTelemetry for one call: one span for all its requests and retries, and two metrics.

The module uses only the OpenTelemetry API (extra ``otel``), and only if the application has
imported it. Otherwise the cost is one dictionary lookup per call. Texts and vectors are never
recorded.

Names follow the GenAI semantic conventions for embeddings (status: development), as emitted by the
published Python packages. If the application uses OpenInference, which has its own names for
tokens, the tokens are recorded under those names, too: on the span of LlamaIndex's embedding model,
if there is one, else on the span of this call.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations._core.usage import Ledger

SCOPE = "nexusflow_integrations"
OPERATION = "embeddings"
PROVIDER = "nexusflow"
DURATION = "gen_ai.client.operation.duration"
TOKENS = "gen_ai.client.token.usage"

_UNOBSERVED = nullcontext()

_OPENINFERENCE = "openinference.instrumentation"
_TOKEN_COUNTS = ("llm.token_count.prompt", "llm.token_count.total")
_OF_LLAMA_INDEX = {
    *("get_text_embedding", "get_query_embedding", "get_text_embedding_batch", "__call__"),
    *("aget_text_embedding", "aget_query_embedding", "aget_text_embedding_batch", "acall"),
}
"""Methods of an embedding model for which OpenInference makes a span named after the method."""


def observed(settings: Settings, ledger: Ledger) -> AbstractContextManager[None]:
    """Record the block as one embeddings operation, with the usage in ``ledger``."""
    api = sys.modules.get("opentelemetry.trace")
    return _UNOBSERVED if api is None else _spanned(api, settings, ledger)


@contextmanager
def _spanned(api: Any, settings: Settings, ledger: Ledger) -> Iterator[None]:
    common = _attributes(settings)
    span = outer = None
    current = ExitStack()
    with _NEVER_FAILING:
        outer = api.get_current_span() if _OPENINFERENCE in sys.modules else None
        span = api.get_tracer(SCOPE).start_span(
            f"{OPERATION} {settings.model}", kind=api.SpanKind.CLIENT, attributes=common
        )
        current.enter_context(
            api.use_span(span, record_exception=False, set_status_on_exception=False)
        )
    started = time.perf_counter()
    failure: dict[str, str | int] = {}
    try:
        yield
    except BaseException as error:
        name = failure["error.type"] = type(error).__qualname__
        if span is not None:
            with _NEVER_FAILING:
                span.set_attribute("error.type", name)
                # Leave out the message: the server may quote a text in it.
                span.set_status(api.StatusCode.ERROR, name)
        raise
    finally:
        seconds = time.perf_counter() - started
        with _NEVER_FAILING:
            current.close()
        if span is not None:
            with _NEVER_FAILING:
                _describe(span, outer, settings, ledger.tokens)
            with _NEVER_FAILING:
                span.end()
        with _NEVER_FAILING:
            _measure(common | failure, seconds, ledger.tokens)


class _NeverFailing(AbstractContextManager[None]):
    """Ignores errors of the application's telemetry, but not errors of signal handlers.

    Only the first error of the process is logged.
    """

    _has_said = False

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, Exception) or raised_by_signal_handler(error):
            return False
        if not self._has_said:
            self._has_said = True
            logger.warning(
                "OpenTelemetry could not record a call (%s); further such errors are not logged",
                type(error).__name__,
            )
        return True


_NEVER_FAILING = _NeverFailing()


def _describe(span: Any, outer: Any, settings: Settings, tokens: int) -> None:
    span.set_attribute("gen_ai.usage.input_tokens", tokens)
    if outer is not None:
        _count_tokens(span, outer, settings.model, tokens)
    if settings.dimensions is not None:
        span.set_attribute("gen_ai.embeddings.dimension.count", settings.dimensions)
    span.set_attribute("gen_ai.request.encoding_formats", [settings.encoding_format])


def _of_llama_index(span: Any) -> bool:
    name = str(getattr(span, "name", "")).rpartition(".")[2]
    return name in _OF_LLAMA_INDEX and bool(span.is_recording())


def _count_tokens(span: Any, outer: Any, model: str, tokens: int) -> None:
    """Record ``tokens`` under OpenInference's names on ``outer``, or else on ``span``."""
    before: Mapping[str, Any] = {}
    if _of_llama_index(outer):  # one method may make several calls
        span, before = outer, getattr(outer, "attributes", None) or {}
    else:
        span.set_attribute("openinference.span.kind", "EMBEDDING")
        span.set_attribute("embedding.model_name", model)
    for name in _TOKEN_COUNTS:
        span.set_attribute(name, int(before.get(name, 0)) + tokens)


def _attributes(settings: Settings) -> dict[str, str | int]:
    address = urlsplit(settings.base_url)
    return {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": settings.model,
        "server.address": address.hostname or "",
        "server.port": address.port or (443 if address.scheme == "https" else 80),
    }


def _measure(attributes: dict[str, str | int], seconds: float, tokens: int) -> None:
    metrics = sys.modules.get("opentelemetry.metrics")
    if metrics is None:
        return
    duration, usage = _instruments(metrics)
    duration.record(seconds, attributes)
    if tokens:
        usage.record(tokens, attributes | {"gen_ai.token.type": "input"})


@lru_cache(maxsize=1)
def _instruments(metrics: Any) -> tuple[Any, Any]:
    meter = metrics.get_meter(SCOPE)
    return (
        meter.create_histogram(DURATION, unit="s", description="Duration of a call"),
        meter.create_histogram(TOKENS, unit="{token}", description="Tokens billed for a call"),
    )
