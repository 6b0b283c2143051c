"""The ``embeddings_cache`` of LlamaIndex during one call."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.settings import Role
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.llama_index.steps import Step

if TYPE_CHECKING:
    from nexusflow_integrations.llama_index.embedding import NexusFlowEmbedding

_COLLECTION = "embeddings"  # LlamaIndex gives the collection of an embeddings_cache this name
_AT_ONCE = 64
"""Maximum operations of an ``embeddings_cache`` that an async call runs at once."""
_PATIENCE = 3
"""Consecutive failures of an ``embeddings_cache`` after which a call stops using it."""

Vector = list[float]
Rows = dict[int, tuple[Vector, Vectors]]
"""The vector of each text by index, as a list and as float32 of shape (d,)."""


class Store:
    """The ``embeddings_cache`` during one call.

    Its first failure is logged. After a few failures in a row, the call continues without it.
    """

    def __init__(self, embedding: NexusFlowEmbedding, role: Role, *, own: bool = False) -> None:
        self._embedding = embedding
        self._store: Any = embedding.embeddings_cache
        self._size = embedding.dimensions
        if self.exists:
            self._key = keys(embedding, role, own=own)
        self._failures = {"read": 0, "write": 0}
        self._warned = embedding._store_fails

    @property
    def exists(self) -> bool:
        return self._store is not None

    def read(self, texts: list[str]) -> Step:
        """Return the step that reads the stored vectors of ``texts``, by index."""
        return Step(partial(self._read, texts), partial(self._aread, texts))

    def write(self, rows: Mapping[str, Vector]) -> Step:
        """Return the step that stores the vectors of ``rows``, by text."""
        return Step(partial(self._write, rows), partial(self._awrite, rows))

    def _read(self, texts: list[str]) -> Rows:
        found: Rows = {}
        for place, text in enumerate(texts):
            if self._gave_up("read"):
                break
            try:
                value = self._store.get(self._key(text), collection=_COLLECTION)
            except Exception as error:  # noqa: BLE001 - `_failed` decides
                self._failed("read", error)
            else:
                self._take(value, place, found)
        return found

    async def _aread(self, texts: list[str]) -> Rows:
        found: Rows = {}

        async def read(place: int, text: str) -> None:
            value = await self._store.aget(self._key(text), collection=_COLLECTION)
            self._take(value, place, found)

        await self._at_once("read", [partial(read, *item) for item in enumerate(texts)])
        return found

    def _take(self, value: Any, place: int, found: Rows) -> None:
        self._worked("read")
        try:
            row = list(next(iter(value.values())))
            vector = np.asarray(row, dtype=np.float32)
        except (AttributeError, StopIteration, TypeError, ValueError):
            return  # the stored value is not a vector
        right = vector.ndim == 1 and row and len(row) == (self._size or len(row))
        if right and np.isfinite(vector).all():
            found[place] = row, vector

    def _write(self, rows: Mapping[str, Vector]) -> None:
        for text, row in rows.items():
            if self._gave_up("write"):
                break
            try:
                self._store.put(self._key(text), _value(row), collection=_COLLECTION)
            except Exception as error:  # noqa: BLE001 - `_failed` decides
                self._failed("write", error)
            else:
                self._worked("write")

    async def _awrite(self, rows: Mapping[str, Vector]) -> None:
        async def write(text: str, row: Vector) -> None:
            await self._store.aput(self._key(text), _value(row), collection=_COLLECTION)
            self._worked("write")

        await self._at_once("write", [partial(write, *item) for item in rows.items()])

    async def _at_once(self, kind: str, works: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """Await all ``works``, up to ``_AT_ONCE`` at a time."""
        left = iter(works)

        async def some() -> None:
            for work in left:
                if self._gave_up(kind):
                    return
                try:
                    await work()
                except Exception as error:  # noqa: BLE001 - `_failed` decides
                    self._failed(kind, error)

        await asyncio.gather(*(some() for _ in range(min(_AT_ONCE, len(works)))))

    def _gave_up(self, kind: str) -> bool:
        return self._store is None or self._failures[kind] >= _PATIENCE

    def _worked(self, kind: str) -> None:
        self._failures[kind] = 0
        if self._warned:
            self._warned = self._embedding._store_fails = False

    def _failed(self, kind: str, error: Exception) -> None:
        """Count a failure of the store, which may raise any error; raise a signal handler's."""
        if raised_by_signal_handler(error):
            raise error
        self._failures[kind] += 1
        if not self._embedding._store_fails:
            self._warned = self._embedding._store_fails = True
            # Log only the class of the error: the message may contain an address with a password.
            logger.warning(
                "the embeddings_cache failed to %s (%s); its vectors may be paid for again",
                kind,
                type(error).__name__,
            )


def _value(row: Vector) -> dict[str, Vector]:
    return {"embedding": row.copy()}  # copy the list, because the caller may change the original


def keys(embedding: NexusFlowEmbedding, role: Role, *, own: bool) -> Callable[[str], str]:
    """Return a function from a text to its key in an ``embeddings_cache``.

    LlamaIndex's own key is the text alone, so one model would get the vectors of another.

    Args:
        role: Whether the text is a query or a document.
        own: Whether the vector comes from a hook of a subclass. What affects such a vector is
            unknown, so the key includes everything in ``to_dict``, the class and the role.
            Otherwise the key includes the text with its instruction.
    """
    client = embedding._core()
    parts: tuple[Any, ...] = (client.base_url, embedding.model_name, embedding.dimensions)
    if added := client.settings.added:
        parts = (*parts, added)
    if own:
        cls = type(embedding)
        parts = (
            *parts,
            cls.__module__,
            cls.__qualname__,
            role,
            sorted(embedding.to_dict().items()),
        )
    settings = client.settings
    if settings.on_too_long in ("split", "truncate"):
        # Do this for every text: the server may find a text too long that the estimate accepts.
        parts = (*parts, settings.on_too_long, settings.token_limit)
    prefix = hashlib.sha256(f"{parts!r}\0".encode())

    def key(text: str) -> str:
        digest = prefix.copy()
        digest.update(text.encode())
        return digest.hexdigest()

    return key
