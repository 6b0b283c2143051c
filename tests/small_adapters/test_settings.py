"""A setting of the wrong type is refused at once, by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from nexusflow_integrations.errors import ConfigurationError, InvalidInputError

Refused = Callable[..., list[Any]]
EMBEDDER = ("api_key", "model", "dimensions", "api_base_url", "prefix", "suffix", "options")


@pytest.mark.parametrize("name", [*EMBEDDER, "meta_fields_to_embed", "embedding_separator"])
def test_haystack(name: str, refused: Refused) -> None:
    from nexusflow_integrations.haystack import NexusFlowDocumentEmbedder, NexusFlowTextEmbedder

    refused(lambda value: NexusFlowDocumentEmbedder(**{name: value}), name)
    if name in EMBEDDER:
        refused(lambda value: NexusFlowTextEmbedder(**{name: value}), name)


def test_haystack_refuses_an_option_by_its_own_name() -> None:
    from nexusflow_integrations.haystack import NexusFlowTextEmbedder

    for options in ({"timeout": "60"}, {"batch_size": True}, {"cache": 5}):
        (name,) = options
        with pytest.raises(ConfigurationError, match=f"^{name} must be "):
            NexusFlowTextEmbedder(options=options)


@pytest.mark.parametrize("name", ["on_refused", "on_blank", "on_too_long"])
def test_haystack_leaves_no_document_without_a_vector(name: str) -> None:
    from nexusflow_integrations.haystack import NexusFlowDocumentEmbedder

    with pytest.raises(ConfigurationError, match=name):
        NexusFlowDocumentEmbedder(options={name: "collect"})


@pytest.mark.parametrize("name", ["api_key", "model", "dimensions", "query_instruction", "cache"])
def test_lancedb(name: str, refused: Refused) -> None:
    from nexusflow_integrations.lancedb import NexusFlowEmbeddings

    refused(lambda value: NexusFlowEmbeddings(**{name: value}), name, pydantic.ValidationError)


def test_llm(refused: Refused) -> None:
    from nexusflow_integrations.llm import NexusFlowEmbeddingModel

    refused(NexusFlowEmbeddingModel, "dimensions")


@pytest.mark.parametrize("name", ["client", "settings"])
def test_pydantic_ai(name: str, refused: Refused) -> None:
    from nexusflow_integrations.pydantic_ai import NexusFlowEmbeddingModel

    refused(lambda value: NexusFlowEmbeddingModel(**{name: value}), name)


@pytest.mark.parametrize("wrong", [{"a": "b"}, {"a"}, b"a", 5, None, ["a", 5]], ids=repr)
async def test_an_argument_that_is_not_a_list_of_texts_is_refused(wrong: Any) -> None:
    from nexusflow_integrations.haystack import NexusFlowDocumentEmbedder
    from nexusflow_integrations.lancedb import NexusFlowEmbeddings
    from nexusflow_integrations.pydantic_ai import NexusFlowEmbeddingModel

    with pytest.raises(InvalidInputError, match=r"expected a list|must be a string"):
        NexusFlowDocumentEmbedder().run(documents=wrong)
    with pytest.raises(InvalidInputError, match=r"expected a list|must be a string"):
        NexusFlowEmbeddings().generate_embeddings(wrong)
    with pytest.raises(InvalidInputError, match=r"expected a list|must be a string"):
        await NexusFlowEmbeddingModel().embed(wrong, input_type="document")
