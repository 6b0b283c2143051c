"""The interface of a pipeline, which reads the collection that the module `collection` fills."""

from __future__ import annotations

import importlib
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations.cli.rag.corpus import Document
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.errors import NexusFlowError


@dataclass(frozen=True)
class Passage:
    """A document that was found.

    Attributes:
        text: The text.
        source: Where the text comes from.
        url: Where to read more, or an empty string.
        score: The similarity to the question. Usually it is the cosine, from -1 to 1; in a hybrid
            search it is a share of the highest possible score, from 0 to 1.
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
        model: Name of the model.
        base_url: Root of the API.
        api_key: The key.
        counted: Whether to ask the endpoint for the number of tokens of a streamed answer.
    """

    model: str
    base_url: str
    api_key: ApiKey
    counted: bool = True

    @property
    def extra_body(self) -> dict[str, Any]:
        """Additional fields of a request for a streamed answer."""
        return {"stream_options": {"include_usage": True}} if self.counted else {}


@dataclass(frozen=True)
class ChatTokens:
    """The endpoint's token counts: ``sent`` in the prompt, ``written`` in the answer."""

    sent: int
    written: int

    @classmethod
    def of(cls, sent: object, written: object) -> ChatTokens | None:
        """Return the counts in a response; ``None`` if there are none."""
        if type(sent) is int and type(written) is int and min(sent, written) >= 0:
            return cls(sent, written)
        return None


@dataclass(frozen=True)
class ChatPrice:
    """A chat model's price per million tokens, in the currency of the embedding model's price.

    Attributes:
        sent: Price of prompt tokens.
        written: Price of the answer's tokens, including reasoning.
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
"""Environment variable with the name of the chat model, used if no option names one."""


def chat_of(model: str | None, endpoint: Endpoint) -> Chat | None:
    """Return the service's chat model: ``model``, or the one in ``CHAT_VARIABLE``, or ``None``.

    The local server has no chat model.
    """
    model = model or os.environ.get(CHAT_VARIABLE)
    if not model or endpoint.local_model:
        return None
    return Chat(model, endpoint.base_url, endpoint.api_key)


class Pipeline(Protocol):
    """Searches and answers in the same way in every framework.

    The three implementations differ only in the framework's API, so a reader who knows one can read
    the others. All three read the same collection.
    """

    framework: str
    """The framework's name, in its own spelling."""

    def search(self, question: str, k: int) -> list[Passage]:
        """Embed the question and return the ``k`` nearest passages, nearest first."""

    def write(
        self, question: str, passages: Sequence[Passage], chat: Chat
    ) -> Generator[str, None, ChatTokens | None]:
        """Yield a chat model's answer piece by piece; return the tokens that it cost.

        The tokens are ``None`` if the endpoint does not report them.
        """


COLLECTION = "passages"
"""Name of an index's only Chroma collection."""

FRAMEWORKS = {"langchain": "LangChain", "llama-index": "LlamaIndex", "chroma": "Chroma"}
"""The name of each framework in its own spelling, by short name."""


def open_pipeline(framework: str, directory: Path, endpoint: Endpoint, **settings: Any) -> Pipeline:
    """Import a framework and open its collection in a Chroma folder.

    Args:
        framework: One of ``FRAMEWORKS``.
        directory: The Chroma folder of the index.
        endpoint: Where to embed.
        **settings: Further settings with the same name in all three adapters, such as ``on_usage``.

    Raises:
        KeyError: There is no such framework.
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


def need_chat(framework: str) -> None:
    """Import the package with which a framework asks a chat model.

    Raises:
        ImportError: The package is missing; the message says what to install.
    """
    module, install = _CHATS[framework]
    what = f"An answer written through {FRAMEWORKS[framework]}"
    with needed(what, module.partition(".")[0], install=install):
        importlib.import_module(module)


_CHATS = {
    "langchain": ("langchain_openai", "nexusflow-integrations[chat]"),
    "llama-index": ("llama_index.llms.openai_like", "llama-index-llms-openai-like"),
    "chroma": ("openai", "nexusflow-integrations[chat]"),
}

_HOMES = {
    "langchain": ("with_langchain", "LangChainPipeline", "base_url"),
    "llama-index": ("with_llama_index", "LlamaIndexPipeline", "api_base"),
    "chroma": ("with_chroma", "ChromaPipeline", "api_base"),
}
