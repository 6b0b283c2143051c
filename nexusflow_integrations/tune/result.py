"""The result of a run: the measured settings, the choice, and a sentence about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations._core.usage import Usage, known
from nexusflow_integrations.tune.questions import Question
from nexusflow_integrations.tune.scores import MEASURES, Bootstrap, Interval
from nexusflow_integrations.tune.search import (
    FEW,
    POINT,
    READ,
    Measured,
    best_of,
    difference,
    measurable,
    readings,
)
from nexusflow_integrations.tune.settings import Setting
from nexusflow_integrations.tune.written import ChatUsage


@dataclass(frozen=True)
class TuneResult:
    """The result of a run.

    Attributes:
        questions: The questions.
        made: Whether the questions were made from the documents.
        measured: Every measured setting, in the order of the stages.
        chosen: The smallest and cheapest setting that is not measurably worse than the best. If the
            questions are too few to choose well: ``start``, unless a setting is measurably better.
        start: The setting without tuning: ``start`` of `Tuning`, by default the package's default
            settings. If the budget did not allow measuring it, the first measured setting takes its
            place.
        model: The name of the embedding model.
        cut_sizes: Sizes whose vectors are the beginning of the largest ones. These vectors were
            cut, not paid for.
        paid_sizes: Sizes whose vectors are not the beginning of the largest ones. Each was embedded
            and paid for.
        skipped: Settings that the budget did not allow, one line for each stage.
        left_out: Number of passages that the service refused. No setting can find them.
        predicted_tokens: Sum of the estimates made before each embedding.
        usage: Usage of the embedding model, without the chat model.
        chat: Usage of the chat model that wrote the questions; ``None`` without a chat model.
        unwritten: Number of questions that the budget did not allow the chat model to write.
        unmeasured: The setting without tuning, if the budget did not allow measuring it.
    """

    questions: tuple[Question, ...]
    made: bool
    measured: tuple[Measured, ...]
    chosen: Measured
    start: Measured
    model: str
    cut_sizes: tuple[int, ...]
    paid_sizes: tuple[int, ...]
    skipped: tuple[str, ...]
    left_out: int
    predicted_tokens: int
    usage: Usage
    chat: ChatUsage | None = None
    unwritten: int = 0
    unmeasured: Setting | None = None

    @property
    def settings(self) -> TunedSettings:
        """The chosen settings, which can be saved or applied."""
        return self.choice.tuned(self.model)

    @property
    def choice(self) -> Setting:
        """The setting of ``chosen``, or ``unmeasured`` if that is kept without measurements."""
        if self.unmeasured is not None and self.too_few and self.chosen is self.start:
            return self.unmeasured
        return self.chosen.setting

    @cached_property
    def best(self) -> Measured:
        """The usable setting with the highest mean nDCG@10 among those of the chosen length."""
        return best_of(self.measured, self._bootstrap, self.chosen.setting.cutting.characters)

    @property
    def _of_the_length(self) -> list[Measured]:
        """The settings with passages of the chosen length; other scores are not comparable."""
        characters = self.chosen.setting.cutting.characters
        return [item for item in self.measured if item.setting.cutting.characters == characters]

    @cached_property
    def _bootstrap(self) -> Bootstrap:
        return Bootstrap(len(self.questions))

    def score(self, item: Measured, column: int = 0) -> Interval:
        """Return a score of ``item``; ``column`` is an index into ``MEASURES``."""
        return self._bootstrap.interval(item.scores[:, column], lowest=0.0)

    def difference(self, item: Measured, column: int = 0) -> Interval:
        """Return the score of ``item`` minus that of the best setting, paired by question."""
        return difference(item, self.best, self._bootstrap, column)

    def read(self) -> dict[int, float]:
        """Return, by length of passages, the share of questions answered in ``READ`` characters.

        The characters are those of the first passages found. As in `best_length`, the better of two
        methods counts: vectors alone, or vectors with keywords.
        """
        return {
            length: float(item.read.mean())
            for length, item in sorted(readings(self.measured).items())
        }

    @cached_property
    def tellable(self) -> float:
        """The smallest measurable difference in nDCG@10, as the median over the settings.

        If no interval has a width, such as with one question, it is the usual value for this number
        of questions.
        """
        return measurable(self.measured, self._bootstrap)

    @property
    def too_few(self) -> bool:
        """Whether the questions are too few to choose well."""
        return self.tellable > FEW

    def sentence(self) -> str:
        """Return the choice in one sentence, or that the questions are too few."""
        if self.too_few:
            return self._said_of_few()
        chosen, best, apart = self.chosen, self.best, self.difference(self.chosen)
        if chosen is best:
            same = [item for item in self._of_the_length if item.setting.usable]
            others = len(self._of_the_length) < len(self.measured)
            length = f" with passages of {chosen.setting.cutting.characters:,} characters"
            why = (
                f"its nDCG@10 of {best.mean:.3f} is the highest of the settings"
                f"{length if others else ''} that can be applied"
            )
            if any(item.bytes < chosen.bytes for item in same):
                why += (
                    ", and each of them with a smaller index scores measurably lower, or lower by"
                    " more than half a point"
                )
        else:
            why = (
                f"its nDCG@10 of {chosen.mean:.3f} is not measurably below the best,"
                f" {best.mean:.3f} with {best.setting} (difference {apart.value:+.3f}, 95 %"
                f" interval {apart.low:+.3f} to {apart.high:+.3f}), and it needs"
                f" {chosen.bytes / best.bytes:.0%} of the bytes"
            )
        return f"Take {chosen.setting}: {why}."

    def _said_of_few(self) -> str:
        chosen, start, best = self.chosen, self.start, self.best
        few = (
            f"The questions are too few: by the scores measured, they cannot show differences below"
            f" {self.tellable:.2f}."
        )
        if chosen is not start:
            apart = difference(chosen, start, self._bootstrap)
            return (
                f"{few} But {chosen.setting} is measurably better than {start.setting}: its nDCG@10"
                f" is {chosen.mean:.3f} instead of {start.mean:.3f} (difference {apart.value:+.3f},"
                f" 95 % interval {apart.low:+.3f} to {apart.high:+.3f})."
            )
        chance = ""
        if best.mean > start.mean:
            chance = f"; the highest, {best.mean:.3f} with {best.setting}, may be chance"
        if self.unmeasured is not None:
            return (
                f"{few} Keep the settings without tuning, {self.unmeasured}; the budget was too"
                f" small to measure them. The nDCG@10 of {start.setting} is {start.mean:.3f}, and"
                f" no setting is measurably better{chance}."
            )
        return (
            f"{few} Keep {start.setting}: its nDCG@10 is {start.mean:.3f}, and no setting is"
            f" measurably better{chance}."
        )

    def notes(self) -> list[str]:
        """Return notes about the run that qualify the choice."""
        notes = []
        if self.made:
            notes.append(
                "The questions were made from the documents: they are sentences and headings that"
                " were removed from the texts. Questions of real users are better."
            )
        if self.chat is not None:
            notes.append(
                f"The questions were written by {self.chat.model}, each about one passage. Other"
                " passages may answer them, too. Questions of real users are better."
            )
            if self.chat.useless:
                notes.append(
                    f"{self.chat.useless:,} of {count(self.chat.calls, 'answer')} of"
                    f" {self.chat.model} had no usable question."
                )
        if self.unwritten:
            notes.append(f"The budget was too small to write {count(self.unwritten, 'question')}.")
        if self.paid_sizes:
            sizes = ", ".join(map(str, self.paid_sizes))
            notes.append(
                f"The service's vectors of {sizes} numbers are not the beginning of its largest"
                " ones, so each of these sizes was embedded and paid for separately."
            )
        words = [item for item in self._of_the_length if item.setting.method == "keywords"]
        if words:
            item = max(words, key=lambda item: item.mean)
            apart = self.difference(item)
            if apart.value > 0 or (apart.includes_zero and apart.value >= -POINT):
                notes.append(
                    "Keywords alone are not measurably worse than the best: nDCG@10"
                    f" {item.mean:.3f}, without vectors."
                )
        read = self.read()
        if len(read) > 1:
            shares = ", ".join(f"{share:.3f} with {length:,}" for length, share in read.items())
            notes.append(
                f"Passage lengths are compared by how often the first {READ:,} characters found"
                f" contain an answer: {shares}. Their nDCG@10 is not comparable, because a result"
                " of longer passages has more text to read."
            )
        if self.left_out:
            notes.append(
                f"The service refused {count(self.left_out, 'passage')}. No setting can find them."
            )
        return [*notes, *(f"Not tried: {item}." for item in self.skipped)]

    def as_json(self) -> dict[str, Any]:
        """Return everything for ``--json`` except the scores of single questions."""
        return {
            "questions": len(self.questions),
            "read": {str(length): round(share, 4) for length, share in self.read().items()},
            "made": self.made,
            "tellable": round(self.tellable, 4),
            "too_few": self.too_few,
            "choice": asdict(self.settings),
            "sentence": self.sentence(),
            "notes": self.notes(),
            "cut_sizes": list(self.cut_sizes),
            "paid_sizes": list(self.paid_sizes),
            "predicted_tokens": self.predicted_tokens,
            "tokens": self.usage.tokens,
            "list_price": known(self.usage.cost),
            "currency": self.usage.currency,
            "chat": None if self.chat is None else self._chat_json(self.chat),
            "settings": [self._row(item) for item in self.measured],
        }

    def _chat_json(self, chat: ChatUsage) -> dict[str, Any]:
        return {
            "model": chat.model,
            "calls": chat.calls,
            "useless": chat.useless,
            "sent_tokens": chat.sent if chat.known else None,
            "written_tokens": chat.written if chat.known else None,
            "price": known(chat.cost),
        }

    def _row(self, item: Measured) -> dict[str, Any]:
        setting = item.setting
        return {
            "setting": str(setting),
            "method": setting.method,
            "dimensions": setting.dimensions,
            "storage": setting.storage,
            **asdict(setting.cutting),
            "query_instruction": setting.query_instruction,
            "document_instruction": setting.document_instruction,
            "chosen": setting == self.choice,
            "best": item is self.best,
            "scores": {
                name: {
                    **_rounded(self.score(item, column)),
                    "difference": _rounded(self.difference(item, column)),
                }
                for column, name in enumerate(MEASURES)
            },
            "read": round(float(item.read.mean()), 4),
            "passages": item.passages,
            "tokens": item.tokens,
            "list_price": known(self.usage.price.of(item.tokens)),
            "bytes": item.bytes,
            "milliseconds": round(1000 * item.seconds, 3),
        }


def _rounded(found: Interval) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(found).items()}
