"""BM25, the baseline without a model: ``bm25s`` on the words that ``words_of`` returns."""

from __future__ import annotations

from collections.abc import Sequence

from nexusflow_integrations._core.keywords import check_packages, words_of
from nexusflow_integrations.cli.rag.corpus import Document
from nexusflow_integrations.cli.rag.pipeline import Passage


class Keywords:
    """An index of documents by their words."""

    def __init__(self, documents: Sequence[Document]) -> None:
        check_packages()
        import bm25s

        self._documents = list(documents)
        self._index = bm25s.BM25()
        self._index.index(self._tokens([item.text for item in documents]), show_progress=False)

    def search(self, question: str, k: int) -> list[Passage]:
        """Return the ``k`` best documents that share a word with the question, best first.

        The score is that of BM25: at least 0, without a unit, and not comparable between questions.
        """
        return [
            Passage.of(self._documents[place], score) for place, score in self.places(question, k)
        ]

    def places(self, question: str, k: int) -> list[tuple[int, float]]:
        """Return the indices of the documents that ``search`` finds, and their scores."""
        tokens = self._tokens([question])
        known = [[token for token in tokens[0] if token in self._index.vocab_dict]]
        if not known[0]:
            return []
        k = min(k, len(self._documents))
        places, scores = self._index.retrieve(known, k=k, show_progress=False)
        return [
            (int(place), float(score))
            for place, score in zip(places[0], scores[0], strict=True)
            if score > 0
        ]

    @property
    def nbytes(self) -> int:
        """The bytes that the index takes in memory, without its vocabulary."""
        return sum(part.nbytes for part in self._index.scores.values() if hasattr(part, "nbytes"))

    def _tokens(self, texts: list[str]) -> list[list[str]]:
        return [words_of(text) for text in texts]
