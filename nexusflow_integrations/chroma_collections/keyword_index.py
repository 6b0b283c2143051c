"""The keyword index of a collection: derived from the documents, and stored beside them.

Chroma does not record that a collection has changed, and any program may change it. So an index
stores a hash of each document that it was built from. When a process first uses the index, and
again after each write to Chroma's database file, these hashes are compared with the documents; if
they differ, the index is rebuilt. So the index always matches the documents, even if a program was
killed while it wrote.

An index is written into a new folder; then one file that names this folder is replaced. A process
that is killed before that leaves a folder that nothing refers to; the next process that writes
removes the folder. Checksums detect files that are damaged or incomplete, as after a power cut. The
index belongs to the collection's id, so it stays valid if names are exchanged.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.keywords import check_packages, words_of
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.one_writer import folder_of
from nexusflow_integrations._core.signals import raised_by_signal_handler
from nexusflow_integrations.errors import ConfigurationError

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection


FOLDER = "nexusflow-keywords"
"""The folder with all keyword indexes, in the folder of the ``PersistentClient``."""
CURRENT = "current.json"
PAGE = 1_000
"""Documents per read."""
ATTEMPTS = 3
"""Maximum number of times that documents are read again because the collection changed."""
MOST_OPEN = 8
"""Maximum number of indexes that a process keeps open."""

_FORMAT = 2
_PACKAGES = ("bm25s", "PyStemmer", "rjieba")

State = tuple[object, ...]
Digests = dict[str, int]
"""A hash of each document, by id."""


class KeywordIndex:
    """An index of documents by their words.

    Args:
        digests: A hash of each document, in the order of the index.
        ranks: ``bm25s.BM25``; ``None`` if no document has a word.
    """

    def __init__(self, digests: Digests, ranks: Any) -> None:
        self.ids = [*digests]
        self.digests = digests
        self._ranks = ranks

    @classmethod
    def of(cls, pages: Iterator[tuple[list[str], list[str]]]) -> KeywordIndex:
        """Index ids and documents, page by page."""
        bm25s = _bm25s()
        digests: Digests = {}
        vocabulary: dict[str, int] = {}
        # Store words by id: an id comes twice if it was removed and added again between two pages.
        words: dict[str, list[int]] = {}
        for ids, texts in pages:
            for name, text in zip(ids, texts, strict=True):
                digests[name] = digest(text)
                words[name] = [
                    vocabulary.setdefault(word, len(vocabulary)) for word in words_of(text)
                ]
        ranks = None
        if vocabulary:
            ranks = bm25s.BM25()
            ranks.index(
                bm25s.tokenization.Tokenized([*words.values()], vocabulary), show_progress=False
            )
        return cls(digests, ranks)

    def ranked(self, text: str) -> Iterator[str]:
        """Yield the ids of the documents that share a word with ``text``, best first."""
        if self._ranks is None:
            return
        words = [word for word in words_of(text) if word in self._ranks.vocab_dict]
        if not words:
            return
        scores: NDArray[np.float32] = self._ranks.get_scores(words)
        places = np.flatnonzero(scores > 0)
        for place in places[np.argsort(-scores[places], kind="stable")].tolist():
            yield self.ids[place]

    def save(self, folder: Path) -> dict[str, int]:
        """Write the index into the existing, empty ``folder``; return a checksum of each file."""
        if self._ranks is not None:
            self._ranks.save(str(folder))
        (folder / "ids.json").write_text(json.dumps(self.ids), encoding="utf-8")
        np.save(folder / "digests.npy", np.fromiter(self.digests.values(), np.uint64))
        return {path.name: _checksum(path) for path in folder.iterdir()}

    @classmethod
    def load(cls, folder: Path, checksums: Mapping[str, int]) -> KeywordIndex:
        """Open an index that ``save`` wrote, without reading all of it into memory.

        Raises:
            Exception: The index is incomplete or damaged.
        """
        if any(_checksum(folder / name) != value for name, value in checksums.items()):
            raise ValueError("a file is damaged")
        ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
        hashes = np.load(folder / "digests.npy").tolist()
        has_words = len(checksums) > 2
        ranks = _bm25s().BM25.load(str(folder), mmap=True) if has_words else None
        return cls(dict(zip(ids, hashes, strict=True)), ranks)


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found = zlib.crc32(part, found)
    return found


def digest(text: str) -> int:
    """Return a 64-bit hash."""
    hashed = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(hashed.digest(), "little")


# -- the index of a collection ---------------------------------------------------------------------


@dataclass
class _Open:
    index: KeywordIndex
    state: State


_lock = forks.Lock()
_open: OrderedDict[tuple[str, str], _Open] = OrderedDict()
"""Open indexes by folder and collection id, least recently used first, with the matching state."""


def folder_for(collection: Collection) -> Path:
    """Return the folder of the keyword index of ``collection``.

    Raises:
        ConfigurationError: The collection is in memory, or on a server.
    """
    folder = folder_of(collection)
    if folder is None:
        raise ConfigurationError(
            "a keyword index is kept beside the collection, in the folder of a PersistentClient;"
            f" collection {collection.name!r} has none: it is in memory, or on a server"
        )
    return folder / FOLDER / str(collection.id)


def fitting_index(collection: Collection) -> KeywordIndex:
    """Return the keyword index of ``collection``, built or rebuilt if necessary.

    The first call in a process, and each call after a write to the database, reads all documents.

    Raises:
        ConfigurationError: The collection is in memory, or on a server.
        ImportError: A package is missing; the message says what to install.
    """
    home = folder_for(collection)
    database = home.parent.parent
    name = os.path.realpath(database), str(collection.id)
    with _lock.mutex:
        cached = _open.get(name)
        if cached is not None and cached.state == _state(database):
            _open.move_to_end(name)
            return cached.index
        former = _stored(home) if cached is None else cached.index
        for _ in range(ATTEMPTS):
            state = _state(database)
            if former is not None and _digests(collection) == former.digests:
                index = former
            else:
                index = KeywordIndex.of(_pages(collection))
            if _state(database) == state:
                if index is not former:
                    _store(index, home, collection)
                _open[name] = _Open(index, state)
                _open.move_to_end(name)
                while len(_open) > MOST_OPEN:
                    _open.popitem(last=False)
                break
        return index  # if the collection keeps changing, no other index matches it better


def refresh(collection: Collection) -> None:
    """Bring the keyword index of ``collection`` up to date, if it has one.

    If that fails, the next query updates the index: the documents themselves are stored.
    """
    if folder_of(collection) is None or not folder_for(collection).is_dir():
        return
    try:
        fitting_index(collection)
    except Exception as error:
        if raised_by_signal_handler(error):
            raise
        logger.warning(
            "the keyword index of collection %r could not be updated (%s: %s); the next"
            " hybrid_query rebuilds it",
            collection.name,
            type(error).__name__,
            error,
        )


def _pages(collection: Collection) -> Iterator[tuple[list[str], list[str]]]:
    offset = 0
    while True:
        page = collection.get(limit=PAGE, offset=offset, include=["documents"])
        ids, texts = page["ids"], page["documents"] or []
        yield ids, [text or "" for text in texts]
        if len(ids) < PAGE:
            return
        offset += len(ids)


def _digests(collection: Collection) -> Digests:
    found: Digests = {}
    for ids, texts in _pages(collection):
        found |= zip(ids, map(digest, texts), strict=True)
    return found


def _state(folder: Path) -> State:
    """Return a value that changes with every write to Chroma's database."""
    found: list[object] = []
    for name in ("chroma.sqlite3", "chroma.sqlite3-wal"):
        with suppress(OSError), (folder / name).open("rb") as file:
            status = os.fstat(file.fileno())
            # The header contains a counter of changes, or the salt of the write-ahead log.
            found += [status.st_ino, status.st_mtime_ns, status.st_size, file.read(32)]
    return tuple(found)


def _made_by() -> list[str]:
    """Return the versions that determine how texts are split into words."""
    return [str(_FORMAT), *(f"{name} {version(name)}" for name in _PACKAGES)]


def _stored(home: Path) -> KeywordIndex | None:
    """Return the index on disk; ``None`` if there is no usable index."""
    try:
        current = json.loads((home / CURRENT).read_text(encoding="utf-8"))
        if current["made_by"] != _made_by():
            return None
        return KeywordIndex.load(home / current["folder"], current["checksums"])
    except Exception as error:
        if raised_by_signal_handler(error):
            raise
        return None  # a missing, incomplete or damaged index is rebuilt


def _store(index: KeywordIndex, home: Path, collection: Collection) -> None:
    """Write the index, then make it the current one; remove others.

    If the disk is full or read-only, only this process uses the index.
    """
    fresh = home / uuid.uuid4().hex
    try:
        fresh.mkdir(parents=True)
        current = {
            "folder": fresh.name,
            "checksums": index.save(fresh),
            "made_by": _made_by(),
            "database": [collection.tenant, collection.database],
        }
        written = home / f"{fresh.name}.json"
        written.write_text(json.dumps(current), encoding="utf-8")
        os.replace(written, home / CURRENT)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        return
    for other in home.iterdir():
        if other.name not in (CURRENT, fresh.name):
            with suppress(OSError):
                if other.is_dir():
                    shutil.rmtree(other, ignore_errors=True)
                else:
                    other.unlink()
    _remove_orphans(home, collection)


def _remove_orphans(home: Path, collection: Collection) -> None:
    """Remove the indexes of collections of the same database that were deleted."""
    place = collection.tenant, collection.database
    client: Any = collection._client
    there: set[str] = set()
    while found := client.list_collections(PAGE, len(there), *place):
        there |= {str(one.id) for one in found}
    for other in home.parent.iterdir():
        if other.name in there:
            continue
        with suppress(OSError, ValueError, KeyError):
            current = json.loads((other / CURRENT).read_text(encoding="utf-8"))
            if tuple(current["database"]) == place:
                shutil.rmtree(other, ignore_errors=True)


def _bm25s() -> Any:
    check_packages()
    import bm25s

    return bm25s
