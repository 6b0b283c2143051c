"""Coalescing: if one call of this process is embedding a text, another call does not send it."""

from __future__ import annotations

from collections.abc import Iterable

from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.call.sources import Texts


class Coalescer:
    """The texts that calls of this process are embedding, so that each text is paid for once."""

    def __init__(self) -> None:
        self._carriers: dict[str, tuple[CallResults, int]] = {}
        # The texts that callers send themselves, in their threads or on their loops. The background
        # loop and the callers each enter a text in their own table before they look into the other
        # table, so at least one side sees the other.
        self._of_threads: dict[str, tuple[CallResults, int]] = {}
        # How many calls from an event loop have a text on its way to the background loop, by the
        # id of the loop's thread and the text.
        self._announced: dict[tuple[int, str], int] = {}

    def join(
        self, texts: Iterable[tuple[int, str]], results: CallResults
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str, CallResults, int]]]:
        """Split ``texts`` into those that this call must embed and those that another embeds."""
        if not self._carriers:
            self._carriers = {text: (results, index) for index, text in texts}
            return self._without_those_of_threads(list(texts), [], results)
        mine = []
        others = []
        for index, text in texts:
            carrier, place = self._carriers.setdefault(text, (results, index))
            if carrier is results and place == index:
                mine.append((index, text))
            else:
                carrier.lent.add(place)
                others.append((index, text, carrier, place))
        return self._without_those_of_threads(mine, others, results)

    def _without_those_of_threads(
        self,
        mine: list[tuple[int, str]],
        others: list[tuple[int, str, CallResults, int]],
        results: CallResults,
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str, CallResults, int]]]:
        if not self._of_threads:
            return mine, others
        left = []
        for index, text in mine:
            found = self._of_threads.get(text)
            if found is not None and found[0].may_be_awaited_by(results):
                carrier, place = found
                carrier.lent.add(place)
                # Look again: if a thread has removed its text meanwhile, it may not see that the
                # row is lent.
                if self._of_threads.get(text) == found:
                    del self._carriers[text]
                    others.append((index, text, carrier, place))
                    carrier.record_waiter()
                    continue
            left.append((index, text))
        return left, others

    def holds_any(self, texts: Iterable[str]) -> bool:
        """Return whether a call is embedding any of ``texts``; any thread may call this."""
        return any(text in self._carriers or text in self._of_threads for text in texts)

    def enter(self, texts: Texts, results: CallResults) -> bool:
        """Enter the texts that the caller itself will send.

        Return whether no other call is embedding any of these texts. In both cases, ``exit`` must
        be called later.
        """
        found = [self._of_threads.setdefault(text, (results, index)) for index, text in texts]
        # Look into the other table only now: a call on the loop enters its texts there before it
        # looks here.
        return all(carrier is results for carrier, _ in found) and not any(
            text in self._carriers for _, text in texts
        )

    def announce(self, texts: Iterable[str], thread: int) -> None:
        """On a caller's loop, record the texts of a call before the background loop gets it.

        The background loop may get it late. Meanwhile, no other call of the same loop sends these
        texts (see ``is_announced``), and a call that is sending one keeps its vector for this call.
        ``thread`` is the id of the loop's thread.
        """
        for text in texts:
            self._announced[thread, text] = self._announced.get((thread, text), 0) + 1
            found = self._of_threads.get(text)
            if found is not None:
                carrier, place = found
                carrier.lent.add(place)
                carrier.is_expected = True

    def withdraw(self, texts: Iterable[str], thread: int) -> None:
        """Undo ``announce`` when the call has ended."""
        for text in texts:
            count = self._announced.pop((thread, text)) - 1
            if count:
                self._announced[thread, text] = count

    def is_announced(self, texts: Iterable[str], thread: int) -> bool:
        """Return whether a call of the same loop has one of ``texts`` on its way."""
        return bool(self._announced) and any((thread, text) in self._announced for text in texts)

    def exit(self, texts: Texts, results: CallResults) -> None:
        """Remove the texts that ``enter`` entered; this may be called again."""
        for _, text in texts:
            found = self._of_threads.get(text)
            if found is not None and found[0] is results:
                self._of_threads.pop(text, None)

    def is_embedding(self, text: str, carrier: CallResults, place: int) -> bool:
        """Return whether the call with the results ``carrier`` is still embedding ``text``."""
        one = (carrier, place)
        return self._carriers.get(text) == one or self._of_threads.get(text) == one

    def leave(self, texts: Texts, results: CallResults) -> None:
        """Remove this call's texts; calls that still wait for one must send it themselves."""
        if len(texts) == len(self._carriers):
            self._carriers = {}  # only this call has texts in the table
        else:
            for _, text in texts:
                self._carriers.pop(text, None)
        results.wake_all()
