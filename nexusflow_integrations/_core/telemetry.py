"""OpenTelemetry for one call: a span over all its requests and retries, and two metrics.

Uses only the OpenTelemetry API (extra ``otel``), and only if the application has imported it.
Otherwise the cost is one dictionary look-up per call. Texts and vectors are never recorded.

Names follow the GenAI semantic conventions for embeddings (status: development), as emitted by the
published Python packages.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import Ledger

SCOPE = "nexusflow_integrations"
OPERATION = "embeddings"
PROVIDER = "nexusflow"
DURATION = "gen_ai.client.operation.duration"
TOKENS = "gen_ai.client.token.usage"

_UNOBSERVED = nullcontext()


def observed(settings: Settings, ledger: Ledger) -> AbstractContextManager[None]:
    """Record the block as one embeddings operation, with the usage in ``ledger``."""
    api = sys.modules.get("opentelemetry.trace")
    return _UNOBSERVED if api is None else _spanned(api, settings, ledger)


@contextmanager
def _spanned(api: Any, settings: Settings, ledger: Ledger) -> Iterator[None]:
    common = _attributes(settings)
    span = api.get_tracer(SCOPE).start_span(
        f"{OPERATION} {settings.model}", kind=api.SpanKind.CLIENT, attributes=common
    )
    started = time.perf_counter()
    failure: dict[str, str | int] = {}
    try:
        with api.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as error:
        name = failure["error.type"] = type(error).__qualname__
        span.set_attribute("error.type", name)
        span.set_status(api.StatusCode.ERROR, str(error) if isinstance(error, Exception) else "")
        raise
    finally:
        span.set_attribute("gen_ai.usage.input_tokens", ledger.tokens)
        if settings.dimensions is not None:
            span.set_attribute("gen_ai.embeddings.dimension.count", settings.dimensions)
        span.set_attribute("gen_ai.request.encoding_formats", [settings.encoding_format])
        span.end()
        _measure(common | failure, time.perf_counter() - started, ledger.tokens)


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
