"""Any number of texts through a bounded number in flight.

Texts are read from their iterable in chunks of a few batches: enough chunks at once to keep all
requests busy, and no more are read until a chunk is done. So memory holds a few chunks, however
long the iterable is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.texts import check_text
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import InvalidInputError, NexusFlowError

BATCHES_A_CHUNK = 4


@dataclass(frozen=True, slots=True)
class Embedded:
    """One text's result: ``vector`` is float32 of shape (d,), or ``None`` with ``error`` set.

    ``index`` counts the texts from 0 in the order in which they were read.
    """

    index: int
    vector: Vectors | None
    error: NexusFlowError | None = None


@dataclass
class Chunk:
    """Texts that travel together, with their places in the stream and what was wrong with some."""

    indices: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    invalid: list[Embedded] = field(default_factory=list)

    def results(self, gathered: CallResults | None) -> Iterator[Embedded]:
        """Yield the result of every text of the chunk, in order."""
        found = list(self.invalid)
        for place, index in enumerate(self.indices):
            if gathered is not None and place in gathered.refusals:
                found.append(Embedded(index, None, gathered.refusals[place]))
            elif gathered is not None and gathered.vectors is not None:
                found.append(Embedded(index, gathered.vectors[place]))
        yield from sorted(found, key=lambda item: item.index)

    def named(self, finished: Mapping[int, Vectors]) -> dict[int, Vectors]:
        """Return what is ``finished`` of this chunk, under the indices of the stream."""
        return {self.indices[place]: row for place, row in finished.items()}


class Cutter:
    """Cuts a stream into chunks; ``add`` returns one when it is full."""

    def __init__(self, settings: Settings, instruction: str) -> None:
        self._size = settings.batch_size * BATCHES_A_CHUNK
        self._instruction = instruction
        self._count = 0
        self._chunk = Chunk()
        # Twice what is in flight: while one chunk's last request is out, the next is under way.
        self.in_flight = max(2, -(-2 * settings.max_concurrency // BATCHES_A_CHUNK))

    def add(self, text: object) -> Chunk | None:
        """Add the next text of the stream; one that cannot be sent becomes a result at once."""
        index, self._count = self._count, self._count + 1
        try:
            self._chunk.texts.append(self._instruction + check_text(text, index))
            self._chunk.indices.append(index)
        except InvalidInputError as error:
            self._chunk.invalid.append(Embedded(index, None, error))
        full = len(self._chunk.texts) + len(self._chunk.invalid) >= self._size
        return self.rest() if full else None

    def rest(self) -> Chunk | None:
        """Return the chunk that is not full yet, if it holds anything."""
        chunk, self._chunk = self._chunk, Chunk()
        return chunk if chunk.texts or chunk.invalid else None

    def cut(self, texts: Iterable[str]) -> Iterator[Chunk]:
        for text in texts:
            if chunk := self.add(text):
                yield chunk
        if chunk := self.rest():
            yield chunk
