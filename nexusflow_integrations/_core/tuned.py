"""The settings of a search that `nexusflow tune` chose, and the file that contains them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.models import DEFAULT_MODEL
from nexusflow_integrations._core.settings import check_dimensions
from nexusflow_integrations._core.whole_file import whole
from nexusflow_integrations.errors import ConfigurationError

VERSION = 1
_MOST_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class TunedSettings:
    """How documents are cut, embedded and searched.

    Attributes:
        model: Name of the embedding model.
        dimensions: Size of the vectors; ``None`` is the service's default.
        passage_characters: Maximum characters of a passage.
        overlap: Characters that a passage repeats from the end of the previous one; at most a
            quarter of ``passage_characters``.
        headings: Whether each passage begins with the headings above it.
        query_instruction: Text that is prepended to each query, or ``None``.
        document_instruction: Text that is prepended to each document, or ``None``.
        hybrid: Whether the results of a keyword search are added.
        local_model: The local model that these settings were measured with, or ``None`` for the
            service.

    Raises:
        ConfigurationError: A value is invalid; the message names it.
    """

    model: str = DEFAULT_MODEL
    dimensions: int | None = None
    passage_characters: int = 800
    overlap: int = 0
    headings: bool = True
    query_instruction: str | None = None
    document_instruction: str | None = None
    hybrid: bool = False
    local_model: str | None = None

    def __post_init__(self) -> None:
        most = checks.whole("passage_characters", self.passage_characters, 50, _MOST_CHARACTERS)
        checked: dict[str, Any] = {
            "model": checks.word("model", self.model, "the name of a model"),
            "dimensions": check_dimensions(self.dimensions, self.model),
            "passage_characters": most,
            "overlap": checks.whole("overlap", self.overlap, 0, most // 4),
            "headings": checks.flag("headings", self.headings),
            "query_instruction": checks.optional_text("query_instruction", self.query_instruction),
            "document_instruction": checks.optional_text(
                "document_instruction", self.document_instruction
            ),
            "hybrid": checks.flag("hybrid", self.hybrid),
            "local_model": checks.optional_text("local_model", self.local_model),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def for_client(self) -> dict[str, Any]:
        """Return the arguments for ``NexusFlow`` and the adapters; default values are left out.

        ``NexusFlowEmbeddings(**settings.for_client())`` embeds with the measured settings. A model
        other than the default is passed as ``model``; Chroma's function calls this argument
        ``model_name``.
        """
        names = ("dimensions", "query_instruction", "document_instruction")
        found = {name: getattr(self, name) for name in names}
        found["model"] = None if self.model == DEFAULT_MODEL else self.model
        return {name: value for name, value in found.items() if value is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, replacing it only when it is complete."""
        text = json.dumps({"version": VERSION, **asdict(self)}, ensure_ascii=False, indent=2)
        with whole(Path(path)) as file:
            file.write(f"{text}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TunedSettings:
        """Read a file that ``save`` wrote.

        Raises:
            ConfigurationError: The file is not a settings file, or another version of this package
                wrote it.
            OSError: The file cannot be read.
        """
        name = os.fspath(path)
        try:
            read = json.loads(Path(path).read_text("utf-8-sig"))
        except ValueError:  # also UnicodeDecodeError
            raise ConfigurationError(f"{name!r} is not a settings file: it is not JSON") from None
        if not isinstance(read, dict) or not isinstance(read.get("version"), int):
            raise ConfigurationError(f"{name!r} is not a settings file: it has no version")
        if read.pop("version") != VERSION:
            raise ConfigurationError(
                f"{name!r} was written by another version of this package: run `nexusflow tune`"
                " again"
            )
        if unknown := read.keys() - {item.name for item in fields(cls)}:
            raise ConfigurationError(
                f"{name!r} has an unknown setting: {checks.shown(min(unknown))}"
            )
        try:
            return cls(**read)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name!r}: {error}") from None
