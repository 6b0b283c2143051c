"""Opens, reads and updates the one Chroma collection of an index."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core.needed import needed
from nexusflow_integrations.cli.rag.corpus import Corpus, Document, Skipped
from nexusflow_integrations.cli.rag.pipeline import COLLECTION
from nexusflow_integrations.errors import NexusFlowError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

_DATABASE = "chroma.sqlite3"
_PAGE = 5_000
"""Documents per read: SQLite takes at most 32,766 variables in a statement."""


class DamagedError(Exception):
    """Chroma cannot read its files; the message is Chroma's."""


@dataclass(frozen=True)
class Updated:
    """The outcome of an update.

    Attributes:
        added, changed, unchanged, removed: The number of passages that were. A passage with new
            text and a removed passage of the same file count as one changed passage.
        left_out: Files that could not be read, and passages that could not be stored.
        seconds: How long the update took.
    """

    added: int
    changed: int
    unchanged: int
    removed: int
    left_out: tuple[Skipped, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The documents that the collection should contain, with their ids.

    Attributes:
        documents: The corpus, and the stored passages of files that could not be read.
        ids: One id for each document.
        stored: The documents that it contains now, by id.
        remove: Whether to remove everything else.
        left_out: What could not be read.
    """

    documents: tuple[Document, ...]
    ids: tuple[str, ...]
    stored: Mapping[str, Document]
    remove: bool
    left_out: tuple[Skipped, ...]

    def new(self) -> list[str]:
        """Return the texts that must be embedded."""
        return [
            item.text
            for name, item in zip(self.ids, self.documents, strict=True)
            if name not in self.stored or self.stored[name].text != item.text
        ]

    def counts(self) -> Updated:
        """Return what would change if this plan were carried out."""
        pairs = list(zip(self.ids, self.documents, strict=True))
        added = sum(name not in self.stored for name, _ in pairs)
        same = sum(self.stored.get(name) == item for name, item in pairs)
        gone = len(self.stored.keys() - set(self.ids)) if self.remove else 0
        return self.paired(Updated(added, len(pairs) - added - same, same, gone, self.left_out))

    def paired(self, done: Updated, left_out: Container[int] = ()) -> Updated:
        """Return the counts with pairs of added and removed passages of a file counted as changed.

        Args:
            done: Counts by id.
            left_out: Indices of the documents that were left out.
        """
        names = set(self.ids)
        new = Counter(
            item.origin
            for place, (name, item) in enumerate(zip(self.ids, self.documents, strict=True))
            if name not in self.stored and place not in left_out
        )
        gone = Counter(item.origin for name, item in self.stored.items() if name not in names)
        both = min((new & gone).total(), done.removed)
        return replace(
            done, added=done.added - both, changed=done.changed + both, removed=done.removed - both
        )


def plan(
    corpus: Corpus,
    stored: Mapping[str, Document],
    before: Mapping[str, Document] | None = None,
) -> Plan:
    """Choose an id for each document of ``corpus``.

    A document whose text is already stored keeps its id, so a passage that moved, or whose file was
    renamed, is not embedded again. Any other document gets a new id: under the id of another
    passage, it would overwrite that passage before all new ones are stored. Stored passages of
    files that could not be read are kept, even if the file that they cite no longer contains them.
    If a limit cut off the corpus, nothing is removed.

    Args:
        corpus: The documents that the collection should contain.
        stored: The documents that it contains now.
        before: The documents of the collection that is being replaced; default: ``stored``.
    """
    before = stored if before is None else before
    wanted = _wanted(corpus, before.values())
    by_text = {item.text: name for name, item in stored.items()}
    by_text |= {
        item.text: name
        for name, item in stored.items()
        if item.text in wanted and wanted[item.text].origin == item.origin
    }
    names = set(stored)
    ids: list[str] = []
    for item in wanted.values():
        ids.append(by_text.get(item.text) or _new_id(item, names))
        names.add(ids[-1])
    return Plan(
        tuple(wanted.values()),
        tuple(ids),
        stored,
        corpus.complete,
        corpus.left_out(before.values()),
    )


def _wanted(corpus: Corpus, before: Iterable[Document]) -> dict[str, Document]:
    """Return the passages that the index should contain, by text.

    They are those of the corpus, and those of ``before`` whose files could not be read.
    """
    wanted = {item.text: item for item in corpus.documents}
    for item in before:
        unread = tuple(name for name in item.origins if corpus.could_not_read(name))
        known = wanted.get(item.text)
        if known is not None:
            more = unread if corpus.complete else item.origins
            also_in = dict.fromkeys((*known.also_in, *more))
            also_in.pop(known.origin, None)
            if len(also_in) > len(known.also_in):
                wanted[item.text] = replace(known, also_in=tuple(also_in))
        elif unread and not corpus.complete:
            wanted[item.text] = item
        elif unread:
            cited = item if unread[0] == item.origin else Document(item.text, unread[0])
            wanted[item.text] = replace(cited, also_in=unread[1:])
    return wanted


def _new_id(document: Document, taken: set[str]) -> str:
    for attempt in range(len(taken) + 1):
        seed = f"{document.origin}\0{document.text}\0{attempt or ''}"
        name = hashlib.sha256(seed.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        if name not in taken:
            return name
    raise AssertionError("there are more ids than attempts")


# -- Chroma --------------------------------------------------------------------------------------


def chroma_client(directory: Path) -> ClientAPI:
    """Return Chroma's ``PersistentClient`` for a folder, without telemetry.

    Raises:
        ImportError: Chroma is missing; the message says what to install.
        DamagedError: The folder was not made by Chroma, or is damaged.
    """
    with needed("An index", "chromadb", install="nexusflow-integrations[chroma]"):
        import chromadb
        from chromadb.config import Settings
    try:
        return chromadb.PersistentClient(
            str(directory), settings=Settings(anonymized_telemetry=False, is_persistent=True)
        )
    except Exception as error:
        raise _damaged(error) from error


def client_to_read(directory: Path) -> ClientAPI:
    """Return Chroma's client for a folder, as ``chroma_client``, and never create the folder.

    Raises:
        ImportError: Chroma is missing; the message says what to install.
        DamagedError: The folder does not exist, was not made by Chroma, or is damaged.
    """
    with needed("An index", "chromadb", install="nexusflow-integrations[chroma]"):
        import chromadb  # noqa: F401 - the import takes long, and the folder may go meanwhile
    if not (directory / _DATABASE).exists():  # Chroma would create it
        raise DamagedError(f"{directory / _DATABASE} does not exist")
    return chroma_client(directory)


@contextmanager
def reading() -> Iterator[None]:
    """Turn Chroma's errors about its files into `DamagedError`; all other errors propagate."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        from chromadb.errors import ChromaError

        if not isinstance(error, ChromaError):
            raise
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, NexusFlowError):
                raise
            cause = cause.__cause__ or cause.__context__
        raise _damaged(error) from error


def _damaged(error: Exception) -> DamagedError:
    return DamagedError(" ".join(str(error).split())[:200])


def open_to_write(directory: Path, **settings: Any) -> Collection:
    """Open or create the collection of the Chroma folder ``directory``.

    Args:
        directory: The folder; it is created if it does not exist.
        **settings: Settings of ``NexusFlowEmbeddingFunction``.
    """
    client = chroma_client(directory)
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
    from nexusflow_integrations.chroma_collections import open_collection

    with reading():
        return open_collection(client, COLLECTION, NexusFlowEmbeddingFunction(**settings))


def open_to_compare(directory: Path, **settings: Any) -> Collection:
    """Open the collection of the Chroma folder ``directory`` if the service returns its vectors.

    Raises:
        ConfigurationError: The service returns different vectors.
    """
    client = client_to_read(directory)
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
    from nexusflow_integrations.chroma_collections import open_collection

    function = NexusFlowEmbeddingFunction(**settings)
    with reading():
        return open_collection(client, COLLECTION, function, create=False, verify=True)


def open_to_read(directory: Path) -> Collection:
    """Open the collection of the Chroma folder ``directory`` to read its documents."""
    client = client_to_read(directory)
    with reading():
        return client.get_collection(COLLECTION, embedding_function=None)


def discard(directory: Path) -> None:
    """Delete a Chroma folder that this process has opened."""
    from chromadb.api.shared_system_client import SharedSystemClient

    SharedSystemClient.clear_system_cache()  # or the next client would use the deleted files
    shutil.rmtree(directory, ignore_errors=True)


def stored(collection: Collection) -> dict[str, Document]:
    """Return all documents of a collection, by id."""
    documents: dict[str, Document] = {}
    with reading():
        while page := collection.get(
            limit=_PAGE, offset=len(documents), include=["documents", "metadatas"]
        ):
            texts, notes = page["documents"] or [], page["metadatas"] or []
            for name, text, note in zip(page["ids"], texts, notes, strict=True):
                also_in = tuple(json.loads(str(note.get("also_in", "[]"))))
                documents[name] = Document(
                    text or "", str(note["source"]), str(note["url"]), also_in
                )
            if len(page["ids"]) < _PAGE:
                return documents
    return documents


def make_keyword_index(collection: Collection) -> None:
    """Build the keyword index of a collection, so that the first search does not have to."""
    from nexusflow_integrations.chroma_collections.keyword_index import fitting_index

    with reading():
        fitting_index(collection)


def _metadata(document: Document) -> dict[str, str]:
    also_in = {"also_in": json.dumps(document.also_in)} if document.also_in else {}
    return {"source": document.source, "url": document.url} | also_in


def update(
    collection: Collection,
    plan: Plan,
    progress: Callable[[int], object] | None = None,
    **options: Any,
) -> Updated:
    """Carry out ``plan`` on a collection; see ``sync_documents`` for guarantees and options."""
    from nexusflow_integrations.chroma_collections import sync_documents

    done = sync_documents(
        collection,
        ids=plan.ids,
        documents=[item.text for item in plan.documents],
        metadatas=[_metadata(item) for item in plan.documents],
        remove=plan.remove,
        progress=progress,
        **options,
    )
    left_out = tuple(
        Skipped(plan.documents[item.place].source, item.message) for item in done.left_out
    )
    left_out = (*plan.left_out, *left_out)
    counts = Updated(done.added, done.changed, done.unchanged, done.removed, left_out)
    return plan.paired(counts, {item.place for item in done.left_out})
