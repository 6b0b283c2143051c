"""Score rankings with ``ir-measures``, and compute how much scores vary between questions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nexusflow_integrations._core.needed import needed

MEASURES = ("nDCG@10", "recall@5", "hit@1")
"""Names of the scores, in the order of the columns."""
DEPTH = 10
"""Number of results that are judged."""

Floats = NDArray[np.float64]
_SAMPLES = 2000
_SEED = 19


@dataclass(frozen=True)
class Interval:
    """A score, or the difference of two, as the mean over all questions.

    Attributes:
        value: The mean.
        low: The lower end of the interval.
        high: The upper end of the interval. With the same number of other questions of this
            kind, the mean would be in the interval in 95 % of cases.
    """

    value: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether the interval includes 0."""
        return self.low <= 0 <= self.high


def need_measures() -> None:
    """Raise an ``ImportError`` that names the missing package, before anything is paid for."""
    with needed("Tuning", "ir_measures", install="nexusflow-integrations[tune]"):
        import ir_measures  # noqa: F401


def judge(ranked: Sequence[Sequence[str]], right: Sequence[Collection[str]]) -> Floats:
    """Score rankings.

    Args:
        ranked: For each question, the names found, best first.
        right: For each question, the names that answer it. A question without names scores 0.

    Returns:
        Float64 of shape (questions, 3): the scores of ``MEASURES``, each from 0 to 1.
    """
    need_measures()
    import ir_measures
    from ir_measures import R, Success, nDCG

    columns = {nDCG @ DEPTH: 0, R @ 5: 1, Success @ 1: 2}
    scores = np.zeros((len(ranked), len(columns)))
    # trec_eval crashes the process at a name that is not UTF-8, so names are numbered.
    numbers: dict[str, str] = {}

    def number(name: str) -> str:
        return numbers.setdefault(name, str(len(numbers)))

    truth: dict[str, Mapping[str, int]] = {
        str(i): dict.fromkeys(map(number, names), 1) for i, names in enumerate(right) if names
    }
    if not truth:
        return scores
    run = {
        # trec_eval orders by score, so the rank is passed as a score.
        str(i): {number(name): float(-rank) for rank, name in enumerate(dict.fromkeys(names))}
        for i, names in enumerate(ranked)
        if str(i) in truth
    }
    for found in ir_measures.iter_calc([*columns], truth, run):
        scores[int(found.query_id), columns[found.measure]] = found.value
    return scores


class Bootstrap:
    """Resamples the questions in the same way for all settings, so that scores stay paired."""

    def __init__(self, questions: int) -> None:
        random = np.random.default_rng(_SEED)
        # How often each question is drawn, in two samples that do not depend on each other.
        first, second = (_counts(random, questions) for _ in range(2))
        # The measured mean is itself a random draw, like the mean of another set of questions.
        self._weights = (first - second) / questions
        # A bootstrap of few values is too narrow. This corrects the variance and, to first order,
        # the difference between Student's t and the normal distribution.
        freedom = max(1, questions - 1)
        self._wider = float(np.sqrt(questions / freedom) * (1 + 1.21 / freedom))

    def interval(self, scores: Floats, lowest: float = -1.0) -> Interval:
        """Return the mean of ``scores``, float64 of shape (questions,), and its interval.

        The interval is limited to ``lowest`` and 1, like the mean. Pass -1 for a difference and 0
        for a score. The interval is wider than a confidence interval of the mean by the square root
        of two, because the mean of these questions and the mean of other questions both vary.
        """
        mean = float(scores.mean())
        apart = self._wider * (self._weights @ scores)
        low, high = np.quantile(apart, (0.025, 0.975))
        return Interval(mean, max(lowest, mean + float(low)), min(1.0, mean + float(high)))


def _counts(random: np.random.Generator, questions: int) -> NDArray[np.int64]:
    drawn = random.integers(0, questions, (_SAMPLES, questions))
    drawn += np.arange(_SAMPLES)[:, None] * questions
    return np.bincount(drawn.ravel(), minlength=_SAMPLES * questions).reshape(_SAMPLES, -1)


def tellable(questions: int, deviation: float = 0.3) -> float:
    """Return the smallest difference of two scores that this many questions can show.

    Args:
        questions: Number of questions.
        deviation: Standard deviation of one question's difference. The default of 0.3 is a safe
            assumption for similar settings before anything is measured.
    """
    return float(1.96 * deviation * np.sqrt(2 / questions))
