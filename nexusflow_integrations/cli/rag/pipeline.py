"""The interface of a pipeline, for all frameworks; `collection` fills the collection it reads."""

from __future__ import annotations

import importlib
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations.cli.rag.corpus import Document
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.errors import NexusFlowError


@dataclass(frozen=True)
class Passage:
    """A document that was found.

    Attributes:
        text: Its text.
        source: Where it comes from.
        url: Where to read on, or an empty string.
        score: Similarity; from a pipeline the cosine, from -1 to 1, or, of a hybrid search, the
            share of the highest possible score, from 0 to 1.
    """

    text: str
    source: str
    url: str
    score: float

    @classmethod
    def of(cls, document: Document, score: float) -> Passage:
        """Return ``document`` as a passage with ``score``."""
        return cls(document.text, document.source, document.url, score)


class ChatError(NexusFlowError):
    """The chat model did not answer; the message is one sentence, without the key."""


@dataclass(frozen=True)
class Chat:
    """A chat model behind an OpenAI-compatible endpoint.

    Attributes:
        model: Its name.
        base_url: Root of the API.
        api_key: The key.
        counted: Whether to ask the endpoint how many tokens a streamed answer took.
    """

    model: str
    base_url: str
    api_key: ApiKey
    counted: bool = True

    @property
    def extra_body(self) -> dict[str, Any]:
        """Fields of a streamed request besides the usual ones."""
        return {"stream_options": {"include_usage": True}} if self.counted else {}


@dataclass(frozen=True)
class ChatTokens:
    """The endpoint's token counts: ``sent`` in the prompt, ``written`` in the answer."""

    sent: int
    written: int

    @classmethod
    def of(cls, sent: object, written: object) -> ChatTokens | None:
        """Return the counts that a response holds; ``None`` if it holds none."""
        if type(sent) is int and type(written) is int and min(sent, written) >= 0:
            return cls(sent, written)
        return None


@dataclass(frozen=True)
class ChatPrice:
    """What a million tokens of a chat model cost, in the currency of the embedding model's price.

    Attributes:
        sent: Price of prompt tokens.
        written: Price of the answer's tokens, reasoning included.
    """

    sent: float
    written: float

    def __post_init__(self) -> None:
        for name in ("sent", "written"):
            value = checks.number(f"price: {name}", getattr(self, name), least=0)
            object.__setattr__(self, name, value)

    def of(self, sent: int, written: int) -> float:
        """Return the price of these tokens."""
        return (sent * self.sent + written * self.written) / 1_000_000


CHAT_VARIABLE = "NEXUSFLOW_CHAT_MODEL"
"""Environment variable that names the chat model if no option does."""


def chat_of(model: str | None, endpoint: Endpoint) -> Chat | None:
    """Return the chat model of the service, by name or by ``CHAT_VARIABLE``; else ``None``.

    The embedded server has none.
    """
    model = model or os.environ.get(CHAT_VARIABLE)
    if not model or endpoint.local_model:
        return None
    return Chat(model, endpoint.base_url, endpoint.api_key)


class Pipeline(Protocol):
    """Search and answer, the same in every framework.

    The three implementations differ only in the framework's API, so that anyone who knows one of
    them can read the others. All three read the same collection.
    """

    framework: str
    """The framework's name, in its own spelling."""

    def search(self, question: str, k: int) -> list[Passage]:
        """Embed the question and return the ``k`` nearest passages, nearest first."""

    def write(
        self, question: str, passages: Sequence[Passage], chat: Chat
    ) -> Generator[str, None, ChatTokens | None]:
        """Let a chat model write the answer; yields it piece by piece, and returns its tokens.

        ``None`` if the endpoint does not report them.
        """


COLLECTION = "passages"
"""Name of the one Chroma collection of an index."""

FRAMEWORKS = {"langchain": "LangChain", "llama-index": "LlamaIndex", "chroma": "Chroma"}
"""The name of each framework in its own spelling, by short name."""


def open_pipeline(framework: str, directory: Path, endpoint: Endpoint, **settings: Any) -> Pipeline:
    """Import a framework and open its collection in a Chroma folder.

    Args:
        framework: One of ``FRAMEWORKS``.
        directory: The Chroma folder of the index.
        endpoint: Where to embed.
        **settings: Further settings that the three adapters name alike, such as ``on_usage``.

    Raises:
        KeyError: No such framework.
        ImportError: A package is missing; the message says what to install.
    """
    module, name, base_url = _HOMES[framework]
    make = getattr(importlib.import_module(f"nexusflow_integrations.cli.rag.{module}"), name)
    settings = {
        "api_key": endpoint.api_key,
        base_url: endpoint.base_url,
        **endpoint.vectors,
        **settings,
    }
    pipeline: Pipeline = make(directory, **settings)
    return pipeline


_HOMES = {
    "langchain": ("with_langchain", "LangChainPipeline", "base_url"),
    "llama-index": ("with_llama_index", "LlamaIndexPipeline", "api_base"),
    "chroma": ("with_chroma", "ChromaPipeline", "api_base"),
}
