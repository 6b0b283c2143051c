"""Decides which limits apply to an account: those of the newest client in use that sets any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import ref

from nexusflow_integrations._core.settings import Settings

if TYPE_CHECKING:
    from nexusflow_integrations._core.pace.shared import SharedLimits


class Presence:
    """A client and its copies refer to this object while they are in use."""

    __slots__ = ("__weakref__",)


@dataclass(eq=False, slots=True)
class Terms:
    """The limits that one client sets.

    They apply to all clients of the account while ``presence`` is alive (for ever if it is
    ``None``) or a call of the client is in flight.
    """

    settings: Settings
    pacer: SharedLimits | None = None
    presence: ref[Presence] | None = None
    number: int = field(default_factory=count().__next__)

    @property
    def present(self) -> bool:
        """Whether the client is in use."""
        return self.presence is None or self.presence() is not None

    @property
    def limit(self) -> bool:
        """Whether any limit is set."""
        settings = self.settings
        given = (self.pacer, settings.requests_per_minute, settings.tokens_per_minute)
        return given != (None, None, None)


class EffectiveLimits:
    """The limits that apply to one account.

    Attributes:
        requests_per_minute: The newest limit on requests; ``None`` for no limit.
        tokens_per_minute: The newest limit on tokens; ``None`` for no limit.
        pacer: The shared limits to use instead, if the newest client that sets any limit has a
            pacer.
        max_concurrency: The largest value of all clients in use.
    """

    def __init__(self) -> None:
        self._calls: dict[Terms, int] = {}
        self._ends: dict[Terms, Any] = {}
        self.requests_per_minute: float | None = None
        self.tokens_per_minute: float | None = None
        self.pacer: SharedLimits | None = None
        self.max_concurrency = 0

    def __contains__(self, terms: Terms) -> bool:
        return terms in self._calls

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, terms: Terms, ended: Callable[[], None]) -> None:
        """Count a call. ``ended`` is called, in any thread, when the client is freed."""
        calls = self._calls.get(terms)
        self._calls[terms] = (calls or 0) + 1
        if calls is None:
            presence = None if terms.presence is None else terms.presence()
            self._ends[terms] = presence and ref(presence, lambda _: ended())
            self.review()

    def end(self, terms: Terms) -> bool:
        """Count the end of a call; return whether it was the last call of a client that is gone."""
        self._calls[terms] -= 1
        return not (self._calls[terms] or terms.present)

    def review(self) -> None:
        """Drop the terms of clients that are gone, and update the attributes."""
        for terms in [t for t, calls in self._calls.items() if not (calls or t.present)]:
            del self._calls[terms], self._ends[terms]
        newest = sorted(self._calls, key=lambda terms: -terms.number)
        if newest:
            self.max_concurrency = max(terms.settings.max_concurrency for terms in newest)
        self.pacer = next((terms.pacer for terms in newest if terms.limit), None)
        own = [terms.settings for terms in newest if terms.pacer is None]
        self.requests_per_minute = next(filter(None, (s.requests_per_minute for s in own)), None)
        self.tokens_per_minute = next(filter(None, (s.tokens_per_minute for s in own)), None)
