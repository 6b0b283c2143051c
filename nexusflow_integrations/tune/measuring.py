"""Measures settings: embeds texts stage by stage, ranks passages and judges the rankings."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nexusflow_integrations._core.comparing import TOLERANCE, deviation
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import BudgetExceededError
from nexusflow_integrations.tune.passages import is_read
from nexusflow_integrations.tune.questions import Truth
from nexusflow_integrations.tune.retrieval import (
    Places,
    Vectored,
    bytes_of_vectors,
    joined,
    shortened,
)
from nexusflow_integrations.tune.scores import DEPTH, judge
from nexusflow_integrations.tune.search import Measured, Stage
from nexusflow_integrations.tune.settings import Cutting, Setting

if TYPE_CHECKING:
    from nexusflow_integrations.tune.run import Tuning

_POOL = 100
"""Number of passages in each ranking."""
_TIMED = 30


@dataclass
class Measuring:
    """Embeds every text that the settings need, each only once, and measures the settings."""

    tuning: Tuning
    largest: NexusFlow
    predicted: float = 0.0
    cut_sizes: list[int] = field(default_factory=list)
    paid_sizes: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left_out: int = 0
    _clients: dict[int, NexusFlow] = field(default_factory=dict)
    _before: Usage = field(default_factory=Usage)
    _held: dict[int, dict[str, Vectors]] = field(default_factory=dict)
    _ranked: dict[Setting, tuple[list[Places], float]] = field(default_factory=dict)
    _truths: dict[Cutting, Truth] = field(default_factory=dict)
    _per_estimate: dict[str, float] = field(default_factory=dict)

    def stage(self, stage: Stage) -> list[Measured]:
        """Measure the settings that the budget allows, and add the others to ``skipped``."""
        found: list[Measured] = []
        skipped: list[Setting] = []
        if first := not self._truths:
            needed = self.tuning.plan().stages[0].tokens
            if needed > self._left():
                raise BudgetExceededError(
                    f"the first stage needs about {needed:,} tokens, and the budget allows"
                    f" {self._left():,.0f}: nothing was sent"
                )
            self._probe_sizes()
        kept = [item for item in stage.settings if first or not self._same_passages(item)]
        for setting in kept:
            if (measured := self._within_budget(setting, must=first)) is None:
                skipped.append(setting)
            else:
                found.append(measured)
        if skipped:
            names = "; ".join(map(str, skipped))
            self.skipped.append(f"{stage.name}: {names}: the budget is too small")
        return found

    def _within_budget(self, setting: Setting, *, must: bool) -> Measured | None:
        if not must and self._missing(setting) > self._left():
            return None
        try:
            return self._measure(setting)
        except BudgetExceededError:
            if must:
                raise
            return None

    @property
    def usage(self) -> Usage:
        """Usage of the embedding model so far."""
        total = Usage(price=self.largest.price)
        for client in self._clients.values():
            total += client.usage
        return total - self._before

    def _client(self, size: int) -> NexusFlow:
        if size not in self._clients:
            client = self._clients[size] = self.tuning._client.resized(size)
            self._before += client.usage
        return self._clients[size]

    def _probe_sizes(self) -> None:
        """Find the smaller sizes that are cut from the largest vectors and need no requests."""
        largest, *smaller = self.tuning._options.sizes
        passages, questions = self.tuning._probe()
        rows = np.concatenate(
            [
                self._embed("passages", passages, largest),
                self._embed("questions", questions, largest),
            ]
        )
        for size in smaller:
            own = self._embed("passages", [*passages, *questions], size)
            apart = max(map(deviation, shortened(rows, size), shortened(own, size)))
            (self.cut_sizes if apart <= TOLERANCE else self.paid_sizes).append(size)

    def _embed(self, kind: str, texts: Sequence[str], size: int) -> Vectors:
        """Return the vectors of ``texts``, float32 of shape (n, size); zeros if one was refused."""
        held = self._held.setdefault(size, {})
        missing = list(dict.fromkeys(text for text in texts if text not in held))
        if missing:
            client = self._client(size)
            estimate = client.estimate(missing).tokens
            self.predicted += self._per_estimate.get(kind, 1.0) * estimate
            before = client.usage.tokens
            done = 0

            def embedded(number: int) -> None:
                nonlocal done
                done += number
                self.tuning._embedding = f"embedding: {done:,}/{len(missing):,} {kind}"

            embedded(0)
            rows = client.embed(missing, on_refused="collect", progress=embedded)
            if (billed := client.usage.tokens - before) and estimate:
                # This ratio corrects later estimates according to what the service last billed.
                self._per_estimate[kind] = billed / estimate
            blank = np.zeros(size, np.float32)
            self.left_out += sum(row is None for row in rows)
            held |= {
                text: blank if row is None else row for text, row in zip(missing, rows, strict=True)
            }
        return np.array([held[text] for text in texts], np.float32)

    def _same_passages(self, setting: Setting) -> bool:
        """Return whether an earlier way of cutting gave the same passages, as for short texts."""
        passages = self.tuning._passages(setting.cutting).texts
        return any(
            cutting != setting.cutting and self.tuning._passages(cutting).texts == passages
            for cutting in self._truths
        )

    def _missing(self, setting: Setting) -> float:
        """Return the tokens that the vectors of a setting will cost."""
        if setting.method == "keywords":
            return 0.0
        size, tokens = self._embedded_size(setting), 0.0
        held = self._held.get(size, {})
        for kind, texts in self._texts(setting).items():
            missing = [text for text in texts if text not in held]
            estimate = self._client(size).estimate(missing).tokens if missing else 0
            tokens += self._per_estimate.get(kind, 1.0) * estimate
        return tokens

    def _left(self) -> float:
        budget = self.tuning._budget
        if budget is None:
            return math.inf
        return budget.in_tokens(self.largest.price) - self.usage.tokens

    def _embedded_size(self, setting: Setting) -> int:
        size = setting.dimensions
        return size if size in self.paid_sizes else self.tuning._options.sizes[0]

    def _texts(self, setting: Setting) -> dict[str, list[str]]:
        front, ask = setting.document_instruction or "", setting.query_instruction or ""
        passages = self.tuning._passages(setting.cutting)
        return {
            "passages": [front + text for text in passages.texts],
            "questions": [ask + question.text for question in self.tuning.questions],
        }

    def _vectors(self, setting: Setting) -> list[Vectors]:
        """Return the vectors of the passages and of the questions, at the setting's size."""
        size = self._embedded_size(setting)
        return [
            shortened(self._embed(kind, texts, size), setting.dimensions)
            for kind, texts in self._texts(setting).items()
        ]

    def _ranking(self, setting: Setting) -> tuple[list[Places], float]:
        """Return the indices of each question's passages, and the median time per question."""
        key = setting
        if key in self._ranked:
            return self._ranked[key]
        questions = self.tuning.questions
        if setting.method == "hybrid":
            vectors, one = self._ranking(setting.with_method("vectors"))
            keywords, other = self._ranking(setting.with_method("keywords"))
            began = time.perf_counter()
            places = [joined(*pair, k=_POOL) for pair in zip(vectors, keywords, strict=True)]
            joining = (time.perf_counter() - began) / len(questions)
            self._ranked[key] = places, one + other + joining
        elif setting.method == "keywords":
            words = self.tuning._passages(setting.cutting).keywords
            places, times = [], []
            for question in questions:
                began = time.perf_counter()
                places.append(
                    np.array([at for at, _ in words.places(question.text, _POOL)], np.int64)
                )
                times.append(time.perf_counter() - began)
            self._ranked[key] = places, float(np.median(times))
        else:
            rows, queries = self._vectors(setting)
            times = []
            index = Vectored(rows, setting.storage)
            for query in queries[:_TIMED]:
                began = time.perf_counter()
                index.nearest(query[None], _POOL)
                times.append(time.perf_counter() - began)
            self._ranked[key] = index.nearest(queries, _POOL), float(np.median(times))
        return self._ranked[key]

    def _measure(self, setting: Setting) -> Measured:
        passages = self.tuning._passages(setting.cutting)
        places, seconds = self._ranking(setting)
        if setting.cutting not in self._truths:
            self._truths[setting.cutting] = passages.truth(self.tuning.questions)
        truth = self._truths[setting.cutting]
        ranked = []
        for number, found in enumerate(places):
            names = [truth.name(number, place) for place in found.tolist()]
            ranked.append(list(dict.fromkeys(names))[:DEPTH])
        read = [
            is_read(number, found.tolist(), truth, passages) for number, found in enumerate(places)
        ]
        size = bytes_of_vectors(len(passages.texts), setting.dimensions, setting.storage)
        if setting.method != "vectors":
            size += passages.keywords.nbytes
        tokens = 0 if setting.method == "keywords" else self._tokens(setting)
        return Measured(
            setting,
            judge(ranked, truth.right),
            tokens,
            size,
            len(passages.texts),
            seconds,
            np.array(read, np.float64),
        )

    def _tokens(self, setting: Setting) -> int:
        passages = self.tuning._passages(setting.cutting)
        if not setting.document_instruction:
            return passages.tokens
        texts = [setting.document_instruction + text for text in passages.texts]
        return self.largest._uncached().estimate(texts).tokens
