"""Coalescing: a text that one call of this process embeds is not sent by another as well."""

from __future__ import annotations

from collections.abc import Iterable

from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.call.sources import Texts


class Coalescer:
    """Who is embedding which text now, so that nobody else in the process pays for it too."""

    def __init__(self) -> None:
        self._coalescer: dict[str, tuple[CallResults, int]] = {}

    def join(
        self, texts: Iterable[tuple[int, str]], gathered: CallResults
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str, CallResults, int]]]:
        """Part ``texts`` into those now ours to embed, and those that another call embeds."""
        if not self._coalescer:
            self._coalescer = {text: (gathered, index) for index, text in texts}
            return list(texts), []
        mine = []
        others = []
        for index, text in texts:
            carrier, place = self._coalescer.setdefault(text, (gathered, index))
            if carrier is gathered and place == index:
                mine.append((index, text))
            else:
                others.append((index, text, carrier, place))
        return mine, others

    def is_embedding(self, text: str, carrier: CallResults, place: int) -> bool:
        """Tell whether ``carrier`` is still under way with ``text``."""
        return self._coalescer.get(text) == (carrier, place)

    def leave(self, texts: Texts, gathered: CallResults) -> None:
        """End our coalescer; whoever still waits for one must see to it himself."""
        if len(texts) == len(self._coalescer):
            self._coalescer = {}  # nobody else has boarded
        else:
            for _, text in texts:
                self._coalescer.pop(text, None)
        gathered.wake_all()
