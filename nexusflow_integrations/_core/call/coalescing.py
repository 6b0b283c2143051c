"""Coalescing: a text that one call of this process embeds is not sent by another as well."""

from __future__ import annotations

from collections.abc import Iterable

from nexusflow_integrations._core.call.results import Gathered
from nexusflow_integrations._core.call.sources import Texts


class Flights:
    """Who is embedding which text now, so that nobody else in the process pays for it too."""

    def __init__(self) -> None:
        self._flights: dict[str, tuple[Gathered, int]] = {}

    def board(
        self, texts: Iterable[tuple[int, str]], gathered: Gathered
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str, Gathered, int]]]:
        """Part ``texts`` into those now ours to embed, and those that another call embeds."""
        if not self._flights:
            self._flights = {text: (gathered, index) for index, text in texts}
            return list(texts), []
        mine = []
        others = []
        for index, text in texts:
            carrier, place = self._flights.setdefault(text, (gathered, index))
            if carrier is gathered and place == index:
                mine.append((index, text))
            else:
                others.append((index, text, carrier, place))
        return mine, others

    def carries(self, text: str, carrier: Gathered, place: int) -> bool:
        """Tell whether ``carrier`` is still under way with ``text``."""
        return self._flights.get(text) == (carrier, place)

    def land(self, texts: Texts, gathered: Gathered) -> None:
        """End our flights; whoever still waits for one must see to it himself."""
        if len(texts) == len(self._flights):
            self._flights = {}  # nobody else has boarded
        else:
            for _, text in texts:
                self._flights.pop(text, None)
        gathered.wake_all()
