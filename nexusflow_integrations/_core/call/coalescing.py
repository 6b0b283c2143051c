"""Coalescing: a text that one call of this process is embedding is not sent by another call."""

from __future__ import annotations

from collections.abc import Iterable

from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.call.sources import Texts


class Coalescer:
    """The texts that calls of this process are embedding, so that each is paid for once."""

    def __init__(self) -> None:
        self._carriers: dict[str, tuple[CallResults, int]] = {}

    def join(
        self, texts: Iterable[tuple[int, str]], gathered: CallResults
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str, CallResults, int]]]:
        """Split ``texts`` into those to embed here and those that another call is embedding."""
        if not self._carriers:
            self._carriers = {text: (gathered, index) for index, text in texts}
            return list(texts), []
        mine = []
        others = []
        for index, text in texts:
            carrier, place = self._carriers.setdefault(text, (gathered, index))
            if carrier is gathered and place == index:
                mine.append((index, text))
            else:
                others.append((index, text, carrier, place))
        return mine, others

    def is_embedding(self, text: str, carrier: CallResults, place: int) -> bool:
        """Return whether ``carrier`` is still embedding ``text``."""
        return self._carriers.get(text) == (carrier, place)

    def leave(self, texts: Texts, gathered: CallResults) -> None:
        """Remove this call's texts; calls that still wait for one must send it themselves."""
        if len(texts) == len(self._carriers):
            self._carriers = {}  # no other call has joined
        else:
            for _, text in texts:
                self._carriers.pop(text, None)
        gathered.wake_all()
