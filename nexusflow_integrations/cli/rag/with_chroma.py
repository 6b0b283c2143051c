"""Searches with Chroma and its embedding function, and answers through the ``openai`` client."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from nexusflow_integrations._core.keywords import FUSION
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations.cli.rag.answer import INSTRUCTIONS, numbered
from nexusflow_integrations.cli.rag.collection import client_to_read
from nexusflow_integrations.cli.rag.pipeline import COLLECTION, Chat, ChatTokens, Passage, need_chat


class ChromaPipeline:
    """Opens the collection of an index in the Chroma folder ``directory``.

    Args:
        directory: Folder of a Chroma ``PersistentClient``.
        **settings: Settings of ``NexusFlowEmbeddingFunction``: ``api_key``, ``api_base``, ...

    Raises:
        ImportError: A package is missing; the message says what to install.
    """

    framework = "Chroma"

    def __init__(self, directory: Path, **settings: Any) -> None:
        with needed("The Chroma pipeline", "chromadb", install=_INSTALL):
            import chromadb  # noqa: F401

        from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

        client = client_to_read(directory)
        # Chroma's signature expects a function that takes texts and images; ours accepts only
        # texts.
        embedding_function: Any = NexusFlowEmbeddingFunction(**settings)
        self._collection = client.get_collection(COLLECTION, embedding_function=embedding_function)

    def search(self, question: str, k: int) -> list[Passage]:
        """Embed the question and return the ``k`` nearest passages, nearest first."""
        found = self._collection.query(query_texts=[question], n_results=k)
        texts, metadatas, distances = found["documents"], found["metadatas"], found["distances"]
        assert texts is not None
        assert metadatas is not None
        assert distances is not None
        return [
            Passage(text, str(metadata["source"]), str(metadata["url"]), score=1 - distance)
            for text, metadata, distance in zip(texts[0], metadatas[0], distances[0], strict=True)
        ]

    def search_hybrid(self, question: str, k: int) -> list[Passage]:
        """Search by vectors and keywords; return the ``k`` best passages, best first.

        The score is a share of the highest possible score, which a passage gets if it comes first
        in both searches. Scores are from 0 to 1, and comparable only within one question.
        """
        from nexusflow_integrations.chroma_collections import hybrid_query

        hits = hybrid_query(self._collection, question, k)
        notes = [hit.metadata or {} for hit in hits]
        return [
            Passage(hit.document, str(note["source"]), str(note["url"]), hit.score / _HIGHEST)
            for hit, note in zip(hits, notes, strict=True)
        ]

    def write(
        self, question: str, passages: Sequence[Passage], chat: Chat
    ) -> Generator[str, None, ChatTokens | None]:
        """Yield a chat model's answer piece by piece; return the tokens that it cost."""
        need_chat("chroma")
        from openai import OpenAI

        tokens = None
        with OpenAI(base_url=chat.base_url, api_key=chat.api_key.reveal()) as client:
            stream = client.chat.completions.create(
                model=chat.model,
                messages=[
                    {"role": "system", "content": INSTRUCTIONS},
                    {
                        "role": "user",
                        "content": f"{numbered(passages)}\n\nQuestion: {question}",
                    },
                ],
                stream=True,
                extra_body=chat.extra_body,
            )
            for piece in stream:
                if piece.choices:
                    yield piece.choices[0].delta.content or ""
                if (usage := piece.usage) is not None:
                    tokens = ChatTokens.of(usage.prompt_tokens, usage.completion_tokens)
        return tokens


_HIGHEST = 2 / (FUSION + 1)
_INSTALL = "nexusflow-integrations[chroma]"
