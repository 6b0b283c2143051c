"""Indexes on disk: a folder each, with what is in it, so that a second run pays nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from nexusflow_integrations._core.cache.file import default_path
from nexusflow_integrations.cli.rag.endpoint import Endpoint

_ABOUT = "index.json"


class UnusableIndexError(Exception):
    """There is no such index; the message is one sentence."""


@dataclass(frozen=True)
class About:
    """What an index holds.

    Attributes:
        corpus: ``stdlib``, ``topics``, or the absolute path of a folder or file.
        title: What the corpus is, for a reader.
        frameworks: Short names of the frameworks whose collections are filled.
        endpoint: Name of the endpoint that made the vectors.
        local_model: What the embedded server ran, or ``None`` for the service.
        base_url: Root of the service's API; ``None`` for the embedded server.
        dimensions: The size that was asked for, or ``None``.
        documents: How many there are.
    """

    corpus: str
    title: str
    frameworks: tuple[str, ...]
    endpoint: str
    local_model: str | None
    base_url: str | None
    dimensions: int | None
    documents: int


@dataclass(frozen=True)
class Index:
    """An index: a folder with Chroma's files and ``index.json``."""

    directory: Path

    @property
    def name(self) -> str:
        """Its name, such as ``stdlib@minilm-use-gated``."""
        return self.directory.name

    @property
    def chroma(self) -> Path:
        """The folder of Chroma's ``PersistentClient``."""
        return self.directory / "chroma"

    def about(self) -> About:
        """Return what it holds.

        Raises:
            UnusableIndexError: It was never finished, or its description is damaged.
        """
        try:
            found = json.loads((self.directory / _ABOUT).read_text("utf-8"))
            return About(**{**found, "frameworks": tuple(found["frameworks"])})
        except (OSError, ValueError, TypeError, KeyError):
            raise UnusableIndexError(
                f"the index {self.name!r} is unfinished or damaged: index it again"
            ) from None

    def describe(self, about: About) -> None:
        """Write down what it holds, at once or not at all."""
        self.directory.mkdir(parents=True, exist_ok=True)
        draft = self.directory / f"{_ABOUT}.{os.getpid()}"
        draft.write_text(json.dumps(asdict(about), ensure_ascii=False, indent=2), "utf-8")
        os.replace(draft, self.directory / _ABOUT)

    def touch(self) -> None:
        """Note that it was used, which makes it the one that is asked next."""
        (self.directory / _ABOUT).touch()

    def remove(self) -> None:
        """Delete its files."""
        for part in (self.chroma, self.directory / _ABOUT):
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)


class Indexes:
    """The indexes under one folder; by default in the user's cache folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_path().parent / "indexes"

    def place(self, corpus: str, name: str, endpoint: Endpoint) -> Index:
        """Return where the index of a corpus belongs, whether or not it is there yet.

        Vectors of different models or sizes never meet: each has an index of its own.

        Args:
            corpus: ``stdlib``, ``topics`` or a path.
            name: The corpus's short name.
            endpoint: Where it is embedded.
        """
        if corpus not in ("stdlib", "topics"):
            path = os.path.realpath(corpus).encode("utf-8", "surrogateescape")
            name = f"{name}-{hashlib.sha256(path).hexdigest()[:6]}"
        return Index(self.folder / f"{name}@{endpoint.name}")

    def all(self) -> list[Index]:
        """Return all finished indexes, the one used last first."""
        described = self.folder.glob(f"*/{_ABOUT}")
        latest = sorted(described, key=lambda file: file.stat().st_mtime_ns, reverse=True)
        return [Index(file.parent) for file in latest]

    def find(self, name: str | None = None) -> Index:
        """Return the index whose name is, or begins with, ``name``; ``None``: the one used last.

        Raises:
            UnusableIndexError: There is none, or several.
        """
        indexes = self.all()
        if not indexes:
            raise UnusableIndexError(
                "there is no index yet: run `nexusflow demo` or `nexusflow index FOLDER` first"
            )
        if name is None:
            return indexes[0]
        exact = [index for index in indexes if index.name == name]
        alike = exact or [index for index in indexes if index.name.startswith(name)]
        if len(alike) == 1:
            return alike[0]
        names = ", ".join(index.name for index in (alike or indexes))
        problem = "several indexes are called" if alike else "no index is called"
        raise UnusableIndexError(f"{problem} {name!r}; there are {names}")
