"""``hybrid_query`` searches a collection by vectors and by keywords at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from chromadb.api.models.Collection import Collection

from nexusflow_integrations._core.checks import whole
from nexusflow_integrations._core.keywords import fused
from nexusflow_integrations._core.texts import check_text
from nexusflow_integrations.chroma_collections.keyword_index import KeywordIndex, fitting_index
from nexusflow_integrations.chroma_collections.ownership import check_where
from nexusflow_integrations.errors import ConfigurationError

if TYPE_CHECKING:
    from chromadb.api.types import Where

DEPTH = 100
"""Minimum number of documents that are merged from each ranking."""
MOST = 10_000
"""Maximum number of documents that may be requested."""


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        id: The document's id in the collection.
        document: The text.
        metadata: The metadata, or ``None``.
        score: The sum of ``1 / (60 + rank)`` over the rankings that contain the document;
            comparable only within one query.
        vector_rank: The rank by vectors, from 1; ``None`` if the document is not in that ranking.
        keyword_rank: The rank by keywords, from 1; ``None`` if the document is not in that ranking.
    """

    id: str
    document: str
    metadata: Mapping[str, Any] | None
    score: float
    vector_rank: int | None
    keyword_rank: int | None


def hybrid_query(
    collection: Collection, text: str, n_results: int = 10, where: Where | None = None
) -> list[Hit]:
    """Search by vectors and by keywords (BM25), and merge both rankings by reciprocal rank fusion.

    The best 100 documents of each ranking, or ``n_results`` if that is more, are merged with
    ``k=60``. Vectors find texts with the same meaning; keywords find names, numbers and codes that
    are in the question. Which search is better depends on the documents: measure it.

    Keywords come from an index in the folder of the ``PersistentClient``. The index is built at the
    first query, kept up to date by ``sync_documents`` and ``add_documents``, and rebuilt whenever
    it does not match the documents. A query costs one embedding, like ``collection.query``.

    Args:
        collection: A collection of a ``PersistentClient``.
        text: The question.
        n_results: Maximum number of documents, at most 10,000.
        where: Chroma's filter on metadata.

    Returns:
        The best documents, in order of score.

    Raises:
        InvalidInputError: ``text`` cannot be sent.
        ConfigurationError: The collection is in memory, on a server or from an ``AsyncHttpClient``,
            or ``n_results`` or ``where`` is invalid.
        ImportError: A package is missing: ``pip install "nexusflow-integrations[hybrid]"``.
        NexusFlowError: The question cannot be embedded.
    """
    if not isinstance(collection, Collection):
        raise ConfigurationError(
            "hybrid_query needs a collection of a PersistentClient, not"
            f" {type(collection).__name__}"
        )
    text = check_text(text)
    n_results = whole("n_results", n_results, 1, MOST)
    check_where(where)
    index = fitting_index(collection)  # build the index before the question is paid for
    if not index.ids:
        return []
    depth = max(DEPTH, n_results)
    by_keyword = list(islice(_matching(collection, index, text, where), depth))
    found = collection.query(
        query_texts=[text],
        n_results=min(depth, len(index.ids)),
        where=where,
        include=["documents", "metadatas"],
    )
    by_vector = found["ids"][0]
    best = fused([by_vector, by_keyword])[:n_results]
    # Chroma's query also returns ids that another program has just removed; these have no text.
    records = {name: record for name, record in _records(found, 0).items() if record[0]}
    if missing := [name for name, _ in best if name not in records]:
        got: Any = collection.get(ids=missing, include=["documents", "metadatas"])
        records |= _records({key: [got[key]] for key in ("ids", "documents", "metadatas")}, 0)
    vector_ranks = {name: rank for rank, name in enumerate(by_vector, 1)}
    keyword_ranks = {name: rank for rank, name in enumerate(by_keyword, 1)}
    return [
        Hit(name, *records[name], score, vector_ranks.get(name), keyword_ranks.get(name))
        for name, score in best
        if name in records  # a document without a record was removed in the meantime
    ]


async def ahybrid_query(
    collection: Collection, text: str, n_results: int = 10, where: Where | None = None
) -> list[Hit]:
    """Search like ``hybrid_query``, in a thread, without blocking the event loop.

    The collection must also belong to a ``PersistentClient``: Chroma's async client has no folder.
    """
    return await asyncio.to_thread(hybrid_query, collection, text, n_results, where)


def _matching(
    collection: Collection, index: KeywordIndex, text: str, where: Where | None
) -> Iterator[str]:
    """Yield the ids of documents that match ``where``, ranked by keywords, best first."""
    ranked = index.ranked(text)
    if where is None:
        yield from ranked
        return
    # Get all ids that match: Chroma does this ten times as fast as it finds 250 ids among given
    # ids.
    allowed = set(collection.get(where=where, include=[])["ids"])
    yield from (name for name in ranked if name in allowed)


def _records(found: Any, row: int) -> dict[str, tuple[str, Mapping[str, Any] | None]]:
    columns = (found["ids"][row], found["documents"][row], found["metadatas"][row])
    return {name: (text or "", note) for name, text, note in zip(*columns, strict=True)}
