"""Searches with LangChain's Chroma store, and answers with its chat model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from nexusflow_integrations._core.needed import needed
from nexusflow_integrations.cli.rag.answer import INSTRUCTIONS, numbered
from nexusflow_integrations.cli.rag.collection import client_to_read
from nexusflow_integrations.cli.rag.pipeline import COLLECTION, Chat, ChatTokens, Passage, need_chat


class LangChainPipeline:
    """Opens the collection of an index in the Chroma folder ``directory``.

    Args:
        directory: Folder of a Chroma ``PersistentClient``.
        **settings: Settings of ``NexusFlowEmbeddings``: ``api_key``, ``base_url``, ...

    Raises:
        ImportError: A package is missing; the message says what to install.
    """

    framework = "LangChain"

    def __init__(self, directory: Path, **settings: Any) -> None:
        with needed(
            "The LangChain pipeline",
            "langchain_core",
            "langchain_chroma",
            "chromadb",
            install=_INSTALL,
        ):
            from langchain_chroma import Chroma

        from nexusflow_integrations.langchain import NexusFlowEmbeddings

        self._store = Chroma(
            collection_name=COLLECTION,
            embedding_function=NexusFlowEmbeddings(**settings),
            client=client_to_read(directory),
            create_collection_if_not_exists=False,
        )

    def search(self, question: str, k: int) -> list[Passage]:
        """Embed the question and return the ``k`` nearest passages, nearest first."""
        return [
            Passage(
                found.page_content,
                found.metadata["source"],
                found.metadata["url"],
                score=1 - distance,
            )
            for found, distance in self._store.similarity_search_with_score(question, k)
        ]

    def write(
        self, question: str, passages: Sequence[Passage], chat: Chat
    ) -> Generator[str, None, ChatTokens | None]:
        """Yield a chat model's answer piece by piece; return the tokens that it cost."""
        need_chat("langchain")
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.prompts import ChatPromptTemplate
        from langchain_openai import ChatOpenAI
        from pydantic import SecretStr

        prompt = ChatPromptTemplate.from_messages(
            [("system", INSTRUCTIONS), ("human", "{passages}\n\nQuestion: {question}")]
        )
        key = SecretStr(chat.api_key.reveal())
        model = ChatOpenAI(
            model=chat.model, base_url=chat.base_url, api_key=key, stream_usage=chat.counted
        )
        chain = prompt | model
        tokens = None
        for piece in chain.stream({"passages": numbered(passages), "question": question}):
            yield StrOutputParser().invoke(piece)
            if (usage := piece.usage_metadata) is not None:
                tokens = ChatTokens.of(usage["input_tokens"], usage["output_tokens"])
        return tokens


_INSTALL = "nexusflow-integrations[langchain,demo]"
