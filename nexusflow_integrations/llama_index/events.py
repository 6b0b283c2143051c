"""The events of LlamaIndex that a call sends."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import NullEventHandler

from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations._core.usage import Usage

_OWN_METHODS = [CallbackManager.on_event_start, CallbackManager.on_event_end]
# A user's event handlers may be at the dispatcher of this name.
_dispatcher = get_dispatcher("nexusflow_integrations.llama_index.embedding")


class NexusFlowEmbeddingEndEvent(EmbeddingEndEvent):
    """LlamaIndex's event at the end of a request, with the usage that the API billed.

    The class has the ``class_name`` of the original event, so that handlers of the original handle
    it, too.

    Attributes:
        usage: The numbers of texts and requests, and the tokens and cost that the API billed;
            ``None`` if nothing was sent.
    """

    usage: Usage | None = None


class Events:
    """The events of one call; every start event gets an end event with the vectors or the error."""

    def __init__(self, payload: dict[str, Any], callbacks: CallbackManager) -> None:
        self._payload, self._callbacks = payload, callbacks
        self._open: dict[str, None] = {}

    @property
    def are_heard(self) -> bool:
        """Whether a handler gets the events; making them takes longer than making the lists."""
        manager = self._callbacks
        methods = [
            getattr(method, "__func__", None)
            for method in (manager.on_event_start, manager.on_event_end)
        ]
        if methods != _OWN_METHODS or manager.handlers:
            return True  # another method may listen without a handler
        dispatcher = _dispatcher
        while all(type(handler) is NullEventHandler for handler in dispatcher.event_handlers):
            if not dispatcher.propagate:
                return False
            dispatcher = dispatcher.parent
        return True

    def start(self) -> str:
        _dispatcher.event(EmbeddingStartEvent(model_dict=self._payload))
        event = self._callbacks.on_event_start(
            CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: self._payload}
        )
        self._open[event] = None
        return event

    def end(
        self, event: str, texts: list[str], vectors: list[list[float]], usage: Usage | None
    ) -> None:
        del self._open[event]
        self._callbacks.on_event_end(
            CBEventType.EMBEDDING,
            payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: vectors},
            event_id=event,
        )
        ended = NexusFlowEmbeddingEndEvent(chunks=texts, embeddings=[], usage=usage)
        ended.embeddings = vectors  # skip the validation, which would copy every number
        _dispatcher.event(ended)

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for event in self._open:
            try:
                self._callbacks.on_event_end(
                    CBEventType.EMBEDDING, payload={EventPayload.EXCEPTION: error}, event_id=event
                )
            except Exception as failure:  # noqa: PERF203 - the error of the call is more important
                if raised_by_signal_handler(failure):
                    raise
                logger.warning("ignoring an error of a callback: %r", failure)
