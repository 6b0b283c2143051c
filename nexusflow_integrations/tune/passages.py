"""The passages of documents, cut in one way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from nexusflow_integrations.cli.rag import corpus
from nexusflow_integrations.cli.rag.passages import cut_in_lines
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.tune.questions import Document, Question, Truth
from nexusflow_integrations.tune.search import READ
from nexusflow_integrations.tune.settings import Cutting

if TYPE_CHECKING:
    from nexusflow_integrations.cli.rag.keywords import Keywords


@dataclass(frozen=True)
class Passages:
    """The passages of the documents, cut in one way.

    Attributes:
        sources, lines, lasts, texts: One item per passage. ``lines`` are the first lines, including
            the headings above the text, and ``lasts`` the last ones.
        tokens: Estimated tokens of all passages.
    """

    sources: list[str]
    lines: list[int]
    lasts: list[int]
    texts: list[str]
    tokens: int

    @classmethod
    def of(cls, documents: Sequence[Document], cutting: Cutting, client: NexusFlow) -> Passages:
        sources, lines, lasts, texts = [], [], [], []
        for document in documents:
            for passage in cut_in_lines(
                document.text,
                cutting.characters,
                cutting.overlap,
                cutting.headings,
                kind=corpus.kind_of(document.source),
            ):
                sources.append(document.source)
                lines.append(passage.first)
                lasts.append(passage.last)
                texts.append(passage.text)
        return cls(sources, lines, lasts, texts, client._uncached().estimate(texts).tokens)

    @cached_property
    def keywords(self) -> Keywords:
        from nexusflow_integrations.cli.rag.keywords import Keywords

        pairs = zip(self.texts, self.sources, strict=True)
        return Keywords([corpus.Document(*pair) for pair in pairs])

    def truth(self, questions: Sequence[Question]) -> Truth:
        return Truth(questions, self.sources, self.lines, self.texts, self.lasts)


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
