"""The embeddings pass LangChain's standard unit tests."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_tests")

from langchain_tests.unit_tests import EmbeddingsUnitTests

from nexusflow_integrations.langchain import NexusFlowEmbeddings


class TestNexusFlowEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[NexusFlowEmbeddings]:
        return NexusFlowEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "text-embedding-v4", "api_key": "sk-air-test"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"NEXUSFLOW_API_KEY": "sk-air-env", "NEXUSFLOW_BASE_URL": "https://example.com/v1"},
            {"model": "text-embedding-v4"},
            {"nexusflow_api_key": "sk-air-env", "nexusflow_api_base": "https://example.com/v1"},
        )
