"""Embeds texts with the embedding function of a collection, which may be a subclass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection

from nexusflow_integrations._core.call.streaming import Embedded
from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections.opening import fitting
from nexusflow_integrations.errors import (
    BadRequestError,
    ConfigurationError,
    InvalidInputError,
    NexusFlowError,
    RefusedTextsError,
)

if TYPE_CHECKING:
    from nexusflow_integrations._core.vectors import Vectors
    from nexusflow_integrations.client import NexusFlow

_AT_ONCE = 250
"""Texts per call of a subclass, which may change how texts are embedded."""


def check_kind(collection: object, kind: type, caller: str, twin: str) -> None:
    """Refuse a collection of the wrong kind (sync or async), before anything is read."""
    if isinstance(collection, kind):
        return
    if isinstance(collection, (Collection, AsyncCollection)):
        raise ConfigurationError(
            f"{caller} takes a {kind.__name__}, and this is {type(collection).__name__}: use {twin}"
        )
    raise ConfigurationError(
        f"{caller} takes a {kind.__name__} of Chroma, not {type(collection).__name__}"
    )


class Embedder:
    """Embeds texts, and counts the cost.

    Args:
        source: An embedding function, or a collection that was opened with one or stores one.

    Raises:
        ConfigurationError: The function is not a NexusFlow function, or differs from the
            collection's function.
    """

    def __init__(self, source: Collection | AsyncCollection | NexusFlowEmbeddingFunction) -> None:
        self.function = (
            source if isinstance(source, NexusFlowEmbeddingFunction) else _function_of(source)
        )
        self.client: NexusFlow = self.function.client
        self._plain = type(self.function) is NexusFlowEmbeddingFunction
        self._parts: list[Usage] = []
        self._before = self.client.usage

    @property
    def deadline(self) -> float | None:
        """Seconds for a whole call, if there is a limit."""
        return self.function._options.get("deadline")

    @property
    def usage(self) -> Usage:
        """The tokens, requests and cost of this run so far."""
        if self._plain:
            return sum(self._parts, Usage(price=self.client.usage.price))
        return _difference(self.client.usage, self._before)

    def again(self, texts: list[str]) -> list[Vectors | None]:
        """Return the service's current vectors, bypassing the cache: float32 of shape (d,) each.

        ``None`` stands for a text that cannot be sent again, because it is too long (it was split
        when it was stored) or because the service refuses it.
        """
        found: list[Vectors | None] = [None] * len(texts)
        left = list(range(len(texts)))
        while left:
            try:
                rows = self._again([texts[place] for place in left])
            except InvalidInputError as error:  # noqa: PERF203 - one try per request
                if error.index is None:
                    raise
                del left[error.index]  # the other texts were not sent
            except RefusedTextsError as error:
                for place, row in error.finished.items():
                    found[left[place]] = row
                break
            except NexusFlowError as error:
                if isinstance(error, BadRequestError) and len(left) == 1:
                    break
                error.finished = {}  # its positions do not refer to the source
                raise
            else:
                for place, row in zip(left, rows, strict=True):
                    found[place] = row
                break
        return found

    def _again(self, texts: list[str]) -> list[Vectors]:
        if self._plain:
            return [*self.client._uncached()._counted(self._parts.append).embed(texts)]
        return [np.asarray(row, np.float32) for row in self.function._uncached()(texts)]

    def stream(self, texts: Iterable[str]) -> Generator[Embedded, None, None]:
        """Yield the result of every text, in order, like ``NexusFlow.embed_stream``."""
        if self._plain:
            yield from self.client._counted(self._parts.append).embed_stream(texts)
            return
        rest, start = iter(texts), 0
        while chunk := list(islice(rest, _AT_ONCE)):
            yield from _results(self.function, chunk, start)
            start += len(chunk)

    async def astream(self, texts: AsyncIterable[str]) -> AsyncGenerator[Embedded, None]:
        """Yield the results of ``stream`` without blocking the event loop."""
        if self._plain:
            stream = self.client._counted(self._parts.append).aembed_stream(texts)
            try:
                async for embedded in stream:
                    yield embedded
            finally:
                await stream.aclose()
            return
        start = 0
        chunk: list[str] = []
        async for text in texts:
            chunk.append(text)
            if len(chunk) == _AT_ONCE:
                for embedded in await asyncio.to_thread(_results, self.function, chunk, start):
                    yield embedded
                start, chunk = start + len(chunk), []
        if chunk:
            for embedded in await asyncio.to_thread(_results, self.function, chunk, start):
                yield embedded


def _results(function: NexusFlowEmbeddingFunction, texts: list[str], start: int) -> list[Embedded]:
    found: dict[int, Any] = {}
    left = list(range(len(texts)))
    while left:
        try:
            rows = _rows(function, [texts[place] for place in left])
        except InvalidInputError as error:  # noqa: PERF203 - one try per call of the function
            if error.index is None:
                raise
            found[left.pop(error.index)] = error  # the other texts were not sent
        except NexusFlowError as error:
            places = [start + place for place in left]
            error.finished = {places[place]: row for place, row in error.finished.items()}
            raise
        else:
            found.update(zip(left, rows, strict=True))
            left = []
    return [
        Embedded(start + place, None, found[place])
        if isinstance(found[place], NexusFlowError)
        else Embedded(start + place, np.asarray(found[place], np.float32))
        for place in range(len(texts))
    ]


def _rows(function: NexusFlowEmbeddingFunction, texts: list[str]) -> list[Any]:
    """Return the vector of each text, or the server's refusal."""
    try:
        rows = list(function(texts))
    except RefusedTextsError as error:
        both = {**error.finished, **error.refused}
        return [both[place] for place in range(len(texts))]
    except BadRequestError as error:
        if len(texts) > 1:
            raise
        return [error]
    if len(rows) != len(texts):
        raise ConfigurationError(
            f"{type(function).__name__} gave {count(len(rows), 'vector')} for"
            f" {count(len(texts), 'document')}"
        )
    return rows


def _difference(after: Usage, before: Usage) -> Usage:
    counts = {
        name: getattr(after, name) - getattr(before, name)
        for name in vars(after)
        if name != "price"
    }
    return Usage(**counts, price=after.price)


def _function_of(collection: Collection | AsyncCollection) -> NexusFlowEmbeddingFunction:
    own = collection._embedding_function
    if not isinstance(own, NexusFlowEmbeddingFunction):
        return fitting(collection, None)
    if (collection.configuration_json.get("embedding_function") or {}).get("name"):
        fitting(collection, own)
    return own
