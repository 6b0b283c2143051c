"""BM25, the baseline without a model: `bm25s`, with English stop words and stems.

Chinese is written without blanks, so its characters are indexed in pairs, as is usual.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import bm25s
import Stemmer

from nexusflow_integrations.cli.rag.corpus import Document
from nexusflow_integrations.cli.rag.pipeline import Passage

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Keywords:
    """Documents indexed by their words."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = list(documents)
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25()
        self._index.index(self._tokens([item.text for item in documents]), show_progress=False)

    def search(self, question: str, k: int) -> list[Passage]:
        """Return the ``k`` best documents that share a word with the question, best first.

        The score is BM25's: at least 0, without a unit, not comparable between questions.
        """
        return [
            Passage.of(self._documents[place], score) for place, score in self.places(question, k)
        ]

    def places(self, question: str, k: int) -> list[tuple[int, float]]:
        """Return the places of these documents, and their scores."""
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
        """Bytes of the index in memory, without its vocabulary."""
        return sum(part.nbytes for part in self._index.scores.values() if hasattr(part, "nbytes"))

    def _tokens(self, texts: list[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            [_CJK.sub(_pairs, text.replace("_", " ")) for text in texts],
            stopwords="en",
            stemmer=self._stemmer,
            return_ids=False,
            show_progress=False,
        )
        return tokens


def _pairs(run: re.Match[str]) -> str:
    text = run.group()
    pairs = [text[i : i + 2] for i in range(max(1, len(text) - 1))]
    return f" {' '.join(pairs)} "
