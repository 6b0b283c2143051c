"""Splits English and Chinese texts into words for keyword search (BM25), and merges rankings.

    retriever = BM25Retriever.from_texts(texts, preprocess_func=words_of)

``hybrid_query`` of ``nexusflow_integrations.chroma_collections`` and the command split texts into
words in the same way. Needs ``pip install "nexusflow-integrations[hybrid]"``.
"""

from nexusflow_integrations._core.keywords import fused, words_of

__all__ = ["fused", "words_of"]
