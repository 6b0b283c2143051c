"""A document that could not be stored, and why: what best-effort ingestion reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nexusflow_integrations.errors import NexusFlowError

Reason = Literal["refused", "blank", "too long", "invalid text", "invalid id", "invalid metadata"]


@dataclass(frozen=True)
class LeftOut:
    """One document that was left out.

    Attributes:
        id: Its id as the source gave it; ``None`` where there is none that could be used.
        place: Where it is in the source, counted from 0.
        reason: ``"refused"`` by the server, ``"blank"``, ``"too long"``, ``"invalid text"``,
            ``"invalid id"`` or ``"invalid metadata"``.
        message: The reason in one sentence.
        error: The server's refusal, where there is one.
    """

    id: str | None
    place: int
    reason: Reason
    message: str
    error: NexusFlowError | None = None

    def __str__(self) -> str:
        name = f"document {self.place}" if self.id is None else repr(self.id)
        return f"{name}: {self.message}"
