"""The passages of documents, cut in one way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from nexusflow_integrations.cli.rag import corpus
from nexusflow_integrations.cli.rag.passages import Passage as PassageInLines
from nexusflow_integrations.cli.rag.passages import cut_in_lines
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.tune.questions import Document, Question, Truth
from nexusflow_integrations.tune.search import READ
from nexusflow_integrations.tune.settings import Cutting

if TYPE_CHECKING:
    from nexusflow_integrations.cli.rag.keywords import Keywords


@dataclass(frozen=True)
class Passages:
    """The distinct passages of the documents, cut in one way: an index stores each text once.

    Attributes:
        sources, texts: One item per passage. If several documents have a text, the first counts.
        tokens: Estimated tokens of all passages.
    """

    sources: list[str]
    texts: list[str]
    tokens: int
    _all: list[tuple[str, PassageInLines]]
    _first: list[int]

    @classmethod
    def of(cls, documents: Sequence[Document], cutting: Cutting, client: NexusFlow) -> Passages:
        every = [
            (document.source, passage)
            for document in documents
            for passage in cut_in_lines(
                document.text,
                cutting.characters,
                cutting.overlap,
                cutting.headings,
                kind=corpus.kind_of(document.source),
            )
        ]
        first: dict[str, int] = {}
        for place, (_, passage) in enumerate(every):
            first.setdefault(passage.text, place)
        texts, places = [*first], [*first.values()]
        tokens = client._uncached().estimate(texts).tokens
        return cls([every[place][0] for place in places], texts, tokens, every, places)

    @cached_property
    def keywords(self) -> Keywords:
        from nexusflow_integrations.cli.rag.keywords import Keywords

        pairs = zip(self.texts, self.sources, strict=True)
        return Keywords([corpus.Document(*pair) for pair in pairs])

    def truth(self, questions: Sequence[Question]) -> Truth:
        passages = [passage for _, passage in self._all]
        return Truth(
            questions,
            [source for source, _ in self._all],
            [passage.first for passage in passages],
            [passage.text for passage in passages],
            [passage.last for passage in passages],
            self._first,
        )


def is_read(question: int, places: list[int], truth: Truth, passages: Passages) -> bool:
    """Return whether an answer is in the first passage, or in the first ``READ`` characters."""
    used = 0
    for place in places:
        used += len(passages.texts[place])
        if used > READ and used > len(passages.texts[place]):
            return False
        if truth.name(question, place) in truth.right[question]:
            return True
    return False
