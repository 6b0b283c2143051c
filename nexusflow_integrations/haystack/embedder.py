"""What both embedders are told, and how a pipeline stores it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from haystack import default_from_dict, default_to_dict
from haystack.utils import Secret

from nexusflow_integrations._core.settings import DEFAULT_MODEL
from nexusflow_integrations.client import NexusFlow

_KEY = Secret.from_env_var("NEXUSFLOW_API_KEY", strict=False)


@dataclass(eq=False)
class Embedder:
    """The settings, under the names of Haystack's own embedders.

    ``options`` holds what else ``NexusFlow`` takes (``timeout``, ``cache``, ...), as plain values.
    """

    api_key: Secret = _KEY
    model: str = DEFAULT_MODEL
    dimensions: int | None = None
    api_base_url: str | None = None
    prefix: str = ""
    suffix: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def client(self) -> NexusFlow:
        """The client that does the work; the key is looked up when it is first needed."""
        told = {"base_url": self.api_base_url, "model": self.model, "dimensions": self.dimensions}
        return NexusFlow(self.api_key.resolve_value(), **{**told, **self.options})

    def meta(self, vectors: Any) -> dict[str, Any]:
        """Return the model and the tokens billed, as OpenAI's embedders do."""
        tokens = vectors.usage.tokens
        return {"model": self.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    def to_dict(self) -> dict[str, Any]:
        """Return what a pipeline stores; of the key it is the name of the environment variable.

        Raises:
            ValueError: The key was given as a token, which Haystack stores nowhere.
        """
        told = {item.name: getattr(self, item.name) for item in fields(self)}
        return default_to_dict(self, **told)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Embedder:
        """Rebuild an embedder from what a pipeline stored; needs no key."""
        return default_from_dict(cls, data)
