"""A document that an ingestion left out, and the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from nexusflow_integrations.errors import InvalidInputError, NexusFlowError

Reason = Literal[
    "refused",
    "blank",
    "too long",
    "invalid text",
    "invalid id",
    "invalid metadata",
    "refused by the store",
]


@dataclass(frozen=True)
class LeftOut:
    """One document that was left out.

    Attributes:
        id: The document's id in the source; ``None`` if it has no usable id.
        place: The document's position in the source, counted from 0.
        reason: ``"refused"`` by the server, ``"blank"``, ``"too long"``, ``"invalid text"``,
            ``"invalid id"``, ``"invalid metadata"`` or ``"refused by the store"``.
        message: The reason in one sentence.
        error: The error of the server or the store that refused the document, if any.
        source: The file or address of the document, if its metadata has one.
        document: Id of the whole document, if this document is a part of another and that id is
            known.
    """

    id: str | None
    place: int
    reason: Reason
    message: str
    error: Exception | None = None
    source: str | None = None
    document: str | None = None

    def __str__(self) -> str:
        name = f"document {self.place}" if self.id is None else repr(self.id)
        origin = f" ({self.source or self.document})" if self.source or self.document else ""
        return f"{name}{origin}: {self.message}"


def reason_of(error: NexusFlowError) -> Reason:
    """Return the reason why a text was not embedded, from its error."""
    if not isinstance(error, InvalidInputError):
        return "refused"
    if "is too long" in str(error):
        return "too long"
    return "blank" if "is blank" in str(error) else "invalid text"


def reason_in_words(error: NexusFlowError) -> str:
    """Return the reason as a sentence, without the index of the text in an internal list."""
    if isinstance(error, InvalidInputError):
        return re.sub(r"^text \d+ ", "the text ", str(error))
    return f"the server refused it: {error}"
