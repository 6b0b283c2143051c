"""A combination of the settings that can be measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations.tune.retrieval import Storage

Method = Literal["vectors", "keywords", "hybrid"]
METHODS: tuple[Method, ...] = ("vectors", "keywords", "hybrid")


@dataclass(frozen=True, order=True)
class Cutting:
    """How documents are cut into passages. The fields are those of `TunedSettings`."""

    characters: int = 800
    overlap: int = 0
    headings: bool = True

    def __str__(self) -> str:
        said = f"{self.characters} characters"
        if self.overlap:
            said += f" + {self.overlap}"
        return said if self.headings else f"{said}, no headings"


@dataclass(frozen=True)
class Setting:
    """One setting to measure.

    Attributes:
        cutting: How documents are cut.
        dimensions: Size of the vectors, or 0 without vectors.
        method: Search by vectors, by keywords (BM25), or by both.
        query_instruction: Text put in front of each query.
        document_instruction: Text put in front of each passage.
        storage: Format of the stored vectors.
    """

    cutting: Cutting
    dimensions: int
    method: Method = "vectors"
    query_instruction: str | None = None
    document_instruction: str | None = None
    storage: Storage = "float32"

    @property
    def usable(self) -> bool:
        """Whether this package's index supports the setting.

        It does not support keywords alone or other formats, which are measured for comparison.
        """
        return self.method != "keywords" and self.storage == "float32"

    def with_method(self, method: Method) -> Setting:
        """Return the setting with ``method``. Keywords need neither vectors nor instructions."""
        if method == "keywords":
            return Setting(self.cutting, 0, method)
        return replace(self, method=method)

    def tuned(self, model: str) -> TunedSettings:
        """Return the setting in the form in which an index is given its settings."""
        return TunedSettings(
            model=model,
            dimensions=self.dimensions,
            passage_characters=self.cutting.characters,
            overlap=self.cutting.overlap,
            headings=self.cutting.headings,
            query_instruction=self.query_instruction,
            document_instruction=self.document_instruction,
            hybrid=self.method == "hybrid",
        )

    def __str__(self) -> str:
        if self.method == "keywords":
            return f"keywords, {self.cutting}"
        parts = [str(self.dimensions), str(self.cutting)]
        if self.storage != "float32":
            parts[0] += f" {self.storage}"
        if self.method == "hybrid":
            parts.append("hybrid")
        if self.query_instruction:
            parts.append("query instruction")
        if self.document_instruction:
            parts.append("document instruction")
        return ", ".join(parts)
