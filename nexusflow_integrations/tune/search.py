"""Decide which settings to measure, one stage after the other, and choose one of them.

The search is not a full grid: each stage varies one property of the best setting so far. The stages
with the largest effect come first. This module sends and measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexusflow_integrations.tune.retrieval import STORAGES, Storage
from nexusflow_integrations.tune.scores import Bootstrap, Floats, Interval, tellable
from nexusflow_integrations.tune.settings import METHODS, Cutting, Method, Setting

READ = 4000
"""Number of characters read for each question when lengths of passages are compared."""
POINT = 0.01
"""One point of nDCG@10: the most that the choice may lose with other questions of this kind."""
ALLOWED = POINT / 2
"""The most that the choice may lose with these questions. With other questions it should then lose
less than a point. Another way of cutting or another instruction must gain at least as much."""
FEW = 0.05
"""If only larger differences are measurable, the questions are too few to choose well."""

_ROUNDING = 1e-9
_UNSEEN = 3
"""Rule of three: what none of n questions shows happens in at most 3 of n (95 % confidence)."""
_FEWEST_GAINS = 6
"""Smallest number of questions that must gain: fewer may be chance (sign test, 5 %)."""


@dataclass(frozen=True)
class Measured:
    """A setting and its measurements.

    Attributes:
        setting: The setting.
        scores: The scores of ``MEASURES`` for each question, float64 of shape (questions, 3).
        tokens: Estimated tokens to embed all passages, or 0 without vectors.
        bytes: Size of the index in bytes: vectors and keywords, without the texts.
        passages: Number of passages.
        seconds: Median time of a search for one question, without its embedding.
        read: For each question, 1 if its answer is in the first passages with a total of at most
            ``READ`` characters, else 0; float64 of shape (questions,).
    """

    setting: Setting
    scores: Floats
    tokens: int
    bytes: int
    passages: int
    seconds: float
    read: Floats

    @property
    def quality(self) -> Floats:
        """nDCG@10 of each question, shape (questions,)."""
        return self.scores[:, 0]

    @property
    def mean(self) -> float:
        """Mean nDCG@10."""
        return float(self.quality.mean())


@dataclass(frozen=True)
class Options:
    """The settings that may be measured.

    Attributes:
        sizes: Sizes of vectors, largest first.
        lengths: Maximum characters of a passage.
        overlaps: Overlaps, as a share of the length.
        headings: Whether to also measure passages without the headings above them.
        query_instructions: Texts to put in front of each query.
        document_instructions: Texts to put in front of each passage.
        hybrid: Whether to measure keywords, alone and together with vectors.
        storages: Formats of vectors to compare.
    """

    sizes: tuple[int, ...]
    lengths: tuple[int, ...] = (400, 800, 1600)
    overlaps: tuple[float, ...] = (0.125,)
    headings: bool = True
    query_instructions: tuple[str, ...] = ()
    document_instructions: tuple[str, ...] = ()
    hybrid: bool = True
    storages: tuple[Storage, ...] = STORAGES

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods to measure."""
        return METHODS if self.hybrid else ("vectors",)


@dataclass(frozen=True)
class Stage:
    """Settings that are measured together.

    Attributes:
        name: The property that the stage varies, for messages.
        settings: The settings, without those that were measured before.
        paid: Whether the settings may need vectors that were not embedded before.
    """

    name: str
    settings: tuple[Setting, ...]
    paid: bool = True


Search = Generator[Stage, Sequence[Measured], None]
"""Yields stages and receives their measurements, perhaps of only some of the settings."""


def search(
    first: Setting, options: Options, bootstrap: Bootstrap, start: Setting | None = None
) -> Search:
    """Vary one property after the other, beginning with ``first``, which has the largest size.

    ``start``, the setting that `choose` keeps if the questions are too few, is measured as well.

    If the best setting is within one point of a perfect score, stages that could only raise the
    score are left out, because no gain would be measurable.
    """
    measured = list((yield Stage("method", _methods([first], options))))
    if not measured:
        return
    current = _usable(measured)[0].setting
    for name, vary in _VARIED:
        others = [
            setting for setting in dict.fromkeys(vary(current, options)) if setting != current
        ]
        best = max(_of_length(measured, current.cutting.characters), key=lambda item: item.mean)
        if not others or 1 - best.mean <= POINT:
            continue
        measured += yield Stage(name, _new(_methods(others, options), measured))
        if vary is _lengths:
            characters = best_length(measured, bootstrap)
            current = replace(current, cutting=replace(current.cutting, characters=characters))
        else:
            current = _winner(current, _of_length(measured, current.cutting.characters), bootstrap)
    sized = [replace(current, dimensions=size) for size in options.sizes]
    # The start comes first, because the budget may end within the stage.
    compared = (*(() if start is None else (start,)), *_methods(sized, options))
    measured += yield Stage("size", _new(compared, measured), paid=False)
    chosen = choose(measured, bootstrap, start).setting
    stored = tuple(replace(chosen, storage=storage) for storage in options.storages)
    if stored := _new(stored, measured):
        yield Stage("storage", stored, paid=False)


def drive(stages: Search, measure: Callable[[Stage], Sequence[Measured]]) -> list[Measured]:
    """Measure every stage, and return all measurements."""
    found: list[Measured] = []
    try:
        stage = next(stages)
        while True:
            rows = measure(stage)
            found += rows
            stage = stages.send(rows)
    except StopIteration:
        return found


def _methods(settings: Sequence[Setting], options: Options) -> tuple[Setting, ...]:
    return tuple(
        dict.fromkeys(item.with_method(method) for item in settings for method in options.methods)
    )


def _new(settings: Sequence[Setting], measured: Sequence[Measured]) -> tuple[Setting, ...]:
    known = {item.setting for item in measured}
    return tuple(item for item in dict.fromkeys(settings) if item not in known)


def _usable(measured: Sequence[Measured]) -> list[Measured]:
    return [item for item in measured if item.setting.usable]


def _of_length(measured: Sequence[Measured], characters: int) -> list[Measured]:
    return [item for item in measured if item.setting.cutting.characters == characters]


def best_length(measured: Sequence[Measured], bootstrap: Bootstrap) -> int:
    """Return the length of passages with which the same amount of text gives the most answers.

    nDCG@10 would always favour long passages, because ten of them have more text. The length of the
    first setting is kept, unless another length is measurably better.
    """
    first, best = measured[0].setting, readings(measured)
    own = best[first.cutting.characters]
    other = max(best.values(), key=lambda item: item.read.mean())
    if bootstrap.interval(other.read - own.read).low > 0:
        return other.setting.cutting.characters
    return first.cutting.characters


def readings(measured: Sequence[Measured]) -> dict[int, Measured]:
    """Return, for each passage length, the setting that stands for it in the comparison.

    This setting differs from the first one only in length and method. The method with more answers
    in the first ``READ`` characters counts.
    """
    first = replace(measured[0].setting, method="vectors")
    best: dict[int, Measured] = {}
    for item in _usable(measured):
        characters = item.setting.cutting.characters
        moved = replace(first, cutting=replace(first.cutting, characters=characters))
        if replace(item.setting, method="vectors") == moved:
            ahead = best.get(characters, item)
            best[characters] = max(ahead, item, key=lambda item: item.read.mean())
    return best


def _winner(current: Setting, measured: Sequence[Measured], bootstrap: Bootstrap) -> Setting:
    """Return the setting to continue with: ``current``, unless another is measurably better."""
    same = replace(current, method="vectors")
    kept = [item for item in measured if replace(item.setting, method="vectors") == same]
    best = max(_usable(measured), key=lambda item: item.mean)
    ahead = max(_usable(kept), key=lambda item: item.mean)
    if _as_good(ahead, best, bootstrap):
        return current
    return replace(best.setting, method="vectors")


def _lengths(current: Setting, options: Options) -> list[Setting]:
    return [
        replace(current, cutting=replace(current.cutting, characters=length))
        for length in options.lengths
    ]


def _queries(current: Setting, options: Options) -> list[Setting]:
    return [replace(current, query_instruction=text) for text in options.query_instructions]


def _headings(current: Setting, options: Options) -> list[Setting]:
    cutting = current.cutting
    if not options.headings:
        return []
    return [replace(current, cutting=replace(cutting, headings=not cutting.headings))]


def _overlaps(current: Setting, options: Options) -> list[Setting]:
    cutting = current.cutting
    return [
        replace(current, cutting=replace(cutting, overlap=round(share * cutting.characters)))
        for share in options.overlaps
    ]


def _documents(current: Setting, options: Options) -> list[Setting]:
    return [replace(current, document_instruction=text) for text in options.document_instructions]


_VARIED: tuple[tuple[str, Callable[[Setting, Options], list[Setting]]], ...] = (
    ("passage length", _lengths),
    ("query instruction", _queries),
    ("headings", _headings),
    ("overlap", _overlaps),
    ("document instruction", _documents),
)


def possible_cuttings(first: Cutting, options: Options) -> dict[str, list[list[Cutting]]]:
    """Return, for each stage that cuts documents, the cuttings that it may embed in each case."""
    base = Setting(first, options.sizes[0])
    lengths = [item.cutting for item in dict.fromkeys([base, *_lengths(base, options)])]
    other = [
        [item.cutting for item in _headings(replace(base, cutting=cutting), options)]
        for cutting in lengths
    ]
    overlapping = [
        [item.cutting for item in _overlaps(replace(base, cutting=cutting), options)]
        for cutting in lengths
    ]
    return {
        "method": [[first]],
        "passage length": [[cutting for cutting in lengths if cutting != first]],
        "headings": other,
        "overlap": overlapping,
    }


# -- choosing ------------------------------------------------------------------------------------


def difference(item: Measured, best: Measured, bootstrap: Bootstrap, column: int = 0) -> Interval:
    """Return the score of ``item`` minus that of ``best``, paired by question."""
    return bootstrap.interval(item.scores[:, column] - best.scores[:, column])


def _as_good(item: Measured, best: Measured, bootstrap: Bootstrap) -> bool:
    if item.mean >= best.mean:
        return True
    apart = difference(item, best, bootstrap)
    return apart.value >= -ALLOWED and apart.includes_zero


def best_of(
    measured: Sequence[Measured], bootstrap: Bootstrap, characters: int | None = None
) -> Measured:
    """Return the usable setting with the highest mean nDCG@10. In a tie, return the smallest one.

    Only settings with passages of one length count: of ``characters``, or by default of the best
    length (see `best_length`).
    """
    characters = best_length(measured, bootstrap) if characters is None else characters
    return _highest(_usable(_of_length(measured, characters)))


def _highest(fit: Sequence[Measured]) -> Measured:
    return max(fit, key=lambda item: (item.mean, *(-part for part in _price(item))))


def measurable(measured: Sequence[Measured], bootstrap: Bootstrap) -> float:
    """Return the smallest measurable difference in nDCG@10, as the median over the settings.

    If no interval has a width, such as with one question, return the usual value for this number
    of questions. If settings differ in hardly any question, the intervals are too narrow, so the
    value is at least that of the rule of three.
    """
    best = best_of(measured, bootstrap)
    found = (difference(item, best, bootstrap) for item in measured)
    widths = sorted(width for apart in found if (width := (apart.high - apart.low) / 2) > _ROUNDING)
    questions = len(best.quality)
    if not widths:
        return tellable(questions)
    return max(widths[len(widths) // 2], min(1.0, _UNSEEN / questions))


def choose(
    measured: Sequence[Measured], bootstrap: Bootstrap, start: Setting | None = None
) -> Measured:
    """Return the smallest and cheapest usable setting that is not measurably worse than the best.

    The mean nDCG@10 of the choice is at most half a point below the best, and the interval of the
    difference includes 0.

    With ``start``, and too few questions to choose well, return ``start``, or choose from the
    settings that are measurably better. Otherwise the highest of many noisy scores would win.
    """
    if start is not None and measurable(measured, bootstrap) > FEW:
        kept = kept_of(measured, start)
        fit = _usable(_of_length(measured, kept.setting.cutting.characters))
        better = [item for item in fit if _better(item, kept, bootstrap)]
        return _cheapest(better, bootstrap) if better else kept
    return _cheapest(_usable(_of_length(measured, best_length(measured, bootstrap))), bootstrap)


def kept_of(measured: Sequence[Measured], start: Setting) -> Measured:
    """Return ``start`` as measured, or if the budget did not allow it, the first setting."""
    return next((item for item in measured if item.setting == start), measured[0])


def _better(item: Measured, kept: Measured, bootstrap: Bootstrap) -> bool:
    gains = int((item.quality > kept.quality).sum())
    return gains >= _FEWEST_GAINS and difference(item, kept, bootstrap).low > 0


def _cheapest(fit: Sequence[Measured], bootstrap: Bootstrap) -> Measured:
    best = _highest(fit)
    return min((item for item in fit if _as_good(item, best, bootstrap)), key=_price)


def _price(item: Measured) -> tuple[Any, ...]:
    return (item.bytes, item.tokens, item.setting.query_instruction is not None)
