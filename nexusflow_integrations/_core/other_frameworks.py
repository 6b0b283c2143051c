"""Hints for users who expect the methods of a framework or of OpenAI's client."""

from __future__ import annotations

_LANGCHAIN = "LangChain takes a nexusflow_integrations.langchain.NexusFlowEmbeddings"
_LLAMA_INDEX = "LlamaIndex takes a nexusflow_integrations.llama_index.NexusFlowEmbedding"
_CHROMA = "Chroma takes a nexusflow_integrations.chroma.NexusFlowEmbeddingFunction"
_CALLED = {
    **dict.fromkeys(("embed_documents", "aembed_documents"), _LANGCHAIN),
    **dict.fromkeys(("embed_query", "aembed_query"), f"{_LANGCHAIN}, and {_CHROMA}"),
    **dict.fromkeys(
        ("get_text_embedding", "get_query_embedding", "get_text_embedding_batch"), _LLAMA_INDEX
    ),
    **dict.fromkeys(
        ("aget_text_embedding", "aget_query_embedding", "aget_text_embedding_batch"), _LLAMA_INDEX
    ),
    **dict.fromkeys(("name", "get_config", "build_from_config", "default_space"), _CHROMA),
    "embeddings": "instead of embeddings.create(input=texts), call embed(texts)",
}
"""The hint for each attribute that a framework, or a user of OpenAI's client, would use."""


def missing(owner: object, name: str) -> AttributeError:
    """Return the error for an attribute that ``owner`` does not have."""
    kind = type(owner)
    hint = f": {_CALLED[name]}" if name in _CALLED else ""
    return AttributeError(
        f"{kind.__name__!r} object has no attribute {name!r}{hint}", name=name, obj=owner
    )
