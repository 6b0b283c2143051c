"""The embeddings pass LangChain's standard integration tests, with the local server."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_tests")

from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer


class TestNexusFlowEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _at(self, server: LocalServer) -> None:
        self._server = server

    @property
    def embeddings_class(self) -> type[NexusFlowEmbeddings]:
        return NexusFlowEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {
            "api_key": self._server.api_key,
            "base_url": self._server.base_url,
            "dimensions": 64,
        }
