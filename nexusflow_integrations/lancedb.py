"""``NexusFlowEmbeddings``: importing this module registers it with LanceDB as ``nexusflow``.

A table stores neither the key nor the endpoint: anyone who can write to the table could replace the
endpoint. A text that is None or "" gets no vector; LanceDB handles such rows as
``on_bad_vectors`` says. While rows are added, LanceDB turns the errors of this package into a
RuntimeError with the same message.
"""

from typing import Any

from nexusflow_integrations._core.models import DEFAULT_MODEL
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.secret import secret_arguments
from nexusflow_integrations._core.texts import check_text, rows_of
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import ConfigurationError

with needed(__name__, "lancedb", install="nexusflow-integrations[lancedb]"):
    from lancedb.embeddings import TextEmbeddingFunction, register
    from pydantic import ConfigDict, PrivateAttr

__all__ = ["NexusFlowEmbeddings"]


@register("nexusflow")
class NexusFlowEmbeddings(TextEmbeddingFunction):
    """Embeds for LanceDB.

    Pass the settings to ``get_registry().get("nexusflow").create(...)``. They mean the same as in
    ``NexusFlow``. ``dimensions`` cannot be ``None``, ``cache`` is only ``True`` or ``False``, and
    ``api_key`` may be ``"$var:NAME"``, a variable of LanceDB's registry.

    Raises:
        ConfigurationError: A setting is invalid, or ``api_key`` has a default, which a table would
            store.
        pydantic.ValidationError: A setting has an unknown name or a value of the wrong type.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    _client: NexusFlow = PrivateAttr()
    model: str = DEFAULT_MODEL
    dimensions: int = 1024
    query_instruction: str | None = None
    document_instruction: str | None = None
    extra_body: dict[str, Any] | None = None
    default_query: dict[str, Any] | None = None
    cache: bool = False

    @secret_arguments
    def __init__(self, api_key: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._client = NexusFlow(api_key, **dict(self))

    @classmethod
    @secret_arguments
    def create(cls, **settings: Any) -> Any:
        key = settings.get("api_key")
        if isinstance(key, str) and key.count(":") > 1:
            raise ConfigurationError("api_key: the default in $var:NAME:DEFAULT would be stored")
        return super().create(**settings)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    def ndims(self) -> int:
        return self.dimensions

    def generate_embeddings(self, texts: Any) -> list[Any]:
        texts = list(rows_of(texts))
        rows = iter(self._client.embed([text for text in texts if text]))
        return [next(rows) if text else None for text in texts]

    def compute_query_embeddings(self, query: str) -> list[Any]:
        return [self._client.embed(check_text(query), role="query")]

    # LanceDB's own methods would retry every failure and then raise a plain Exception.
    compute_query_embeddings_with_retry = compute_query_embeddings
    compute_source_embeddings_with_retry = TextEmbeddingFunction.compute_source_embeddings
