"""One call of ``NexusFlowEmbedding``: what the client calls at each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.call.caller import NO_HOOKS, BatchEnd, Hooks
from nexusflow_integrations._core.call.results import EmbeddingArray, EmbeddingList
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.settings import Role
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.llama_index.events import Events
from nexusflow_integrations.llama_index.steps import Steps
from nexusflow_integrations.llama_index.stored import Rows, Store, Vector

if TYPE_CHECKING:
    from nexusflow_integrations.llama_index.embedding import NexusFlowEmbedding


class Work:
    """The state of one call, and the hooks that the client calls."""

    def __init__(
        self, embedding: NexusFlowEmbedding, client: NexusFlow, texts: str | list[str], role: Role
    ) -> None:
        texts = [texts] if isinstance(texts, str) else texts
        instruction = client.settings.instruction(role)
        self._skip = len(instruction)
        self._texts = [instruction + text for text in texts] if instruction else texts
        self._embedding = embedding
        self._price = client.price
        self._store = Store(embedding, role)
        self._events = Events(embedding.to_payload(), embedding.callback_manager)
        self.is_quiet = not (self._store.exists or self._events.are_heard)
        """Whether nothing needs to know the vectors of a batch before the call returns."""
        self._open: dict[int, str] = {}
        self._rows: dict[str, Vector] = {}
        self._stored: set[str] = set()

    @contextmanager
    def observed(self, show_progress: bool) -> Iterator[Callable[[int], object] | None]:
        """Show a bar if requested; at the end, end the events that are still open."""
        with self._events:
            if not show_progress:
                yield None
                return
            with forks.importing():  # the first bar imports tqdm
                tqdm = import_module("tqdm.auto").tqdm
                made = tqdm(total=len(self._texts), desc="Generating embeddings")
            with closing(made) as bar:
                yield bar.update

    def hooks(self, drive: Callable[[Steps[Any]], Any]) -> Hooks:
        """Return the hooks that the client calls in this thread or on this event loop."""
        permit = (
            (lambda texts: drive(self._embedding._permit(texts)))
            if self._embedding.rate_limiter is not None
            else None
        )
        if self.is_quiet:
            return NO_HOOKS if permit is None else Hooks(permit=permit)
        return Hooks(
            recall=(lambda texts: drive(self._recall(texts))) if self._store.exists else None,
            permit=permit,
            begun=lambda number, _: drive(self._begun(number)),
            ended=lambda end: drive(self._ended(end)),
        )

    def _recall(self, texts: list[str]) -> Steps[Mapping[int, Vectors]]:
        known: Rows = yield self._store.read(texts)
        self._rows |= {texts[place]: row for place, (row, _) in known.items()}
        self._stored.update(texts[place] for place in known)
        return {place: vector for place, (_, vector) in known.items()}

    def _begun(self, number: int) -> Steps[None]:
        self._open[number] = self._events.start()
        yield from ()

    def _ended(self, end: BatchEnd) -> Steps[None]:
        vectors = end.vectors.tolist()
        new = dict(zip(end.texts, vectors, strict=True))
        self._rows |= new
        yield from self._save(new)
        # There is no event if a callback failed at the start.
        if event := self._open.pop(end.number, None):
            usage = end.ledger.snapshot(self._price)
            self._events.end(event, self._chunks(end.texts), vectors, usage)

    def _chunks(self, texts: list[str]) -> list[str]:
        """Return the texts without the prepended instruction."""
        return [text[self._skip :] for text in texts] if self._skip else texts

    def result(self, found: EmbeddingArray | EmbeddingList) -> Steps[list[Vector]]:
        """Return the vectors as lists, and save those that were not part of a batch."""
        if self.is_quiet and isinstance(found, EmbeddingArray):
            return cast("list[Vector]", found.tolist() if found.ndim == 2 else [found.tolist()])
        vectors = np.asarray(found).reshape(len(self._texts), -1)
        rows: list[Vector] = []
        new: dict[str, Vector] = {}
        for text, vector in zip(self._texts, vectors, strict=True):
            row = self._rows.pop(text, None)
            if row is None or len(row) != len(vector):  # a duplicate text needs its own list
                row = vector.tolist()
                if text not in self._stored:
                    new[text] = row
            rows.append(row)
        yield from self._save(new)
        for event in self._open.values():  # another call embedded the texts of these events
            try:
                self._events.end(event, self._chunks(self._texts), rows, None)
            except Exception as failure:  # noqa: PERF203 - keep the vectors
                if raised_by_signal_handler(failure):
                    raise
                logger.warning("ignoring an error of a callback: %r", failure)
        return rows

    def save(self, finished: Mapping[int, Vectors]) -> Steps[None]:
        """Save the vectors that were finished before the call failed."""
        if not self._store.exists:
            return
        other = {self._texts[index]: row for index, row in finished.items()}
        yield from self._save(
            {text: row.tolist() for text, row in other.items() if text not in self._stored}
        )

    def _save(self, rows: Mapping[str, Vector]) -> Steps[None]:
        self._stored.update(rows)
        if rows and self._store.exists:
            yield self._store.write(rows)
