"""Searches with LlamaIndex's Chroma store and retriever, and answers with its chat model."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from nexusflow_integrations._core.needed import needed
from nexusflow_integrations.cli.rag.answer import INSTRUCTIONS, numbered
from nexusflow_integrations.cli.rag.collection import client_to_read
from nexusflow_integrations.cli.rag.pipeline import COLLECTION, Chat, ChatTokens, Passage, need_chat


class LlamaIndexPipeline:
    """Opens the collection of an index in the Chroma folder ``directory``.

    Args:
        directory: Folder of a Chroma ``PersistentClient``.
        **settings: Settings of ``NexusFlowEmbedding``: ``api_key``, ``api_base``, ...

    Raises:
        ImportError: A package is missing; the message says what to install.
    """

    framework = "LlamaIndex"

    def __init__(self, directory: Path, **settings: Any) -> None:
        with needed("The LlamaIndex pipeline", "llama_index", "chromadb", install=_INSTALL):
            from llama_index.core import VectorStoreIndex
            from llama_index.vector_stores.chroma import ChromaVectorStore

        from nexusflow_integrations.llama_index import NexusFlowEmbedding

        client = client_to_read(directory)
        # LlamaIndex embeds the question, so Chroma needs no embedding function.
        collection = client.get_collection(COLLECTION, embedding_function=None)
        embed_model = NexusFlowEmbedding(**settings)
        self._index = VectorStoreIndex.from_vector_store(
            ChromaVectorStore(chroma_collection=collection),
            embed_model=embed_model,
            # Without this, LlamaIndex would create a splitter, which loads a tokenizer or, if
            # TIKTOKEN_CACHE_DIR names a folder without a tokenizer, downloads it.
            transformations=[embed_model],
        )

    def search(self, question: str, k: int) -> list[Passage]:
        """Embed the question and return the ``k`` nearest passages, nearest first."""
        return [
            Passage(
                found.node.get_content(),
                found.metadata["source"],
                found.metadata["url"],
                # The store returns exp(-distance); this converts it to a cosine.
                score=1 + math.log(found.get_score(raise_error=True)),
            )
            for found in self._index.as_retriever(similarity_top_k=k).retrieve(question)
        ]

    def write(
        self, question: str, passages: Sequence[Passage], chat: Chat
    ) -> Generator[str, None, ChatTokens | None]:
        """Yield a chat model's answer piece by piece; return the tokens that it cost."""
        need_chat("llama-index")
        from llama_index.core.llms import ChatMessage
        from llama_index.llms.openai_like import OpenAILike

        model = OpenAILike(
            model=chat.model,
            api_base=chat.base_url,
            api_key=chat.api_key.reveal(),
            is_chat_model=True,
            additional_kwargs=chat.extra_body,
        )
        messages = [
            ChatMessage(role="system", content=INSTRUCTIONS),
            ChatMessage(role="user", content=f"{numbered(passages)}\n\nQuestion: {question}"),
        ]
        tokens = None
        for piece in model.stream_chat(messages):
            yield piece.delta or ""
            if (usage := getattr(piece.raw, "usage", None)) is not None:
                tokens = ChatTokens.of(usage.prompt_tokens, usage.completion_tokens)
        return tokens


_INSTALL = "nexusflow-integrations[llama-index,demo]"
