"""Checks that a service still returns the vectors of a collection, to detect a new model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.comparing import TOLERANCE, deviation
from nexusflow_integrations.errors import ConfigurationError

if TYPE_CHECKING:
    from uuid import UUID

    from nexusflow_integrations._core.vectors import Vectors
    from nexusflow_integrations.client import NexusFlow

SAMPLE = 3
"""Number of documents that are embedded again, in one request."""
READ = 10
"""Number of documents that are read; the shortest are embedded, because they cost least."""
VALID = 3600.0
"""Seconds for which a client does not compare a collection again."""

_compared: WeakKeyDictionary[NexusFlow, dict[UUID, float]] = WeakKeyDictionary()
"""The time at which each client last compared a collection or started to fill it."""


def is_due(client: NexusFlow, collection: UUID) -> bool:
    """Return whether ``client`` must compare the collection before it writes to it."""
    return monotonic() - _compared.get(client, {}).get(collection, -VALID) >= VALID


def note(client: NexusFlow, collection: UUID) -> None:
    """Record that the vectors of the collection match those that ``client`` gets."""
    _compared.setdefault(client, {})[collection] = monotonic()


def sampled(found: Mapping[str, Any]) -> tuple[list[str], list[str], list[Vectors]]:
    """Return ids, documents and vectors from a ``collection.get`` result, for complete rows only.

    At most ``SAMPLE`` rows are returned, those with the shortest documents.
    """
    rows = zip(
        found["ids"],
        found["documents"] or (),
        () if found["embeddings"] is None else found["embeddings"],
        strict=False,
    )
    whole = [
        (name, text, np.asarray(row, np.float32))
        for name, text, row in rows
        if text is not None and text.strip() and row is not None
    ]
    shortest = sorted(range(len(whole)), key=lambda place: len(whole[place][1]))[:SAMPLE]
    kept = [whole[place] for place in sorted(shortest)]
    return (
        [name for name, _, _ in kept],
        [text for _, text, _ in kept],
        [row for _, _, row in kept],
    )


def check_same(
    name: str,
    ids: list[str],
    stored: list[Vectors],
    fresh: Sequence[Any],
    *,
    most: bool = False,
) -> None:
    """Refuse a service whose vectors differ from those of collection ``name``.

    Args:
        name: Name of the collection.
        ids: The ids of the documents to compare.
        stored: The vectors of these documents in the collection.
        fresh: The new vectors of these documents; ``None`` for a document that the service now
            refuses.
        most: Whether up to half of the vectors may differ, because users may have stored vectors
            of their own.

    Raises:
        ConfigurationError: A document got a vector that differs from the stored one; with ``most``,
            more than half of the documents did.
    """
    apart = [
        (place, deviation(old, np.asarray(new, np.float32)))
        for place, (old, new) in enumerate(zip(stored, fresh, strict=True))
        if new is not None
    ]
    differing = [(place, far) for place, far in apart if far > TOLERANCE]
    if len(differing) > (len(apart) // 2 if most else 0):
        place, far = differing[0]
        raise ConfigurationError(
            f"the service embeds document {ids[place]!r} of collection {name!r} differently"
            f" now (the vectors differ by {far:.2g} of their length; {TOLERANCE} is"
            " allowed): the model or its settings changed, or the stored vector was made in"
            " another way; make another collection (copy_collection with embed_again=True)"
            + (", or write without comparing (verify=False)" if most else "")
        )
